//! Threads of a machine: named, with small stacks, each under its role's filter.
//!
//! All threads are created while the machine is assembled: a thread inherits its creator's filter, and no role may
//! create threads. They also inherit the signal mask of the main thread, which blocks SIGTERM and SIGINT (`signals`).

use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

use crate::seccomp::Role;

/// Enough for the deepest call chain, and too small for a transparent huge page, which would cost 2 MiB for a few used
/// kilobytes.
const STACK: usize = 256 << 10;

/// Makes all threads share one heap; must be called before the first thread is created.
///
/// By default the C library creates a heap for every thread. When it first shrinks one, it reads
/// `/proc/sys/vm/overcommit_memory`: a call that every role forbids, at a time that the guest can choose.
#[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
pub(crate) fn share_heap() {
    // SAFETY: a plain setter; both arguments are constants it knows.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Runs `body` on a new thread in `role`. The kernel shows the first 15 bytes of `name`.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    role: Role,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    spawn_prepared(name, role, || Ok(()), |()| body())
}

/// Like [`spawn`], with a first step that runs on the new thread before its filter closes. Returns the error of that
/// step.
pub(crate) fn spawn_prepared<P: 'static, T: Send + 'static>(
    name: &str,
    role: Role,
    prepare: impl FnOnce() -> io::Result<P> + Send + 'static,
    body: impl FnOnce(P) -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let (ready, wait) = mpsc::sync_channel::<io::Result<()>>(1);
    let thread = Builder::new().name(name.to_owned()).stack_size(STACK).spawn(move || {
        let prepared = prepare().and_then(|prepared| role.enter().map(|()| prepared).map_err(io::Error::other));
        match prepared {
            Ok(prepared) => {
                let _ = ready.send(Ok(()));
                drop(ready);
                body(prepared)
            }
            Err(error) => {
                let _ = ready.send(Err(error));
                std::panic::resume_unwind(Box::new("not prepared")) // silently: the error has been sent
            }
        }
    })?;
    wait.recv().unwrap_or_else(|_| Err(io::Error::other("the thread died before it was ready")))?;
    Ok(thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_preparation_comes_back() {
        let error = spawn_prepared("t", Role::Quiet, || Err::<(), _>(io::Error::other("no")), |()| ()).unwrap_err();
        assert_eq!(error.to_string(), "no");
    }

    #[test]
    fn memory_is_freed_under_a_filter() {
        share_heap();
        let churn = || {
            // Blocks below the size for which a separate mapping is used, and more of them than the C library keeps.
            drop((0..200).map(|_| vec![1u8; 100 << 10]).collect::<Vec<_>>());
        };
        spawn("t", Role::Quiet, churn).unwrap().join().unwrap();
    }

    #[test]
    fn the_body_runs_with_what_was_prepared() {
        let thread = spawn_prepared("t", Role::Quiet, || Ok(20), |n| n + 1).unwrap();
        assert_eq!(thread.join().unwrap(), 21);
    }
}
