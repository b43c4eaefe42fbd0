//! Digests of instances: whatever one says, reading it answers, and a fleet that heard it picks somebody for each of its
//! models and forgets the request; and what an instance that starts is told of it is no more than what was said, each once.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use roundhouse::frontend::picker::digest::parse;
use roundhouse::picker::fleet::{Fleet, FleetOptions};
use roundhouse::picker::hash::xxh64;
use roundhouse::picker::share::in_turn;

fuzz_target!(|data: &[u8]| {
    let Ok(digest) = parse(data) else { return };
    let now = Instant::now();
    let mut fleet = Fleet::new(FleetOptions { ring_size: 16, ..FleetOptions::default() });
    let ids = fleet.set_members(&["a:1", "b:1", "c:1"].map(str::to_owned));
    fleet.hear(ids[1], &digest, now, now);
    let warm = fleet.warm(now);
    let said = warm.models.len();
    let shares =
        ["a:1", "b:1", "c:1"].map(|name| warm.clone().share_of(name, |model| xxh64(model.as_bytes()), usize::MAX));
    assert_eq!(shares.iter().map(Vec::len).sum::<usize>(), said);
    let lists = shares.map(|share| share.into_iter().map(|(model, _)| model).collect::<Vec<_>>());
    assert_eq!(in_turn(&lists, usize::MAX).len(), said);
    for row in digest.rows.iter().take(64) {
        let picked = fleet.pick(&row.model, xxh64(row.model.as_bytes()), now, |_| true).expect("there are three");
        assert_eq!(picked.choice.order.len(), 3);
        fleet.answered(&picked.ticket, Some(picked.choice.order[0]), false, now);
        fleet.finish(&picked.ticket, now);
    }
    let later = now + Duration::from_secs(5);
    fleet.hear(ids[1], &digest, later, later);
    assert!(fleet.overview(later).iter().all(|row| row.in_flight == 0));
});
