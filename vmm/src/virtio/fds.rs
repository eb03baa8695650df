//! The file descriptors a worker waits on.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A backend's identifier for one of its own file descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token(pub u32);

/// What woke a worker.
pub(super) enum Wake {
    Stop,
    Kick(usize),
    Backend(Token, EventSet),
}

/// The tokens of the stop event and of the queues' kicks are above every token of a backend.
const STOP: u64 = 1 << 32;

/// The most events taken from the kernel at once.
const BATCH: usize = 16;

/// The set of file descriptors one worker waits on. After a stop, only the worker's own stop event remains in it.
pub(crate) struct Fds {
    epoll: Epoll,
    /// The descriptors that [`clear`](Self::clear) removes.
    added: BTreeSet<RawFd>,
}

impl Fds {
    pub(super) fn new(stop: &impl AsRawFd) -> io::Result<Self> {
        let fds = Self { epoll: Epoll::new()?, added: BTreeSet::new() };
        fds.control(ControlOperation::Add, stop.as_raw_fd(), STOP, EventSet::IN)?;
        Ok(fds)
    }

    pub(super) fn clear(&mut self) {
        for fd in std::mem::take(&mut self.added) {
            // A descriptor that has been closed is already removed.
            let _ = self.control(ControlOperation::Delete, fd, 0, EventSet::empty());
        }
    }

    pub(super) fn add_kick(&mut self, kick: &impl AsRawFd, queue: usize) -> io::Result<()> {
        self.control(ControlOperation::Add, kick.as_raw_fd(), STOP + 1 + queue as u64, EventSet::IN)?;
        self.added.insert(kick.as_raw_fd());
        Ok(())
    }

    /// Calls the backend's `ready` with `token` whenever `fd` has one of `events`. Fails if `fd` is already in the set
    /// or cannot be waited on.
    pub(crate) fn add(&mut self, fd: &impl AsRawFd, token: Token, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, fd.as_raw_fd(), token.0.into(), events)?;
        self.added.insert(fd.as_raw_fd());
        Ok(())
    }

    pub(super) fn wait(&self) -> io::Result<impl Iterator<Item = Wake> + use<>> {
        let mut events = [EpollEvent::default(); BATCH];
        let count = loop {
            match self.epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        Ok(events.into_iter().take(count).map(|event| match event.data() {
            STOP => Wake::Stop,
            data if data > STOP => Wake::Kick((data - STOP - 1) as usize),
            data => Wake::Backend(Token(data as u32), event.event_set()),
        }))
    }

    fn control(&self, operation: ControlOperation, fd: RawFd, data: u64, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(operation, fd, EpollEvent::new(events, data))
    }
}
