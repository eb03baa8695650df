//! SIGTERM and SIGINT end the machine. A thread turns them into an event.

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::control::{Event, Events};
use crate::seccomp::Role;
use crate::thread;

/// The signals that end a machine, blocked.
pub(crate) struct EndingSignals(SignalFd);

impl EndingSignals {
    /// Blocks the signals in this thread and in those that it creates from now on. Must be called before the first
    /// thread is created: a thread in which they are not blocked would receive them, and the process would die.
    pub(crate) fn block() -> io::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        signals.thread_block()?;
        Ok(Self(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?))
    }

    /// Starts the thread. It ends with the first signal, or with the process. Later signals stay blocked.
    pub(crate) fn spawn(self, events: Events) -> io::Result<()> {
        thread::spawn("signals", Role::Signals, move || self.wait(&events)).map(drop)
    }

    fn wait(self, events: &Events) {
        loop {
            match self.0.read_signal() {
                Ok(_) => return events.send(Event::Terminate),
                Err(Errno::EINTR) => {}
                Err(error) => return tracing::warn!("cannot wait for signals: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `raise` sends to the calling thread alone, so no other test is affected.
    #[test]
    fn a_signal_that_came_before_the_wait_ends_the_machine() {
        let (events, received) = Events::channel();
        let signals = EndingSignals::block().unwrap();
        let wait = move || {
            nix::sys::signal::raise(Signal::SIGTERM).unwrap();
            signals.wait(&events);
        };
        thread::spawn("signals", Role::Signals, wait).unwrap().join().unwrap();
        assert!(matches!(received.try_recv(), Ok(Event::Terminate)));
    }
}
