//! One virtio-blk request that is being carried out: the action on the file, and the chain with the guest's buffers.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};

use super::request::{Action, Header};
use crate::virtio::{Chain, Fault, Reader, Writer};

/// The mode that frees the space.
pub(super) const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
/// The mode that zeroes the range and keeps the space.
pub(super) const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// An admitted request, with its chain. The chain keeps guest memory mapped as long as the kernel may use the buffers.
pub(super) struct Job {
    pub chain: Chain,
    pub action: Action,
    /// The response must wait until the change is durable.
    pub durable: bool,
    /// The request has failed at least once because the host had no space.
    pub found_no_space: bool,
}

impl Job {
    /// The buffers for a read of `len` bytes, from byte `done` on.
    pub(super) fn destination(&self, len: u64, done: u64) -> Result<Writer<'_>, Fault> {
        let (mut data, _status) = self.chain.writer().split_at(len as usize)?;
        data.skip(done as usize)?;
        Ok(data)
    }

    /// The data of a write, from byte `done` on.
    pub(super) fn source(&self, done: u64) -> Result<Reader<'_>, Fault> {
        let mut data = self.chain.reader();
        data.skip(size_of::<Header>() + done as usize)?;
        Ok(data)
    }

    /// Carries out the request synchronously, from byte `done` of its data on.
    pub(super) fn run(&self, file: &File, done: u64) -> io::Result<()> {
        match self.action {
            Action::Read { offset, len } => transfer(done, len, |done| {
                self.destination(len, done).map_err(io::Error::other)?.preadv(file, offset + done)
            }),
            Action::Write { offset, len } => {
                transfer(done, len, |done| self.source(done).map_err(io::Error::other)?.pwritev(file, offset + done))
            }
            Action::Flush => Ok(fdatasync(file)?),
            Action::Punch { offset, len } => Ok(fallocate(file, PUNCH, offset, len)?),
            Action::Zero { offset, len } => match fallocate(file, ZERO, offset, len) {
                // tmpfs supports only punching; the range also reads as zeroes.
                Err(rustix::io::Errno::OPNOTSUPP) => Ok(fallocate(file, PUNCH, offset, len)?),
                result => Ok(result?),
            },
            Action::Identify => Ok(()),
        }
    }

    /// Carries out the rest of the request after the kernel has done `done` bytes of it.
    pub(super) fn run_rest(&self, file: &File, done: u64) -> io::Result<()> {
        if done < self.action.bytes() { self.run(file, done) } else { Ok(()) }
    }
}

/// Calls `step` with the number of bytes done so far, until all `len` bytes are done.
fn transfer(mut done: u64, len: u64, mut step: impl FnMut(u64) -> io::Result<usize>) -> io::Result<()> {
    while done < len {
        match step(done) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_transfers_continue_to_the_end_of_the_file() {
        let mut steps = vec![Ok(0), Ok(300), Err(io::ErrorKind::Interrupted.into()), Ok(212)];
        let mut seen = Vec::new();
        let mut step = |done| {
            seen.push(done);
            steps.pop().unwrap()
        };
        assert!(transfer(0, 512, &mut step).is_ok());
        assert_eq!(transfer(0, 512, &mut step).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(seen, [0, 212, 212, 0]);
        assert!(transfer(512, 512, |_| unreachable!("nothing is left")).is_ok());
    }
}
