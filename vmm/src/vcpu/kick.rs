//! Brings a vCPU out of the guest: by a signal whose handler also makes the next entry return at once.
//!
//! The signal alone could arrive just before the entry and be lost. The handler runs on the vCPU's own thread and sets
//! `immediate_exit` in its `kvm_run`, so an entry after the signal comes back with EINTR as one before it does.

#![allow(unsafe_code, reason = "a signal handler and the memory it shares with KVM")]

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, register_signal_handler};

const SIGNAL: libc::c_int = libc::SIGUSR1;

thread_local! {
    static RUN: Cell<*mut kvm_run> = const { Cell::new(null_mut()) };
}

/// Keeps the calling thread kickable; dropped before the vCPU is.
pub(super) struct Kickable(PhantomData<*mut ()>);

/// Installs the handler (without SA_RESTART: KVM_RUN must return).
pub(super) fn install_handler() -> io::Result<()> {
    Ok(register_signal_handler(SIGNAL, handle)?)
}

/// Makes the calling thread, which owns `vcpu`, kickable.
pub(super) fn register(vcpu: &mut VcpuFd) -> Kickable {
    RUN.set(vcpu.get_kvm_run());
    Kickable(PhantomData)
}

/// Brings the vCPU of `thread` out of the guest. A thread that has just ended is not an error.
pub(super) fn kick<T>(thread: &JoinHandle<T>) {
    let _ = thread.kill(SIGNAL);
}

extern "C" fn handle(_signal: libc::c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: `run` is the mapping of this thread's vCPU, which outlives its `Kickable`; the kernel only reads the
        // byte.
        unsafe { (&raw mut (*run).immediate_exit).write_volatile(1) };
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        RUN.set(null_mut());
    }
}
