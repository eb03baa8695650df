use std::time::Duration;

/// A pause that doubles after each resistance, and halves as long as there is none. All times count from one fixed
/// start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    first: Duration,
    max: Duration,
    pause: Duration,
    until: Duration,
    halve: Duration,
}

impl Backoff {
    /// Pauses from `first` to `max`.
    pub(super) fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, pause: Duration::ZERO, until: Duration::ZERO, halve: Duration::ZERO }
    }

    /// Notes resistance. During a pause it counts as the same resistance: the pause starts again with the same length.
    pub(super) fn resisted(&mut self, now: Duration) {
        if !self.pausing(now) {
            self.pause = (self.pause * 2).clamp(self.first, self.max);
        }
        self.until = now + self.pause;
        self.halve = self.until + self.pause;
    }

    /// Notes that there is no resistance.
    pub(super) fn calm(&mut self, now: Duration) {
        if now >= self.halve {
            self.pause = if self.pause > self.first { self.pause / 2 } else { Duration::ZERO };
            self.halve = now + self.pause;
        }
    }

    /// Whether the caller must wait.
    pub(super) fn pausing(&self, now: Duration) -> bool {
        now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn pauses_double_and_halve_again() {
        let mut backoff = Backoff::new(seconds(10), seconds(60));
        let mut now = seconds(0);
        let mut pauses = Vec::new();
        for _ in 0..5 {
            backoff.resisted(now);
            let begun = now;
            while backoff.pausing(now) {
                now += seconds(1);
            }
            pauses.push((now - begun).as_secs());
        }
        assert_eq!(pauses, [10, 20, 40, 60, 60]);
        // A minute of calm halves the pause once. The next halving needs half of that time.
        now += seconds(60);
        backoff.calm(now);
        assert_eq!(backoff.pause, seconds(30));
        now += seconds(29);
        backoff.calm(now);
        assert_eq!(backoff.pause, seconds(30));
        for _ in 0..100 {
            now += seconds(5);
            backoff.calm(now);
        }
        assert_eq!(backoff.pause, seconds(0));
    }

    #[test]
    fn resistance_during_a_pause_makes_it_last_but_not_grow() {
        let mut backoff = Backoff::new(seconds(10), seconds(60));
        for now in 0..9 {
            backoff.resisted(seconds(now));
        }
        assert!(backoff.pausing(seconds(17)));
        assert!(!backoff.pausing(seconds(18)));
    }
}
