//! The file descriptors a worker waits on.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A backend's name for one of its own file descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u32);

/// What woke a worker.
pub(super) enum Wake {
    Stop,
    Kick(usize),
    Backend(Token, EventSet),
}

/// The stop event, then the queues' kicks, are numbered above every token.
const STOP: u64 = 1 << 32;

/// Events taken from the kernel at once.
const BATCH: usize = 16;

/// The set of file descriptors one worker waits on. It is made afresh at each start, so nothing stays registered over a reset.
pub struct Fds {
    epoll: Epoll,
}

impl Fds {
    pub(super) fn new(stop: &impl AsRawFd) -> io::Result<Self> {
        let fds = Self { epoll: Epoll::new()? };
        fds.control(ControlOperation::Add, stop, STOP, EventSet::IN)?;
        Ok(fds)
    }

    pub(super) fn add_kick(&mut self, kick: &impl AsRawFd, queue: usize) -> io::Result<()> {
        self.control(ControlOperation::Add, kick, STOP + 1 + queue as u64, EventSet::IN)
    }

    /// Calls the backend's `ready` with `token` whenever `fd` has one of `events`. Errors: `fd` is there already, or can not
    /// be waited on.
    pub fn add(&mut self, fd: &impl AsRawFd, token: Token, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, fd, token.0.into(), events)
    }

    /// Waits for other events of `fd`.
    pub fn modify(&mut self, fd: &impl AsRawFd, token: Token, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd, token.0.into(), events)
    }

    /// Forgets `fd`. A wake-up that is under way may still arrive.
    pub fn remove(&mut self, fd: &impl AsRawFd) -> io::Result<()> {
        self.control(ControlOperation::Delete, fd, 0, EventSet::empty())
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

    fn control(&self, operation: ControlOperation, fd: &impl AsRawFd, data: u64, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(operation, fd.as_raw_fd(), EpollEvent::new(events, data))
    }
}
