//! Who called: W3C Trace Context (www.w3.org/TR/trace-context), `traceparent` and `tracestate`.

/// The longest `tracestate` that is handed on, in bytes; the specification asks for at least 512.
pub const STATE_BYTES: usize = 1024;

/// What a caller says of the trace that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The whole trace, never 0.
    pub trace_id: u128,
    /// The caller's span, never 0.
    pub span_id: u64,
    /// Whether the caller records this trace.
    pub sampled: bool,
    /// What tracing systems hand along, as it came; empty for nothing.
    pub state: String,
}

impl Caller {
    /// Reads the values of both headers. `None` where there is no `traceparent` that can be understood: the request is then
    /// one without a caller, as the specification has it.
    #[must_use]
    pub fn read(parent: Option<&[u8]>, state: Option<&[u8]>) -> Option<Self> {
        let parent = parent?.trim_ascii();
        let (fields, rest) = parent.split_at_checked(55)?;
        let [v0, v1, b'-', fields @ ..] = fields else { return None };
        let (trace, fields) = fields.split_at_checked(32)?;
        let [b'-', fields @ ..] = fields else { return None };
        let (span, fields) = fields.split_at_checked(16)?;
        let [b'-', f0, f1] = fields else { return None };
        let version = hex(&[*v0, *v1])?;
        // Version 0 ends here; later ones may go on behind another dash.
        let ends = if version == 0 { rest.is_empty() } else { rest.is_empty() || rest.starts_with(b"-") };
        let (trace_id, span_id) = (hex(trace)?, u64::try_from(hex(span)?).ok()?);
        let flags = hex(&[*f0, *f1])?;
        if version == 0xff || !ends || trace_id == 0 || span_id == 0 {
            return None;
        }
        let state = state.map(<[u8]>::trim_ascii).filter(|state| state.len() <= STATE_BYTES);
        let state = state.filter(|state| state.iter().all(|byte| (0x20..0x7f).contains(byte) || *byte == b'\t'));
        let state = state.map_or_else(String::new, |state| String::from_utf8_lossy(state).into_owned());
        Some(Self { trace_id, span_id, sampled: flags & 1 == 1, state })
    }
}

/// Lower-case hexadecimal digits, at most 32; capital ones are not allowed here.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0_u128, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(parent: &str) -> Option<Caller> {
        Caller::read(Some(parent.as_bytes()), None)
    }

    #[test]
    fn a_traceparent_gives_trace_span_and_flag() {
        let caller = Caller::read(Some(PARENT.as_bytes()), Some(b"a=b,c=d ")).unwrap();
        assert_eq!(caller.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((caller.span_id, caller.sampled), (0xb7ad_6b71_6920_3331, true));
        assert_eq!(caller.state, "a=b,c=d");
        assert!(!read(&PARENT.replace("-01", "-02")).unwrap().sampled);
        assert!(read(&PARENT.replacen("00", "cc", 1)).is_some());
        assert!(read(&format!("cc{}-more", &PARENT[2..])).is_some());
    }

    #[test]
    fn what_the_specification_rejects_is_no_caller() {
        let zero_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        let zero_span = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
        let more = format!("{PARENT}-00");
        let glued = format!("cc{}x", &PARENT[2..]);
        for parent in [
            "",
            "00",
            &PARENT.to_uppercase(),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replace('-', "_"),
            &zero_trace,
            &zero_span,
            &more,
            &glued,
        ] {
            assert_eq!(read(parent), None, "{parent}");
        }
        assert_eq!(Caller::read(None, Some(b"a=b")), None);
    }

    #[test]
    fn a_tracestate_that_is_too_long_or_no_text_is_left_out() {
        let long = vec![b'a'; STATE_BYTES + 1];
        for state in [long.as_slice(), b"a=\xff", b"a=\nb"] {
            let caller = Caller::read(Some(PARENT.as_bytes()), Some(state)).unwrap();
            assert_eq!(caller.state, "");
        }
    }

    proptest! {
        #[test]
        fn every_traceparent_reads_back(trace in 1_u128.., span in 1_u64.., flags: u8) {
            let caller = read(&format!("00-{trace:032x}-{span:016x}-{flags:02x}")).unwrap();
            prop_assert_eq!((caller.trace_id, caller.span_id, caller.sampled), (trace, span, flags & 1 == 1));
        }

        #[test]
        fn no_bytes_make_reading_panic(parent: Vec<u8>, state: Vec<u8>, cut in 0_usize..60, byte: u8) {
            let _ = Caller::read(Some(&parent), Some(&state));
            let mut near = PARENT.as_bytes().to_vec();
            if let Some(place) = near.get_mut(cut) {
                *place = byte;
            }
            let _ = Caller::read(Some(&near), None);
        }
    }
}
