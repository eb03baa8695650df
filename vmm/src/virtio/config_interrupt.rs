//! The configuration-change interrupt (§2.3, §2.1.2), shared by a device's control side, its workers and its transport.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::{Counters, LogLimiter};

/// A handle to a device's configuration interrupt; clones refer to the same device.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigInterrupt {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    generation: AtomicU8,
    needs_reset: AtomicBool,
    /// The MSI-X vector's event; `None` while the driver is not ready for it.
    vector: Mutex<Option<Arc<EventFd>>>,
    counters: Arc<Counters>,
    log: LogLimiter,
}

impl ConfigInterrupt {
    /// Notes that the device's configuration space has changed. Call it after the change is visible to
    /// [`ConfigSpace::read`].
    ///
    /// [`ConfigSpace::read`]: super::ConfigSpace::read
    pub(crate) fn changed(&self) {
        self.inner.generation.fetch_add(1, Ordering::AcqRel);
        self.raise();
    }

    /// Counts a fault of `device`, logs it with `why` (limited), and puts the device into DEVICE_NEEDS_RESET.
    pub(crate) fn fault(&self, device: &str, why: &dyn std::fmt::Display) {
        self.inner.counters.fault();
        self.inner.log.log(|suppressed| tracing::warn!(device, suppressed, "the device needs a reset: {why}"));
        self.inner.needs_reset.store(true, Ordering::Release);
        self.raise();
    }

    /// Whether the device waits for a reset.
    pub(crate) fn is_reset_needed(&self) -> bool {
        self.inner.needs_reset.load(Ordering::Acquire)
    }

    /// Whether there is a driver that receives changes and need not reset the device first.
    pub(crate) fn has_listener(&self) -> bool {
        self.vector().is_some() && !self.is_reset_needed()
    }

    /// Changes whenever the configuration may have changed (§4.1.4.3.1, `config_generation`).
    pub(crate) fn generation(&self) -> u8 {
        self.inner.generation.load(Ordering::Acquire)
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.inner.counters
    }

    /// Sets the destination of interrupts; `None` while the driver is not ready for any.
    pub(crate) fn connect(&self, vector: Option<Arc<EventFd>>) {
        *self.vector() = vector;
    }

    /// Resets the state: no reset is needed any more, and no vector is connected.
    pub(crate) fn reset(&self) {
        self.connect(None);
        self.inner.needs_reset.store(false, Ordering::Release);
    }

    fn raise(&self) {
        if let Some(vector) = self.vector().as_ref() {
            self.inner.counters.interrupt();
            // It fails only if the counter is full: then the interrupt is already pending.
            let _ = vector.write(1);
        }
    }

    fn vector(&self) -> MutexGuard<'_, Option<Arc<EventFd>>> {
        self.inner.vector.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
