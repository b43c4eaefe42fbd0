//! `Book`: which models the container has, who uses them, and which one leaves next. Decides; does nothing itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::files::Placed;
use crate::frontend::sagemaker::failure::ServiceError;

/// How something ended that others wait for; `None` until then.
pub(super) type Outcome = Option<Result<(), ServiceError>>;

/// Waits for an [`Outcome`].
pub(super) type Signal = watch::Receiver<Outcome>;

/// Tells an [`Outcome`].
pub(super) type Promise = watch::Sender<Outcome>;

/// How long a model that would not go is not asked to leave again.
const STUCK: Duration = Duration::from_secs(10);

/// What the endpoint's volume and the emulator's user allow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Caps {
    /// Models in the container at a time.
    pub(super) models: Option<usize>,
    /// Bytes of unpacked models.
    pub(super) disk: Option<u64>,
}

/// A user's place at a model: as long as it is not given back, the model stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) target: Arc<str>,
    /// Which of the models that had this name.
    id: u64,
    /// Which of its loads.
    load: u64,
}

/// A model on its way out.
#[derive(Debug)]
pub(super) struct Victim {
    pub(super) seat: Seat,
    pub(super) placed: Placed,
    /// Told when it is gone, or stays.
    pub(super) gone: Promise,
}

/// What whoever asks for a model finds.
#[derive(Debug)]
pub(super) enum Found {
    /// It is in the container.
    Ready(Seat),
    /// Somebody loads it.
    Loading(Seat, Signal),
    /// Nobody does: the asker is to load it.
    Absent(Seat, Promise, Signal),
    /// It is being unloaded.
    Leaving(Signal),
}

/// What whoever needs room is to do.
#[derive(Debug)]
pub(super) enum Room {
    /// There is room.
    Granted,
    /// Unload this one and ask again.
    Unload(Victim),
    /// Another one is leaving: wait, and ask again.
    Wait(Signal),
    /// All others are in use.
    Nobody,
    /// Never.
    TooLarge,
}

#[derive(Debug)]
enum Stage {
    Loading(Signal),
    Loaded,
    Leaving(Signal),
}

#[derive(Debug)]
struct Model {
    id: u64,
    load: u64,
    stage: Stage,
    /// Those who call it, and those who wait for its load.
    users: usize,
    last_use: u64,
    /// Whether it counts against [`Caps::models`].
    admitted: bool,
    bytes: u64,
    /// The container would not let go of it: it is not asked to before then.
    stuck_until: Option<Instant>,
    placed: Option<Placed>,
}

impl Model {
    /// Whether the container may be asked to unload it, users aside.
    fn may_leave(&self, now: Instant) -> bool {
        matches!(self.stage, Stage::Loaded) && self.stuck_until.is_none_or(|until| now >= until)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Book {
    models: HashMap<Arc<str>, Model>,
    caps: Caps,
    clock: u64,
    next_id: u64,
}

/// The least recently used of those that nobody uses.
pub(super) fn least_recent<K>(models: impl IntoIterator<Item = (K, usize, u64)>) -> Option<K> {
    let idle = models.into_iter().filter(|(_, users, _)| *users == 0);
    idle.min_by_key(|(_, _, last_use)| *last_use).map(|(key, ..)| key)
}

impl Book {
    pub(super) fn new(caps: Caps) -> Self {
        Self { caps, ..Self::default() }
    }

    /// Looks for a model and takes a seat at it.
    pub(super) fn ask(&mut self, target: &Arc<str>) -> Found {
        self.clock += 1;
        if let Some(model) = self.models.get_mut(target) {
            let seat = Seat { target: Arc::clone(target), id: model.id, load: model.load };
            return match &model.stage {
                Stage::Leaving(signal) => Found::Leaving(signal.clone()),
                Stage::Loading(signal) => {
                    model.users += 1;
                    Found::Loading(seat, signal.clone())
                }
                Stage::Loaded => {
                    model.users += 1;
                    model.last_use = self.clock;
                    Found::Ready(seat)
                }
            };
        }
        self.next_id += 1;
        let (promise, signal) = watch::channel(None);
        let model = Model {
            id: self.next_id,
            load: 1,
            stage: Stage::Loading(signal.clone()),
            users: 1,
            last_use: self.clock,
            admitted: false,
            bytes: 0,
            stuck_until: None,
            placed: None,
        };
        let seat = Seat { target: Arc::clone(target), id: model.id, load: model.load };
        self.models.insert(Arc::clone(target), model);
        Found::Absent(seat, promise, signal)
    }

    /// The load that `seat` knows is lost: the container has forgotten the model. Who finds that first loads it again.
    pub(super) fn lost(&mut self, seat: &Seat) -> Option<Found> {
        let load = seat.load;
        let model = self.model(seat)?;
        let seat = Seat { load: model.load, ..seat.clone() };
        Some(match &model.stage {
            Stage::Leaving(signal) => Found::Leaving(signal.clone()),
            Stage::Loading(signal) => Found::Loading(seat, signal.clone()),
            Stage::Loaded if model.load != load => Found::Ready(seat),
            Stage::Loaded => {
                let (promise, signal) = watch::channel(None);
                model.load += 1;
                model.stage = Stage::Loading(signal.clone());
                Found::Absent(Seat { load: model.load, ..seat }, promise, signal)
            }
        })
    }

    /// Where the model's files are, and a seat that knows its present load.
    pub(super) fn placed(&mut self, seat: &Seat) -> Option<(Seat, Placed)> {
        let model = self.model(seat)?;
        let placed = model.placed.clone()?;
        Some((Seat { load: model.load, ..seat.clone() }, placed))
    }

    /// The files of a model that is loading.
    pub(super) fn unpacked(&mut self, seat: &Seat, placed: Placed) {
        if let Some(model) = self.model(seat) {
            model.placed = Some(placed);
        }
    }

    /// The container has it.
    pub(super) fn loaded(&mut self, seat: &Seat) {
        self.clock += 1;
        let now = self.clock;
        if let Some(model) = self.model(seat) {
            (model.stage, model.last_use, model.stuck_until) = (Stage::Loaded, now, None);
        }
    }

    /// Gives a seat back. With `leave`, the last one to go takes the model with it.
    pub(super) fn release(&mut self, seat: &Seat, leave: bool, now: Instant) -> Option<Victim> {
        let model = self.model(seat)?;
        model.users = model.users.saturating_sub(1);
        let goes = leave && model.users == 0 && model.may_leave(now);
        if goes { self.leave(&seat.target.clone()) } else { None }
    }

    /// A place in the container for a model that is loading.
    pub(super) fn admit(&mut self, seat: &Seat, now: Instant) -> Room {
        let admitted = self.models.values().filter(|model| model.admitted).count();
        let fits = self.caps.models.is_none_or(|most| admitted < most);
        match self.model(seat) {
            Some(model) if fits || model.admitted => {
                model.admitted = true;
                Room::Granted
            }
            _ => self.make_room(now),
        }
    }

    /// So many bytes more on the disk for a model that is loading.
    pub(super) fn take(&mut self, seat: &Seat, bytes: u64, now: Instant) -> Room {
        let most = self.caps.disk.unwrap_or(u64::MAX);
        let all = self.models.values().fold(bytes, |sum, model| sum.saturating_add(model.bytes));
        match self.model(seat) {
            Some(model) if model.bytes.saturating_add(bytes) > most => Room::TooLarge,
            Some(model) if all <= most => {
                model.bytes += bytes;
                Room::Granted
            }
            _ => self.make_room(now),
        }
    }

    /// Chooses who leaves; never [`Room::Granted`].
    pub(super) fn make_room(&mut self, now: Instant) -> Room {
        let idle = self.models.iter().filter(|(_, model)| model.may_leave(now));
        let chosen = least_recent(idle.map(|(target, model)| (Arc::clone(target), model.users, model.last_use)));
        if let Some(victim) = chosen.and_then(|target| self.leave(&target)) {
            return Room::Unload(victim);
        }
        let leaving = self.models.values().find_map(|model| match &model.stage {
            Stage::Leaving(signal) => Some(signal.clone()),
            Stage::Loading(_) | Stage::Loaded => None,
        });
        leaving.map_or(Room::Nobody, Room::Wait)
    }

    /// It would not go: it stays, and is not asked to leave again for a while. What kept it may pass without a load of its
    /// own: a container that starts again behind a proxy, a request that was lost.
    pub(super) fn stays(&mut self, seat: &Seat, now: Instant) {
        if let Some(model) = self.model(seat) {
            (model.stage, model.stuck_until) = (Stage::Loaded, Some(now + STUCK));
        }
    }

    /// It is gone, and so are its files.
    pub(super) fn remove(&mut self, seat: &Seat) {
        if self.model(seat).is_some() {
            self.models.remove(&seat.target);
        }
    }

    /// Everything that may lie in the container or on the disk, on its way out.
    pub(super) fn clear(&mut self) -> Vec<Victim> {
        let targets: Vec<_> = self.models.keys().cloned().collect();
        let victims = targets.iter().filter_map(|target| self.leave(target)).collect();
        self.models.clear();
        victims
    }

    /// How many there are, whatever their stage.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.models.len()
    }

    fn leave(&mut self, target: &Arc<str>) -> Option<Victim> {
        let model = self.models.get_mut(target)?;
        let placed = model.placed.clone()?;
        let (gone, signal) = watch::channel(None);
        model.stage = Stage::Leaving(signal);
        Some(Victim { seat: Seat { target: Arc::clone(target), id: model.id, load: model.load }, placed, gone })
    }

    fn model(&mut self, seat: &Seat) -> Option<&mut Model> {
        self.models.get_mut(&seat.target).filter(|model| model.id == seat.id)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn load(book: &mut Book, target: &str) -> Seat {
        let Found::Absent(seat, promise, _) = book.ask(&target.into()) else { panic!("{target} is there") };
        book.unpacked(&seat, Placed { hash: target.into(), folder: PathBuf::from(target), bytes: 1 });
        assert!(matches!(book.admit(&seat, Instant::now()), Room::Granted));
        book.loaded(&seat);
        promise.send_replace(Some(Ok(())));
        seat
    }

    fn victim(book: &mut Book) -> Option<String> {
        match book.make_room(Instant::now()) {
            Room::Unload(victim) => Some(victim.seat.target.as_ref().to_owned()),
            _ => None,
        }
    }

    #[test]
    fn the_idle_model_that_was_used_longest_ago_leaves_first() {
        let mut book = Book::default();
        let seats: Vec<_> = ["a", "b", "c"].into_iter().map(|target| load(&mut book, target)).collect();
        assert!(matches!(book.make_room(Instant::now()), Room::Nobody), "all are in use");
        for seat in &seats {
            assert!(book.release(seat, false, Instant::now()).is_none());
        }
        let Found::Ready(again) = book.ask(&"a".into()) else { panic!("a is not ready") };
        book.release(&again, false, Instant::now());
        assert_eq!(victim(&mut book).as_deref(), Some("b"));
        assert_eq!(victim(&mut book).as_deref(), Some("c"));
        let Found::Ready(held) = book.ask(&"a".into()) else { panic!("a is not ready") };
        assert!(matches!(book.make_room(Instant::now()), Room::Wait(_)), "a is in use, b and c are on their way out");
        book.release(&held, false, Instant::now());
        assert_eq!(victim(&mut book).as_deref(), Some("a"));
    }

    #[test]
    fn who_waits_for_a_load_holds_the_model_when_it_is_there() {
        let mut book = Book::default();
        let Found::Absent(first, ..) = book.ask(&"a".into()) else { panic!("a is there") };
        let Found::Loading(second, _) = book.ask(&"a".into()) else { panic!("a is not loading") };
        book.unpacked(&first, Placed { hash: "a".into(), folder: PathBuf::from("a"), bytes: 1 });
        assert!(matches!(book.make_room(Instant::now()), Room::Nobody), "what is loading does not leave");
        book.loaded(&first);
        book.release(&first, false, Instant::now());
        assert!(matches!(book.make_room(Instant::now()), Room::Nobody), "the second is about to call it");
        book.release(&second, false, Instant::now());
        assert_eq!(victim(&mut book).as_deref(), Some("a"));
    }

    #[test]
    fn a_model_that_does_not_go_is_not_asked_again_for_a_while_or_before_its_next_load() {
        let mut book = Book::default();
        let seat = load(&mut book, "a");
        let now = Instant::now();
        book.release(&seat, false, now);
        let Room::Unload(leaving) = book.make_room(now) else { panic!("nobody leaves") };
        assert!(matches!(book.ask(&"a".into()), Found::Leaving(_)));
        book.stays(&leaving.seat, now);
        assert!(matches!(book.make_room(now + STUCK - Duration::from_millis(1)), Room::Nobody));
        let Found::Ready(seat) = book.ask(&"a".into()) else { panic!("a is not ready") };
        let Some(Found::Absent(seat, ..)) = book.lost(&seat) else { panic!("the load is not lost") };
        book.loaded(&seat);
        book.release(&seat, false, now);
        let Room::Unload(leaving) = book.make_room(now) else { panic!("a new load does not leave") };
        book.stays(&leaving.seat, now);
        assert!(matches!(book.make_room(now), Room::Nobody));
        let Room::Unload(leaving) = book.make_room(now + STUCK) else { panic!("it is stuck for good") };
        assert_eq!(&*leaving.seat.target, "a");
    }

    #[test]
    fn a_lost_load_is_begun_once_and_an_old_seat_takes_nothing_from_a_new_model() {
        let mut book = Book::default();
        let first = load(&mut book, "a");
        let Found::Ready(second) = book.ask(&"a".into()) else { panic!("a is not ready") };
        let Some(Found::Absent(again, ..)) = book.lost(&first) else { panic!("the load is not lost") };
        assert!(matches!(book.lost(&second), Some(Found::Loading(..))));
        book.loaded(&again);
        assert!(matches!(book.lost(&second), Some(Found::Ready(_))));
        book.remove(&first);
        let new = load(&mut book, "a");
        assert!(book.lost(&second).is_none() && book.release(&second, true, Instant::now()).is_none());
        assert!(matches!(book.make_room(Instant::now()), Room::Nobody), "the new model is still in use");
        assert!(book.release(&new, true, Instant::now()).is_some());
    }

    #[test]
    fn caps_count_what_is_leaving_until_it_is_gone_and_what_never_fits_evicts_nobody() {
        let mut book = Book::new(Caps { models: Some(1), disk: Some(10) });
        let a = load(&mut book, "a");
        assert!(matches!(book.take(&a, 8, Instant::now()), Room::Granted));
        let Found::Absent(b, ..) = book.ask(&"b".into()) else { panic!("b is there") };
        assert!(
            matches!(book.admit(&b, Instant::now()), Room::Nobody)
                && matches!(book.take(&b, 3, Instant::now()), Room::Nobody)
        );
        book.release(&a, false, Instant::now());
        assert!(matches!(book.take(&b, 11, Instant::now()), Room::TooLarge));
        let Room::Unload(victim) = book.admit(&b, Instant::now()) else { panic!("nobody leaves") };
        assert!(
            matches!(book.admit(&b, Instant::now()), Room::Wait(_))
                && matches!(book.take(&b, 3, Instant::now()), Room::Wait(_))
        );
        book.remove(&victim.seat);
        assert!(
            matches!(book.admit(&b, Instant::now()), Room::Granted)
                && matches!(book.admit(&b, Instant::now()), Room::Granted)
        );
        assert!(matches!(book.take(&b, 10, Instant::now()), Room::Granted));
    }

    proptest! {
        #[test]
        fn the_victim_is_idle_and_no_idle_model_was_used_earlier(models in prop::collection::vec((0_usize..3, 0_u64..20), 0..12)) {
            let keyed = models.iter().enumerate().map(|(key, &(users, last_use))| (key, users, last_use));
            match least_recent(keyed) {
                None => prop_assert!(models.iter().all(|(users, _)| *users > 0)),
                Some(key) => {
                    prop_assert_eq!(models[key].0, 0);
                    prop_assert!(models.iter().all(|(users, last_use)| *users > 0 || *last_use >= models[key].1));
                }
            }
        }

        #[test]
        fn whatever_happens_the_book_evicts_as_a_list_in_order_of_use_would(steps in prop::collection::vec((0_u8..4, 0_usize..5), 0..60)) {
            let names = ["a", "b", "c", "d", "e"];
            let mut book = Book::default();
            // In order of use; with the seats that are held.
            let mut list: Vec<(&str, Vec<Seat>)> = Vec::new();
            for (step, index) in steps {
                let name = names[index];
                let place = list.iter().position(|(known, _)| *known == name);
                match (step, place) {
                    (0 | 1, None) => {
                        let seat = load(&mut book, name);
                        list.push((name, vec![seat]));
                    }
                    (0 | 1, Some(place)) => {
                        let Found::Ready(seat) = book.ask(&name.into()) else { panic!("{name} is not ready") };
                        let (name, mut seats) = list.remove(place);
                        seats.push(seat);
                        list.push((name, seats));
                    }
                    (2, Some(place)) => {
                        if let Some(seat) = list[place].1.pop() {
                            book.release(&seat, false, Instant::now());
                        }
                    }
                    (3, _) => {
                        let expected = list.iter().position(|(_, seats)| seats.is_empty());
                        match book.make_room(Instant::now()) {
                            Room::Unload(victim) => {
                                let (name, _) = list.remove(expected.unwrap());
                                prop_assert_eq!(&*victim.seat.target, name);
                                book.remove(&victim.seat);
                            }
                            _ => prop_assert!(expected.is_none()),
                        }
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(book.len(), list.len());
        }
    }
}
