//! What of a configuration becomes a rule.

use std::time::{Duration, Instant};

use super::super::Rules;
use super::{MS, policy};
use crate::error::ErrorKind;
use crate::model_config::{QueuePolicy, TimeoutAction, UnknownFields, parse};

fn of(text: &str) -> crate::error::Result<Rules> {
    Rules::of(&parse(text, UnknownFields::Deny).unwrap().config, 100)
}

#[test]
fn a_configuration_without_dynamic_batching_means_one_request_a_batch() {
    let rules = of("max_batch_size: 8").unwrap();
    assert!(rules.is_alone());
    assert_eq!(rules, Rules { capacity: 100, ..Rules::default() });
    assert!(of("dynamic_batching { }").unwrap().is_alone(), "a model without a batch dimension");
}

#[test]
fn dynamic_batching_is_read_and_without_preferred_sizes_the_largest_is_preferred() {
    let rules = of("max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 1000 }").unwrap();
    assert_eq!((rules.max_items, rules.preferred.as_slice(), rules.delay), (8, [8].as_slice(), MS));
    let rules = of("max_batch_size: 8 dynamic_batching { preferred_batch_size: [4, 2, 4] priority_levels: 3
        default_priority_level: 2 priority_queue_policy { key: 3 value { max_queue_size: 7 } } }")
    .unwrap();
    assert_eq!((rules.preferred.as_slice(), rules.levels, rules.default_level), ([2, 4].as_slice(), 3, 2));
    assert_eq!((rules.policy(3).max_queue_size, rules.policy(2).max_queue_size), (7, 0));
}

#[test]
fn a_request_may_shorten_its_time_but_only_where_it_is_allowed() {
    let allowing = |default| QueuePolicy { allow_timeout_override: true, ..policy(TimeoutAction::Reject, default, 0) };
    let now = Instant::now();
    let cases = [
        (policy(TimeoutAction::Reject, MS * 5, 0), Some(MS), Some(MS * 5)),
        (allowing(MS * 5), Some(MS), Some(MS)),
        (allowing(MS * 5), Some(MS * 9), Some(MS * 5)),
        (allowing(MS * 5), Some(Duration::ZERO), Some(MS * 5)),
        (allowing(MS * 5), None, Some(MS * 5)),
        // Other than in Triton.
        (allowing(Duration::ZERO), Some(MS), Some(MS)),
        (allowing(Duration::ZERO), Some(Duration::MAX), None),
        (policy(TimeoutAction::Reject, Duration::ZERO, 0), Some(MS), None),
    ];
    for (default_policy, own, expected) in cases {
        let rules = Rules { default_policy, ..Rules::default() };
        let admission = rules.admit(0, own, now);
        assert_eq!(admission.reject_at.map(|at| at - now), expected, "{rules:?} {own:?}");
        assert_eq!(admission.delay_at, None);
    }
    let rules = Rules { default_policy: policy(TimeoutAction::Delay, MS, 0), ..Rules::default() };
    let admission = rules.admit(0, None, now);
    assert_eq!((admission.reject_at, admission.delay_at), (None, Some(now + MS)));
}

#[test]
fn a_budget_is_read_or_refused_by_name() {
    let with = |value: &str, rest: &str| {
        of(&format!("{rest} parameters {{ key: \"latency_budget_us\" value {{ string_value: \"{value}\" }} }}"))
    };
    let batching = "max_batch_size: 8 dynamic_batching { }";
    assert_eq!(with("20000", batching).unwrap().budget, Some(MS * 20));
    let cases = [
        ("0", batching, "must be a number of microseconds from 1 to 3600000000, got '0'"),
        ("3600000001", batching, "got '3600000001'"),
        ("-5", batching, "got '-5'"),
        ("fast", batching, "got 'fast'"),
        ("99999999999999999999999", batching, "got '99999999999999999999999'"),
        ("5", "max_batch_size: 8", "add 'dynamic_batching { }'"),
        ("5", "max_batch_size: 1 dynamic_batching { }", "needs a max_batch_size of at least 2, got 1"),
        ("5", "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 9 }", "exclude each other"),
    ];
    for (value, rest, expected) in cases {
        let error = with(value, rest).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let text = error.report();
        assert!(text.starts_with("parameter 'latency_budget_us' ") && text.contains(expected), "{text}");
    }
}
