//! Points of time in documents: RFC 3339 in UTC with milliseconds, `2026-11-24T09:21:56.003Z`.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

const DAY: u64 = 86_400;

/// Days from 0000-03-01 to 1970-01-01: years are counted from March, so that the leap day is a year's last.
const DAYS_TO_1970: u64 = 719_468;

/// Days of the 400 years after which the calendar repeats.
const ERA: u64 = 146_097;

/// A point of time that is written as RFC 3339. What is before 1970 is written as its begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rfc3339(pub SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (year, month, day) = civil(since.as_secs() / DAY);
        let second = since.as_secs() % DAY;
        let (hour, minute) = (second / 3600, second / 60 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.", second % 60)?;
        write!(f, "{:03}Z", since.subsec_millis())
    }
}

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads what [`Rfc3339`] writes, with or without a fraction. `None` for any other text.
#[must_use]
pub fn parse(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-')?;
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hour, minute, second] = numbers(whole, ':')?;
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
    let within = year <= 9999 && hour < 24 && minute < 60 && second < 60;
    if !(digits && (1..=9).contains(&fraction.len()) && within) {
        return None;
    }
    let nanoseconds: u32 = format!("{fraction:0<9}").parse().ok()?;
    let days = days(year, month, day)?;
    UNIX_EPOCH.checked_add(Duration::new(days * DAY + hour * 3600 + minute * 60 + second, nanoseconds))
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text
        .split(separator)
        .map(|part| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten());
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}

/// The date of a day after 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms").
const fn civil(days: u64) -> (u64, u64, u64) {
    let day = days + DAYS_TO_1970;
    let of_era = day % ERA;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march = (5 * of_year + 2) / 153;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = year_of_era + day / ERA * 400;
    (if month <= 2 { year + 1 } else { year }, month, of_year - (153 * march + 2) / 5 + 1)
}

/// The other way round; `None` for no date, or one before 1970.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let from_march = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let of_era = from_march % 400 * 365 + from_march % 400 / 4 - from_march % 400 / 100 + of_year;
    let days = (from_march / 400 * ERA + of_era).checked_sub(DAYS_TO_1970)?;
    (civil(days) == (year, month, day)).then_some(days)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64, milliseconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(milliseconds)
    }

    #[test]
    fn known_moments_are_written_as_date_writes_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.003Z"),
            (951_782_399, "2000-02-28T23:59:59.003Z"),
            (951_782_400, "2000-02-29T00:00:00.003Z"),
            (1_709_164_800, "2024-02-29T00:00:00.003Z"),
            (1_764_000_000, "2025-11-24T16:00:00.003Z"),
            (4_107_542_400, "2100-03-01T00:00:00.003Z"),
        ] {
            assert_eq!(Rfc3339(at(seconds, 3)).to_string(), text);
            assert_eq!(parse(text), Some(at(seconds, 3)));
        }
        assert_eq!(parse("2025-11-24T16:00:00Z"), Some(at(1_764_000_000, 0)));
    }

    #[test]
    fn what_is_no_moment_is_none() {
        for text in [
            "",
            "Z",
            "2025-11-24",
            "2025-11-24T16:00:00",
            "2025-11-24T16:00:00+01:00",
            "2025-02-30T00:00:00Z",
            "2025-13-01T00:00:00Z",
            "2025-11-24T24:00:00Z",
            "2025-11-24T16:00:00.Z",
            "2025-11-+4T16:00:00Z",
            "1969-12-31T23:59:59Z",
            "2025-11-24-1T16:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_moment_is_read_as_it_was_written(seconds in 0_u64..253_402_300_800, milliseconds in 0_u64..1000) {
            let moment = at(seconds, milliseconds);
            prop_assert_eq!(parse(&Rfc3339(moment).to_string()), Some(moment));
        }

        #[test]
        fn no_text_makes_reading_panic(text in "[0-9TZ:.+-]{0,40}") {
            let _ = parse(&text);
        }
    }
}
