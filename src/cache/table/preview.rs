//! What the table would do, without doing it.

use std::time::Instant;

use super::{CacheTable, Entry, Key, Refusal};

impl<K: Key> CacheTable<K> {
    /// How many entries there are, whatever their stage.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Who would leave for `need` bytes more for `key`. Nobody does.
    ///
    /// # Errors
    /// As [`CacheTable::reserve`], but for a key that is there already.
    pub fn preview(
        &self,
        key: &K,
        need: u64,
        now: Instant,
        busy: &dyn Fn(&K) -> bool,
    ) -> Result<Vec<(K, Entry)>, Refusal> {
        let own = self.entries.get(key).map_or(0, |entry| entry.weight.bytes);
        let all = own.saturating_add(need);
        if all > self.limit {
            return Err(Refusal::NeverFits { need: all, limit: self.limit });
        }
        let (keys, _) = self.choose(need, now, &|other| other == key || busy(other))?;
        Ok(keys.into_iter().filter_map(|key| self.entries.get(&key).map(|entry| (key.clone(), *entry))).collect())
    }
}
