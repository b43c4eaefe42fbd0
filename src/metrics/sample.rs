//! Samples that are read when the page is asked for.

use std::fmt::Write;

use super::defs::Family;
use super::per_model::head;

/// One sample of a family that is read when the page is asked for, and may be missing from the next.
#[derive(Clone, Debug)]
pub struct Sample {
    family: Family,
    /// The values of its labels, in their order.
    labels: Vec<String>,
    value: f64,
}

impl Sample {
    /// A sample of `family`, with the values of its labels.
    #[must_use]
    pub fn new<const N: usize>(family: Family, labels: [String; N], value: f64) -> Self {
        Self { family, labels: labels.into(), value }
    }
}

/// Writes samples, those of one family beside each other.
pub(super) fn render_samples(page: &mut String, samples: &[Sample]) {
    let mut last = "";
    for Sample { family, labels, value } in samples {
        if family.name != last {
            head(page, family);
            last = family.name;
        }
        page.push_str(family.name);
        for (index, (name, word)) in family.labels.iter().zip(labels).enumerate() {
            // Writing into a String cannot fail.
            let _ = write!(page, "{}{name}=\"{word}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(page, "{} {value}", if family.labels.is_empty() { "" } else { "}" });
    }
}
