//! Runs one flush at a time. Linux reports lost data to only one of several concurrent `fdatasync` calls. Flushes that
//! arrive while one runs share the next one.

/// The flushes of a disk.
#[derive(Debug)]
pub(super) struct FlushQueue<J> {
    running: bool,
    /// Flushes covered by the running flush; they complete with it.
    covered: Vec<J>,
    /// Flushes that arrived after the running flush had begun, so it may not cover them.
    waiting: Vec<J>,
}

impl<J> Default for FlushQueue<J> {
    fn default() -> Self {
        Self { running: false, covered: Vec::new(), waiting: Vec::new() }
    }
}

impl<J> FlushQueue<J> {
    /// Returns the flush if it may begin now.
    pub(super) fn begin(&mut self, flush: J) -> Option<J> {
        if self.running {
            self.waiting.push(flush);
            return None;
        }
        self.running = true;
        Some(flush)
    }

    /// Ends the running flush. Returns the flushes that it covered, and the next one to begin.
    pub(super) fn end(&mut self) -> (Vec<J>, Option<J>) {
        let mut waiting = std::mem::take(&mut self.waiting).into_iter();
        let next = waiting.next();
        self.running = next.is_some();
        (std::mem::replace(&mut self.covered, waiting.collect()), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_that_arrive_meanwhile_share_the_next_one() {
        let mut flushes = FlushQueue::default();
        assert_eq!(flushes.begin(1), Some(1));
        for late in [2, 3, 4] {
            assert_eq!(flushes.begin(late), None);
        }
        assert_eq!(flushes.end(), (vec![], Some(2)));
        // The running flush may not cover this one either.
        assert_eq!(flushes.begin(5), None);
        assert_eq!(flushes.end(), (vec![3, 4], Some(5)));
        assert_eq!(flushes.end(), (vec![], None));
        assert_eq!(flushes.begin(6), Some(6));
    }
}
