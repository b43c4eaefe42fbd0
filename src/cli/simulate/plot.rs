//! Bars as an SVG, written by hand.

use std::fmt::Write as _;

/// A group of bars: its name, and the height of each bar.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) bars: Vec<f64>,
}

/// One colour a bar; they can be told apart without colour vision.
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#009e73", "#999999"];
const BAR: f64 = 26.0;
const GAP: f64 = 34.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 60.0;

/// A plot of `groups`, where bar n of each belongs to `legend` n, with a line at 1.
pub(super) fn bars(title: &str, legend: &[String], groups: &[Group]) -> String {
    let highest = groups.iter().flat_map(|group| &group.bars).copied().fold(1.0, f64::max) * 1.05;
    let group_width = (BAR * legend.len() as f64).max(76.0) + GAP;
    let width = (LEFT + group_width * groups.len() as f64 + 20.0).max(420.0);
    let bottom = TOP + HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
        bottom + 40.0,
        escape(title),
    );
    // Writing into a String cannot fail.
    let mut at = LEFT;
    for (index, name) in legend.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<rect x=\"{at}\" y=\"32\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{}\" y=\"41\">{}</text>",
            COLOURS[index % COLOURS.len()],
            at + 14.0,
            escape(name)
        );
        at += 30.0 + 7.0 * name.chars().count() as f64;
    }
    for fifth in 0..=5 {
        let value = f64::from(fifth) / 5.0;
        let y = bottom - HEIGHT * value / highest;
        let colour = if fifth == 5 { "#555555" } else { "#dddddd" };
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.1}</text>",
            width - 10.0,
            LEFT - 6.0,
            y + 4.0
        );
    }
    for (index, group) in groups.iter().enumerate() {
        let left = LEFT + GAP / 2.0 + group_width * index as f64;
        for (bar, &value) in group.bars.iter().enumerate() {
            let height = HEIGHT * value.max(0.0) / highest;
            let x = left + BAR * bar as f64;
            let y = bottom - height;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"9\" text-anchor=\"middle\">{value:.2}</text>",
                BAR - 3.0,
                COLOURS[bar % COLOURS.len()],
                x + BAR / 2.0 - 1.5,
                y - 3.0
            );
        }
        let _ = writeln!(svg, "<text x=\"{left:.1}\" y=\"{:.1}\">{}</text>", bottom + 18.0, escape(&group.name));
    }
    svg.push_str("</svg>\n");
    svg
}

/// A line: its name, and its points from left to right.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

const PANEL: f64 = 680.0;

/// Panels of lines, one below the other. The numbers on the left are those of the lowest line and of the highest; each place at
/// which there is a point has the same room.
pub(super) fn panels(panels: &[(String, Vec<Line>)]) -> String {
    let height = HEIGHT + TOP + 50.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        LEFT + PANEL + 40.0,
        height * panels.len() as f64,
    );
    for (index, (title, lines)) in panels.iter().enumerate() {
        svg.push_str(&panel(title, lines, height * index as f64));
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(title: &str, lines: &[Line], above: f64) -> String {
    let values = || lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
    let highest = values().fold(f64::MIN_POSITIVE, f64::max) * 1.05;
    let mut places: Vec<f64> = lines.iter().flat_map(|line| &line.points).map(|(place, _)| *place).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let bottom = above + TOP + HEIGHT;
    let x = |place: f64| {
        let index = places.iter().position(|known| *known == place).unwrap_or(0) as f64;
        LEFT + PANEL * (index + 0.5) / places.len().max(1) as f64
    };
    let y = |value: f64| bottom - HEIGHT * value / highest;
    let mut svg = format!("<text x=\"{LEFT}\" y=\"{}\" font-size=\"12\">{}</text>\n", above + 20.0, escape(title));
    for fifth in 0..=5 {
        let value = highest * f64::from(fifth) / 5.0;
        // Writing into a String cannot fail.
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.3}</text>",
            LEFT + PANEL,
            LEFT - 6.0,
            y(value) + 4.0,
            y = y(value),
        );
    }
    for place in &places {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{place}</text>",
            x(*place),
            bottom + 16.0
        );
    }
    let mut at = LEFT;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let points: Vec<_> =
            line.points.iter().map(|(place, value)| format!("{:.1},{:.1}", x(*place), y(*value))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <rect x=\"{at}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            points.join(" "),
            above + 32.0,
            at + 14.0,
            above + 41.0,
            escape(&line.name)
        );
        for (place, value) in &line.points {
            let _ =
                writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x(*place), y(*value));
        }
        at += 34.0 + 7.0 * line.name.chars().count() as f64;
    }
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_and_every_name_is_drawn_and_names_are_escaped() {
        let legend = ["a<b".to_owned(), "c".to_owned()];
        let group = |name: &str| Group { name: name.to_owned(), bars: vec![1.0, 0.5] };
        let svg = bars("wait & load", &legend, &[group("one"), group("two")]);
        assert!(svg.contains("a&lt;b") && svg.contains("wait &amp; load") && svg.contains(">two<"));
        assert_eq!(svg.matches(">0.50<").count(), 2);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }
}
