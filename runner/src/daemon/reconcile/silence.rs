//! An answer that may take any time, from a guest that may hang.

use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;

/// Waits for `answer`. After each `silence` asks whether the other side is still there: the error of a question ends the wait.
///
/// # Errors
/// Those of `ask`.
pub(super) async fn while_alive<T, Told, E, Asked: Future<Output = Result<Told, E>>>(
    answer: impl Future<Output = T>,
    silence: Duration,
    ask: impl Fn() -> Asked,
) -> Result<T, E> {
    let mut answer = pin!(answer);
    loop {
        tokio::select! {
            answer = &mut answer => return Ok(answer),
            alive = async {
                sleep(silence).await;
                ask().await
            } => drop(alive?),
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
    async fn the_wait_lasts_as_long_as_the_other_side_is_there() {
        let asked = Cell::new(0);
        let ask = || {
            asked.set(asked.get() + 1);
            ready(if asked.get() < 3 { Ok(()) } else { Err("gone") })
        };
        assert_eq!(while_alive(ready(7), SILENCE, ask).await, Ok(7));
        assert_eq!((while_alive(pending::<()>(), SILENCE, ask).await, asked.get()), (Err("gone"), 3));
    }

    #[tokio::test]
    async fn a_question_without_an_answer_does_not_hold_up_what_is_waited_for() {
        let late = sleep(10 * SILENCE);
        assert_eq!(while_alive(late, SILENCE, pending::<Result<(), ()>>).await, Ok(()));
    }
}
