//! A timer that wakes a worker: a descriptor that is readable when it has fired.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(3600);

/// See the module. No call blocks. Several descriptors may wake a worker at once. The worker may then stop or set the
/// timer for another of them before it handles the timer's own wake-up.
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    /// Creates a stopped timer. Fails if the kernel rejects it.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?))
    }

    /// Fires first after `wait`, but after an hour at most, then every `interval` unless that is zero.
    pub(crate) fn set(&self, wait: Duration, interval: Duration) -> io::Result<()> {
        // Zero would stop it.
        self.settime(wait.clamp(Duration::from_nanos(1), LONGEST), interval)
    }

    /// Stops the timer. If it has fired, its descriptor is not readable any more.
    pub(crate) fn stop(&self) -> io::Result<()> {
        self.settime(Duration::ZERO, Duration::ZERO)
    }

    /// Clears the event if the timer has fired: its descriptor is not readable any more.
    pub(crate) fn clear(&self) {
        // The count does not matter, and EAGAIN means that the timer has not fired.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }

    fn settime(&self, wait: Duration, interval: Duration) -> io::Result<()> {
        let spec = Itimerspec { it_value: timespec(wait), it_interval: timespec(interval) };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    /// The longest wait of a test.
    const LONG: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

    fn fired(timer: &Timer, timeout: &Timespec) -> bool {
        poll(&mut [PollFd::new(timer, PollFlags::IN)], Some(timeout)).unwrap() == 1
    }

    #[test]
    fn it_fires_again_and_again_until_it_is_stopped() {
        let timer = Timer::new().unwrap();
        timer.set(Duration::ZERO, Duration::from_millis(1)).unwrap();
        for _ in 0..3 {
            assert!(fired(&timer, &LONG));
            timer.clear();
        }
        assert!(fired(&timer, &LONG));
        timer.stop().unwrap();
        assert!(!fired(&timer, &Timespec::default()), "it was stopped before anybody looked");
        timer.clear();
    }
}
