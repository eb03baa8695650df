//! Waits for the kernel's pressure trigger.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Asks the kernel for an event when some task has waited for memory for 50 ms within half a second
/// (Documentation/accounting/psi.rst). The terminating zero byte is part of the string. While no task waits, the
/// trigger costs the kernel nothing.
const STALL: &[u8] = b"some 50000 500000\0";

/// The kernel's event that memory is short.
pub(super) struct Trigger(AsyncFd<File>);

impl Trigger {
    /// Must be called within the runtime.
    ///
    /// # Errors
    /// This kernel does not report pressure, or the agent may not read it.
    pub(super) fn arm() -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
        let mut file = options.open("/proc/pressure/memory")?;
        file.write_all(STALL)?;
        // SAFETY: the file owns its descriptor, which does not change until the file is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?))
    }

    /// Waits for the event, which comes at most once every half second.
    pub(super) async fn fired(&self) {
        match self.0.ready(Interest::PRIORITY).await {
            Ok(mut guard) => guard.clear_ready(),
            // The runtime is ending.
            Err(_) => std::future::pending().await,
        }
    }
}
