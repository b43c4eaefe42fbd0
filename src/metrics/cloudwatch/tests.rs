//! Reports against a sink that takes them or not.

use super::*;

/// Answers as it is told, and keeps what it took.
#[derive(Clone, Default)]
struct Scripted {
    refusals: Arc<Mutex<VecDeque<Refusal>>>,
    taken: Arc<Mutex<Vec<Report>>>,
    hangs: bool,
}

impl Sink for Scripted {
    fn send<'a>(&'a self, report: &'a Report) -> BoxFuture<'a, Result<(), Refusal>> {
        let refusal = self.refusals.lock().pop_front();
        Box::pin(async move {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            match refusal {
                Some(refusal) => Err(refusal),
                None => {
                    self.taken.lock().push(report.clone());
                    Ok(())
                }
            }
        })
    }
}

fn refusing(refusals: impl IntoIterator<Item = Refusal>) -> Scripted {
    Scripted { refusals: Arc::new(Mutex::new(refusals.into_iter().collect())), ..Scripted::default() }
}

fn for_now() -> Refusal {
    Refusal::ForNow(Error::not_ready("down"))
}

/// The sums of `Invocations` in what was taken.
fn sums(sink: &Scripted) -> Vec<f64> {
    sink.taken.lock().iter().map(|report| report.sets[0].1.sum).collect()
}

fn reporter(sink: &Scripted) -> (Arc<Observations>, Reporter) {
    let observations = Arc::new(Observations::default());
    let reporter = Reporter::new(Arc::clone(&observations), Box::new(sink.clone()), Duration::from_secs(60));
    (observations, Reporter { last_wait: Duration::from_millis(1), ..reporter })
}

/// The ends of some periods, with 1, 2, 3 ... invocations in them.
async fn run_for(sink: &Scripted, periods: u32) {
    let (observations, reporter) = reporter(sink);
    for period in 1..=periods {
        observations.observe(Observed::Invocations, f64::from(period));
        reporter.close_period();
        reporter.send_what_waits().await;
    }
}

#[tokio::test]
async fn a_report_is_sent_for_each_period_with_something_in_it() {
    let sink = Scripted::default();
    run_for(&sink, 3).await;
    assert_eq!(sums(&sink), [1.0, 2.0, 3.0]);
    let (_, reporter) = reporter(&sink);
    reporter.close_period();
    reporter.send_what_waits().await;
    assert_eq!(sums(&sink).len(), 3);
}

#[tokio::test]
async fn what_is_refused_for_now_comes_with_the_next_in_its_order() {
    let sink = refusing([for_now(), for_now()]);
    run_for(&sink, 2).await;
    assert_eq!(sums(&sink), [0.0; 0]);
    let sink = refusing([for_now(), for_now()]);
    run_for(&sink, 4).await;
    assert_eq!(sums(&sink), [1.0, 2.0, 3.0, 4.0]);
}

#[tokio::test]
async fn what_is_refused_for_good_is_dropped_and_holds_up_nobody() {
    let sink = refusing([Refusal::ForGood(Error::invalid("no"))]);
    run_for(&sink, 3).await;
    assert_eq!(sums(&sink), [2.0, 3.0]);
}

#[tokio::test]
async fn an_hour_without_an_answer_is_kept_and_no_more() {
    let sink = refusing((0..70).map(|_| for_now()));
    run_for(&sink, 80).await;
    let sums = sums(&sink);
    assert_eq!((sums.first(), sums.last()), (Some(&12.0), Some(&80.0)), "at the seventy-first sixty waited");
}

#[tokio::test]
async fn the_last_report_is_sent_when_the_server_stops() {
    let sink = Scripted::default();
    let (observations, reporter) = reporter(&sink);
    observations.observe(Observed::Invocations, 7.0);
    let stop = CancellationToken::new();
    stop.cancel();
    reporter.run(|| {}, stop).await;
    assert_eq!(sums(&sink), [7.0]);
}

#[tokio::test]
async fn a_sink_that_hangs_keeps_nobody_from_stopping() {
    let sink = Scripted { hangs: true, ..Scripted::default() };
    let (observations, reporter) = reporter(&sink);
    observations.observe(Observed::Invocations, 7.0);
    let stop = CancellationToken::new();
    stop.cancel();
    reporter.run(|| {}, stop).await;
    assert_eq!(sums(&sink), [0.0; 0]);
}
