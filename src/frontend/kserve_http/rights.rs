//! Which right a path of the inference port needs, and which model it is about; known before a body is read.

use std::borrow::Cow;

use super::super::access::{Class, EVERY_MODEL};
use super::super::percent::decode;
use super::MODELS;
use super::route::{Action, ModelRoute};

/// The right and the model. What is nothing here needs the least that a token has, so that nobody is told what there is.
pub(super) fn needed(path: &str) -> (Class, Option<Cow<'_, str>>) {
    let every = Some(Cow::Borrowed(EVERY_MODEL));
    if let Some(rest) = path.strip_prefix(MODELS) {
        if rest == "stats" {
            return (Class::Statistics, every);
        }
        let Some(ModelRoute { name, action, .. }) = ModelRoute::parse(rest) else { return (Class::Metadata, every) };
        let class = match action {
            Action::Infer | Action::Generate | Action::GenerateStream => Class::Inference,
            Action::Statistics => Class::Statistics,
            Action::Metadata | Action::Ready | Action::Config => Class::Metadata,
            Action::TraceSetting => Class::Trace,
        };
        return (class, Some(name));
    }
    if let Some(rest) = path.strip_prefix("/v2/repository/") {
        // With or without the name of a repository before it.
        let rest = rest.strip_prefix("models/").or_else(|| rest.split_once("/models/").map(|(_, rest)| rest));
        let name = rest.and_then(|rest| rest.rsplit_once('/')).and_then(|(name, _operation)| decode(name));
        return (Class::ModelRepository, name.or(every));
    }
    if let Some(rest) = path.strip_prefix("/v1/") {
        let name = rest.strip_prefix("models/").and_then(|rest| rest.rsplit_once('/'));
        return (Class::Operators, name.and_then(|(name, _action)| decode(name)).or(every));
    }
    let is_below =
        |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if is_below("/v2/health") {
        (Class::Health, None)
    } else if is_below("/v2/models") {
        (Class::Metadata, every)
    } else if is_below("/v2/trace") {
        (Class::Trace, None)
    } else if is_below("/v2/logging") {
        (Class::Logging, None)
    } else if is_below("/v2/systemsharedmemory") || is_below("/v2/cudasharedmemory") {
        (Class::SharedMemory, None)
    } else {
        (Class::Metadata, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_needs_one_right() {
        for (path, class, model) in [
            ("/v2", Class::Metadata, None),
            ("/v2/health/ready", Class::Health, None),
            ("/v2/healthy", Class::Metadata, None),
            ("/v2/models", Class::Metadata, Some("*")),
            ("/v2/models/stats", Class::Statistics, Some("*")),
            ("/v2/models/team/a", Class::Metadata, Some("team/a")),
            ("/v2/models/team%2Fa/ready", Class::Metadata, Some("team/a")),
            ("/v2/models/a/versions/3/infer", Class::Inference, Some("a")),
            ("/v2/models/a/generate_stream", Class::Inference, Some("a")),
            ("/v2/models/a/stats", Class::Statistics, Some("a")),
            ("/v2/models/a/trace/setting", Class::Trace, Some("a")),
            ("/v2/repository/index", Class::ModelRepository, Some("*")),
            ("/v2/repository/r/index", Class::ModelRepository, Some("*")),
            ("/v2/repository/models/team/a/load", Class::ModelRepository, Some("team/a")),
            ("/v2/repository/r/models/a/unload", Class::ModelRepository, Some("a")),
            ("/v1/residency", Class::Operators, Some("*")),
            ("/v1/models/a%20b/pin", Class::Operators, Some("a b")),
            ("/v2/systemsharedmemory/region/x/register", Class::SharedMemory, None),
            ("/v2/trace/setting", Class::Trace, None),
            ("/v2/logging", Class::Logging, None),
            ("/other", Class::Metadata, None),
        ] {
            let (found, name) = needed(path);
            assert_eq!((found, name.as_deref()), (class, model), "{path}");
        }
    }
}
