//! Waits for an answer that may take any time, from a guest that may hang.

use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;

/// Waits for `answer`. Runs `check` after each `silence`; its error ends the wait.
///
/// # Errors
/// Those of `check`.
pub(super) async fn wait_while_alive<T, E, Check: Future<Output = Result<(), E>>>(
    answer: impl Future<Output = T>,
    silence: Duration,
    check: impl Fn() -> Check,
) -> Result<T, E> {
    let mut answer = pin!(answer);
    loop {
        tokio::select! {
            answer = &mut answer => return Ok(answer),
            alive = async {
                sleep(silence).await;
                check().await
            } => alive?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use super::*;

    const SILENCE: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn the_wait_lasts_as_long_as_the_check_succeeds() {
        let checked = Cell::new(0);
        let check = || {
            checked.set(checked.get() + 1);
            ready(if checked.get() < 3 { Ok(()) } else { Err("gone") })
        };
        assert_eq!(wait_while_alive(ready(7), SILENCE, check).await, Ok(7));
        assert_eq!((wait_while_alive(pending::<()>(), SILENCE, check).await, checked.get()), (Err("gone"), 3));
    }

    #[tokio::test]
    async fn an_unanswered_check_does_not_delay_the_answer() {
        let late = sleep(10 * SILENCE);
        assert_eq!(wait_while_alive(late, SILENCE, pending::<Result<(), ()>>).await, Ok(()));
    }
}
