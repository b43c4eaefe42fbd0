//! How many loads, or fetches, run at once, and which goes next: requests before prefetches, the earliest deadline first.
//! Prefetches leave one place free where there are several.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::flight::{Flight, Urgency};

/// A bound on loads that let themselves in by their urgency. Cheap to clone.
#[derive(Clone)]
pub(super) struct LoadGate(Arc<Mutex<State>>);

struct State {
    places: usize,
    free: usize,
    arrived: u64,
    waiting: Vec<Waiting>,
}

struct Waiting {
    arrived: u64,
    flight: Arc<Flight>,
    go: oneshot::Sender<LoadPermit>,
}

/// A place among the loads that run; dropping it lets the next one in.
pub(super) struct LoadPermit(Arc<Mutex<State>>);

impl LoadGate {
    pub(super) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            places: places.max(1),
            free: places.max(1),
            arrived: 0,
            waiting: Vec::new(),
        })))
    }

    /// Loads that wait.
    pub(super) fn waiting(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// Loads that run.
    pub(super) fn running(&self) -> usize {
        let state = self.0.lock();
        state.places - state.free
    }

    /// Waits for a place. Whoever stops waiting takes none.
    pub(super) async fn enter(&self, flight: &Arc<Flight>) -> LoadPermit {
        let mut permit = {
            let (go, permit) = oneshot::channel();
            let mut state = self.0.lock();
            state.arrived += 1;
            let arrived = state.arrived;
            state.waiting.push(Waiting { arrived, flight: Arc::clone(flight), go });
            permit
        };
        admit(&self.0);
        loop {
            let is_prefetch = flight.urgency() == Urgency::Prefetch;
            tokio::select! {
                biased;
                permit = &mut permit => match permit {
                    Ok(permit) => return permit,
                    // Not before the gate itself is gone, which this borrows.
                    Err(_closed) => std::future::pending().await,
                },
                () = flight.hastened(), if is_prefetch => admit(&self.0),
            }
        }
    }
}

/// Lets in whoever may go.
fn admit(gate: &Arc<Mutex<State>>) {
    loop {
        let go = {
            let mut state = gate.lock();
            state.waiting.retain(|waiting| !waiting.go.is_closed());
            let urgencies: Vec<_> =
                state.waiting.iter().map(|waiting| (waiting.flight.urgency(), waiting.arrived)).collect();
            let Some(index) = next(&urgencies) else { return };
            let kept = usize::from(urgencies[index].0 == Urgency::Prefetch && state.places > 1);
            if state.free <= kept {
                return;
            }
            state.free -= 1;
            state.waiting.swap_remove(index).go
        };
        // Where it stopped waiting just now, the permit comes back and gives its place to the next.
        drop(go.send(LoadPermit(Arc::clone(gate))));
    }
}

/// Who goes next. What is urgent may have become so while it waited, so all are looked at.
fn next(waiting: &[(Urgency, u64)]) -> Option<usize> {
    (0..waiting.len()).min_by_key(|&index| waiting[index])
}

impl Drop for LoadPermit {
    fn drop(&mut self) {
        self.0.lock().free += 1;
        admit(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use futures_util::FutureExt;

    use super::super::flight::Operation;
    use super::*;

    fn flight(prefetch: bool, deadline: Option<Instant>) -> Arc<Flight> {
        let flight = Flight::new(Operation::Load);
        if !prefetch {
            flight.wanted_by(deadline);
        }
        flight
    }

    #[tokio::test]
    async fn requests_go_before_prefetches_and_the_earliest_deadline_first() {
        let gate = LoadGate::new(1);
        let now = Instant::now();
        let deadline = |seconds| Some(now + Duration::from_secs(seconds));
        let flights = [flight(true, None), flight(false, None), flight(false, deadline(9)), flight(false, deadline(3))];
        let held = gate.enter(&flights[0]).await;
        let (order, mut done) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for (index, flight) in flights.iter().enumerate() {
            let (gate, flight, order) = (gate.clone(), Arc::clone(flight), order.clone());
            tasks.push(tokio::spawn(async move {
                let _permit = gate.enter(&flight).await;
                order.send(index).unwrap();
            }));
        }
        while gate.waiting() < 4 {
            tokio::task::yield_now().await;
        }
        drop(held);
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(done.recv().await.unwrap());
        }
        assert_eq!(seen, [3, 2, 1, 0]);
    }

    #[tokio::test]
    async fn a_prefetch_that_a_request_waits_for_is_no_prefetch_any_more() {
        let gate = LoadGate::new(1);
        let (prefetch, other) = (flight(true, None), flight(true, None));
        let held = gate.enter(&other).await;
        let first = gate.enter(&other);
        let second = gate.enter(&prefetch);
        tokio::pin!(first, second);
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        prefetch.wanted_by(None);
        drop(held);
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn prefetches_leave_a_place_free() {
        let gate = LoadGate::new(2);
        let (one, two) = (flight(true, None), flight(true, None));
        let held = gate.enter(&one).await;
        let second = gate.enter(&two);
        tokio::pin!(second);
        assert!(second.as_mut().now_or_never().is_none());
        let request = gate.enter(&flight(false, None)).now_or_never();
        assert!(request.is_some());
        drop(request);
        assert!(second.as_mut().now_or_never().is_none());
        // Somebody wants it now, and there is a place.
        two.wanted_by(None);
        assert!(second.as_mut().now_or_never().is_some());
        drop(held);
    }

    #[tokio::test]
    async fn who_stops_waiting_takes_no_place() {
        let gate = LoadGate::new(1);
        let flight = flight(false, None);
        let held = gate.enter(&flight).await;
        {
            let leaver = gate.enter(&flight);
            tokio::pin!(leaver);
            assert!(leaver.as_mut().now_or_never().is_none());
        }
        drop(held);
        let again = gate.enter(&flight);
        tokio::pin!(again);
        assert!(again.as_mut().now_or_never().is_some());
    }
}
