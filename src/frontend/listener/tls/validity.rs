//! From when to when a certificate is good (X.509, RFC 5280, 4.1.2.5), read by hand: rustls asks it of its peers' alone.

use std::time::SystemTime;

use super::super::super::time;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// From and until. `None` for what is no certificate.
pub(super) fn validity(certificate: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let (tag, content, _) = element(certificate)?;
    let (inner, to_be_signed, _) = element((tag == SEQUENCE).then_some(content)?)?;
    let mut rest = (inner == SEQUENCE).then_some(to_be_signed)?;
    if rest.first() == Some(&VERSION) {
        rest = element(rest)?.2;
    }
    // The serial number, the algorithm, the issuer.
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, times, _) = element(rest)?;
    let (from, rest) = moment(times)?;
    let (until, _) = moment(rest)?;
    Some((from, until))
}

/// The tag and the content of the first element of DER, and what is behind it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ`, or with four digits of the year; and what is behind it.
fn moment(der: &[u8]) -> Option<(SystemTime, &[u8])> {
    let (tag, content, rest) = element(der)?;
    let text = std::str::from_utf8(content).ok().filter(|text| text.is_ascii())?;
    let (year, others) = match tag {
        UTC_TIME => {
            let (year, others) = text.split_at_checked(2)?;
            // RFC 5280, 4.1.2.5.1.
            (format!("{}{year}", if year < "50" { "20" } else { "19" }), others)
        }
        GENERALIZED_TIME => {
            let (year, others) = text.split_at_checked(4)?;
            (year.to_owned(), others)
        }
        _ => return None,
    };
    let part = |at: usize| others.get(at..at + 2);
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    let moment = time::parse(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z"))?;
    Some((moment, rest))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_times_of_a_certificate_are_read() {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2001, 2, 3);
        // Beyond 2049 they are written otherwise.
        for (year, until) in [(2030, 1_893_456_000), (2060, 2_840_140_800)] {
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            let found = validity(certificate.der()).unwrap();
            let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(found, (at(981_158_400), at(until)));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(0_u8..=255, 0..80)) {
            let _ = validity(&bytes);
            let _ = validity(&[&[0x30, 0x40, 0x30, 0x3c], &bytes[..]].concat());
        }
    }
}
