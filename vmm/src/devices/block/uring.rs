//! Asynchronous file access by io_uring: several requests in flight, one system call for a batch of them.
//!
//! The ring is restricted before it is enabled: it allows only the operations that a disk needs, and only on the image.
#![allow(unsafe_code, reason = "submission entries carry raw addresses")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use rustix::thread::{ClockId, clock_nanosleep_relative};
use rustix::time::Timespec;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::job::{Job, PUNCH, ZERO};
use super::request::Action;
use crate::virtio::Fault;

/// The index of the image among the ring's registered files; it is the only one.
const IMAGE: Fixed = Fixed(0);
/// The most kernel threads that one disk may use for requests that would block.
const KERNEL_THREADS: u32 = 4;
/// The pause after a call that the kernel rejected.
const REFUSED_PAUSE: Duration = Duration::from_millis(1);

/// The ring and the jobs in the kernel. A job's slot is its chain's head, which is unique among the jobs in flight.
pub(super) struct Uring {
    ring: IoUring,
    completed: EventFd,
    jobs: Vec<Option<(Job, Buffers)>>,
    in_flight: usize,
    /// Errors that the next calls return in place of the kernel's answer.
    #[cfg(test)]
    pub refusals: std::collections::VecDeque<i32>,
}

/// The host addresses of a job's data in guest memory. The kernel reads them while it works on the job.
struct Buffers(Vec<libc::iovec>);

// SAFETY: only the kernel uses the addresses, whichever thread makes the call. They point into guest memory, which
// belongs to no thread.
unsafe impl Send for Buffers {}

impl Buffers {
    fn of(job: &Job) -> Result<Self, Fault> {
        Ok(Self(match job.action {
            Action::Read { len, .. } => job.destination(len, 0)?.iovecs()?,
            Action::Write { .. } => job.source(0)?.iovecs()?,
            _ => Vec::new(),
        }))
    }
}

impl Uring {
    /// Creates a ring for `slots` jobs on `file`. Fails if the host forbids io_uring or lacks a feature.
    pub(super) fn new(file: &File, slots: u16) -> io::Result<Self> {
        let ring: IoUring = IoUring::builder().setup_r_disabled().build(slots.into())?;
        let completed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_eventfd(completed.as_raw_fd())?;
        submitter.register_iowq_max_workers(&mut [KERNEL_THREADS, KERNEL_THREADS])?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
        ])?;
        submitter.register_enable_rings()?;
        Ok(Self {
            ring,
            completed,
            jobs: (0..slots).map(|_| None).collect(),
            in_flight: 0,
            #[cfg(test)]
            refusals: Default::default(),
        })
    }

    /// Queues a job; [`Uring::submit`] passes it to the kernel.
    pub(super) fn push(&mut self, job: Job) -> Result<(), Fault> {
        let slot = usize::from(job.chain.head());
        let buffers = Buffers::of(&job)?;
        let entry = entry(job.action, &buffers.0).user_data(slot as u64);
        // SAFETY: the kernel reads the entry no earlier than in `enter`. By then its buffers are in their slot. They
        // stay there until the kernel has completed the job, even when this ring is dropped. The same holds for the
        // job, whose chain keeps guest memory mapped.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // The queue has an entry per slot, and no slot has two jobs.
        pushed.map_err(|_| Fault::Bug("more jobs than slots"))?;
        self.jobs[slot] = Some((job, buffers));
        self.in_flight += 1;
        Ok(())
    }

    /// Passes the queued jobs to the kernel; jobs that it cannot take now stay queued. Clears the eventfd for jobs that
    /// completed at once, because the caller reads completions next. Returns whether there were any jobs.
    pub(super) fn submit(&mut self) -> io::Result<bool> {
        if self.ring.submission().is_empty() {
            return Ok(false);
        }
        self.enter(0)?;
        if !self.ring.completion().is_empty() {
            self.acknowledge();
        }
        Ok(true)
    }

    /// Clears the completion event. Must be called before completions are taken.
    pub(super) fn acknowledge(&mut self) {
        // EAGAIN only means that the event was not raised.
        let _ = self.completed.read();
    }

    /// The next completed job, and the number of bytes done.
    pub(super) fn next_completed(&mut self) -> Option<(Job, io::Result<u64>)> {
        let entry = self.ring.completion().next()?;
        let (job, _buffers) = self.jobs.get_mut(entry.user_data() as usize).and_then(Option::take)?;
        self.in_flight -= 1;
        let result = entry.result();
        let result = u64::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        Some((job, result))
    }

    /// Waits until a job completes; returns at once when none is in flight. It may return early.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        if self.in_flight == 0 { Ok(()) } else { self.enter(1) }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            match self.submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The callers call again after they have taken the completions. Do not let them retry at once.
                    pause(REFUSED_PAUSE);
                    return if is_transient(&error) { Ok(()) } else { Err(error) };
                }
            }
        }
    }

    fn submit_and_wait(&mut self, want: usize) -> io::Result<usize> {
        #[cfg(test)]
        if let Some(code) = self.refusals.pop_front() {
            return Err(io::Error::from_raw_os_error(code));
        }
        self.ring.submit_and_wait(want)
    }
}

/// Sleeps; a signal may end the sleep early. This is the only sleep call that the worker's seccomp list allows.
pub(super) fn pause(time: Duration) {
    let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
    let _ = clock_nanosleep_relative(ClockId::Monotonic, &time);
}

/// The kernel has no memory for more requests now (EAGAIN), or more completions than room for them (EBUSY).
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}

fn entry(action: Action, buffers: &[libc::iovec]) -> squeue::Entry {
    let (buffers, count) = (buffers.as_ptr(), buffers.len() as u32);
    match action {
        Action::Read { offset, .. } => opcode::Readv::new(IMAGE, buffers, count).offset(offset).build(),
        Action::Write { offset, .. } => opcode::Writev::new(IMAGE, buffers, count).offset(offset).build(),
        Action::Punch { offset, len } => fallocate(offset, len, PUNCH.bits()),
        Action::Zero { offset, len } => fallocate(offset, len, ZERO.bits()),
        // Identify never reaches this code, and a flush in its place would do no harm.
        Action::Flush | Action::Identify => opcode::Fsync::new(IMAGE).flags(FsyncFlags::DATASYNC).build(),
    }
}

fn fallocate(offset: u64, len: u64, mode: u32) -> squeue::Entry {
    opcode::Fallocate::new(IMAGE, len).offset(offset).mode(mode as i32).build()
}

impl AsRawFd for Uring {
    /// Readable when jobs have completed.
    fn as_raw_fd(&self) -> RawFd {
        self.completed.as_raw_fd()
    }
}

impl Drop for Uring {
    /// Guest memory must stay mapped while the kernel uses it.
    fn drop(&mut self) {
        while self.in_flight > 0 && self.wait().is_ok() {
            while self.next_completed().is_some() {}
        }
        // The kernel cannot report completions any more. It is better to leak the memory than to have it written later.
        if self.in_flight > 0 {
            std::mem::forget(std::mem::take(&mut self.jobs));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that took over the worker could request nothing else from the kernel through the ring.
    #[test]
    fn the_ring_refuses_everything_else() {
        let image = tempfile::tempfile().unwrap();
        let other = tempfile::tempfile().unwrap();
        let mut uring = Uring::new(&image, 4).unwrap();
        let open = opcode::OpenAt::new(io_uring::types::Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build();
        let elsewhere = opcode::Fsync::new(io_uring::types::Fd(other.as_raw_fd())).build();
        let allowed = opcode::Fsync::new(IMAGE).build();
        for (entry, expected) in [(open, -libc::EACCES), (elsewhere, -libc::EACCES), (allowed, 0)] {
            // SAFETY: the entries refer to nothing but a constant string.
            unsafe { uring.ring.submission().push(&entry).unwrap() };
            uring.ring.submit_and_wait(1).unwrap();
            assert_eq!(uring.ring.completion().next().unwrap().result(), expected);
        }
        assert!(uring.ring.submitter().register_files(&[other.as_raw_fd()]).is_err());
    }
}
