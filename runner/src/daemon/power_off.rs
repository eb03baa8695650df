//! Asks a guest to power off, in every way there is.

use std::convert::Infallible;
use std::time::Duration;

use garret_api::client::Client;
use tokio::time::Instant;

/// How long one question may take: a guest that was swapped out comes back meanwhile.
pub const QUESTION: Duration = Duration::from_secs(10);
/// The pause between two.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the agent alone is asked, before the power button is pressed too; and how soon again, for a press before the
/// guest's init is up is lost.
const BUTTON_AFTER: Duration = Duration::from_secs(15);

/// Asks until the future is dropped: the machine's end is what the caller waits for. `wake` lets a machine that was paused
/// run, for as long as what it returns lives. The button is pressed also when the agent said yes: a program of the guest's
/// may have taken its port.
pub async fn ask<W: Future>(machine: &str, agent: &Client, vmm: &Client, wake: impl Fn() -> W) -> Infallible {
    let (mut heard, mut button) = (false, Instant::now());
    loop {
        let _awake = wake().await;
        heard = heard || agent.post("/v1/power-off").await.is_ok();
        if button.elapsed() >= BUTTON_AFTER {
            let pressed = vmm.post("/v1/power-button").await;
            tracing::info!(machine, heard, ?pressed, "the guest does not end: the power button");
            button = Instant::now();
        }
        tokio::time::sleep(PAUSE).await;
    }
}
