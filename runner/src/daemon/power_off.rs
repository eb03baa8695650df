//! Asks a guest to power off, in every available way.

use std::convert::Infallible;
use std::time::Duration;

use garret_api::MachineId;
use garret_api::client::Client;
use tokio::time::Instant;

/// Timeout of one request. It is long enough to swap in a guest that was swapped out.
const QUESTION: Duration = Duration::from_secs(10);
/// The pause between two requests.
const PAUSE: Duration = Duration::from_millis(200);
/// How long only the agent is asked before the power button is pressed too; at most half of the guest's time. Also the
/// interval between presses, because a press before the guest's init is up is lost.
const BUTTON_AFTER: Duration = Duration::from_secs(15);

/// The timeout of one request to a guest that has `patience` to power off. A silent agent does not keep the button from
/// being pressed in time.
pub(super) fn question(patience: Duration) -> Duration {
    QUESTION.min(patience / 2)
}

/// Asks until the future is dropped: the caller waits for the machine's end, `patience` at most. `wake` resumes a paused
/// machine and keeps it running until the returned value is dropped. The button is pressed even if the agent agreed,
/// because another program in the guest may have taken its port.
pub(super) async fn ask<W: Future>(
    machine: MachineId,
    agent: &Client,
    vmm: &Client,
    patience: Duration,
    wake: impl Fn() -> W,
) -> Infallible {
    let button_after = BUTTON_AFTER.min(patience / 2);
    let (mut heard, mut button) = (false, Instant::now());
    loop {
        let _awake = wake().await;
        heard = heard || agent.post("/v1/power-off").await.is_ok();
        if button.elapsed() >= button_after {
            let pressed = vmm.post("/v1/power-button").await;
            tracing::info!(%machine, heard, ?pressed, "the guest does not power off: pressing the power button");
            button = Instant::now();
        }
        tokio::time::sleep(PAUSE).await;
    }
}
