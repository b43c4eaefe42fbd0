//! Many who ask, leave and come back at random, in little room.

use super::*;

/// Numbers that look random: Knuth's linear congruence.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

const MODELS: u64 = 10;

async fn visitor(world: Arc<World>, cache: DiskCache, seed: u64) {
    let mut dice = Dice(seed);
    let mut handles = Vec::new();
    for _ in 0..40 {
        let name = format!("m{}", dice.roll(MODELS));
        let patience = if dice.roll(3) == 0 { dice.roll(2000) } else { u64::MAX };
        let impatience = async {
            for _ in 0..patience {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            handle = world.ensure(&cache, &name) => match handle {
                Ok(handle) => {
                    assert!(handle.tree().unwrap().versions == [1]);
                    handles.push(handle);
                }
                Err(error) => assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDisk, true), "{error:?}"),
            },
            () = impatience => {}
        }
        let usage = cache.usage();
        assert!(usage.booked <= usage.limit, "{usage:?}");
        if dice.roll(2) == 0 || handles.len() > 2 {
            handles.clear();
        }
        if dice.roll(20) == 0 {
            cache.forget(&name);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_happens_the_book_and_the_disk_agree_in_the_end() {
    let world = World::new(&[]);
    for model in 0..MODELS {
        let size = (model % 5) * BLOCK + 1;
        if model % 2 == 0 {
            world.put(&format!("m{model}/1/model.onnx"), size);
        } else {
            world.put_tar(&format!("m{model}.tar"), &[("1/model.onnx", size)]);
        }
    }
    let world = Arc::new(world);
    let cache = world.open(24 * BLOCK);
    let visitors: Vec<_> = (1..=6).map(|seed| tokio::spawn(visitor(Arc::clone(&world), cache.clone(), seed))).collect();
    for visitor in visitors {
        visitor.await.unwrap();
    }
    idle(&cache).await;
    let ends = world.told.fetched.lock().clone();
    assert!(ends.contains(&FetchEnd::Done) && ends.contains(&FetchEnd::Cancelled), "{ends:?}");
    assert!(cache.usage().evictions > 0);
    assert_eq!(cache.inner.book.inspect(|table| table.iter().filter(|(_, entry)| entry.users > 0).count()), 0);
    assert_eq!((world.count("temp"), world.count("trash")), (0, 0));
    assert_eq!(cache.usage().booked, world.used());
    assert_eq!(cache.usage().entries, world.count("entries"));
    let booked = cache.usage().booked;
    close(cache).await;
    assert_eq!(world.open(PLENTY).usage().booked, booked);
}
