//! What an instance says of itself: the models it has in memory or is bringing there, and how busy it is.

/// Where a model stands on an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It answers at once.
    Ready,
    /// It is being brought.
    Loading,
    /// It is not in memory, or no longer.
    Gone,
}

/// One model of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<K> {
    /// Its key.
    pub model: K,
    /// Where it stands.
    pub held: Held,
    /// Requests that it is answering, waiting ones included.
    pub in_use: u32,
    /// Requests that it can run at once: its instances times their largest batch; at least 1.
    pub parallel: u32,
    /// How long its last load took, in seconds; 0 where that is not known.
    pub load_seconds: f64,
    /// Requests it answered since it was loaded: whose copy is worth most to a neighbour.
    pub uses: u64,
}

/// What an instance says at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Digest<K> {
    /// What to ask with for what changed since.
    pub cursor: String,
    /// Whether what is not listed is gone. Otherwise what is not listed is as it was, and idle.
    pub complete: bool,
    /// Whether it may be given new work: started, and not on its way out.
    pub ready: bool,
    /// Whether it is on its way out: it answers what is in memory, and loads nothing more.
    pub draining: bool,
    /// Loads that may run at once; at least 1.
    pub load_places: u32,
    /// Loads that run or wait for a place.
    pub loads: u32,
    /// Models that may run at once: threads of its devices; at least 1.
    pub executors: u32,
    /// The models, each once.
    pub rows: Vec<Row<K>>,
}

impl<K> Digest<K> {
    /// An instance that holds nothing and waits for work.
    #[must_use]
    pub const fn idle(load_places: u32, executors: u32) -> Self {
        Self {
            cursor: String::new(),
            complete: true,
            ready: true,
            draining: false,
            load_places,
            loads: 0,
            executors,
            rows: Vec::new(),
        }
    }
}
