//! `response_cache`: whether a model's answers are kept.

use super::diagnostic::{ConfigError, ConfigWarning};
use super::ensemble::is_ensemble;
use super::message::Message;

/// Whether answers of the model are kept.
pub(super) fn read(config: &Message) -> Result<bool, ConfigError> {
    let Some(cache) = config.message("response_cache").filter(|cache| cache.flag("enable")) else { return Ok(false) };
    let refused = if config.get("sequence_batching").is_some() {
        Some("sequence_batching: an answer depends on the requests before it")
    } else if config.message("model_transaction_policy").is_some_and(|policy| policy.flag("decoupled")) {
        Some("model_transaction_policy.decoupled: a request may have any number of answers")
    } else {
        None
    };
    match refused {
        Some(why) => {
            let text = format!("response_cache cannot be enabled with {why}; leave one of them out");
            Err(ConfigError::invalid(cache.position_of("enable"), text))
        }
        None => Ok(!is_ensemble(config)),
    }
}

/// What is said of an ensemble: its answers change when a model of its steps does, which its own content does not tell.
pub(super) fn warning(config: &Message) -> Option<ConfigWarning> {
    let cache = config.message("response_cache").filter(|cache| cache.flag("enable") && is_ensemble(config))?;
    let text = "'response_cache.enable' has no effect on an ensemble: enable it for the models of its steps";
    Some(ConfigWarning::new(cache.position_of("enable"), text))
}

#[cfg(test)]
mod tests {
    use crate::model_config::{UnknownFields, parse};

    #[test]
    fn it_is_read_and_off_unless_enabled() {
        let enabled = |text| parse(text, UnknownFields::Deny).unwrap().config.response_cache;
        assert!(enabled("response_cache { enable: true }"));
        assert!(!enabled("response_cache { enable: false }") && !enabled("response_cache { }") && !enabled(""));
    }

    #[test]
    fn what_has_no_single_answer_is_refused_with_its_place() {
        for (with, name) in [
            ("sequence_batching { }", "sequence_batching"),
            ("model_transaction_policy { decoupled: true }", "model_transaction_policy.decoupled"),
        ] {
            let text = format!("response_cache {{ enable: true }} {with}");
            let found = parse(&text, UnknownFields::Deny).unwrap_err().to_string();
            assert!(found.starts_with("config.pbtxt:1:18: response_cache cannot be enabled with "), "{found}");
            assert!(found.contains(name), "{found}");
        }
    }
}
