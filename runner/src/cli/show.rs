//! `garret show`

use clap::Args;
use garret_api::client::{self, Client};
use garret_api::runner::{Environment, Machine};
use garret_api::vmm::{DeviceMetrics, Landlock, Metrics};
use serde::Serialize;

use super::output;
use super::target::{MachineFlag, Target};

/// Show everything about an environment, or about the machine.
#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    machine: MachineFlag,
}

impl Show {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<u8> {
        if let Some(name) = self.machine.name() {
            let path = format!("/v1/machines/{name}");
            let machine: Machine = client.get(&path).await?;
            let metrics = match machine.vmm_pid {
                Some(_) => Some(client.get(&format!("{path}/metrics")).await),
                None => None,
            };
            match json {
                true => {
                    output::print_json(&MachineAndMetrics {
                        machine: &machine,
                        metrics: metrics.and_then(Result::ok),
                    })?;
                }
                false => {
                    let rows = [machine_rows(&machine), metrics.as_ref().map(metrics_rows).unwrap_or_default()];
                    output::print(&output::table(&rows.concat()))?;
                }
            }
        } else {
            let environment = self.target.find(client).await?;
            match json {
                true => output::print_json(&environment)?,
                false => output::print(&output::table(&environment_rows(&environment)))?,
            }
        }
        Ok(0)
    }
}

/// A machine and what its VMM counts; without `metrics` if there is no VMM, or if it does not answer.
#[derive(Serialize)]
struct MachineAndMetrics<'a> {
    #[serde(flatten)]
    machine: &'a Machine,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<Metrics>,
}

/// The devices that a developer uses, and their names here. Others are shown when something is wrong with them.
const DEVICES: [(&str, &str); 4] =
    [("block0", "disk"), ("fs0", "workspaces"), ("net0", "network"), ("vsock", "streams")];

fn row(name: &str, value: impl ToString) -> Vec<String> {
    vec![format!("{name}:"), value.to_string()]
}

fn machine_rows(machine: &Machine) -> Vec<Vec<String>> {
    let mut rows = vec![
        row("developer", &machine.developer),
        row("uid", machine.uid),
        row("id", machine.id),
        row("state", output::wire_name(&machine.phase)),
        row("why", &machine.reason),
        row("desired", output::wire_name(&machine.desired)),
        row("cpus", machine.vcpus),
        row("memory", format!("{} MiB", machine.memory_mib)),
        row("guaranteed", format!("{} MiB", machine.guaranteed_mib)),
        row("weight", machine.weight),
    ];
    rows.extend(machine.vmm_pid.map(|pid| row("vmm pid", pid)));
    rows.extend(machine.landlock.and_then(landlock_warning).map(|warning| row("warning", warning)));
    rows
}

fn metrics_rows(metrics: &client::Result<Metrics>) -> Vec<Vec<String>> {
    match metrics {
        Ok(metrics) => metrics.devices.iter().filter_map(|(name, device)| device_row(name, device)).collect(),
        Err(error) => vec![row("devices", error)],
    }
}

fn device_row(name: &str, device: &DeviceMetrics) -> Option<Vec<String>> {
    let shown = DEVICES.iter().find(|(device, _)| *device == name).map(|(_, shown)| *shown);
    let problems = [("faults of the guest", device.faults), ("failures of the host", device.host_failures)];
    let problems: String =
        problems.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!(", {what}: {count}")).collect();
    if shown.is_none() && problems.is_empty() {
        return None;
    }
    let mib = device.bytes >> 20;
    Some(row(shown.unwrap_or(name), format!("requests: {}, {mib} MiB{problems}", device.chains)))
}

fn landlock_warning(landlock: Landlock) -> Option<&'static str> {
    match landlock {
        Landlock::Enforced => None,
        Landlock::Partial => Some("Landlock confines the VMM only in part: start Linux 6.10 or later"),
        Landlock::Absent => Some("Landlock does not confine the VMM: start the host's kernel with lsm=landlock"),
    }
}

fn environment_rows(environment: &Environment) -> Vec<Vec<String>> {
    let status = &environment.status;
    let mut rows = vec![
        row("environment", &environment.id),
        row("workspace", environment.workspace.display()),
        row("machine", &environment.developer),
        row("state", output::wire_name(&status.phase)),
        row("desired", output::wire_name(&environment.desired)),
    ];
    rows.extend(status.problem.as_ref().map(|problem| row("problem", problem)));
    rows.extend(status.container_id.as_ref().map(|id| row("container", id)));
    rows.extend(status.remote_user.as_ref().map(|user| row("remote user", user)));
    rows.extend(status.workspace_folder.as_ref().map(|folder| row("folder inside", folder)));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{environment, machine};

    #[test]
    fn machines_and_environments_are_listed() {
        let text = output::table(&machine_rows(&machine("alice")));
        assert!(text.contains("id:          m1\n"), "{text}");
        assert!(text.contains("memory:      512 MiB\nguaranteed:  256 MiB\nweight:      100\n"), "{text}");
        assert!(!text.contains("Landlock"), "{text}");
        for (landlock, warns) in [(Landlock::Enforced, false), (Landlock::Partial, true), (Landlock::Absent, true)] {
            let machine = Machine { landlock: Some(landlock), ..machine("alice") };
            assert_eq!(output::table(&machine_rows(&machine)).contains("warning:     Landlock"), warns, "{landlock:?}");
        }
        let device = |chains, bytes, faults| DeviceMetrics { chains, bytes, faults, ..Default::default() };
        let devices = [("block0", device(7, 9 << 20, 0)), ("rng", device(5, 1, 0)), ("console", device(3, 1, 2))];
        let devices = devices.map(|(name, device)| (name.to_owned(), device)).into();
        let text = output::table(&metrics_rows(&Ok(Metrics { devices, ..Metrics::default() })));
        assert_eq!(text, "disk:     requests: 7, 9 MiB\nconsole:  requests: 3, 0 MiB, faults of the guest: 2\n");
        let text = output::table(&environment_rows(&environment("w-1", "alice", "/w")));
        assert!(text.contains("remote user:    vscode\n") && !text.contains("problem"), "{text}");
    }
}
