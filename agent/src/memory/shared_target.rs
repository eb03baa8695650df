use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The target, passed from the API to the loop. The last one counts, and a new one wakes the loop.
#[derive(Default)]
pub(super) struct SharedTarget {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    target: Option<u64>,
    new: bool,
}

impl SharedTarget {
    /// Sets the target, in bytes. Setting the same target again has no effect.
    pub(super) fn set(&self, target: Option<u64>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.target != target {
            *state = State { target, new: true };
            self.changed.notify_one();
        }
    }

    /// Waits for a new target, at most `time`; returns the current target.
    pub(super) fn wait(&self, time: Duration) -> Option<u64> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(state, time, |state| !state.new);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.new = false;
        state.target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_target_ends_the_wait_and_stays() {
        let shared_target = SharedTarget::default();
        assert_eq!(shared_target.wait(Duration::ZERO), None);
        shared_target.set(Some(7));
        assert_eq!(shared_target.wait(Duration::from_secs(60)), Some(7));
        shared_target.set(Some(7));
        assert_eq!(shared_target.wait(Duration::from_millis(1)), Some(7));
        shared_target.set(None);
        assert_eq!(shared_target.wait(Duration::from_secs(60)), None);
    }
}
