//! The figures of fleets, as a table, as JSON and as a picture.

use std::io::{self, Write};

use super::super::plot::{self, Line};
use super::{Outcome, Row};

/// A table for people.
pub(in crate::cli::simulate) fn print_table(out: &mut impl Write, rows: &[Row], percent: f64) -> io::Result<()> {
    writeln!(
        out,
        "Fleets that hold {percent} % of all bytes together; of requests those after the first quarter, cost per million"
    )?;
    writeln!(
        out,
        "{:<12} {:>9} {:>7} {:<18} {:>7} {:>9} {:>10} {:>9} {:>9} {:>9}",
        "traffic", "instances", "models", "route", "cold", "p50 ms", "p99 ms", "loads", "out/in", "cost"
    )?;
    for row in rows {
        for (way, outcome) in &row.outcomes {
            let Outcome { p50_ms, p99_ms, loads, scale_outs, scale_ins, instance_seconds, .. } = *outcome;
            writeln!(
                out,
                "{:<12} {:>9} {:>7} {:<18} {:>7.4} {p50_ms:>9.1} {p99_ms:>10.1} {loads:>9} {:>9} {:>9.2}",
                row.traffic,
                row.instances,
                row.models,
                way.name(),
                outcome.cold_share(),
                format!("{scale_outs}/{scale_ins}"),
                row.cost(instance_seconds),
            )?;
        }
        writeln!(
            out,
            "{:<12} {:>9.0} {:>7} {:<18} {:>7} {:>9} {:>10} {:>9} {:>9} {:>9.2}",
            row.traffic,
            row.endpoints,
            row.models,
            "endpoint a model",
            "0",
            "",
            "",
            "",
            "",
            row.cost(row.endpoints * row.seconds),
        )?;
    }
    Ok(())
}

/// JSON for programs.
pub(in crate::cli::simulate) fn print_json(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let routes: Vec<_> = row
                .outcomes
                .iter()
                .map(|(way, outcome)| {
                    serde_json::json!({
                        "route": way.name(),
                        "requests": outcome.requests,
                        "cold_share": outcome.cold_share(),
                        "p50_ms": outcome.p50_ms,
                        "p99_ms": outcome.p99_ms,
                        "loads": outcome.loads,
                        "evictions": outcome.evictions,
                        "refused": outcome.refused,
                        "scale_outs": outcome.scale_outs,
                        "scale_ins": outcome.scale_ins,
                        "instances_at_end": outcome.instances_at_end,
                        "instance_hours": outcome.instance_seconds / 3600.0,
                        "cost_per_million": row.cost(outcome.instance_seconds),
                    })
                })
                .collect();
            serde_json::json!({
                "traffic": row.traffic,
                "instances": row.instances,
                "models": row.models,
                "requests": row.requests,
                "seconds": row.seconds,
                "routes": routes,
                "endpoint_a_model_instances": row.endpoints,
                "endpoint_a_model_cost_per_million": row.cost(row.endpoints * row.seconds),
            })
        })
        .collect();
    writeln!(out, "{}", serde_json::json!({ "fleets": rows }))
}

/// Cold shares and p99 over the number of instances, one line a way, of the first traffic.
pub(in crate::cli::simulate) fn draw(rows: &[Row], percent: f64) -> String {
    let Some(first) = rows.first() else { return plot::panels(&[]) };
    let own: Vec<_> = rows.iter().filter(|row| row.traffic == first.traffic).collect();
    let line = |index: usize, value: &dyn Fn(&Outcome) -> f64| Line {
        name: first.outcomes[index].0.name().to_owned(),
        points: own.iter().map(|row| (row.instances as f64, value(&row.outcomes[index].1))).collect(),
    };
    let lines = |value: &dyn Fn(&Outcome) -> f64| (0..first.outcomes.len()).map(|index| line(index, value)).collect();
    let cold: Vec<_> = lines(&|outcome| outcome.cold_share() * 100.0);
    let slow: Vec<_> = lines(&|outcome| outcome.p99_ms / 1e3);
    let each = first.models as f64 / first.instances as f64;
    let models = match own.iter().all(|row| row.models == first.models) {
        true => format!("{} models", first.models),
        false => format!("{each:.0} models an instance"),
    };
    let of = format!("{models}, {}, {percent} % of their bytes in memory", first.traffic);
    plot::panels(&[
        (format!("Requests whose model was not in memory, % ({of})"), cold),
        ("p99 of an answer, s".to_owned(), slow),
    ])
}
