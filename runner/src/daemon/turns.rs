//! Limits concurrent work per key: each key has the same number of turns. Only keys in use are stored.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A permit. Dropping it ends the turn.
pub type Turn = OwnedSemaphorePermit;

#[derive(Debug)]
pub struct Turns<K> {
    /// How many turns each key has.
    at_once: usize,
    by_key: Mutex<HashMap<K, Arc<Semaphore>>>,
}

impl<K: Eq + Hash> Turns<K> {
    pub fn new(at_once: usize) -> Self {
        Self { at_once, by_key: Mutex::default() }
    }

    /// Waits for a turn of this key, in the order of the calls.
    pub async fn take(&self, key: K) -> Option<Turn> {
        let turns = {
            let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
            // Every turn, and every wait for one, holds a clone that was made under this lock. Entries without a clone
            // are not in use.
            by_key.retain(|_, turns| Arc::strong_count(turns) > 1);
            by_key.entry(key).or_insert_with(|| Arc::new(Semaphore::new(self.at_once))).clone()
        };
        // The semaphore is never closed.
        turns.acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn each_key_has_its_own_turns_and_unused_keys_are_dropped() {
        let turns = Turns::new(2);
        let soon = |key| timeout(Duration::from_millis(10), turns.take(key));
        let (first, _second) = (turns.take("a").await.unwrap(), turns.take("a").await.unwrap());
        assert!(soon("a").await.is_err());
        let other = turns.take("b").await.unwrap();
        drop(first);
        let _third = soon("a").await.unwrap().unwrap();
        assert!(soon("a").await.is_err(), "a key in use keeps its count");
        drop(other);
        let _last = turns.take("c").await.unwrap();
        assert_eq!(turns.by_key.lock().unwrap().len(), 2, "the unused key b is kept");
    }
}
