//! Takes a running machine to stopped, failed or removed.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use garret_api::runner::{Desired, EventKind, MachinePhase};
use garret_api::vmm::LastWords;
use garret_api::{Code, Problem, one_line};
use tokio::time::Instant;

use super::driver::{Driver, VmmState};
use crate::daemon::power_off;
use crate::daemon::state::{MachineRow, StoreError, environments, events, machines};
use crate::daemon::tail::read_tail;
use crate::daemon::verdict::{End, Next, Verdict, judge};
use crate::daemon::vmm::VmmProcess;
use crate::host::{self, Slot};

/// How long a VMM may take to end itself after the request.
const VMM_DEADLINE: Duration = Duration::from_secs(10);
/// How many bytes of a VMM's last words and of its log are read.
const WORDS_MAX: u64 = 64 * 1024;

impl Driver {
    /// Powers the machine off. The agent is asked first, then the power button is pressed, and at the deadline the
    /// power is cut.
    pub(super) async fn halt(&mut self, machine: &MachineRow) -> anyhow::Result<()> {
        let id = self.id;
        self.asked = true;
        self.cancel_all().await;
        // This only reports: if the state cannot be written, the machine is stopped all the same.
        let said = self.daemon.write(move |db| machines::set_phase(db, id, MachinePhase::Stopping, "stopping")).await;
        if let Err(error) = said {
            tracing::warn!(machine = %machine.id, "cannot record that the machine is stopping: {error}");
        }
        let (VmmState::Booting(process) | VmmState::Ready(process)) = &self.vmm else { return Ok(()) };
        let patience = Duration::from_secs(self.daemon.config.machine.stop_deadline_s);
        let question = power_off::question(patience);
        let (agent, vmm) = (self.daemon.agent(machine.id, question), self.daemon.vmm(machine.id, question));
        tokio::select! {
            () = process.ended() => {}
            () = tokio::time::sleep(patience) => {
                let said = format!("the guest did not power off within {} s: its power is cut", patience.as_secs());
                self.report(machine, Problem::new(Code::PowerCut, said)).await;
                self.cut_power(machine, process).await?;
            }
            never = power_off::ask(machine.id, &agent, &vmm, patience, || self.daemon.wake(machine)) => match never {},
        }
        self.vmm = VmmState::Dead;
        Ok(())
    }

    /// Logs a problem of the machine and records it as an event.
    pub(super) async fn report(&self, machine: &MachineRow, problem: Problem) {
        tracing::warn!(machine = %machine.id, "{}", problem.detail);
        let id = self.id;
        let written = self.daemon.write(move |db| events::add(db, id, None, &EventKind::Problem { problem })).await;
        if let Err(error) = written {
            tracing::warn!(machine = %machine.id, "cannot record the event: {error}");
        }
    }

    /// Asks the VMM to end, and kills its process if it has not ended by the deadline.
    async fn cut_power(&self, machine: &MachineRow, process: &VmmProcess) -> anyhow::Result<()> {
        let vmm = self.daemon.vmm(machine.id, VMM_DEADLINE);
        let ended = async {
            // The result does not matter: the deadline decides.
            let _ = vmm.post("/v1/shutdown").await;
            process.ended().await;
        };
        if tokio::time::timeout(VMM_DEADLINE, ended).await.is_err() {
            process.kill()?;
            process.ended().await;
        }
        Ok(())
    }

    /// Finds out why the VMM ended, and removes its files on the host.
    pub(super) async fn clean_up(&mut self, machine: &MachineRow) -> anyhow::Result<()> {
        self.cancel_all().await;
        let (daemon, row) = (self.daemon.clone(), machine.clone());
        let earlier_reboots = self.reboots.iter().map(|at| at.elapsed().as_secs()).collect();
        // A runner that was killed while it stopped the machine leaves only the desired state.
        let asked = self.asked || machine.removed || machine.desired == Desired::Stopped;
        let end = tokio::task::spawn_blocking(move || {
            let paths = daemon.paths(row.id);
            let end = End {
                last_words: last_words(&paths.last_words()),
                out_of_memory: host::oom_kills(row.id) > 0,
                log: tail(&paths.vmm_log()),
                asked,
                earlier_reboots,
            };
            host::clean_up(row.id, Slot(row.slot), &paths)?;
            anyhow::Ok(end)
        })
        .await??;
        let mut verdict = judge(&end);
        if let Some(why) = self.failure.clone() {
            verdict = Verdict { phase: MachinePhase::Failed, reason: why, next: Next::Nothing };
        }
        tracing::info!(machine = %machine.id, developer = machine.developer, phase = ?verdict.phase, "ended: {}", verdict.reason);
        // Until the end is written, the driver runs this again. Its memory of the end is kept until then.
        if verdict.next == Next::StayStopped {
            let id = self.id;
            self.daemon.write(move |db| machines::set_desired(db, id, Desired::Stopped)).await?;
        }
        self.daemon.set_vmm(machine.id, None);
        self.write_end(verdict.phase, verdict.reason, !asked).await?;
        if verdict.next == Next::StartAgain {
            self.reboots.push(Instant::now());
        }
        (self.asked, self.failure, self.vmm) = (false, None, VmmState::Absent);
        Ok(())
    }

    /// The machine has stopped; records why.
    pub(super) async fn write_end(&self, phase: MachinePhase, reason: String, unasked: bool) -> Result<(), StoreError> {
        let id = self.id;
        self.daemon
            .write(move |db| {
                machines::set_vmm(db, id, None)?;
                machines::set_phase(db, id, phase, &reason)?;
                let problem = unasked.then(|| Problem::new(Code::MachineEnded, format!("the machine ended: {reason}")));
                // A client requested a start while the machine stopped, or the guest reboots.
                let wanted = machines::get(db, id)?.is_some_and(|row| row.desired == Desired::Running && !row.removed);
                environments::end_all(db, id, problem.as_ref(), wanted && phase == MachinePhase::Stopped)
            })
            .await
    }

    /// Removes the machine and all its data.
    pub(super) async fn delete(&mut self, machine: &MachineRow) -> anyhow::Result<()> {
        let (daemon, row) = (self.daemon.clone(), machine.clone());
        tokio::task::spawn_blocking(move || {
            let paths = daemon.paths(row.id);
            host::clean_up(row.id, Slot(row.slot), &paths)?;
            host::remove_run_folder(&paths)?;
            remove_folder(&daemon.data_folder(row.id))
        })
        .await??;
        let id = self.id;
        self.daemon.write(move |db| machines::forget(db, id)).await?;
        self.daemon.desired_is_written(id);
        tracing::info!(machine = %id, developer = machine.developer, "removed");
        Ok(())
    }
}

fn remove_folder(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Reads the VMM's last words. The VMM may write to this folder, so the file is not trusted.
fn last_words(path: &Path) -> Option<LastWords> {
    serde_json::from_slice(&read_tail(path, WORDS_MAX).ok()?).ok()
}

/// The last line of the VMM's own output.
fn tail(path: &Path) -> String {
    let text = read_tail(path, WORDS_MAX).unwrap_or_default();
    one_line(String::from_utf8_lossy(&text).lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default())
}

#[cfg(test)]
mod tests;
