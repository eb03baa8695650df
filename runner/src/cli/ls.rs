//! `garret ls`

use garret_api::client::Client;
use garret_api::runner::{Environment, Machine};
use serde_json::json;

use super::output;

/// Lists what the caller may see.
pub(super) async fn run(client: &Client, json: bool) -> anyhow::Result<u8> {
    let machines: Vec<Machine> = client.get("/v1/machines").await?;
    let environments: Vec<Environment> = client.get("/v1/environments").await?;
    match json {
        true => output::print_json(&json!({ "machines": machines, "environments": environments }))?,
        false => output::print(&render(&machines, &environments))?,
    }
    Ok(0)
}

fn render(machines: &[Machine], environments: &[Environment]) -> String {
    if machines.is_empty() {
        return "no machines yet: `garret up FOLDER` makes one\n".into();
    }
    let mut rows = vec![["MACHINE", "STATE", "CPUS", "MEMORY", "WHY"].map(String::from).to_vec()];
    rows.extend(machines.iter().map(|machine| {
        vec![
            machine.developer.clone(),
            output::wire_name(&machine.phase),
            machine.vcpus.to_string(),
            format!("{} MiB", machine.memory_mib),
            machine.reason.clone(),
        ]
    }));
    let machines = output::table(&rows);
    let mut rows = vec![["ENVIRONMENT", "STATE", "MACHINE", "WORKSPACE"].map(String::from).to_vec()];
    rows.extend(environments.iter().map(|environment| {
        vec![
            environment.id.clone(),
            output::wire_name(&environment.status.phase),
            environment.developer.clone(),
            environment.workspace.display().to_string(),
        ]
    }));
    if environments.is_empty() { machines } else { format!("{machines}\n{}", output::table(&rows)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{environment, machine};

    #[test]
    fn both_tables_are_shown() {
        let text = render(&[machine("alice")], &[environment("w-1", "alice", "/w")]);
        assert_eq!(
            text,
            "MACHINE  STATE    CPUS  MEMORY   WHY\nalice    running  2     512 MiB  running\n\n\
             ENVIRONMENT  STATE  MACHINE  WORKSPACE\nw-1          ready  alice    /w\n"
        );
        assert!(render(&[], &[]).contains("no machines yet"));
    }
}
