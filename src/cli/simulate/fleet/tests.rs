//! Small fleets: who wins, that a seed is a seed, and that a fleet grows and shrinks.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: super::super::SimulateArgs,
}

fn args(words: &[&str]) -> super::super::SimulateArgs {
    Cli::try_parse_from(["simulate"].iter().chain(words)).unwrap().args
}

fn rows(words: &[&str]) -> Vec<Row> {
    simulate(&args(words), &ProgressBar::hidden()).unwrap()
}

const SMALL: [&str; 10] =
    ["--models", "200", "--requests", "8000", "--synthetic", "zipf", "--alpha", "0.9", "--capacity", "40"];

fn small(more: &[&'static str]) -> Vec<Row> {
    rows(&[&SMALL[..], more].concat())
}

#[test]
fn the_picker_has_the_fewest_cold_requests_and_a_hash_fewer_than_none() {
    let rows = small(&["--instances", "8", "--rate", "10"]);
    let [picker, hash, least, robin] = &rows[0].outcomes[..] else { panic!("four ways") };
    let cold = |(_, outcome): &(Way, Outcome)| outcome.cold_share();
    assert!(cold(picker) <= cold(hash) * 1.02, "{} {}", cold(picker), cold(hash));
    assert!(cold(hash) < cold(least) && cold(hash) < cold(robin));
    assert!(picker.1.p99_ms <= robin.1.p99_ms, "{} {}", picker.1.p99_ms, robin.1.p99_ms);
    for (_, outcome) in &rows[0].outcomes {
        assert_eq!(outcome.requests, 6_000);
        assert!(outcome.loads >= outcome.cold / 2 && outcome.p50_ms <= outcome.p99_ms);
    }
    assert!(rows[0].endpoints >= 200.0);
}

#[test]
fn the_same_seed_prints_the_same_and_each_fleet_is_drawn() {
    let print = || {
        let rows = small(&["--instances", "2,4", "--rate", "5", "--route", "picker,hash"]);
        let (mut table, mut json) = (Vec::new(), Vec::new());
        print_table(&mut table, &rows, 40.0).unwrap();
        print_json(&mut json, &rows).unwrap();
        (String::from_utf8(table).unwrap(), String::from_utf8(json).unwrap(), draw(&rows, 40.0))
    };
    let (table, json, svg) = print();
    assert_eq!(print(), (table.clone(), json.clone(), svg.clone()));
    assert!(table.contains("endpoint a model") && svg.contains(">picker<"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["fleets"][1]["instances"], 4);
}

#[test]
fn a_fleet_grows_with_what_waits_and_shrinks_again() {
    let rows = small(&["--instances", "2", "--scale", "4", "--swing", "0.9", "--rate", "60", "--route", "picker"]);
    let outcome = rows[0].outcomes[0].1;
    assert!(outcome.scale_outs > 0, "{outcome:?}");
    assert!(outcome.instance_seconds > 2.0 * rows[0].seconds, "{outcome:?}");
}

#[test]
fn numbers_out_of_range_are_refused() {
    for words in [["--instances", "0"], ["--scale", "0.5"], ["--rate", "-1"], ["--swing", "1"], ["--route", "luck"]] {
        assert!(Cli::try_parse_from(["simulate"].iter().chain(&words)).is_err(), "{words:?}");
    }
}
