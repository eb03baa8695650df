use clap::CommandFactory;
use garret_api::agent::{EnvironmentPhase, EnvironmentStatus};
use garret_api::runner::{Desired, Environment, Machine, MachinePhase};

use super::*;

pub(super) fn machine(developer: &str) -> Machine {
    Machine {
        id: "m1".parse().unwrap(),
        developer: developer.into(),
        uid: 1000,
        desired: Desired::Running,
        phase: MachinePhase::Running,
        reason: "running".into(),
        vcpus: 2,
        memory_mib: 512,
        guaranteed_mib: 256,
        weight: 100,
        vmm_pid: Some(42),
        landlock: None,
        since: 1,
        last_event: 0,
        operation: None,
    }
}

pub(super) fn environment(id: &str, developer: &str, workspace: &str) -> Environment {
    Environment {
        id: id.into(),
        machine: "m1".parse().unwrap(),
        developer: developer.into(),
        uid: 1000,
        workspace: workspace.into(),
        desired: Desired::Running,
        generation: 1,
        observed_generation: 1,
        status: EnvironmentStatus {
            id: id.into(),
            phase: EnvironmentPhase::Ready,
            container_id: Some("c0ffee".into()),
            remote_user: Some("vscode".into()),
            workspace_folder: Some("/workspaces/w".into()),
            problem: None,
        },
        last_event: 0,
        operation: None,
    }
}

fn parse(line: &str) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(line.split(' '))
}

#[test]
fn the_definition_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn command_lines_are_understood() {
    for line in [
        "garret up",
        "garret up ./folder --rebuild --config .devcontainer/a/devcontainer.json -- make -j2 test",
        "garret up --json",
        "garret up --allow-env A_TOKEN --allow-env B_KEY folder -- env",
        "garret env ls",
        "garret env clear folder",
        "garret exec -- ls -la",
        "garret exec -e A=1 -e B folder -- sh -c x",
        "garret exec --machine -- uname -a",
        "garret exec --machine=alice -u root -w /tmp -T -- id",
        "garret shell some-id-12345678",
        "garret ls --json",
        "garret --json ls",
        "garret show --machine --json",
        "garret operations --json",
        "garret streams --json",
        "garret streams end 0a1b2c3d",
        "garret logs --machine --follow",
        "garret logs folder -f",
        "garret stop",
        "garret stop --machine=alice",
        "garret start --cpus 2 --memory 1024 --guaranteed 512",
        "garret start --machine=alice --weight 200",
        "garret start --machine=1000 --owner=alicia",
        "garret top",
        "garret top --once --json",
        "garret start folder",
        "garret rm --machine --yes",
        "garret rm",
        "garret daemon --config /etc/x.toml --socket /run/x.sock",
        "garret --socket /run/x.sock ls",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn invalid_arguments_are_refused() {
    for line in [
        "garret",
        "garret exec",
        "garret exec folder",
        "garret exec folder --",
        "garret up a b",
        "garret show folder --machine",
        "garret start folder --cpus 2",
        "garret start folder --owner bob",
        "garret start folder --guaranteed 512",
        "garret top folder",
        "garret frobnicate",
        "garret env",
        "garret streams end",
        "garret up --allow-env",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn a_command_keeps_its_own_options() {
    let Command::Up(up) = parse("garret up -- prog --json -- x").unwrap().command else { panic!("not up") };
    assert!(up.runs_a_command());
    let Command::Up(up) = parse("garret up").unwrap().command else { panic!("not up") };
    assert!(!up.runs_a_command());
}

#[tokio::test]
async fn a_daemon_that_does_not_run_is_one_clear_line() {
    let arguments = parse("garret --socket /nonexistent/garret.sock ls").unwrap();
    let error = dispatch(arguments).await.unwrap_err();
    let line = one_line(&error);
    assert!(line.starts_with("the daemon does not run (cannot connect to /nonexistent/garret.sock: "), "{line}");
    assert!(line.ends_with("start it with `systemctl start garret`") && !line.contains('\n'), "{line}");
}
