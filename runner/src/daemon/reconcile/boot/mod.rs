//! Starts a machine, or adopts one that an earlier runner left, until its agent answers.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use garret_api::agent::{API, AgentInfo, ApiRange, MachineSetup, Progress};
use garret_api::client::{Client, Error};
use garret_api::runner::{Desired, MachinePhase};
use garret_api::{Code, Problem, one_line};
use tokio::time::Instant;

use super::disk_failures::DiskFailures;
use super::driver::{Driver, VmmState};
use super::plan::Goal;
use crate::daemon::memory::PauseState;
use crate::daemon::state::{MachineRow, StoreError, VmmId, environments, machines};
use crate::daemon::vmm::{VmmProcess, boot_id};
use crate::daemon::{disk, lost_disks, requests};
use crate::host::{self, Launch, Slot};

/// The name of the machine's start step in the progress of its environments.
pub(super) const START_STEP: &str = "start machine";
/// Timeout of one request to the agent while it may not be up yet.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause between two requests. There is no event to wait for: a connection to a port without a listener is closed.
const PAUSE: Duration = Duration::from_millis(50);
/// The same if a program that is not the agent answers.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two set-ups of a machine whose agent refuses them.
const SETUP_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long the agent may take to set itself up.
const SETUP_DEADLINE: Duration = Duration::from_secs(30);

impl Driver {
    /// Retries until the adoption succeeds. A VMM that cannot be identified cannot be asked to stop: its power is cut
    /// once it should have stopped for `stop_deadline_s`.
    pub(super) async fn adopt_with_retries(&mut self) {
        let (mut failures, mut unwanted_since) = (0, None);
        while let Err(error) = self.adopt().await {
            failures += 1;
            tracing::error!(machine = %self.id, "cannot adopt what an earlier daemon left; it is retried: {error:#}");
            // A VMM that was found is driven, even if the state could not be written.
            if self.has_vmm()
                || (error.is::<CannotIdentifyVmm>() && self.cut_power_if_overdue(&mut unwanted_since).await)
            {
                return;
            }
            self.back_off(failures).await;
        }
    }

    /// Cuts the power of a machine that should have stopped `stop_deadline_s` ago; returns whether it did. The caller
    /// keeps `unwanted_since` between calls.
    async fn cut_power_if_overdue(&mut self, unwanted_since: &mut Option<Instant>) -> bool {
        let Ok(Some((machine, ..))) = self.read_rows().await else { return false };
        if self.goal(&machine) == Goal::Run {
            *unwanted_since = None;
            return false;
        }
        let patience = Duration::from_secs(self.daemon.config.machine.stop_deadline_s);
        if unwanted_since.get_or_insert_with(Instant::now).elapsed() < patience {
            return false;
        }
        let said = "the machine was killed: the runner cannot identify its VMM, so it cannot ask it to stop";
        self.report(&machine, Problem::new(Code::PowerCut, said)).await;
        // Cleaning up kills everything in the machine's control group.
        (self.vmm, self.asked) = (VmmState::Dead, true);
        true
    }

    /// Finds the machine that an earlier runner left: exactly the process that the state names, or one that the runner
    /// had no time to record.
    async fn adopt(&mut self) -> anyhow::Result<()> {
        let id = self.id;
        let Some(machine) = self.daemon.read(move |db| machines::get(db, id)).await? else { return Ok(()) };
        let paths = self.daemon.paths(machine.id);
        self.since = Instant::now();
        let found = identify(&machine, &paths.api_socket()).await.map_err(CannotIdentifyVmm)?;
        self.vmm = match (found, &machine.vmm) {
            (Some(process), _) => VmmState::Booting(process),
            (None, None) => VmmState::Absent,
            (None, Some(id)) if id.boot_id != boot_id()? => return self.forget_boot(&machine).await,
            (None, Some(_)) => VmmState::Dead,
        };
        self.adopted = matches!(self.vmm, VmmState::Booting(_));
        if let VmmState::Booting(process) = &self.vmm {
            tracing::info!(machine = %machine.id, developer = machine.developer, pid = process.id.pid, "adopted");
            self.daemon.set_vmm(machine.id, Some(process.id.pid));
            self.record_vmm_id(process.id.clone()).await?;
        } else if matches!(self.vmm, VmmState::Absent) && machine.phase != MachinePhase::Failed {
            // Whatever the earlier runner was doing, there is no VMM.
            let phase = MachinePhase::Stopped;
            if machine.phase != phase {
                self.daemon.write(move |db| machines::set_phase(db, id, phase, "the runner was restarted")).await?;
            }
        }
        Ok(())
    }

    /// The host has been restarted: nothing of the machine is left. It starts again if it should run.
    async fn forget_boot(&mut self, machine: &MachineRow) -> anyhow::Result<()> {
        self.vmm = VmmState::Absent;
        let (id, desired) = (self.id, machine.desired);
        self.daemon
            .write(move |db| {
                machines::set_vmm(db, id, None)?;
                machines::set_phase(db, id, MachinePhase::Stopped, "the host was restarted")?;
                match desired {
                    Desired::Running => Ok(()),
                    Desired::Stopped => environments::end_all(db, id, None, false),
                }
            })
            .await?;
        Ok(())
    }

    async fn record_vmm_id(&self, id: VmmId) -> Result<(), StoreError> {
        let machine = self.id;
        self.daemon.write(move |db| machines::set_vmm(db, machine, Some(&id))).await
    }

    /// Starts the VMM.
    pub(super) async fn launch(&mut self, machine: &MachineRow) -> anyhow::Result<()> {
        let id = self.id;
        (self.since, self.adopted, self.asked, self.failure) = (Instant::now(), false, false, None);
        self.disk = DiskFailures::of_new_vmm();
        self.daemon
            .write(move |db| {
                machines::set_phase(db, id, MachinePhase::Starting, "starting")?;
                for environment in environments::begin_all(db, id)? {
                    environments::add_progress(db, &environment, Progress::Started { step: START_STEP.into() })?;
                }
                Ok(())
            })
            .await?;
        let launched = self.start_vmm(machine).await;
        match launched {
            Ok(pid) => {
                tracing::info!(machine = %machine.id, developer = machine.developer, pid, "launched");
                self.daemon.memory.pauses.started(id);
                (self.vmm, self.failure) = state_after_launch(VmmProcess::watch(pid));
                if let VmmState::Booting(process) = &self.vmm {
                    self.daemon.set_vmm(machine.id, Some(pid));
                    self.record_vmm_id(process.id.clone()).await?;
                }
                Ok(())
            }
            Err(error) => {
                let reason = format!("cannot start: {error:#}").replace('\n', " ");
                Ok(self.write_end(MachinePhase::Failed, reason, true).await?)
            }
        }
    }

    async fn start_vmm(&self, machine: &MachineRow) -> anyhow::Result<u32> {
        let (daemon, machine) = (self.daemon.clone(), machine.clone());
        let forbidden = |problem: Problem| anyhow!("{}", problem.detail);
        let limits = daemon.limits(machine.owner).await.map_err(forbidden)?;
        // The limits may have been lowered since the machine was requested.
        requests::check_limits(&machine, &limits).map_err(forbidden)?;
        let identity = daemon.vmm_identity(&machine).await;
        daemon.check_uid(&machine, &identity).await?;
        tokio::task::spawn_blocking(move || {
            let folder = daemon.data_folder(machine.id);
            let data_disk = folder.join("data.img");
            disk::make(&daemon.artifacts.data_template, &data_disk, &limits.disk_gib)?;
            // The machine runs without the note, too: it is for a state that is lost later.
            if let Err(error) = lost_disks::note_owner(&folder, machine.owner, machine.account.as_deref()) {
                tracing::warn!("cannot note the owner in {}: {error}", folder.display());
            }
            host::launch(&Launch {
                id: machine.id,
                slot: Slot(machine.slot),
                identity: &identity,
                vcpus: machine.vcpus,
                memory_mib: machine.memory_mib,
                boot_mib: daemon.config.machine.boot_mib,
                memory_overhead_mib: daemon.config.machine.memory_overhead_mib,
                rates: limits.rates,
                artifacts: &daemon.artifacts,
                data_disk: &data_disk,
                paths: &daemon.paths(machine.id),
                network: &daemon.network(),
                log: &daemon.config.machine.log,
            })
        })
        .await?
    }

    /// Waits until the agent answers, then sends it the host's settings. A changed goal or the VMM's end interrupts
    /// this.
    pub(super) async fn await_agent(&mut self, machine: &MachineRow) -> anyhow::Result<()> {
        let agent = self.daemon.agent(machine.id, TRY_TIMEOUT);
        let deadline = Duration::from_secs(self.daemon.config.machine.boot_deadline_s);
        tokio::select! {
            () = self.vmm.ended() => self.vmm = VmmState::Dead,
            () = self.poked() => {}
            () = tokio::time::sleep_until(self.since + deadline) => self.give_up(machine, deadline).await?,
            info = async {
                // An earlier runner may have left it paused: it answers when a client needs it, or memory is available.
                self.daemon.memory.pauses.wait_until_running(self.id).await;
                wait_for_answer(&agent).await
            } => {
                tracing::info!(machine = %machine.id, agent = one_line(&info.version), "the agent answers");
                self.daemon.set_serves(machine.id, info.streams);
                if API.overlaps(info.api) {
                    self.set_up(machine).await?;
                } else {
                    let why = mismatch(info.api, self.adopted);
                    self.not_set_up(machine, why).await?;
                }
            }
        }
        Ok(())
    }

    /// The agent has been silent too long. An adopted machine may hold a day's work, so it is left running.
    async fn give_up(&mut self, machine: &MachineRow, deadline: Duration) -> anyhow::Result<()> {
        if !self.adopted {
            let what = format!("the agent did not answer within {} s", deadline.as_secs());
            return self.reject(format!("{what}: see `garret logs --machine`")).await;
        }
        self.since = Instant::now();
        if self.daemon.memory.pauses.state(self.id) == PauseState::Paused {
            return Ok(());
        }
        let (id, reason) = (self.id, "running, but its agent does not answer");
        let known = machine.reason == reason;
        let said = format!("the machine is {reason}: `garret stop` stops it");
        self.daemon
            .write(move |db| {
                if !known {
                    machines::set_phase(db, id, MachinePhase::Running, reason)?;
                }
                // Clients wait for these environments.
                environments::fail_all(db, id, &Problem::new(Code::Unavailable, said))
            })
            .await?;
        Ok(())
    }

    /// Ends a machine that did not start correctly.
    async fn reject(&mut self, why: String) -> anyhow::Result<()> {
        if let VmmState::Booting(process) = &self.vmm {
            process.kill()?;
            process.ended().await;
        }
        self.failure = Some(why);
        self.vmm = VmmState::Dead;
        Ok(())
    }

    /// The agent cannot be set up. An adopted machine is kept, and its agent is asked again at growing intervals.
    async fn not_set_up(&mut self, machine: &MachineRow, why: String) -> anyhow::Result<()> {
        let why = one_line(&why);
        if !self.adopted {
            return self.reject(why).await;
        }
        let reason = format!("running, but {why}");
        if machine.reason != reason {
            tracing::warn!(machine = %machine.id, "{why}");
            let id = self.id;
            self.daemon.write(move |db| machines::set_phase(db, id, MachinePhase::Running, &reason)).await?;
        }
        tokio::select! {
            () = self.vmm.ended() => self.vmm = VmmState::Dead,
            () = self.poked() => {}
            () = tokio::time::sleep(setup_pause(self.since.elapsed())) => {}
        }
        Ok(())
    }

    async fn set_up(&mut self, machine: &MachineRow) -> anyhow::Result<()> {
        self.network.mark_unchanged();
        let setup = self.machine_setup(machine).await;
        let agent = self.daemon.agent(machine.id, SETUP_DEADLINE);
        let sent = tokio::select! {
            () = self.vmm.ended() => {
                self.vmm = VmmState::Dead;
                return Ok(());
            }
            sent = agent.send(hyper::Method::PUT, "/v1/machine", Some(&setup)) => sent,
        };
        if let Err(error) = sent {
            return self.not_set_up(machine, format!("the agent refuses its setup: {error}")).await;
        }
        self.record_running(machine).await?;
        self.daemon.ask_landlock(machine.id).await;
        if self.adopted {
            self.refresh(machine).await?;
        }
        Ok(())
    }

    /// Records that the machine runs.
    async fn record_running(&mut self, machine: &MachineRow) -> anyhow::Result<()> {
        self.vmm = match std::mem::replace(&mut self.vmm, VmmState::Absent) {
            VmmState::Booting(process) => VmmState::Ready(process),
            other => other,
        };
        let (id, ms, adopted) = (self.id, self.since.elapsed().as_millis() as u64, self.adopted);
        let known = machine.phase == MachinePhase::Running && machine.reason == "running";
        self.daemon
            .write(move |db| {
                if !known {
                    machines::set_phase(db, id, MachinePhase::Running, "running")?;
                }
                if adopted {
                    return Ok(());
                }
                for row in environments::of_machine(db, id)? {
                    if row.desired == Desired::Running && !row.settled() {
                        environments::add_progress(db, &row, Progress::Finished { step: START_STEP.into(), ms })?;
                    }
                }
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// The host's settings that the guest needs.
    pub(super) async fn machine_setup(&self, machine: &MachineRow) -> MachineSetup {
        let config = &self.daemon.config;
        let ca_bundle = match config.ca_bundle.as_os_str().is_empty() {
            true => None,
            false => match tokio::fs::read_to_string(&config.ca_bundle).await {
                Ok(bundle) => Some(bundle),
                Err(error) => {
                    tracing::warn!(
                        "cannot read the certificate authorities in {}; machines get none: {error}",
                        config.ca_bundle.display()
                    );
                    None
                }
            },
        };
        let guest = host::started(&self.daemon.paths(machine.id)).and_then(|started| started.guest);
        MachineSetup {
            hostname: hostname(&machine.developer),
            network: Some(host::guest_network(guest, &self.daemon.network())),
            ca_bundle,
            registry_mirrors: config.registry_mirrors.clone(),
            proxy: config.proxy.clone(),
            packages: config.packages.clone(),
        }
    }
}

/// The host cannot tell which process is the machine's VMM.
#[derive(Debug, thiserror::Error)]
#[error("cannot identify the VMM: {0}")]
struct CannotIdentifyVmm(io::Error);

/// The machine's VMM: the process in its row, or the one that listens on its API. The state may be older than the
/// machine, because it was not written in time or was restored.
async fn identify(machine: &MachineRow, api_socket: &Path) -> io::Result<Option<VmmProcess>> {
    match machine.vmm.as_ref().map(VmmProcess::find).transpose()?.flatten() {
        Some(process) => Ok(Some(process)),
        None => VmmProcess::listening_on(api_socket).await,
    }
}

/// The state of a VMM that was just started. If it cannot be watched, it is killed, and the error is the reason.
fn state_after_launch(process: io::Result<Option<VmmProcess>>) -> (VmmState, Option<String>) {
    match process {
        Ok(process) => (process.map_or(VmmState::Dead, VmmState::Booting), None),
        Err(error) => (VmmState::Dead, Some(format!("cannot watch the VMM: {error}"))),
    }
}

/// The pause before the next set-up of a machine that was adopted `since` ago. It grows with that time, so it is
/// exponential.
fn setup_pause(since: Duration) -> Duration {
    (since / 2).clamp(PAUSE, SETUP_PAUSE_MAX)
}

/// The message if runner and agent have no version of the guest API in common.
fn mismatch(agent: ApiRange, adopted: bool) -> String {
    let to_do = match adopted {
        true => "restart the machine with `garret stop` and `garret start`",
        false => "install the runner and the guest image of the same release",
    };
    format!(
        "its agent supports versions {} to {} of the guest API and this runner {} to {}: {to_do}",
        agent.min, agent.max, API.min, API.max
    )
}

/// Asks until the agent answers.
async fn wait_for_answer(agent: &Client) -> AgentInfo {
    loop {
        match agent.get("/v1/agent").await {
            Ok(info) => return info,
            Err(Error::Connect { .. } | Error::NoListener { .. } | Error::Deadline { .. }) => {
                tokio::time::sleep(PAUSE).await;
            }
            // Another program in the guest uses the port.
            Err(_) => tokio::time::sleep(REFUSED_PAUSE).await,
        }
    }
}

/// A host name (RFC 1123) made from the developer's name.
fn hostname(developer: &str) -> String {
    let name: String = developer.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("garret-{}", name.trim_end_matches('-'))
}

#[cfg(test)]
mod tests;
