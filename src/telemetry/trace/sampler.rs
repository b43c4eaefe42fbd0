//! Which requests are traced: the server's settings, those of models, and what is left of their counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::settings::{Change, TraceSettings, TraceUpdate};
use crate::error::{Error, Result};

/// The most models that have settings of their own.
const MODELS: usize = 10_000;

/// Settings in force, with their counters. A change makes another one: traces under way keep theirs.
#[derive(Debug)]
pub(super) struct Sampler {
    settings: TraceSettings,
    own: Own,
    seen: AtomicU64,
    left: AtomicI32,
}

/// Which settings were set here, and do not follow those above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Own {
    levels: bool,
    rate: bool,
    count: bool,
    log_frequency: bool,
}

impl Sampler {
    fn new(settings: TraceSettings, own: Own) -> Arc<Self> {
        let left = AtomicI32::new(settings.count);
        Arc::new(Self { settings, own, seen: AtomicU64::new(0), left })
    }

    /// The settings as they were made; their count is what it was then.
    pub(super) const fn settings(&self) -> &TraceSettings {
        &self.settings
    }

    /// The settings with what is left of the count.
    pub(super) fn now(&self) -> TraceSettings {
        TraceSettings { count: self.left.load(Ordering::Relaxed), ..self.settings.clone() }
    }

    /// Whether this request is the one in `rate`, with something left of the count.
    pub(super) fn hits(&self) -> bool {
        let rate = u64::from(self.settings.rate);
        if self.settings.levels.is_off() || rate == 0 {
            return false;
        }
        // The first hit is the last request of the first `rate`, as in Triton.
        let turn = self.seen.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if !turn.is_multiple_of(rate) {
            return false;
        }
        let take = |left: i32| match left {
            0 => None,
            1.. => Some(left - 1),
            _ => Some(left),
        };
        self.left.try_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// The settings of the server and of those models that have their own.
#[derive(Clone, Debug)]
pub(super) struct Table {
    start: TraceSettings,
    global: Arc<Sampler>,
    models: HashMap<Arc<str>, Arc<Sampler>>,
}

impl Table {
    pub(super) fn new(start: TraceSettings) -> Self {
        Self { global: Sampler::new(start.clone(), Own::default()), start, models: HashMap::new() }
    }

    /// Whether anything is traced.
    pub(super) fn is_on(&self) -> bool {
        std::iter::once(&self.global).chain(self.models.values()).any(|sampler| !sampler.settings.levels.is_off())
    }

    /// What holds for a model, or for the server.
    pub(super) fn sampler(&self, model: Option<&str>) -> &Arc<Sampler> {
        let own = model.filter(|_| !self.models.is_empty()).and_then(|model| self.models.get(model));
        own.unwrap_or(&self.global)
    }

    /// The table with a change to the settings of the server or of a model. A change of the server's also reaches the
    /// models, in what they have not set themselves.
    ///
    /// # Errors
    /// `InvalidArgument` where traces are wanted and cannot be made so.
    pub(super) fn updated(&self, model: Option<&str>, update: &TraceUpdate) -> Result<Self> {
        let mut table = self.clone();
        let Some(model) = model else {
            let (settings, own) = merge(&self.start, Some(&self.global), update);
            settings.check()?;
            table.global = Sampler::new(settings, own);
            let above = table.global.now();
            for sampler in table.models.values_mut() {
                let (settings, own) = merge(&above, Some(sampler), &TraceUpdate::default());
                *sampler = Sampler::new(settings, own);
            }
            return Ok(table);
        };
        let (settings, own) = merge(&self.global.now(), self.models.get(model), update);
        if own == Own::default() {
            table.models.remove(model);
            return Ok(table);
        }
        settings.check()?;
        if table.models.len() >= MODELS && !table.models.contains_key(model) {
            return Err(Error::too_large(format!(
                "{MODELS} models have trace settings of their own: clear some first"
            )));
        }
        table.models.insert(model.into(), Sampler::new(settings, own));
        Ok(table)
    }
}

/// What is set here, now or before, and for the rest what is set `above`.
fn merge(above: &TraceSettings, current: Option<&Arc<Sampler>>, update: &TraceUpdate) -> (TraceSettings, Own) {
    let now = current.map(|sampler| (sampler.now(), sampler.own));
    let before = |own: fn(&Own) -> bool| now.as_ref().filter(|(_, was)| own(was)).map(|(settings, _)| settings);
    let levels = pick(update.levels, before(|own| own.levels).map(|settings| settings.levels));
    let rate = pick(update.rate, before(|own| own.rate).map(|settings| settings.rate));
    let count = pick(update.count, before(|own| own.count).map(|settings| settings.count));
    let frequency = pick(update.log_frequency, before(|own| own.log_frequency).map(|settings| settings.log_frequency));
    let own = Own {
        levels: levels.is_some(),
        rate: rate.is_some(),
        count: count.is_some(),
        log_frequency: frequency.is_some(),
    };
    let settings = TraceSettings {
        levels: levels.unwrap_or(above.levels),
        rate: rate.unwrap_or(above.rate),
        count: count.unwrap_or(above.count),
        log_frequency: frequency.unwrap_or(above.log_frequency),
        ..above.clone()
    };
    (settings, own)
}

fn pick<T>(change: Change<T>, before: Option<T>) -> Option<T> {
    match change {
        Change::Keep => before,
        Change::Clear => None,
        Change::Set(value) => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::trace::TraceConfig;

    fn table(options: &[&str]) -> Table {
        Table::new(TraceSettings::of(&TraceConfig::read(options).unwrap()))
    }

    fn update(values: &[(&str, Option<&str>)]) -> TraceUpdate {
        let mut update = TraceUpdate::default();
        for (name, value) in values {
            update.take(name, value.as_ref().map(std::slice::from_ref)).unwrap();
        }
        update
    }

    const ON: [&str; 2] = ["level=TIMESTAMPS", "triton,file=f"];

    #[test]
    fn a_model_follows_the_server_in_what_it_has_not_set() {
        let table = table(&ON).updated(Some("m"), &update(&[("trace_rate", Some("7"))])).unwrap();
        let table = table.updated(None, &update(&[("trace_rate", Some("11")), ("trace_count", Some("3"))])).unwrap();
        let of = |table: &Table, model| table.sampler(model).now();
        assert_eq!((of(&table, Some("m")).rate, of(&table, Some("m")).count), (7, 3));
        assert_eq!((of(&table, None).rate, of(&table, Some("other")).rate), (11, 11));
        let table = table.updated(Some("m"), &update(&[("trace_rate", None)])).unwrap();
        assert_eq!(of(&table, Some("m")).rate, 11);
        assert!(table.models.is_empty(), "a model without settings of its own takes no place");
        let table = table.updated(None, &update(&[("trace_rate", None), ("trace_count", None)])).unwrap();
        assert_eq!((of(&table, None).rate, of(&table, None).count), (1000, -1));
    }

    #[test]
    fn a_count_is_used_up_and_a_new_one_starts_again() {
        let table =
            table(&ON).updated(None, &update(&[("trace_rate", Some("1")), ("trace_count", Some("2"))])).unwrap();
        let sampler = table.sampler(None);
        assert_eq!([sampler.hits(), sampler.hits(), sampler.hits()], [true, true, false]);
        assert_eq!(sampler.now().count, 0);
        let refused = table.updated(None, &update(&[("trace_rate", Some("2"))])).unwrap_err().report();
        assert!(refused.contains("Attempting to set invalid trace setting :trace_count"), "{refused}");
        let table = table.updated(None, &update(&[("trace_count", Some("1"))])).unwrap();
        assert!(table.sampler(None).hits());
    }

    #[test]
    fn a_model_that_used_up_its_count_does_not_keep_the_server_from_being_set() {
        let table =
            table(&ON).updated(Some("m"), &update(&[("trace_rate", Some("1")), ("trace_count", Some("1"))])).unwrap();
        assert!(table.sampler(Some("m")).hits());
        let table = table.updated(None, &update(&[("trace_rate", Some("5"))])).unwrap();
        assert!(!table.sampler(Some("m")).hits());
    }

    #[test]
    fn what_cannot_be_traced_is_refused_only_while_tracing_is_on() {
        let off = table(&[]);
        let text = |result: Result<Table>| result.unwrap_err().report();
        let on = update(&[("trace_level", Some("TIMESTAMPS"))]);
        assert_eq!(
            text(off.updated(None, &on)),
            "Attempting to set invalid trace setting :trace file name is not given"
        );
        let zero = update(&[("trace_rate", Some("0"))]);
        assert!(off.updated(None, &zero).is_ok());
        let expected = "Attempting to set invalid trace setting :sample rate must be non-zero";
        assert_eq!(text(table(&ON).updated(None, &zero)), expected);
        assert!(!off.is_on() && table(&ON).is_on());
    }

    proptest! {
        #[test]
        fn exactly_one_request_in_n_is_traced_until_the_count_is_used_up(
            rate in 1_u32..50, count in -1_i32..40, requests in 0_u32..2000,
        ) {
            prop_assume!(count != 0);
            let (rate_text, count_text) = (rate.to_string(), count.to_string());
            let table = table(&ON)
                .updated(None, &update(&[("trace_rate", Some(&rate_text)), ("trace_count", Some(&count_text))]))
                .unwrap();
            let sampler = table.sampler(None);
            let hits: Vec<u32> = (1..=requests).filter(|_| sampler.hits()).collect();
            let most = if count < 0 { usize::MAX } else { count.unsigned_abs() as usize };
            let expected: Vec<u32> = (1..=requests).filter(|turn| turn % rate == 0).take(most).collect();
            prop_assert_eq!(hits, expected);
        }
    }

    #[test]
    fn threads_that_sample_at_once_share_the_rate_and_the_count() {
        let table =
            table(&ON).updated(None, &update(&[("trace_rate", Some("3")), ("trace_count", Some("90"))])).unwrap();
        let sampler = Arc::clone(table.sampler(None));
        let count = || (0..100).filter(|_| sampler.hits()).count();
        let hits: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(hits, 90);
    }
}
