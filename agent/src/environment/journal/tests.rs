use garret_api::Code;
use proptest::prelude::*;

use super::*;

fn failed() -> Progress {
    Progress::Failed { step: "s".into(), problem: Problem::new(Code::Internal, "x") }
}

fn output(text: &str) -> Progress {
    Progress::Output { step: "s".into(), text: text.into() }
}

async fn all(mut receiver: mpsc::Receiver<Progress>) -> Vec<Progress> {
    let mut lines = Vec::new();
    while let Some(line) = receiver.recv().await {
        lines.push(line);
    }
    lines
}

#[tokio::test]
async fn a_late_follower_receives_all_lines() {
    let journal = Journal::new();
    let early = journal.follow();
    journal.write(output("a"));
    let late = journal.follow();
    journal.write(output("b"));
    journal.write(failed());
    let expected = vec![output("a"), output("b"), failed()];
    assert_eq!(all(early).await, expected);
    assert_eq!(all(late).await, expected);
    assert_eq!(all(journal.follow()).await, expected);
}

#[tokio::test]
async fn kept_lines_are_bounded_and_the_last_one_always_arrives() {
    let journal = Journal::new();
    let slow = journal.follow();
    for _ in 0..100 {
        journal.write(output(&"x".repeat(100_000)));
    }
    journal.write(failed());
    assert!(journal.lock().bytes <= KEPT_MAX);
    let lines = all(slow).await;
    assert!(lines.len() < 100);
    assert_eq!(lines.last(), Some(&failed()));
}

#[tokio::test]
async fn a_step_tells_start_output_and_end() {
    let journal = Journal::new();
    let done = journal.step("build", async |output| {
        output.bytes(b"\xc3");
        output.bytes(b"\xa4\xff.");
        Ok(7)
    });
    assert_eq!(done.await, Ok(7));
    let problem = Problem::new(Code::Invalid, "no");
    let fails = journal.step("run", async |_| Err::<(), _>(problem.clone()));
    assert_eq!(fails.await, Err(StepFailed { step: "run".into(), problem }));
    journal.write(failed());
    let lines = all(journal.follow()).await;
    assert_eq!(lines[0], Progress::Started { step: "build".into() });
    assert_eq!(lines[1], Progress::Output { step: "build".into(), text: "ä\u{fffd}.".into() });
    assert!(matches!(&lines[2], Progress::Finished { step, .. } if step == "build"));
    assert_eq!(lines[3], Progress::Started { step: "run".into() });
    assert_eq!(lines.len(), 5);
}

proptest! {
    #[test]
    fn text_cut_anywhere_is_the_same_text(text in "\\PC{0,40}", cuts in proptest::collection::vec(0usize..160, 0..6)) {
        let journal = Journal::new();
        let output = Output { journal: journal.clone(), step: "s".into(), open: Mutex::default() };
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            output.bytes(&text.as_bytes()[pair[0]..pair[1]]);
        }
        output.flush();
        let told: String = journal.lock().kept.iter().map(|line| match line {
            Progress::Output { text, .. } => text.as_str(),
            _ => "",
        }).collect();
        prop_assert_eq!(told, text);
    }
}
