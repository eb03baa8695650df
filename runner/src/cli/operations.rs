//! `garret operations`

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use garret_api::client::Client;
use garret_api::runner::{Operation, Outcome};

use super::output;

/// Lists what was requested, and how it ended.
pub(super) async fn run(client: &Client, json: bool) -> anyhow::Result<u8> {
    let operations: Vec<Operation> = client.get("/v1/operations").await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match json {
        true => output::print_json(&operations)?,
        false => output::print(&render(&operations, now))?,
    }
    Ok(0)
}

/// The oldest first, as in a log. `now` is the time since 1970.
fn render(operations: &[Operation], now: Duration) -> String {
    let mut rows = vec![["AGE", "OPERATION", "ON", "BY", "TOOK", "RESULT"].map(String::from).to_vec()];
    rows.extend(operations.iter().rev().map(|operation| {
        let ended = operation.ended_ms.map(|at| at.saturating_sub(operation.begun_ms));
        vec![
            output::duration(now.saturating_sub(Duration::from_millis(operation.begun_ms)).as_secs()),
            output::wire_name(&operation.kind),
            operation.environment.clone().unwrap_or_else(|| format!("machine {}", operation.developer)),
            format!("uid {}", operation.requested_by),
            ended.map_or_else(String::new, |ms| output::duration(ms.div_ceil(1000))),
            result(operation),
        ]
    }));
    output::table(&rows)
}

fn result(operation: &Operation) -> String {
    match &operation.outcome {
        None => format!("in progress: {}", operation.step.as_deref().unwrap_or("waiting")),
        Some(Outcome::Succeeded) => "succeeded".into(),
        Some(Outcome::Failed { problem }) => format!("failed: {problem}"),
        Some(Outcome::Cancelled { reason }) => format!("cancelled: {reason}"),
        Some(Outcome::Unknown) => "ended".into(),
    }
}

#[cfg(test)]
mod tests {
    use garret_api::runner::OperationKind;
    use garret_api::{Code, Problem};

    use super::*;

    #[test]
    fn each_operation_is_a_line_with_its_result() {
        let operation = |kind, environment: Option<&str>, begun_ms, outcome: Option<Outcome>| Operation {
            id: "0".repeat(32),
            kind,
            machine: "m1".parse().unwrap(),
            developer: "alice".into(),
            uid: 1000,
            environment: environment.map(String::from),
            generation: None,
            requested_by: 0,
            begun_ms,
            deadline_ms: None,
            step: Some("pull image".into()),
            ended_ms: outcome.as_ref().map(|_| begun_ms + 1500),
            outcome,
        };
        let failed = Outcome::Failed { problem: Problem::new(Code::BuildFailed, "build image: exit status 1") };
        let operations = [
            operation(OperationKind::Rebuild, Some("w-1"), 599_000, None),
            operation(OperationKind::Start, Some("w-1"), 300_000, Some(failed)),
            operation(OperationKind::Stop, None, 0, Some(Outcome::Succeeded)),
        ];
        assert_eq!(
            render(&operations, Duration::from_secs(600)),
            "AGE     OPERATION  ON             BY     TOOK  RESULT\n\
             10 min  stop       machine alice  uid 0  2 s   succeeded\n\
             5 min   start      w-1            uid 0  2 s   failed: build image: exit status 1\n\
             1 s     rebuild    w-1            uid 0        in progress: pull image\n"
        );
    }
}
