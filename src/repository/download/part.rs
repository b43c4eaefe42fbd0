//! `Part`: a range of an object, fetched to its end however often the connection breaks.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use super::{Meter, Shared};
use crate::error::{Error, ErrorKind};
use crate::repository::FetchError;
use crate::repository::manifest::ModelManifest;

const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);

/// Where the bytes of a part go, in order.
pub(super) trait Sink: Send {
    /// Takes bytes that belong at offset `at` of the object.
    fn take(&mut self, at: u64, bytes: Bytes) -> Result<(), FetchError>;

    /// Forgets all that it took, and says whether it can.
    fn begin_anew(&mut self) -> bool;
}

/// A range of an object, and all that is needed to fetch it.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) shared: Arc<Shared>,
    pub(super) manifest: Arc<ModelManifest>,
    pub(super) object: usize,
    pub(super) range: Range<u64>,
    pub(super) meter: Arc<Meter>,
}

impl Part {
    /// Fetches the range into `sink`, going on behind the last byte after each failure that another attempt may better.
    pub(super) async fn fetch(self, sink: &mut impl Sink) -> Result<(), FetchError> {
        let Ok(_permit) = self.shared.parts.acquire().await else {
            return Err(FetchError::Failed(Error::internal("the downloads have ended")));
        };
        let options = &self.shared.options;
        let (mut at, mut in_vain) = (self.range.start, 0);
        loop {
            let before = at;
            let error = match self.attempt(&mut at, sink).await {
                Ok(()) => return Ok(()),
                Err(FetchError::Failed(error))
                    if error.is_retryable() && error.kind() == ErrorKind::RepositoryFailed =>
                {
                    error
                }
                Err(last) => return Err(last),
            };
            if at == self.range.end {
                // All came, and then it was said to be wrong (a checksum): the part as a whole is.
                if !sink.begin_anew() {
                    return Err(FetchError::Failed(error));
                }
                self.meter.take_back(at - self.range.start);
                at = self.range.start;
            }
            in_vain = if at > before { 0 } else { in_vain + 1 };
            if in_vain >= options.attempts.max(1) {
                let text = format!("{in_vain} attempts in a row brought nothing of model '{}'", self.manifest.name);
                return Err(FetchError::Failed(error.wrap(text)));
            }
            tokio::time::sleep(pause(options.back_off, in_vain)).await;
        }
    }

    async fn attempt(&self, at: &mut u64, sink: &mut impl Sink) -> Result<(), FetchError> {
        let failed = |text| FetchError::Failed(Error::new(ErrorKind::RepositoryFailed, text).with_retryable(true));
        let repository = &self.shared.repository;
        let mut stream = repository.fetch(&self.manifest, self.object, *at..self.range.end).await?;
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            let length = bytes.len() as u64;
            if length > self.range.end - *at {
                return Err(failed("more bytes came than were asked for"));
            }
            sink.take(*at, bytes)?;
            self.meter.add(length);
            *at += length;
        }
        if *at < self.range.end { Err(failed("the bytes ended early")) } else { Ok(()) }
    }
}

/// Twice as long after each attempt in vain, and a random half shorter: those who failed together come back apart.
fn pause(first: Duration, in_vain: u32) -> Duration {
    let longest = first.saturating_mul(1 << in_vain.saturating_sub(1).min(16)).min(LONGEST_BACK_OFF);
    let random = RandomState::new().build_hasher().finish() % 1024;
    longest - longest / 2048 * u32::try_from(random).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let first = Duration::from_millis(100);
        for (in_vain, longest) in [(0, 100), (1, 100), (2, 200), (3, 400), (7, 5000), (60, 5000)] {
            let longest = Duration::from_millis(longest);
            for _ in 0..100 {
                let pause = pause(first, in_vain);
                assert!(pause <= longest && pause >= longest / 2, "{in_vain}: {pause:?}");
            }
        }
        let distinct: std::collections::HashSet<_> = (0..100).map(|_| pause(first, 5)).collect();
        assert!(distinct.len() > 10);
    }
}
