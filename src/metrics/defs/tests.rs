//! Names as they should be, and the README has them.

use super::*;

#[test]
fn names_are_unique_and_ours_carry_their_unit() {
    let names: std::collections::HashSet<_> = ALL.iter().map(|family| family.name).collect();
    assert_eq!(names.len(), ALL.len());
    for family in ALL.iter().filter(|family| family.name.starts_with("roundhouse_")) {
        let fits = match family.kind {
            Kind::Counter => family.name.ends_with("_total"),
            Kind::Histogram => family.name.ends_with("_seconds") || family.name.ends_with("_bytes"),
            Kind::Gauge => !family.name.ends_with("_total"),
        };
        assert!(fits, "{} does not end as its kind does", family.name);
    }
}

#[test]
fn the_readme_lists_every_stable_family() {
    let readme = include_str!("../../../README.md");
    for family in ALL.iter().filter(|family| family.stability == Stability::Stable) {
        assert!(readme.contains(family.name), "README.md does not mention {}", family.name);
    }
}
