//! Ends operations at their deadlines.

use std::sync::Arc;
use std::time::Duration;

use super::Daemon;
use super::state::{now_ms, operations};

/// The longest pause between two checks. Every operation may take longer than this, so that a check before its deadline
/// sees it.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Runs until the daemon ends. The first check comes after a pause: what came to rest while no daemon ran is noticed first.
pub(super) async fn enforce(daemon: Arc<Daemon>) {
    tokio::time::sleep(PAUSE_MAX).await;
    loop {
        let pause = match daemon.read(operations::next_deadline).await {
            Ok(Some(deadline)) if deadline <= now_ms() => {
                if let Err(error) = daemon.write(|db| operations::expire(db, now_ms())).await {
                    tracing::error!("cannot end operations whose deadline has passed: {error}");
                    PAUSE_MAX
                } else {
                    continue;
                }
            }
            Ok(Some(deadline)) => Duration::from_millis(deadline.saturating_sub(now_ms())).min(PAUSE_MAX),
            Ok(None) => PAUSE_MAX,
            Err(error) => {
                tracing::error!("cannot read the operations' deadlines: {error}");
                PAUSE_MAX
            }
        };
        tokio::time::sleep(pause).await;
    }
}
