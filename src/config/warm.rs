//! What is brought before the server says that it is ready, by the word of others.

use std::path::PathBuf;
use std::time::Duration;

use super::ServeOptions;
use super::address::host_and_port;
use crate::error::{Error, Result};

/// The longest limit: a day.
const MOST_SECONDS: u64 = 86_400;

/// Whom to ask, and when to be content.
#[derive(Clone, Debug)]
pub struct WarmConfig {
    /// `HOST:PORT` of instances or a picker; none where nobody is asked.
    pub from: Vec<String>,
    /// The most models that are brought.
    pub models: usize,
    /// How long being ready may be put off for it.
    pub limit: Duration,
    /// The file of the token that those that are asked want.
    pub token_file: Option<PathBuf>,
}

impl WarmConfig {
    /// The part of the options that is about it.
    pub(super) fn of(options: &mut ServeOptions) -> Result<Self> {
        let mut from = Vec::new();
        for text in options.warm_from.take().unwrap_or_default() {
            if text.starts_with("https://") {
                return Err(Error::invalid(format!(
                    "--warm-from '{text}': neighbours are asked in clear text, HOST:PORT"
                )));
            }
            // As people write it.
            let name = text.strip_prefix("http://").unwrap_or(&text).trim_end_matches('/');
            let name = host_and_port(name).map_err(|wrong| Error::invalid(format!("--warm-from '{text}': {wrong}")))?;
            from.push(name);
        }
        let seconds = options.warm_limit_s.unwrap_or(60);
        if seconds > MOST_SECONDS {
            return Err(Error::invalid(format!("--warm-limit-s {seconds}: at most {MOST_SECONDS}")));
        }
        Ok(Self {
            from,
            models: options.warm_models.unwrap_or(64),
            limit: Duration::from_secs(seconds),
            token_file: options.warm_token_file.take(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<WarmConfig> {
        let warm_from = Some(texts.iter().map(|text| (*text).to_owned()).collect());
        WarmConfig::of(&mut ServeOptions { warm_from, ..ServeOptions::default() })
    }

    #[test]
    fn neighbours_are_named_by_host_and_port_and_nobody_is_asked_unless_named() {
        let config = read(&["a:1", "http://pods.models.svc:8000/"]).unwrap();
        assert_eq!(config.from, ["a:1", "pods.models.svc:8000"]);
        assert_eq!((config.models, config.limit), (64, Duration::from_secs(60)));
        assert!(read(&[]).unwrap().from.is_empty());
        for text in ["a", "https://a:1", "a:1/v1", ""] {
            assert!(read(&[text]).unwrap_err().to_string().contains("--warm-from"), "{text}");
        }
    }

    #[test]
    fn a_limit_is_no_longer_than_a_day() {
        let read = |seconds| {
            let mut options = ServeOptions { warm_limit_s: Some(seconds), ..ServeOptions::default() };
            WarmConfig::of(&mut options).map(|config| config.limit)
        };
        assert_eq!(read(0).unwrap(), Duration::ZERO);
        assert_eq!(read(MOST_SECONDS).unwrap(), Duration::from_secs(MOST_SECONDS));
        assert!(read(u64::MAX).unwrap_err().to_string().contains("--warm-limit-s"));
    }
}
