//! Handles a forbidden call: writes its name to standard error and to the last words, then ends the process.
//!
//! This code runs in a signal handler, under the filter that has just rejected the call: it allocates nothing, locks
//! nothing, and uses only `write` and `exit_group`.

#![allow(unsafe_code, reason = "a signal handler")]

use std::cell::Cell;
use std::io::{Cursor, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Once, OnceLock};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use syscalls::Sysno;

use super::{Error, Role};

thread_local! {
    static ROLE: Cell<&'static str> = const { Cell::new("?") };
}

/// The last words' descriptor; -1: none. It is never closed, see [`log_to`].
static LAST_WORDS: AtomicI32 = AtomicI32::new(-1);

/// Also writes the last words of a forbidden call to `file`, which stays open for the life of the process.
pub(crate) fn log_to(file: OwnedFd) {
    static KEPT: OnceLock<OwnedFd> = OnceLock::new();
    let raw: RawFd = KEPT.get_or_init(|| file).as_raw_fd();
    LAST_WORDS.store(raw, Ordering::Relaxed);
}

/// Records the calling thread's role. The first call also installs the handler of SIGSYS.
pub(super) fn install(role: Role) -> Result<(), Error> {
    static HANDLER: Once = Once::new();
    let mut result = Ok(());
    HANDLER.call_once(|| {
        let action =
            SigAction::new(SigHandler::SigAction(forbidden), SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK, SigSet::all());
        // SAFETY: the handler is async-signal-safe (see the head of this file).
        result = unsafe { sigaction(Signal::SIGSYS, &action) }.map(drop).map_err(Error::Handler);
    });
    ROLE.set(role.name()); // also the first access, which may initialize it: not in the handler
    result
}

extern "C" fn forbidden(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let number = call_number(info);
    let name = Sysno::new(number as usize).map_or("unknown", |call| call.name());
    let role = ROLE.get();
    let mut line = Cursor::new([0u8; 160]);
    let _ = writeln!(line, "garret-vmm: thread role {role}: forbidden system call {name} ({number})");
    put(libc::STDERR_FILENO, &line);
    let mut words = Cursor::new([0u8; 200]);
    let _ = write!(
        words,
        r#"{{"reason":"failed","message":"thread role {role}: forbidden system call {name} ({number})"}}"#
    );
    put(LAST_WORDS.load(Ordering::Relaxed), &words);
    // SAFETY: the call ends the process at once; no other code of it runs.
    unsafe { libc::_exit(1) }
}

fn put<const N: usize>(fd: RawFd, line: &Cursor<[u8; N]>) {
    if fd >= 0 {
        // SAFETY: standard error and the last words stay open for the life of the process.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = rustix::io::write(fd, &line.get_ref()[..line.position() as usize]);
    }
}

/// `si_syscall`: libc does not name the fields of this kind of signal (signo, errno, code; then address, number, arch).
fn call_number(info: *mut libc::siginfo_t) -> i32 {
    #[repr(C)]
    struct Sys {
        signo: i32,
        errno: i32,
        code: i32,
        padding: i32,
        address: u64,
        number: i32,
        arch: u32,
    }
    // SAFETY: the kernel passes a siginfo_t, larger than `Sys` and laid out like it for SIGSYS.
    unsafe { (*info.cast::<Sys>()).number }
}
