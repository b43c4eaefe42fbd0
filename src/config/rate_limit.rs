//! What runs may take of what others want too: `--rate-limit` and its resources.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::ServeOptions;

/// Whether the resources that a model's `rate_limiter` names are counted; Triton's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateLimit {
    /// They are not.
    #[default]
    Off,
    /// A run waits until what it needs is there.
    #[value(name = "execution_count", alias = "execution-count")]
    ExecutionCount,
}

/// How much there is of a resource: `NAME:COUNT`, or `NAME:COUNT:DEVICE` where `DEVICE` is `global` or a GPU's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitResource {
    /// Its name in `rate_limiter`.
    pub name: String,
    /// How much.
    pub count: u64,
    /// Whose it is.
    pub place: ResourcePlace,
}

/// Whose a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourcePlace {
    /// Each device has so much.
    EachDevice,
    /// All devices share it.
    Global,
    /// This GPU has so much.
    Gpu(u32),
}

/// Why a text is no resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no resource, expected NAME:COUNT or NAME:COUNT:DEVICE, DEVICE being `global` or a GPU's number")]
pub struct NoResource(String);

impl FromStr for RateLimitResource {
    type Err = NoResource;

    fn from_str(text: &str) -> Result<Self, NoResource> {
        let wrong = || NoResource(text.to_owned());
        let mut parts = text.split(':');
        let (name, count) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let place = match parts.next() {
            None => ResourcePlace::EachDevice,
            Some("global") => ResourcePlace::Global,
            Some(gpu) => ResourcePlace::Gpu(gpu.parse().map_err(|_| wrong())?),
        };
        let count = count.parse().map_err(|_| wrong())?;
        match (name, parts.next()) {
            ("", _) | (_, Some(_)) => Err(wrong()),
            (name, None) => Ok(Self { name: name.to_owned(), count, place }),
        }
    }
}

impl fmt::Display for RateLimitResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, count, place } = self;
        match place {
            ResourcePlace::EachDevice => write!(f, "{name}:{count}"),
            ResourcePlace::Global => write!(f, "{name}:{count}:global"),
            ResourcePlace::Gpu(gpu) => write!(f, "{name}:{count}:{gpu}"),
        }
    }
}

impl<'de> Deserialize<'de> for RateLimitResource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// What runs may take.
#[derive(Clone, Debug, Default)]
pub struct RateLimitConfig {
    /// Whether it is counted.
    pub mode: RateLimit,
    /// How much there is of what is named; of the rest as much as the largest need.
    pub resources: Vec<RateLimitResource>,
}

impl RateLimitConfig {
    /// The part of the options that concerns rates.
    pub(super) fn of(options: &ServeOptions) -> Self {
        Self {
            mode: options.rate_limit.unwrap_or_default(),
            resources: options.rate_limit_resource.clone().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_written_as_triton_writes_it() {
        for text in ["r:1", "r:4:global", "a b:2:3"] {
            assert_eq!(text.parse::<RateLimitResource>().unwrap().to_string(), text);
        }
        for text in ["", "r", "r:", ":1", "r:x", "r:1:cpu", "r:1:0:0", "r:-1"] {
            assert!(text.parse::<RateLimitResource>().is_err(), "{text}");
        }
    }
}
