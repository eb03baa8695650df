//! One request being carried out: what to do with the file, and the guest's buffers to do it with.
#![allow(unsafe_code)] // vectored calls on addresses of guest memory

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};

use super::request::Action;
use crate::virtio::{Chain, Fault};

/// A request that was judged fit, with the chain it came in. The chain keeps guest memory mapped as long as the kernel may
/// use the buffers.
pub struct Job {
    pub chain: Chain,
    pub action: Action,
    /// The answer must wait until the change is durable.
    pub durable: bool,
    buffers: Buffers,
}

/// Host addresses of guest memory.
pub struct Buffers(Vec<libc::iovec>);

// SAFETY: the addresses are used only by the kernel, whichever thread asks it, and point into guest memory, which belongs to
// no thread.
unsafe impl Send for Buffers {}

impl Job {
    pub fn new(chain: Chain, action: Action, durable: bool) -> Result<Self, Fault> {
        let buffers = match action {
            Action::Read { len, .. } => chain.writer().split_at(len as usize)?.0.iovecs()?,
            Action::Write { .. } => {
                let mut reader = chain.reader();
                reader.skip(size_of::<super::request::Header>())?;
                reader.iovecs()?
            }
            _ => Vec::new(),
        };
        Ok(Self { chain, action, durable, buffers: Buffers(buffers) })
    }

    /// The buffers, for the kernel; valid as long as the job lives.
    pub fn buffers(&self) -> &[libc::iovec] {
        &self.buffers.0
    }

    /// Carries it out, from byte `done` of its data on, and returns when it is done.
    pub fn run(&mut self, file: &File, done: u64) -> io::Result<()> {
        match self.action {
            Action::Read { offset, len } => {
                self.transfer(done, len, |buffers, done| preadv(file, buffers, offset + done))
            }
            Action::Write { offset, len } => {
                self.transfer(done, len, |buffers, done| pwritev(file, buffers, offset + done))
            }
            Action::Flush => Ok(fdatasync(file)?),
            Action::Punch { offset, len } => Ok(fallocate(file, PUNCH, offset, len)?),
            Action::Zero { offset, len } => match fallocate(file, ZERO, offset, len) {
                // tmpfs can only punch: the range reads as zeroes all the same.
                Err(rustix::io::Errno::OPNOTSUPP) => Ok(fallocate(file, PUNCH, offset, len)?),
                result => Ok(result?),
            },
            Action::Identify => Ok(()),
        }
    }

    /// What is left to do after the kernel did `done` bytes of it.
    pub fn run_rest(&mut self, file: &File, done: u64) -> io::Result<()> {
        if done < self.action.bytes() { self.run(file, done) } else { Ok(()) }
    }

    fn transfer(
        &mut self,
        mut done: u64,
        len: u64,
        mut call: impl FnMut(&[libc::iovec], u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut gone = 0;
        while done < len {
            advance(&mut self.buffers.0, done - gone);
            gone = done;
            match call(&self.buffers.0, done) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The mode that gives space back.
pub const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
/// The mode that zeroes and keeps the space.
pub const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// Passes over the first `count` bytes.
fn advance(buffers: &mut Vec<libc::iovec>, count: u64) {
    let mut count = count as usize;
    let whole = buffers.iter().take_while(|buffer| {
        let passed = count >= buffer.iov_len;
        if passed {
            count -= buffer.iov_len;
        }
        passed
    });
    let whole = whole.count();
    buffers.drain(..whole);
    if let Some(first) = buffers.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(count);
        first.iov_len -= count;
    }
}

fn preadv(file: &File, buffers: &[libc::iovec], offset: u64) -> io::Result<usize> {
    // SAFETY: the buffers are checked pieces of guest memory, which the job's chain keeps mapped; only raw addresses go to
    // the kernel. Their number is at most a queue's size.
    let count = unsafe { libc::preadv(file.as_raw_fd(), buffers.as_ptr(), buffers.len() as i32, offset as i64) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn pwritev(file: &File, buffers: &[libc::iovec], offset: u64) -> io::Result<usize> {
    // SAFETY: as in `preadv`.
    let count = unsafe { libc::pwritev(file.as_raw_fd(), buffers.as_ptr(), buffers.len() as i32, offset as i64) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Advancing passes over exactly so many bytes, never into the next buffer's neighbour.
        #[test]
        fn advance_passes_over_exactly(lengths in proptest::collection::vec(0..50_usize, 0..8), part in 0.0..1.0_f64) {
            let mut base = 0x1000_usize;
            let mut buffers = Vec::new();
            for len in lengths {
                buffers.push(libc::iovec { iov_base: base as *mut _, iov_len: len });
                base += len + 7;
            }
            let bytes = |buffers: &[libc::iovec]| -> Vec<usize> {
                buffers.iter().flat_map(|b| (0..b.iov_len).map(|at| b.iov_base as usize + at)).collect()
            };
            let all = bytes(&buffers);
            let count = (all.len() as f64 * part) as usize;
            advance(&mut buffers, count as u64);
            prop_assert_eq!(bytes(&buffers), all[count..].to_vec());
        }
    }
}
