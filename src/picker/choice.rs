//! The decision: of the candidates for a request, who is asked, and who is tried next.
//!
//! A warm copy with a short queue; else a copy that is being loaded; else the next on the ring that has a place free for a
//! load. Where queueing at the warm copies has cost more than a load, another copy is opened. Of whom nothing is known the
//! ring decides. Pure, and the same for whoever asks with the same candidates.

use smallvec::SmallVec;

use super::ring::Id;

/// What is known of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its digest is young enough to go by.
    Fresh,
    /// Its digest is too old, or has been wrong too often: all that is known is its place on the ring.
    Stale,
    /// It refused connections when it was last asked.
    Down,
}

/// What an instance has of the model that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// It answers at once.
    Warm,
    /// It is being brought.
    Loading,
    /// Nothing, or nothing is known.
    Absent,
}

/// An instance that could answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Which.
    pub id: Id,
    /// What is known of it.
    pub standing: Standing,
    /// Whether it takes no new models: it is on its way out, or has not started.
    pub closed: bool,
    /// What it has.
    pub copy: Copy,
    /// Requests at its copy over those that run there at once: from 1 on another one waits.
    pub queue: f64,
    /// Whether a load would begin at once.
    pub has_load_place: bool,
    /// Whether it has more than twice its share of the fleet's requests already, those that wait for a load left out.
    pub over_share: bool,
}

/// Why somebody was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The model is in memory there.
    Warm,
    /// The model is being brought there.
    Loading,
    /// Nobody has it: the first on the ring is to bring it.
    Home,
    /// Nobody has it, and those before on the ring are out, over their share, or have loads waiting.
    Next,
    /// Waiting for the warm copies has cost more than a load: one more.
    Copy,
    /// Nothing is known of the first on the ring: the ring decides.
    Ring,
    /// Nobody is fit for it, and the first who is there at all is asked.
    Last,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Warm, Self::Loading, Self::Home, Self::Next, Self::Copy, Self::Ring, Self::Last];

    /// The word in documents and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Loading => "loading",
            Self::Home => "home",
            Self::Next => "next",
            Self::Copy => "copy",
            Self::Ring => "ring",
            Self::Last => "last",
        }
    }
}

/// Endpoints told at most: who is picked, and who is tried after that.
pub const MOST_ENDPOINTS: usize = 4;

/// Who is asked, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Why the first.
    pub reason: Reason,
    /// Who is asked, then who is tried where that fails.
    pub order: SmallVec<[Id; MOST_ENDPOINTS]>,
}

/// Decides over candidates in the order of the ring. `pays` says whether waiting for the warm copies has cost more than a
/// load. `None` where there is no candidate.
#[must_use]
pub fn choose(candidates: &[Candidate], pays: bool) -> Option<Choice> {
    let (picked, reason) = pick(candidates, pays)?;
    let mut rest: SmallVec<[&Candidate; 8]> = candidates.iter().filter(|other| other.id != picked.id).collect();
    // Stable: equals stay in the order of the ring.
    rest.sort_by(|one, other| worth(one).cmp(&worth(other)).then(one.queue.total_cmp(&other.queue)));
    let order = [picked].into_iter().chain(rest).map(|candidate| candidate.id).take(MOST_ENDPOINTS).collect();
    Some(Choice { reason, order })
}

fn pick(candidates: &[Candidate], pays: bool) -> Option<(&Candidate, Reason)> {
    let fresh = |candidate: &&Candidate| candidate.standing == Standing::Fresh;
    let warm = || candidates.iter().filter(fresh).filter(|candidate| candidate.copy == Copy::Warm);
    let takes_models = |candidate: &&Candidate| !candidate.closed && candidate.standing != Standing::Down;
    let loading =
        || candidates.iter().filter(fresh).find(|candidate| candidate.copy == Copy::Loading && !candidate.closed);
    let may_load = |candidate: &&Candidate| {
        let has_place = candidate.has_load_place || candidate.standing == Standing::Stale;
        takes_models(candidate) && candidate.copy == Copy::Absent && has_place && !candidate.over_share
    };
    let staying = || warm().filter(|candidate| !candidate.closed);
    let open = || staying().find(|candidate| candidate.queue < 1.0);
    // Who is on its way out answers what it has as long as nobody else can: its neighbours are bringing it meanwhile.
    let best = open().or_else(|| shortest(staying())).or_else(|| shortest(warm()));
    if let Some(best) = best {
        if best.queue >= 1.0
            && pays
            && loading().is_none()
            && let Some(another) = candidates.iter().filter(fresh).find(may_load)
        {
            return Some((another, Reason::Copy));
        }
        return Some((best, Reason::Warm));
    }
    if let Some(loading) = loading() {
        return Some((loading, Reason::Loading));
    }
    let first = candidates.first()?;
    if let Some(next) = candidates.iter().find(may_load) {
        let reason = match (next.id == first.id, next.standing) {
            (_, Standing::Stale) => Reason::Ring,
            (true, _) => Reason::Home,
            (false, _) => Reason::Next,
        };
        return Some((next, reason));
    }
    // Each has loads waiting, or more than its share: the model is at home with the first.
    if let Some(home) = candidates.iter().find(takes_models) {
        return Some((home, if home.id == first.id { Reason::Home } else { Reason::Next }));
    }
    let there = candidates.iter().find(|candidate| candidate.standing != Standing::Down);
    Some((there.unwrap_or(first), Reason::Last))
}

/// The first of those with the shortest queue.
fn shortest<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Option<&'a Candidate> {
    candidates.min_by(|one, other| one.queue.total_cmp(&other.queue))
}

/// The order in which others are tried: who has the model, who is bringing it, who may; at last who is out.
const fn worth(candidate: &Candidate) -> u8 {
    match (candidate.standing, candidate.copy, candidate.closed) {
        (Standing::Fresh, Copy::Warm, false) => 0,
        (Standing::Fresh, Copy::Warm, true) => 1,
        (Standing::Fresh, Copy::Loading, false) => 2,
        (Standing::Fresh | Standing::Stale, _, false) => 3,
        (Standing::Fresh | Standing::Stale, _, true) => 4,
        (Standing::Down, ..) => 5,
    }
}

#[cfg(test)]
mod tests;
