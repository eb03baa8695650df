//! Decides when to start the agent again. Pure.

use std::time::{Duration, Instant};

/// The first pause before the agent is started again; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// An agent that ran at least this long was healthy: the next pause is [`PAUSE`] again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// Decides when to start the agent. Pure: the caller passes the time and starts the agent.
pub(super) struct Supervisor {
    state: State,
    failures: u32,
}

enum State {
    Running { since: Instant },
    Waiting { until: Instant },
}

impl Supervisor {
    /// The agent is due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { state: State::Waiting { until: now }, failures: 0 }
    }

    /// Whether the agent must be started now.
    pub(super) fn due(&self, now: Instant) -> bool {
        matches!(self.state, State::Waiting { until } if until <= now)
    }

    /// When the agent must be started.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Running { .. } => None,
        }
    }

    /// Notes that the agent was started.
    pub(super) fn started(&mut self, now: Instant) {
        self.state = State::Running { since: now };
    }

    /// Notes that the agent ended or could not be started.
    pub(super) fn died(&mut self, now: Instant) {
        if let State::Running { since } = self.state
            && now.duration_since(since) >= HEALTHY_AFTER
        {
            self.failures = 0;
        }
        let pause = PAUSE.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting { until: now + pause };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_start_over_after_a_good_run() {
        let mut now = Instant::now();
        let mut supervisor = Supervisor::new(now);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert!(supervisor.due(now));
            supervisor.started(now);
            assert!(!supervisor.due(now + HEALTHY_AFTER));
            supervisor.died(now);
            let due = supervisor.deadline().unwrap();
            pauses.push(due.duration_since(now).as_millis());
            assert!(!supervisor.due(due - Duration::from_millis(1)));
            now = due;
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        supervisor.started(now);
        supervisor.died(now + HEALTHY_AFTER);
        assert_eq!(supervisor.deadline(), Some(now + HEALTHY_AFTER + PAUSE));
    }
}
