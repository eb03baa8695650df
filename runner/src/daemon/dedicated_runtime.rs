//! Runs parts of the daemon that must not wait for requests: the memory arbiter, and the drivers of the machines.
//!
//! A request may block the runtime's thread or all its blocking threads for a while. In tokio, both belong to one
//! runtime.

use std::thread;

use anyhow::Context;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

/// Runs a part of the daemon to its end, on a thread and a runtime of its own. The part continues when its caller is
/// dropped.
///
/// # Errors
/// The thread cannot be made, or the part panics.
pub(super) async fn run_on_dedicated_runtime<T: Send + 'static>(
    name: &str,
    part: impl Future<Output = T> + Send + 'static,
) -> anyhow::Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build().context("cannot make a runtime")?;
    let (done, result) = oneshot::channel();
    let run = move || {
        // A caller that was dropped needs no answer.
        let _ = done.send(runtime.block_on(runtime.spawn(part)));
        // A thread that blocks must not delay a restart of the part.
        runtime.shutdown_background();
    };
    thread::Builder::new().name(name.into()).spawn(run).with_context(|| format!("cannot make the thread {name}"))?;
    Ok(result.await.with_context(|| format!("the thread {name} died"))??)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use garret_api::runner::{Desired, MachinePhase};
    use tokio::runtime::Builder;
    use tokio::task::spawn_blocking;
    use tokio::time::{sleep, timeout};

    use super::run_on_dedicated_runtime;
    use crate::accounts::tests::name_service_with;
    use crate::daemon::state::tests::machine;
    use crate::daemon::state::{MachineRow, machines};
    use crate::daemon::{Daemon, memory, reconcile, testing};

    const UID: u32 = 4_000_000;

    /// Returns when memory has been measured twice.
    async fn arbiter_ticks(daemon: &Daemon) {
        let mut snapshots = Vec::new();
        while snapshots.len() < 2 {
            sleep(Duration::from_millis(10)).await;
            let Some(snapshot) = daemon.memory.snapshot().await else { continue };
            if !snapshots.iter().any(|seen| Arc::ptr_eq(seen, &snapshot)) {
                snapshots.push(snapshot);
            }
        }
    }

    /// Returns when the driver has tried to start its machine, which needs a blocking thread.
    async fn driver_acts(daemon: &Daemon) {
        loop {
            let row = daemon.read(|db| machines::of_owner(db, UID)).await.unwrap().unwrap();
            if row.phase == MachinePhase::Failed {
                assert!(row.reason.contains("no-template"), "{}", row.reason);
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_panic_is_reported_while_a_thread_blocks() {
        assert_eq!(run_on_dedicated_runtime("part", async { 7 }).await.unwrap(), 7);
        let (_release, released) = std::sync::mpsc::channel::<()>();
        let part = async move {
            spawn_blocking(move || released.recv());
            tokio::task::yield_now().await;
            panic!("on purpose");
        };
        assert!(run_on_dedicated_runtime::<()>("part", part).await.unwrap_err().to_string().contains("panic"));
    }

    #[test]
    fn arbiter_and_drivers_run_while_requests_block_all_threads() {
        let requests = Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
        requests.block_on(async {
            let (release, released) = std::sync::mpsc::channel::<()>();
            let blocked = spawn_blocking(move || released.recv());
            let dir = tempfile::tempdir().unwrap();
            let (daemon, poked) = testing::daemon(dir.path(), name_service_with(dir.path(), &[UID]));
            let row = MachineRow { desired: Desired::Running, ..machine(UID) };
            daemon.write(move |db| machines::put(db, &row)).await.unwrap();
            tokio::spawn(memory::supervise(daemon.clone()));
            tokio::spawn(reconcile::supervise(daemon.clone(), poked));
            let patience = Duration::from_secs(60);
            let (ticks, acts) =
                tokio::join!(timeout(patience, arbiter_ticks(&daemon)), timeout(patience, driver_acts(&daemon)));
            assert!(!blocked.is_finished());
            drop(release);
            assert!(ticks.is_ok(), "the arbiter waits for requests");
            assert!(acts.is_ok(), "a driver waits for requests");
        });
    }
}
