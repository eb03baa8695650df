//! The lifecycle commands.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use garret_api::agent::ExecRequest;
use garret_api::stream::Outcome;
use garret_api::{Code, Problem};
use garret_devcontainer::{Command, Single, Stage};

use super::journal::{Journal, StepFailed};
use crate::exec::{self, ProcessSpec};

/// The most characters of a command that an error shows.
const SHOWN_MAX: usize = 120;

/// Runs `command` of `stage`: one process, or several in parallel, each as a separate step. `prepare` builds the
/// process from program and arguments. If several fail, the first one in the order of the file is returned as the
/// failure. All are waited for.
pub(super) async fn run(
    journal: &Arc<Journal>,
    stage: Stage,
    command: &Command,
    prepare: impl Fn(ExecRequest) -> Result<ProcessSpec, Problem>,
) -> Result<(), StepFailed> {
    let prepare = &prepare;
    let runs = command.singles().into_iter().map(|(name, single)| async move {
        let step = name.map_or_else(|| stage.name().to_owned(), |name| format!("{} {name}", stage.name()));
        let request = ExecRequest { command: single.argv(), env: BTreeMap::new(), ..ExecRequest::default() };
        journal
            .step(&step, async |output| {
                let outcome = exec::run(&prepare(request)?, |bytes| output.bytes(bytes)).await?;
                check_outcome(&step, single, &outcome)
            })
            .await
    });
    join_all(runs).await.into_iter().collect()
}

fn check_outcome(step: &str, single: &Single, outcome: &Outcome) -> Result<(), Problem> {
    let how = match outcome {
        Outcome::Exited(0) => return Ok(()),
        Outcome::Exited(code) => format!("failed with exit code {code}"),
        Outcome::Signaled(signal) => format!("was killed by signal {signal}"),
        Outcome::Failed(problem) => format!("was lost: {}", problem.detail),
    };
    let text = match single {
        Single::Shell(line) => line.clone(),
        Single::Exec(argv) => argv.join(" "),
    };
    let message = format!("{step} {how}: {}; commands after it were not run", shown(&text));
    Err(Problem::new(Code::CommandFailed, message))
}

/// The command on one line of bounded length.
fn shown(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use garret_api::agent::Progress;

    use super::*;
    use crate::exec::Place;
    use crate::users::Credentials;

    fn guest(request: ExecRequest) -> Result<ProcessSpec, Problem> {
        Ok(ProcessSpec {
            place: Place::Guest,
            args: request.command,
            env: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
            cwd: "/".into(),
            credentials: Credentials::default(),
            terminal: None,
        })
    }

    async fn lines(command: serde_json::Value) -> (Result<(), StepFailed>, Vec<Progress>) {
        let journal = Journal::new();
        let command: Command = serde_json::from_value(command).unwrap();
        let result = run(&journal, Stage::PostCreateCommand, &command, guest).await;
        journal.write(Progress::Failed { step: "end".into(), problem: Problem::new(Code::Unknown, "y") });
        let mut receiver = journal.follow();
        let mut lines = Vec::new();
        while let Some(line) = receiver.recv().await {
            lines.push(line);
        }
        (result, lines)
    }

    #[tokio::test]
    async fn a_failure_names_the_command_and_its_code() {
        let (result, lines) = lines("echo said;\n exit 3".into()).await;
        let failed = result.unwrap_err();
        assert_eq!(failed.step, "postCreateCommand");
        let expected = "postCreateCommand failed with exit code 3: echo said; exit 3; commands after it were not run";
        assert_eq!(failed.problem.detail, expected);
        let output = Progress::Output { step: "postCreateCommand".into(), text: "said\n".into() };
        assert!(lines.contains(&output), "{lines:?}");
    }

    #[tokio::test]
    async fn named_commands_run_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (ping, pong) = (path("ping"), path("pong"));
        for fifo in [&ping, &pong] {
            let mode = rustix::fs::Mode::RWXU;
            rustix::fs::mknodat(rustix::fs::CWD, fifo.as_str(), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        // Each command waits for the other.
        let both = serde_json::json!({
            "one": format!("echo > {ping}; cat {pong}"),
            "two": ["/bin/sh", "-c", format!("cat {ping}; echo > {pong}")],
        });
        let (result, lines) = lines(both).await;
        assert_eq!(result, Ok(()));
        for step in ["postCreateCommand one", "postCreateCommand two"] {
            assert!(lines.iter().any(|line| matches!(line, Progress::Finished { step: done, .. } if done == step)));
        }
    }

    #[test]
    fn long_commands_are_cut() {
        assert_eq!(shown("a \n b"), "a b");
        assert_eq!(shown(&"ü".repeat(500)).chars().count(), SHOWN_MAX + 1);
    }
}
