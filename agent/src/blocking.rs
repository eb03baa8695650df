//! Runs work that may block outside the agent's single thread.

use std::time::Duration;

use garret_api::{Code, Problem};
use tokio::sync::Semaphore;

/// One kind of work that may block. A caller waits at most `deadline`. Work that does not return keeps its thread and
/// its slot; the number of slots is bounded, so it cannot take all threads.
pub(crate) struct Blocking {
    what: &'static str,
    deadline: Duration,
    places: Semaphore,
}

impl Blocking {
    /// `what` is the subject of the error message; at most `max` run at the same time.
    pub(crate) const fn new(what: &'static str, max: usize, deadline: Duration) -> Self {
        Self { what, deadline, places: Semaphore::const_new(max) }
    }

    /// Runs `work` on another thread.
    ///
    /// # Errors
    /// `unavailable`: the work did not return in time, and may still run.
    pub(crate) async fn run<T: Send + 'static>(
        &'static self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let call = async {
            let place = self.places.acquire().await;
            tokio::task::spawn_blocking(move || {
                let value = work();
                drop(place);
                value
            })
            .await
        };
        match tokio::time::timeout(self.deadline, call).await {
            Ok(done) => done.map_err(|error| Problem::new(Code::Internal, format!("{} failed: {error}", self.what))),
            Err(_) => {
                let message = format!("{} took longer than {} s; try again", self.what, self.deadline.as_secs());
                Err(Problem::new(Code::Unavailable, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_that_hangs_keeps_its_place_and_no_caller() {
        static HANGING: Blocking = Blocking::new("the test's work", 1, Duration::from_millis(50));
        let (release, released) = mpsc::channel::<()>();
        let problem = HANGING.run(move || released.recv().ok()).await.unwrap_err();
        assert_eq!(problem.code, Code::Unavailable);
        assert_eq!(HANGING.run(|| 1).await.unwrap_err().code, Code::Unavailable);
        drop(release);
        while HANGING.run(|| 1).await.is_err() {}
    }
}
