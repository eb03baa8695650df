//! `garret show`

use clap::Args;
use garret_api::client::Client;
use garret_api::runner::{Environment, Machine};
use garret_api::vmm::Landlock;

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
            let machine: Machine = client.get(&format!("/v1/machines/{name}")).await?;
            match json {
                true => output::print_json(&machine)?,
                false => output::print(&output::table(&machine_rows(&machine)))?,
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
    fn what_there_is_is_shown() {
        let text = output::table(&machine_rows(&machine("alice")));
        assert!(text.contains("id:          m1\n"), "{text}");
        assert!(text.contains("memory:      512 MiB\nguaranteed:  256 MiB\nweight:      100\n"), "{text}");
        assert!(!text.contains("Landlock"), "{text}");
        for (landlock, warns) in [(Landlock::Enforced, false), (Landlock::Partial, true), (Landlock::Absent, true)] {
            let machine = Machine { landlock: Some(landlock), ..machine("alice") };
            assert_eq!(output::table(&machine_rows(&machine)).contains("warning:     Landlock"), warns, "{landlock:?}");
        }
        let text = output::table(&environment_rows(&environment("w-1", "alice", "/w")));
        assert!(text.contains("remote user:    vscode\n") && !text.contains("problem"), "{text}");
    }
}
