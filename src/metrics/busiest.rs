//! Which models have series of their own on the page, and what the rest counts together.
//!
//! A page grows with each model that has series, and a time-series database with each that ever had. So only the busiest have
//! them, and the others are one row. The row has to be a counter like any other, which never falls: it grows by what the
//! others counted since the page before, so that a model that becomes busy takes nothing out of it. Who has series keeps them
//! until somebody is twice as busy, so that series do not come and go with every page.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a model counts, in the order of the page's families.
pub(super) type Counts = [u64; super::per_model::COUNTS];

/// How fast it is forgotten who was busy: by half in that time.
const HALF_LIFE: Duration = Duration::from_secs(120);

/// How much busier one must be to take another's place.
const ADVANTAGE: f64 = 2.0;

/// A model on the page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) name: &'a Arc<str>,
    pub(super) version: u64,
    pub(super) counts: Counts,
    /// Requests among the counts.
    pub(super) requests: u64,
}

#[derive(Debug)]
struct Known {
    seen: Counts,
    requests: u64,
    activity: f64,
    shown: bool,
    /// The page that it was last on.
    page: u64,
}

/// Who is busiest.
#[derive(Debug)]
pub(super) struct Busiest {
    most: usize,
    known: HashMap<(Arc<str>, u64), Known>,
    rest: Counts,
    pages: u64,
    at: Option<Instant>,
}

impl Busiest {
    /// Series for `most` models.
    pub(super) fn new(most: usize) -> Self {
        Self { most, known: HashMap::new(), rest: [0; super::per_model::COUNTS], pages: 0, at: None }
    }

    /// For each of `models` whether it has series of its own on the page of `now`, and what all others counted so far;
    /// `None` while nobody was ever among them.
    pub(super) fn select(&mut self, now: Instant, models: &[Candidate<'_>]) -> (Vec<bool>, Option<Counts>) {
        self.pages += 1;
        let passed = self.at.replace(now).map_or(Duration::ZERO, |before| now.saturating_duration_since(before));
        let keeps = 0.5_f64.powf(passed.as_secs_f64() / HALF_LIFE.as_secs_f64());
        let mut scores = Vec::with_capacity(models.len());
        let mut grown = Vec::with_capacity(models.len());
        for (index, model) in models.iter().enumerate() {
            let known = self.known.entry((Arc::clone(model.name), model.version)).or_insert_with(|| Known {
                seen: [0; super::per_model::COUNTS],
                requests: 0,
                activity: 0.0,
                shown: false,
                page: 0,
            });
            // Fewer than before: it was loaded anew.
            let anew = model.counts.iter().zip(&known.seen).any(|(now, before)| now < before);
            let before = if anew { [0; super::per_model::COUNTS] } else { known.seen };
            let requests = model.requests.saturating_sub(if anew { 0 } else { known.requests });
            #[expect(clippy::cast_precision_loss, reason = "it is compared with others")]
            let activity = known.activity.mul_add(keeps, requests as f64);
            let mut growth = model.counts;
            for (count, before) in growth.iter_mut().zip(&before) {
                *count -= before;
            }
            let score = if known.shown { activity * ADVANTAGE } else { activity };
            (known.seen, known.requests, known.activity, known.page) =
                (model.counts, model.requests, activity, self.pages);
            scores.push((score, known.shown, index));
            grown.push(growth);
        }
        let before: Vec<bool> = scores.iter().map(|(_, shown, _)| *shown).collect();
        let shown = self.choose(scores, models);
        for (((model, growth), shown), before) in models.iter().zip(&grown).zip(&shown).zip(before) {
            if *shown != before
                && let Some(known) = self.known.get_mut(&(Arc::clone(model.name), model.version))
            {
                known.shown = *shown;
            }
            if !shown {
                for (sum, count) in self.rest.iter_mut().zip(growth) {
                    *sum = sum.saturating_add(*count);
                }
            }
        }
        let page = self.pages;
        self.known.retain(|_, known| known.page == page);
        let any = self.rest.iter().any(|count| *count > 0) || shown.iter().any(|shown| !shown);
        (shown, any.then_some(self.rest))
    }

    fn choose(&self, mut scores: Vec<(f64, bool, usize)>, models: &[Candidate<'_>]) -> Vec<bool> {
        if models.len() <= self.most {
            return vec![true; models.len()];
        }
        let mut shown = vec![false; models.len()];
        // The busiest first; among equals those that are there, then the first by the order of the page.
        let key = |index: usize| models.get(index).map(|model| (&**model.name, model.version));
        let order = |one: &(f64, bool, usize), other: &(f64, bool, usize)| {
            let busier = other.0.total_cmp(&one.0).then(other.1.cmp(&one.1));
            busier.then_with(|| key(one.2).cmp(&key(other.2)))
        };
        if self.most > 0 {
            scores.select_nth_unstable_by(self.most - 1, order);
        }
        for (_, _, index) in scores.into_iter().take(self.most) {
            shown[index] = true;
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Models by name, each with what it has counted; all its counts are the same.
    fn page(busiest: &mut Busiest, at: Instant, models: &[(&Arc<str>, u64)]) -> (Vec<bool>, Option<u64>) {
        let candidates: Vec<_> = models
            .iter()
            .map(|(name, count)| Candidate {
                name,
                version: 1,
                counts: [*count; super::super::per_model::COUNTS],
                requests: *count,
            })
            .collect();
        let (shown, rest) = busiest.select(at, &candidates);
        (shown, rest.map(|counts| counts[0]))
    }

    #[test]
    fn few_models_all_have_series_and_there_is_no_rest() {
        let (a, b) = ("a".into(), "b".into());
        let mut busiest = Busiest::new(2);
        assert_eq!(page(&mut busiest, Instant::now(), &[(&a, 0), (&b, 5)]), (vec![true, true], None));
    }

    #[test]
    fn the_busiest_have_series_and_the_rest_is_one_sum() {
        let (a, b, c) = ("a".into(), "b".into(), "c".into());
        let (mut busiest, now) = (Busiest::new(1), Instant::now());
        assert_eq!(page(&mut busiest, now, &[(&a, 3), (&b, 10), (&c, 4)]), (vec![false, true, false], Some(7)));
        // Not twice as busy: b keeps its place.
        assert_eq!(page(&mut busiest, now, &[(&a, 3), (&b, 10), (&c, 15)]), (vec![false, true, false], Some(18)));
        // Now it is, and the rest keeps what it counted while it was one of them.
        assert_eq!(page(&mut busiest, now, &[(&a, 3), (&b, 10), (&c, 95)]), (vec![false, false, true], Some(18)));
        // What b counts from here on is the rest's.
        assert_eq!(page(&mut busiest, now, &[(&a, 3), (&b, 12), (&c, 95)]), (vec![false, false, true], Some(20)));
    }

    #[test]
    fn who_was_busy_long_ago_makes_room() {
        let (a, b) = ("a".into(), "b".into());
        let (mut busiest, start) = (Busiest::new(1), Instant::now());
        assert_eq!(page(&mut busiest, start, &[(&a, 1000), (&b, 1)]).0, [true, false]);
        assert_eq!(page(&mut busiest, start + HALF_LIFE * 20, &[(&a, 1000), (&b, 9)]).0, [false, true]);
    }

    #[test]
    fn a_model_loaded_anew_counts_from_nothing() {
        let (a, b) = ("a".into(), "b".into());
        let (mut busiest, now) = (Busiest::new(1), Instant::now());
        assert_eq!(page(&mut busiest, now, &[(&a, 9), (&b, 4)]).1, Some(4));
        assert_eq!(page(&mut busiest, now, &[(&a, 9), (&b, 3)]).1, Some(7));
        assert_eq!(page(&mut busiest, now, &[(&a, 9)]), (vec![true], Some(7)), "the sum stays");
        assert_eq!(busiest.known.len(), 1, "who is gone is forgotten");
    }

    #[test]
    fn with_no_series_at_all_everything_is_the_rest() {
        let a = "a".into();
        assert_eq!(page(&mut Busiest::new(0), Instant::now(), &[(&a, 2)]), (vec![false], Some(2)));
    }

    proptest! {
        #[test]
        fn the_rest_never_falls_and_no_more_have_series_than_may(
            most in 0..4_usize,
            pages in prop::collection::vec(prop::collection::vec((0..6_usize, 0..100_u64), 0..6), 1..20),
        ) {
            let names: Vec<Arc<str>> = ["a", "b", "c", "d", "e", "f"].map(Into::into).to_vec();
            let (mut busiest, start) = (Busiest::new(most), Instant::now());
            let (mut totals, mut before) = ([0_u64; 6], 0);
            for (minute, added) in (0..).zip(pages) {
                for (index, count) in added {
                    totals[index] += count;
                }
                let models: Vec<_> = names.iter().zip(totals).collect();
                let at = start + Duration::from_secs(minute * 60);
                let (shown, rest) = page(&mut busiest, at, &models);
                prop_assert_eq!(shown.iter().filter(|shown| **shown).count(), most.min(6));
                prop_assert!(rest.unwrap_or(0) >= before);
                before = rest.unwrap_or(0);
            }
        }
    }
}
