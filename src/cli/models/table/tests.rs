//! The table over a document as the server writes it.

use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn now() -> SystemTime {
    time::parse("2025-11-24T16:01:10Z").unwrap()
}

fn row(name: &str, more: &Value) -> Value {
    let mut row = json!({"name": name, "tier": "disk", "state": "UNAVAILABLE", "reason": "", "versions": ["1"],
        "device": null, "device_bytes": 0, "host_bytes": 0, "disk_bytes": 34_000_000, "fingerprint": null,
        "retention": "cached", "in_use": 0, "last_use": null, "loads": 0, "evictions": 0, "last_load": null,
        "last_eviction": null, "fetch": null, "generation": 3});
    for (key, value) in more.as_object().unwrap() {
        row[key] = value.clone();
    }
    row
}

fn sample() -> Page {
    let book = |tier: &str, device: Value, limit: u64, booked: u64| {
        json!({"tier": tier, "device": device, "limit_bytes": limit, "booked_bytes": booked, "evictable_bytes": 0,
            "reserved_bytes": 0, "models": 1, "used_bytes": null})
    };
    let document = json!({
        "generation": 9,
        "books": [
            book("device", json!("cpu"), 18_000_000_000, 1_200_000_000),
            book("disk", Value::Null, 90_000_000_000, 3_400_000_000),
        ],
        "models": [
            row("digits", &json!({"tier": "device", "device": "cpu", "state": "READY", "device_bytes": 351_234_567,
                "disk_bytes": 0, "last_use": "2025-11-24T16:01:07.200Z", "loads": 2, "evictions": 1,
                "retention": "pinned"})),
            row("naps", &json!({"tier": "host", "state": "READY", "host_bytes": 240_000_000, "disk_bytes": 0})),
            row("team/bert", &json!({"tier": "remote", "state": "LOADING", "last_use": "2025-11-24T16:01:10.900Z",
                "fetch": {"done_bytes": 430, "total_bytes": 1000, "bytes_per_second": 120e6, "eta_seconds": 5.4}})),
            row("torn", &json!({"reason": "no model.onnx", "last_use": "2025-11-23T08:00:00Z", "loads": 1_000_000})),
        ],
        "next": null,
    });
    serde_json::from_value(document).unwrap()
}

#[test]
fn books_stand_above_and_numbers_to_the_right() {
    let expected = "\
cpu 1.2 of 18.0 GB booked, disk 3.4 of 90.0 GB

NAME       TIER    STATE        DEVICE MB  DISK MB  LAST USE    LOADS  EVICTIONS
digits     cpu     READY              351        -   2 s ago        2          1  pinned
naps       host    READY                -        -         -        0          0  asleep, 240 MB in host memory
team/bert  remote  LOADING              -     34.0       now        0          0  downloading 43 % 120 MB/s 5 s left
torn       disk    UNAVAILABLE          -     34.0  32 h ago  1000000          0  no model.onnx
";
    assert_eq!(page(&sample(), now(), false), expected);
}

#[test]
fn a_model_on_several_devices_shows_them_all() {
    let copies = json!([{"device": "gpu:0", "device_bytes": 1}, {"device": "gpu:1", "device_bytes": 1}]);
    let document = json!({"books": [], "models": [
        row("m", &json!({"tier": "device", "device": "gpu:0", "copies": copies, "state": "READY"}))]});
    let text = page(&serde_json::from_value(document).unwrap(), now(), false);
    assert!(text.contains("\nm     gpu:0,gpu:1  READY"), "{text}");
}

#[test]
fn a_server_without_models_says_so() {
    let empty = Page { models: Vec::new(), ..sample() };
    assert!(page(&empty, now(), false).ends_with("GB\n\nno model is on this machine or being brought to it\n"));
    assert_eq!(page(&Page::default(), now(), false), "no model is on this machine or being brought to it\n");
}

#[test]
fn a_long_name_is_cut_in_its_middle_where_a_person_reads_and_nowhere_else() {
    let long = format!("{}/{}", "a".repeat(40), "z".repeat(40));
    let document = json!({"books": [], "models": [row(&long, &json!({}))]});
    let long_page: Page = serde_json::from_value(document).unwrap();
    let cut_name = format!("{}...{}", "a".repeat(23), "z".repeat(22));
    assert_eq!(cut_name.len(), NAME_WIDTH);
    assert!(page(&long_page, now(), false).contains(&format!("\n{cut_name}  disk")));
    assert!(page(&long_page, now(), true).contains(&format!("\n{long}  disk")));
}

#[test]
fn nothing_in_a_name_reaches_the_terminal_as_an_escape() {
    let document = json!({"books": [], "models": [row("a\u{1b}[2J\nb", &json!({"reason": "x\u{7}\r"}))]});
    let odd: Page = serde_json::from_value(document).unwrap();
    for whole_names in [false, true] {
        let text = page(&odd, now(), whole_names);
        assert!(text.chars().all(|character| character == '\n' || !character.is_control()), "{text:?}");
        assert_eq!(text.lines().count(), 2, "{text:?}");
    }
}

#[test]
fn a_fetch_says_what_is_known_of_it() {
    let fetch = |done, total, rate, eta| Fetch {
        done_bytes: done,
        total_bytes: total,
        bytes_per_second: rate,
        eta_seconds: eta,
    };
    assert_eq!(progress(&fetch(0, 0, Some(0.0), None)), "downloading 0 %");
    assert_eq!(progress(&fetch(u64::MAX, u64::MAX, None, None)), "downloading 100 %");
    assert_eq!(progress(&fetch(9, 4, Some(1.5e6), Some(-1.0))), "downloading 100 % 1.5 MB/s");
    assert_eq!(progress(&fetch(1, 2, Some(2.5e8), Some(7_300.0))), "downloading 50 % 250 MB/s 2 h left");
}

#[test]
fn an_explanation_is_the_row_in_words_and_its_reasons() {
    let ready = json!({"tier": "device", "device": "gpu:0", "state": "READY", "last_use": "2025-11-24T15:51:10Z"});
    let document = json!({"model": row("digits", &ready), "reasons": ["loaded 3 min ago from disk in 1.2 s"],
        "expected_bytes": 120_000_000, "expected_from": "measured", "expected_seconds": 1.26,
        "place_in_line": {"before": 3, "of": 12}});
    let expected = "\
digits: READY on gpu:0, last asked for 10 min ago
  loaded 3 min ago from disk in 1.2 s
  needs           120 MB, measured
  next load       about 1.3 s
  eviction        3 of 12 would go before it
";
    assert_eq!(explained(&serde_json::from_value(document).unwrap(), now()), expected);
    let bare = json!({"model": row("m", &json!({})), "reasons": [], "expected_bytes": null, "expected_from": null,
        "expected_seconds": null, "place_in_line": null});
    assert_eq!(explained(&serde_json::from_value(bare).unwrap(), now()), "m: UNAVAILABLE on disk\n");
}

#[test]
fn a_clock_that_is_ahead_is_now() {
    assert_eq!(ago(now(), UNIX_EPOCH), "now");
    assert_eq!(ago(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(172_800)), "2 d ago");
}

proptest! {
    #[test]
    fn a_cut_name_is_as_wide_as_it_may_be(name in any::<String>()) {
        let length = name.chars().count();
        prop_assert_eq!(cut(&name, 20).chars().count(), length.min(20));
    }

    #[test]
    fn any_row_is_one_line(name in any::<String>(), reason in any::<String>(), size in any::<u64>(), rate in any::<f64>()) {
        let mut odd = sample();
        let row = &mut odd.models[1];
        (row.name, row.reason, row.device_bytes) = (name, reason, size);
        row.fetch = Some(Fetch { done_bytes: size, total_bytes: size / 2, bytes_per_second: Some(rate), eta_seconds: Some(rate) });
        prop_assert_eq!(page(&odd, now(), false).lines().count(), 7);
    }
}
