//! Two hundred random steps with the book held against the double's own account.

use super::sleep::{host_book, room};
use super::{answers, run, weighs};
use crate::cuda::{MIB, count};
use crate::support::eventually;
use crate::support::repository::Repository;
use crate::support::server::TestServer;

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

alone! {
    on "device 1073741824";
    fn two_hundred_random_steps_leave_the_book_true_and_nothing_behind() {
        run(async {
            let repository = NAMES.iter().zip(1_u64..).fold(Repository::empty(), |repository, (name, nth)| {
                repository.with(name, "gated", &weighs(7 * nth, nth, nth % 3))
            });
            let server = TestServer::start_on_cuda(repository, room(120, 80)).await;
            let before = count("used 0");
            let mut state = 0x2545_f491_4f6c_dd1d_u64;
            let mut next = |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            for _ in 0..200 {
                let name = NAMES[next(8) as usize];
                match next(10) {
                    0 => server.inner.unload_model(name, false).await.unwrap(),
                    1 => server.inner.load_model(name, None).await.unwrap(),
                    _ => answers(&server, name).await,
                }
                let used = count("used 0");
                assert!(used <= server.books()[0].limit, "{used}: never more than there may be");
            }
            eventually("the book is the device's", || {
                let (booked, used) = (server.books()[0].booked, count("used 0"));
                booked.abs_diff(used) * 50 <= used
            })
            .await;
            let sleeps = server.metric("roundhouse_model_sleeps_total{outcome=\"ok\"}").unwrap();
            let wakes = server.metric("roundhouse_model_wakes_total{outcome=\"ok\"}").unwrap();
            assert!(sleeps > 10.0 && wakes > 10.0, "{sleeps} sleeps, {wakes} wakes");
            for name in NAMES {
                server.inner.unload_model(name, false).await.unwrap();
            }
            eventually("all is given back", || count("used 0") <= before + MIB).await;
            let book = host_book(&server);
            assert_eq!((book.booked, book.models), (0, 0));
            assert_eq!(server.metric("roundhouse_pinned_host_bytes{kind=\"taken\"}"), Some(0.0));
            server.finish().await;
        });
    }
}
