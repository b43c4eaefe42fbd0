//! Answers in the order of their requests, whatever order they are ready in.
//!
//! A request gets its [`Place`] when it enters, so the order is that of the requests and not that of the answers; Triton
//! takes the place only when the answer is there. Nothing is kept of a place whose turn it is and that has finished or
//! left; what is kept behind one is bounded by the caller, who lets nobody enter while [`Order::len`] is at the queue's
//! capacity.

use std::collections::VecDeque;
use std::collections::vec_deque::Drain;

/// A turn in the order. It must end in [`Order::finish`] or [`Order::leave`], or everything behind it waits for ever.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a place that never finishes or leaves holds up all behind it"]
pub struct Place(u64);

#[derive(Debug)]
struct Turn<A> {
    answers: VecDeque<A>,
    is_over: bool,
}

/// The answers of requests that entered one after the other. O(1) amortised for each place and answer.
#[derive(Debug)]
pub struct Order<A> {
    /// The turns that are not done, the first of them being whose answers leave at once.
    turns: VecDeque<Turn<A>>,
    /// The number of the first of `turns`.
    first: u64,
    /// What may leave.
    released: VecDeque<A>,
}

impl<A> Default for Order<A> {
    fn default() -> Self {
        Self { turns: VecDeque::new(), first: 0, released: VecDeque::new() }
    }
}

impl<A> Order<A> {
    /// The next place.
    pub fn enter(&mut self) -> Place {
        self.turns.push_back(Turn { answers: VecDeque::new(), is_over: false });
        Place(self.first + self.turns.len() as u64 - 1)
    }

    /// An answer that is not the last of its request, and what may leave now.
    pub fn emit(&mut self, place: &Place, answer: A) -> Drain<'_, A> {
        self.add(place.0, Some(answer), false)
    }

    /// The last answer of a request, and what may leave now.
    pub fn finish(&mut self, place: Place, answer: A) -> Drain<'_, A> {
        self.add(place.0, Some(answer), true)
    }

    /// The end of a request without an answer, or without another one; and what may leave now.
    pub fn leave(&mut self, place: Place) -> Drain<'_, A> {
        self.add(place.0, None, true)
    }

    /// Places that neither finished nor left, and finished ones behind them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.turns.len()
    }

    /// Whether nothing is held up.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    fn add(&mut self, number: u64, answer: Option<A>, is_over: bool) -> Drain<'_, A> {
        // Places are not cloned, so this one's turn is not over; a place of another order may be anything.
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(turn) = index.and_then(|index| self.turns.get_mut(index)) {
            turn.answers.extend(answer);
            turn.is_over |= is_over;
        }
        while let Some(turn) = self.turns.front_mut() {
            self.released.append(&mut turn.answers);
            if !turn.is_over {
                break;
            }
            self.turns.pop_front();
            self.first += 1;
        }
        self.released.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_that_is_ready_first_waits_for_those_before_it() {
        let mut order = Order::default();
        let (first, second) = (order.enter(), order.enter());
        assert_eq!(order.finish(second, "second").count(), 0);
        assert_eq!(order.finish(first, "first").collect::<Vec<_>>(), ["first", "second"]);
        assert!(order.is_empty());
    }

    #[test]
    fn a_request_that_leaves_holds_nobody_up() {
        let mut order = Order::default();
        let (first, second, third) = (order.enter(), order.enter(), order.enter());
        assert_eq!(order.finish(third, 3).count(), 0);
        assert_eq!(order.leave(second).count(), 0);
        assert_eq!(order.leave(first).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn answers_of_one_request_leave_at_once_in_its_turn_and_together_after_it() {
        let mut order = Order::default();
        let (first, second) = (order.enter(), order.enter());
        assert_eq!(order.emit(&first, "1a").collect::<Vec<_>>(), ["1a"]);
        assert_eq!(order.emit(&second, "2a").count(), 0);
        assert_eq!(order.emit(&first, "1b").collect::<Vec<_>>(), ["1b"]);
        assert_eq!(order.finish(first, "1c").collect::<Vec<_>>(), ["1c", "2a"]);
        assert_eq!(order.emit(&second, "2b").collect::<Vec<_>>(), ["2b"]);
        assert_eq!(order.leave(second).count(), 0);
        assert!(order.is_empty());
    }

    #[test]
    fn released_answers_that_nobody_took_are_not_given_again() {
        let mut order = Order::default();
        let (first, second) = (order.enter(), order.enter());
        drop(order.finish(first, 1));
        assert_eq!(order.finish(second, 2).collect::<Vec<_>>(), [2]);
    }

    proptest! {
        /// Steps: 0 enters, 1 emits, 2 finishes, 3 leaves, the latter three for one of the open places.
        #[test]
        fn answers_leave_in_the_order_of_their_requests_and_as_early_as_that_allows(
            steps in prop::collection::vec((0_u8..4, any::<prop::sample::Index>()), 1..200)
        ) {
            let mut order = Order::default();
            let mut open: Vec<(usize, Place)> = Vec::new();
            let mut entered = 0;
            // What each request gave, and whether it is done: the model.
            let mut given: Vec<(Vec<(usize, usize)>, bool)> = Vec::new();
            let mut released = Vec::new();
            for (step, which) in steps {
                if step == 0 || open.is_empty() {
                    open.push((entered, order.enter()));
                    given.push((Vec::new(), false));
                    entered += 1;
                    continue;
                }
                let at = which.index(open.len());
                let id = open[at].0;
                let answer = (id, given[id].0.len());
                if step < 3 {
                    given[id].0.push(answer);
                }
                if step == 1 {
                    released.extend(order.emit(&open[at].1, answer));
                } else {
                    given[id].1 = true;
                    let (_, place) = open.remove(at);
                    released.extend(if step == 2 { order.finish(place, answer) } else { order.leave(place) });
                }
                let turn = given.iter().position(|(_, done)| !done).unwrap_or(given.len());
                let expected: Vec<_> =
                    given.iter().take(turn + 1).flat_map(|(answers, _)| answers.iter().copied()).collect();
                prop_assert_eq!(&released, &expected);
                prop_assert_eq!(order.len(), given.len() - turn);
            }
        }
    }
}
