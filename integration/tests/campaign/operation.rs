//! The developer, the machine and the workspace of a campaign; what is done with them and what must hold afterwards.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::case::{Case, Moment, Operation};
use crate::victim::{Killer, vmms};
use garret_integration::stage::{Developer, Ran, Workspace, wait_until};

/// No other test uses this machine: the campaign counts what remains of it.
const DEVELOPER: Developer = Developer { name: "frank", uid: 1010 };
const SOCKET: &str = "/run/garret/garret.sock";
/// Written and synced before the first kill.
const ACKNOWLEDGED: &str = "/data/acknowledged";
/// An event that has not come by then does not come.
const NEXT_EVENT_WITHIN: Duration = Duration::from_secs(20);

pub(crate) struct Scene {
    workspace: Workspace,
    /// VMMs of other machines.
    others: Vec<u64>,
}

impl Scene {
    pub(crate) fn open() -> Self {
        DEVELOPER.make_account();
        let others = vmms();
        let workspace = Workspace::with_image(DEVELOPER, "campaign", r#", "userEnvProbe": "none""#);
        DEVELOPER.garret(&["start", "--machine", "--memory", "1024"]).ok();
        DEVELOPER.guest(&format!("echo kept > {ACKNOWLEDGED} && sync -d {ACKNOWLEDGED}")).ok();
        Self { workspace, others }
    }

    /// One case. Returns how the disturbed command ended, in one line.
    #[track_caller]
    pub(crate) fn play(&self, case: &Case) -> String {
        self.set_up(case.operation);
        let arguments = self.arguments(case.operation);
        let killer = Killer::prepare(case.victim, &DEVELOPER, &self.others);
        let events = Events::follow();
        let command = {
            let arguments = arguments.clone();
            thread::spawn(move || DEVELOPER.garret(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
        };
        let seen = events.wait_for(&case.moment, || command.is_finished());
        let killed = killer.strike();
        let ran = command.join().expect("the thread ends");
        let ended = judged(&ran, case);

        // Whatever the kill left half done, the same command completes it.
        self.settled();
        let again = || DEVELOPER.garret(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        match case.operation {
            Operation::Remove if self.environment().is_none() => {}
            Operation::Exec => {
                // The daemon may notice the end of a VMM later than the command.
                wait_until("exec works again or the machine has failed", 60, || {
                    again().status == 0 || self.settled() != "running"
                });
                if self.settled() != "running" {
                    again().fails_with(&["garret start"]);
                    DEVELOPER.garret(&["start", "--machine"]).ok();
                }
            }
            _ => drop(again().ok()),
        }
        self.is_as_desired(case.operation);
        let kill = if killed { "killed" } else { "nothing to kill" };
        format!("{kill} after {seen} events, the command {ended}")
    }

    #[track_caller]
    pub(crate) fn bring_up(&self) {
        self.workspace.up(&[]).ok();
    }

    /// Removes the machine, and with it the environment if there is one.
    pub(crate) fn close(self) {
        DEVELOPER.garret(&["rm", "--machine", "--yes"]).ok();
    }

    /// What holds before the operation: as often as not the case before left it so.
    #[track_caller]
    fn set_up(&self, operation: Operation) {
        match operation {
            Operation::Up => {
                if self.environment().is_some() {
                    DEVELOPER.garret(&["rm", self.workspace.str()]).ok();
                }
                DEVELOPER.garret(&["start", "--machine"]).ok();
            }
            Operation::Exec | Operation::Stop | Operation::Remove => self.bring_up(),
            Operation::Start => {
                if self.environment().is_none() {
                    self.bring_up();
                }
                DEVELOPER.garret(&["stop", "--machine"]).ok();
            }
        }
    }

    fn arguments(&self, operation: Operation) -> Vec<String> {
        let folder = self.workspace.str();
        let words: &[&str] = match operation {
            Operation::Up => &["up", folder],
            Operation::Exec => &["exec", folder, "--", "sh", "-c", "sleep 1; echo ended"],
            Operation::Stop => &["stop", "--machine"],
            Operation::Start => &["start", "--machine"],
            Operation::Remove => &["rm", folder],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }

    /// Waits until the machine has come to rest in one of its lasting phases and returns that phase.
    #[track_caller]
    fn settled(&self) -> String {
        let mut phase = String::new();
        wait_until("the machine has settled", 120, || {
            let shown = DEVELOPER.garret(&["--json", "show", "--machine"]);
            let machine: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
            phase = machine["phase"].as_str().unwrap_or_default().to_owned();
            ["running", "stopped", "failed"].contains(&phase.as_str())
        });
        phase
    }

    #[track_caller]
    fn is_as_desired(&self, operation: Operation) {
        match operation {
            Operation::Stop => {
                let phase = DEVELOPER.machine()["phase"].clone();
                // A machine whose VMM ended before the request had failed already. A stop does not hide that.
                assert!(["stopped", "failed"].contains(&phase.as_str().unwrap_or_default()), "{phase}");
                assert!(vmms().iter().all(|pid| self.others.contains(pid)), "a VMM runs on");
                return;
            }
            Operation::Up | Operation::Exec | Operation::Start => {
                wait_until("the environment is ready", 120, || {
                    self.environment().is_some_and(|environment| environment["status"]["phase"] == "ready")
                });
                self.workspace.exec(&["true"]).ok();
            }
            Operation::Remove => {
                assert!(self.environment().is_none(), "it is still there");
                // Removing an environment is possible without its machine.
                DEVELOPER.garret(&["start", "--machine"]).ok();
            }
        }
        assert_eq!(DEVELOPER.guest(&format!("cat {ACKNOWLEDGED}")).ok(), "kept\n");
        assert_eq!(vmms().iter().filter(|pid| !self.others.contains(pid)).count(), 1, "not one VMM");
    }

    fn environment(&self) -> Option<Value> {
        let listed = DEVELOPER.json(&["ls"]);
        let mut all = listed["environments"].as_array().expect("a list").iter();
        all.find(|environment| environment["workspace"] == self.workspace.str()).cloned()
    }
}

/// How the disturbed command ended. One that failed has one clear line of its own; nothing hangs.
#[track_caller]
fn judged(ran: &Ran, case: &Case) -> &'static str {
    if ran.status == 0 {
        return "succeeded";
    }
    assert!(![124, 137].contains(&ran.status), "{case}: it hung: {}", ran.stderr);
    let last = ran.stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    assert!(last.starts_with("garret: "), "{case}: status {} without a clear last line: {}", ran.status, ran.stderr);
    "failed with a clear error"
}

/// What happens from now on.
struct Events {
    curl: Child,
    lines: Receiver<String>,
}

impl Events {
    #[track_caller]
    fn follow() -> Self {
        let after = DEVELOPER.machine()["last_event"].as_u64().expect("a number");
        let mut curl = Command::new("curl")
            .args(["-sSN", "--unix-socket", SOCKET])
            .arg(format!("http://garret/v1/events?after={after}&follow=true"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("curl runs");
        let reader = BufReader::new(curl.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        thread::spawn(move || reader.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { curl, lines }
    }

    /// Returns at this moment of the operation, with the number of events seen. Output of steps does not count.
    fn wait_for(mut self, moment: &Moment, ended: impl Fn() -> bool) -> usize {
        let (mut seen, mut last) = (0, Instant::now());
        while seen < moment.events && !ended() && last.elapsed() < NEXT_EVENT_WITHIN {
            match self.lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) if line.contains(r#""developer":"frank""#) && !line.contains(r#""output""#) => {
                    (seen, last) = (seen + 1, Instant::now());
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        thread::sleep(moment.delay);
        let _already_gone = (self.curl.kill(), self.curl.wait());
        seen
    }
}
