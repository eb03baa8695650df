//! Limits concurrent work per key: each key has the same number of permits. Only keys in use are stored.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Dropping it releases the permit.
pub(super) type Permit = OwnedSemaphorePermit;

#[derive(Debug)]
pub(super) struct KeyedSemaphore<K> {
    /// How many permits each key has.
    permits: usize,
    by_key: Mutex<HashMap<K, Arc<Semaphore>>>,
}

impl<K: Eq + Hash> KeyedSemaphore<K> {
    pub(super) fn new(permits: usize) -> Self {
        Self { permits, by_key: Mutex::default() }
    }

    /// Waits for a permit of this key, in the order of the calls.
    pub(super) async fn acquire(&self, key: K) -> Option<Permit> {
        let semaphore = {
            let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
            // Every permit, and every wait for one, holds a clone that was made under this lock. Entries without a
            // clone are not in use.
            by_key.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
            by_key.entry(key).or_insert_with(|| Arc::new(Semaphore::new(self.permits))).clone()
        };
        // The semaphore is never closed.
        semaphore.acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn each_key_has_its_own_permits_and_unused_keys_are_dropped() {
        let semaphore = KeyedSemaphore::new(2);
        let soon = |key| timeout(Duration::from_millis(10), semaphore.acquire(key));
        let (first, _second) = (semaphore.acquire("a").await.unwrap(), semaphore.acquire("a").await.unwrap());
        assert!(soon("a").await.is_err());
        let other = semaphore.acquire("b").await.unwrap();
        drop(first);
        let _third = soon("a").await.unwrap().unwrap();
        assert!(soon("a").await.is_err(), "a key in use keeps its count");
        drop(other);
        let _last = semaphore.acquire("c").await.unwrap();
        assert_eq!(semaphore.by_key.lock().unwrap().len(), 2, "the unused key b is kept");
    }
}
