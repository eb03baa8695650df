//! The gate at which vCPU threads wait while the machine is paused.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the vCPUs should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Paused,
    /// Run.
    Running,
    /// End.
    Stopped,
}

struct State {
    phase: Phase,
    /// The number of threads between [`Gate::join`] and the drop of their [`Membership`], and the number of these that
    /// wait at the gate.
    members: usize,
    waiting: usize,
}

/// A gate for vCPU threads; it is closed at first.
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

/// Membership of one vCPU thread.
pub(super) struct Membership<'a>(&'a Gate);

impl Gate {
    /// A closed gate.
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { phase: Phase::Paused, members: 0, waiting: 0 }), changed: Condvar::new() }
    }

    /// Adds the calling thread to those that [`Gate::close`] waits for.
    pub(super) fn join(&self) -> Membership<'_> {
        self.lock().members += 1;
        Membership(self)
    }

    /// Waits while paused; returns what to do then.
    pub(super) fn wait(&self) -> Phase {
        let mut state = self.lock();
        if state.phase == Phase::Paused {
            state.waiting += 1;
            self.changed.notify_all();
            state = self
                .changed
                .wait_while(state, |state| state.phase == Phase::Paused)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state.phase
    }

    /// Lets all threads run.
    pub(super) fn open(&self) {
        self.lock().phase = Phase::Running;
        self.changed.notify_all();
    }

    /// Closes the gate with `phase`, which is paused or stopped. `kick` brings the vCPUs out of the guest. Returns
    /// whether all threads wait at the gate, or have left it, within `deadline`.
    pub(super) fn close(&self, phase: Phase, deadline: Duration, kick: impl Fn()) -> bool {
        self.lock().phase = phase;
        self.changed.notify_all();
        // A kick is never lost: it makes the next entry into the guest return at once.
        kick();
        let running = |state: &mut State| state.waiting < state.members;
        let waited = self.changed.wait_timeout_while(self.lock(), deadline, running);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        self.0.lock().members -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn closing_waits_for_all_vcpus_and_opening_releases_them() {
        let gate = Gate::new();
        let work = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let _membership = gate.join();
                    while gate.wait() == Phase::Running {
                        work.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..20 {
                gate.open();
                let before = work.load(Ordering::SeqCst);
                while work.load(Ordering::SeqCst) == before {
                    std::thread::yield_now();
                }
                assert!(gate.close(Phase::Paused, LONG, || ()));
                let still = work.load(Ordering::SeqCst);
                std::thread::yield_now();
                assert_eq!(work.load(Ordering::SeqCst), still);
            }
            assert!(gate.close(Phase::Stopped, LONG, || ()));
        });
    }

    #[test]
    fn closing_gives_up_at_the_deadline() {
        let gate = Gate::new();
        gate.open();
        let membership = gate.join(); // of a thread that never comes
        for phase in [Phase::Paused, Phase::Stopped] {
            assert!(!gate.close(phase, Duration::from_millis(1), || ()));
        }
        drop(membership);
        assert!(gate.close(Phase::Stopped, LONG, || ()));
    }

    #[test]
    fn a_thread_that_ended_is_not_waited_for() {
        let gate = Gate::new();
        gate.open();
        drop(gate.join());
        assert!(gate.close(Phase::Paused, LONG, || ()));
    }
}
