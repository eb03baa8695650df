//! One flush at a time. Of several that run at once, the host tells only one that data was lost (errseq_t in Linux), and the
//! others would be answered as if theirs were durable. Those that come meanwhile share the next flush: it covers them all.

/// The flushes of a disk.
#[derive(Debug)]
pub struct Flushes<J> {
    running: bool,
    /// Answered together with the one that runs.
    shared: Vec<J>,
    /// Came after it had begun, so that it may not cover them.
    waiting: Vec<J>,
}

impl<J> Default for Flushes<J> {
    fn default() -> Self {
        Self { running: false, shared: Vec::new(), waiting: Vec::new() }
    }
}

impl<J> Flushes<J> {
    /// Returns the flush if it may begin now.
    pub fn begin(&mut self, flush: J) -> Option<J> {
        if self.running {
            self.waiting.push(flush);
            return None;
        }
        self.running = true;
        Some(flush)
    }

    /// The one that ran has ended. Returns those that end as it did, and the next one to begin.
    pub fn end(&mut self) -> (Vec<J>, Option<J>) {
        let mut waiting = std::mem::take(&mut self.waiting).into_iter();
        let next = waiting.next();
        self.running = next.is_some();
        (std::mem::replace(&mut self.shared, waiting.collect()), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_that_come_meanwhile_share_the_next_one() {
        let mut flushes = Flushes::default();
        assert_eq!(flushes.begin(1), Some(1));
        for late in [2, 3, 4] {
            assert_eq!(flushes.begin(late), None);
        }
        assert_eq!(flushes.end(), (vec![], Some(2)));
        // The one that runs may not cover this one either.
        assert_eq!(flushes.begin(5), None);
        assert_eq!(flushes.end(), (vec![3, 4], Some(5)));
        assert_eq!(flushes.end(), (vec![], None));
        assert_eq!(flushes.begin(6), Some(6));
    }
}
