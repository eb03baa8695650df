//! Decides how a virtio-blk request continues after the host has carried it out or failed it.

use std::io;

use super::request::{Action, Status};

/// The next step for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answer the driver.
    Answer(Status),
    /// The write is done and must be made durable first.
    Flush,
    /// The host's disk is full: the request waits and is retried.
    Wait,
}

/// Decides the outcome of each request. Keeps a failed flush in mind until the device is reset.
#[derive(Debug, Default)]
pub(super) struct OutcomePolicy {
    /// A flush has failed. The host reports that once and may have dropped the data: a later flush succeeds without the
    /// data.
    flush_failed: bool,
}

impl OutcomePolicy {
    /// `durable`: the response must wait until the change is durable.
    pub(super) fn decide(&mut self, action: Action, durable: bool, result: &io::Result<()>) -> Outcome {
        match result {
            Ok(()) if durable => Outcome::Flush,
            Ok(()) if action == Action::Flush && self.flush_failed => Outcome::Answer(Status::IoError),
            Ok(()) => Outcome::Answer(Status::Ok),
            // The driver has no response yet, so a second attempt loses nothing.
            Err(error) if action != Action::Flush && is_out_of_space(error) => Outcome::Wait,
            Err(_) => {
                self.flush_failed |= action == Action::Flush;
                Outcome::Answer(Status::IoError)
            }
        }
    }
}

fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Action = Action::Write { offset: 0, len: 512 };
    const READ: Action = Action::Read { offset: 0, len: 512 };
    const ERROR: Outcome = Outcome::Answer(Status::IoError);
    const OK: Outcome = Outcome::Answer(Status::Ok);

    #[test]
    fn writes_wait_for_space_and_flushes_never_do() {
        for errno in [libc::ENOSPC, libc::EDQUOT] {
            for (action, outcome) in [
                (WRITE, Outcome::Wait),
                (Action::Punch { offset: 0, len: 512 }, Outcome::Wait),
                (Action::Zero { offset: 0, len: 512 }, Outcome::Wait),
                (Action::Flush, ERROR),
            ] {
                let full = Err(io::Error::from_raw_os_error(errno));
                assert_eq!(OutcomePolicy::default().decide(action, false, &full), outcome, "{action:?}");
            }
        }
        let broken = Err(io::Error::from_raw_os_error(libc::EIO));
        assert_eq!(OutcomePolicy::default().decide(WRITE, true, &broken), ERROR);
    }

    #[test]
    fn after_a_flush_that_failed_no_flush_succeeds() {
        let mut policy = OutcomePolicy::default();
        assert_eq!(policy.decide(Action::Flush, false, &Ok(())), OK);
        assert_eq!(policy.decide(WRITE, true, &Ok(())), Outcome::Flush);
        policy.decide(Action::Flush, false, &Err(io::Error::from_raw_os_error(libc::ENOSPC)));
        assert_eq!(policy.decide(Action::Flush, false, &Ok(())), ERROR);
        // Requests other than flushes still succeed.
        assert_eq!((policy.decide(WRITE, false, &Ok(())), policy.decide(READ, false, &Ok(()))), (OK, OK));
    }
}
