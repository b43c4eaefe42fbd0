//! Amounts of bytes as people write them.

use std::str::FromStr;

use serde::Deserialize;

use super::DeviceChoice;
use crate::error::{Error, Result};

/// Bytes, or a part of what there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// So many.
    Bytes(u64),
    /// So much of the whole: above 0, at most 1.
    Fraction(f64),
}

/// Units, the longer first.
const UNITS: [(&str, u64); 11] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("g", 1 << 30),
    ("m", 1 << 20),
    ("b", 1),
];

impl Amount {
    /// In bytes, of a whole of `whole` bytes.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a fraction is rough"
    )]
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Fraction(fraction) => (whole as f64 * fraction) as u64,
        }
    }
}

impl FromStr for Amount {
    type Err = Error;

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be in range"
    )]
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!(
                "'{text}' is no size: give bytes (1000000), a size (20GiB, 500MB), or a fraction (0.8, 80%)"
            ))
        };
        let lower = text.trim().to_ascii_lowercase();
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
        let fraction = |part: f64| (part > 0.0 && part <= 1.0).then_some(Self::Fraction(part)).ok_or_else(wrong);
        if let Some(percent) = lower.strip_suffix('%') {
            return fraction(number(percent).ok_or_else(wrong)? / 100.0);
        }
        if let Some((rest, unit)) = UNITS.iter().find_map(|(unit, bytes)| Some((lower.strip_suffix(unit)?, *bytes))) {
            let bytes = number(rest).ok_or_else(wrong)? * unit as f64;
            return if bytes < u64::MAX as f64 { Ok(Self::Bytes(bytes as u64)) } else { Err(wrong()) };
        }
        if let Ok(bytes) = lower.parse() {
            // 1 is the whole, not a byte.
            return Ok(if bytes == 1 { Self::Fraction(1.0) } else { Self::Bytes(bytes) });
        }
        fraction(number(&lower).ok_or_else(wrong)?)
    }
}

/// Whose memory is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// `cpu`.
    Cpu,
    /// `gpu:N`.
    Gpu(u32),
    /// `gpu`: each GPU that has no limit of its own.
    EveryGpu,
}

/// One word of `--memory-limit`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryLimit {
    /// Whose memory it is.
    pub device: Limited,
    /// Of what is free at start, where it is a fraction.
    pub amount: Amount,
}

impl FromStr for MemoryLimit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (device, amount) = text.split_once('=').ok_or_else(|| {
            Error::invalid(format!("'{text}' is no limit: write DEVICE=SIZE, for example cpu=16GiB or gpu:0=0.8"))
        })?;
        let device = match (device.trim(), device.trim().parse()) {
            ("gpu", _) => Limited::EveryGpu,
            (_, Ok(DeviceChoice::Cpu)) => Limited::Cpu,
            (_, Ok(DeviceChoice::Gpu(index))) => Limited::Gpu(index),
            (_, Ok(DeviceChoice::Auto)) => {
                return Err(Error::invalid(format!("'{text}': name the device, cpu, gpu:N, or gpu for all of them")));
            }
            (_, Err(error)) => return Err(error),
        };
        Ok(Self { device, amount: amount.parse()? })
    }
}

/// What is said of a device, `cpu` or `gpu:N`: what names it, before what names every GPU.
#[must_use]
pub fn limit_of(limits: &[MemoryLimit], device: Limited) -> Option<Amount> {
    let of = |limited| limits.iter().find(|limit| limit.device == limited).map(|limit| limit.amount);
    let of_every_gpu = || if device == Limited::Cpu { None } else { of(Limited::EveryGpu) };
    of(device).or_else(of_every_gpu)
}

/// The size of the response cache, in bytes; 0 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheBytes(pub u64);

impl FromStr for CacheBytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // As Triton's `--cache-config` has it.
        let size = text.trim().strip_prefix("local,size=").unwrap_or(text);
        match size.parse()? {
            Amount::Bytes(bytes) => Ok(Self(bytes)),
            Amount::Fraction(_) => Err(Error::invalid(format!(
                "'{text}' is no size of a response cache: give bytes (1000000), a size (1GiB, 500MB), or 0 for none"
            ))),
        }
    }
}

macro_rules! deserialize_from_str {
    ($($kind:ty),*) => {$(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
deserialize_from_str!(Amount, CacheBytes, MemoryLimit);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("1000", 1000), ("2KiB", 2048), ("1.5 GiB", 3 << 29), ("3mb", 3_000_000), ("7B", 7), ("0", 0)]
        {
            assert_eq!(text.parse::<Amount>().unwrap(), Amount::Bytes(bytes), "{text}");
        }
        for (text, fraction) in [("0.8", 0.8), ("80%", 0.8), ("1", 1.0), ("100 %", 1.0)] {
            assert_eq!(text.parse::<Amount>().unwrap(), Amount::Fraction(fraction), "{text}");
        }
        for text in ["", "-1", "1.5", "0.0", "120%", "NaN", "lots", "9999999999 tib", "GiB"] {
            assert!(text.parse::<Amount>().is_err(), "{text}");
        }
        assert_eq!(Amount::Fraction(0.5).of(101), 50);
    }

    #[test]
    fn the_size_of_a_response_cache_is_bytes_in_our_words_or_tritons() {
        for (text, bytes) in [("0", 0), ("1GiB", 1 << 30), ("local,size=1048576", 1 << 20)] {
            assert_eq!(text.parse::<CacheBytes>().unwrap(), CacheBytes(bytes), "{text}");
        }
        for text in ["0.5", "1", "redis,host=a", "local,size=", "size=5", ""] {
            assert!(text.parse::<CacheBytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_names_its_device() {
        let limit = "gpu:1=10GiB".parse::<MemoryLimit>().unwrap();
        assert_eq!(limit, MemoryLimit { device: Limited::Gpu(1), amount: Amount::Bytes(10 << 30) });
        let of = |text: &str, device| {
            let limits: Vec<MemoryLimit> = text.split(',').map(|word| word.parse().unwrap()).collect();
            limit_of(&limits, device)
        };
        let both = "gpu=0.5,gpu:1=1000,cpu=7GiB";
        assert_eq!(of(both, Limited::Gpu(0)), Some(Amount::Fraction(0.5)));
        assert_eq!(of(both, Limited::Gpu(1)), Some(Amount::Bytes(1000)), "what names it counts");
        assert_eq!((of(both, Limited::Cpu), of("gpu=0.5", Limited::Cpu)), (Some(Amount::Bytes(7 << 30)), None));
        for text in ["cpu", "auto=1GiB", "cpu=much", "=1", "tpu=1GiB"] {
            assert!(text.parse::<MemoryLimit>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "\\PC{0,24}") {
            let _either = text.parse::<Amount>();
            let _either = text.parse::<MemoryLimit>();
            let _either = text.parse::<CacheBytes>();
        }
    }
}
