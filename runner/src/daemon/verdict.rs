//! Why a VMM ended, and what follows from that: pure functions.

use garret_api::one_line;
use garret_api::runner::MachinePhase;
use garret_api::vmm::{ExitReason, LastWords};

/// A guest that reboots more often than this within [`REBOOT_WINDOW_S`] is not started again.
const REBOOTS_MAX: usize = 5;
/// In seconds.
const REBOOT_WINDOW_S: u64 = 300;

/// What is known about the end of a VMM.
#[derive(Clone, Debug, Default)]
pub(super) struct End {
    /// The VMM's own report.
    pub last_words: Option<LastWords>,
    /// The last line of the VMM's output.
    pub log: String,
    /// Whether the kernel killed it for lack of memory.
    pub out_of_memory: bool,
    /// Whether the runner had requested the end.
    pub asked: bool,
    /// The age of the guest's earlier reboots, in seconds.
    pub earlier_reboots: Vec<u64>,
}

/// The result for the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub phase: MachinePhase,
    /// The reason, in one line.
    pub reason: String,
    /// What should happen without a request.
    pub next: Next,
}

/// What should happen after an end without a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The desired state does not change.
    Nothing,
    /// The guest requested a reboot.
    StartAgain,
    /// The guest powered itself off.
    StayStopped,
}

pub(super) fn judge(end: &End) -> Verdict {
    let words = end.last_words.as_ref();
    let said = words.map(|words| one_line(&words.message)).unwrap_or_default();
    let verdict = |phase, reason: String, next| Verdict { phase, reason, next };
    if end.asked {
        return verdict(MachinePhase::Stopped, "stopped".into(), Next::Nothing);
    }
    let failed = |reason| verdict(MachinePhase::Failed, reason, Next::Nothing);
    match words.map(|words| words.reason) {
        Some(ExitReason::PowerOff) => verdict(MachinePhase::Stopped, "the guest powered off".into(), Next::StayStopped),
        Some(ExitReason::Reboot) if reboots_too_often(&end.earlier_reboots) => {
            failed(format!("the guest rebooted more than {REBOOTS_MAX} times within {REBOOT_WINDOW_S} s"))
        }
        Some(ExitReason::Reboot) => verdict(MachinePhase::Stopped, "the guest reboots".into(), Next::StartAgain),
        Some(ExitReason::Panic) => failed(with("guest kernel panic", &said)),
        Some(ExitReason::Asked) => failed(with("a process other than garret ended the VMM", &said)),
        Some(ExitReason::Failed) => failed(with("the VMM failed", &said)),
        None if end.out_of_memory => failed(
            "the kernel killed the VMM for lack of memory: raise memory_overhead_mib, or stop other machines".into(),
        ),
        None if end.log.is_empty() => failed("the VMM was killed by a signal or crashed".into()),
        None => failed(format!("the VMM was killed by a signal or crashed; its log ends: {}", end.log)),
    }
}

fn reboots_too_often(earlier: &[u64]) -> bool {
    earlier.iter().filter(|ago| **ago <= REBOOT_WINDOW_S).count() >= REBOOTS_MAX
}

fn with(what: &str, detail: &str) -> String {
    if detail.is_empty() { what.into() } else { format!("{what}: {detail}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(reason: ExitReason, message: &str) -> Option<LastWords> {
        Some(LastWords { reason, message: message.into() })
    }

    #[test]
    fn every_end_has_its_reason() {
        use MachinePhase::{Failed, Stopped};
        for (last_words, out_of_memory, asked, phase, reason, next) in [
            (None, false, true, Stopped, "stopped", Next::Nothing),
            (words(ExitReason::Asked, "shutdown"), false, true, Stopped, "stopped", Next::Nothing),
            (words(ExitReason::PowerOff, ""), false, false, Stopped, "powered off", Next::StayStopped),
            (words(ExitReason::Reboot, ""), false, false, Stopped, "reboots", Next::StartAgain),
            (
                words(ExitReason::Panic, "not\nsyncing"),
                false,
                false,
                Failed,
                "guest kernel panic: not syncing",
                Next::Nothing,
            ),
            (
                words(ExitReason::Asked, "SIGTERM"),
                false,
                false,
                Failed,
                "other than garret ended the VMM: SIGTERM",
                Next::Nothing,
            ),
            (
                words(ExitReason::Failed, "no /dev/kvm"),
                false,
                false,
                Failed,
                "the VMM failed: no /dev/kvm",
                Next::Nothing,
            ),
            (None, true, false, Failed, "for lack of memory", Next::Nothing),
            (None, false, false, Failed, "killed by a signal or crashed", Next::Nothing),
        ] {
            let verdict = judge(&End { last_words, out_of_memory, asked, ..End::default() });
            assert_eq!((verdict.phase, verdict.next), (phase, next), "{verdict:?}");
            assert!(verdict.reason.contains(reason), "{verdict:?}");
        }
    }

    #[test]
    fn the_last_line_of_the_vmm_is_reported() {
        let verdict = judge(&End { log: "thread 'vcpu0' panicked".into(), ..End::default() });
        assert!(verdict.reason.ends_with("crashed; its log ends: thread 'vcpu0' panicked"), "{verdict:?}");
    }

    #[test]
    fn a_reboot_loop_ends() {
        let reboot = |earlier_reboots| {
            judge(&End { last_words: words(ExitReason::Reboot, ""), earlier_reboots, ..End::default() }).next
        };
        assert_eq!(reboot(vec![1, 2, 3, 4]), Next::StartAgain);
        assert_eq!(reboot(vec![1, 2, 3, 4, 5]), Next::Nothing);
        assert_eq!(reboot(vec![1, 2, 3, 4, 301]), Next::StartAgain);
    }
}
