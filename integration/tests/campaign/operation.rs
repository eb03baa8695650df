//! The developer, the machine and the workspace of a campaign; what is done with them and what must hold afterwards.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::case::{Case, Moment, Operation, Victim};
use crate::census::Census;
use crate::victim::{Killer, vmms};
use garret_integration::stage::{Developer, Ran, Workspace, wait_until};

/// No other test uses this machine: the campaign counts what remains of it.
const DEVELOPER: Developer = Developer { name: "frank", uid: 1010 };
const SOCKET: &str = "/run/garret/garret.sock";
/// Written and synced when the machine is made.
const ACKNOWLEDGED: &str = "/data/acknowledged";
/// The phase of a machine that is no longer there.
const REMOVED: &str = "removed";
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
        let scene = Self { workspace, others };
        scene.make_machine();
        scene
    }

    /// One case. `before`: what was on the host before the first machine. Returns how the disturbed command ended, in one line.
    #[track_caller]
    pub(crate) fn play(&self, case: &Case, before: &Census) -> String {
        let operation = case.operation;
        self.set_up(operation);
        let killer = Killer::prepare(case.victim, &DEVELOPER, &self.others);
        let events = Events::follow();
        let arguments = self.arguments(operation);
        let command = thread::spawn(move || run(&arguments));
        let seen = events.wait_for(&case.moment, || command.is_finished());
        let killed = killer.strike(|| command.is_finished());
        let ended = judged(&command.join().expect("the thread ends"), case);
        self.complete(operation);
        self.is_as_desired(case, before);
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

    #[track_caller]
    fn make_machine(&self) {
        DEVELOPER.garret(&["start", "--machine", "--memory", "1024"]).ok();
        DEVELOPER.guest(&format!("echo kept > {ACKNOWLEDGED} && sync -d {ACKNOWLEDGED}")).ok();
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
            Operation::StartEnvironment => {
                self.bring_up();
                DEVELOPER.garret(&["stop", self.workspace.str()]).ok();
            }
            Operation::StartMachine => {
                if self.environment().is_none() {
                    self.bring_up();
                }
                DEVELOPER.garret(&["stop", "--machine"]).ok();
            }
            _ => self.bring_up(),
        }
    }

    fn arguments(&self, operation: Operation) -> Vec<String> {
        let folder = self.workspace.str();
        let words: &[&str] = match operation {
            Operation::Up => &["up", folder],
            Operation::Rebuild => &["up", folder, "--rebuild"],
            Operation::Exec => &["exec", folder, "--", "sh", "-c", "sleep 1; echo ended"],
            Operation::StopEnvironment => &["stop", folder],
            Operation::StartEnvironment => &["start", folder],
            Operation::StopMachine => &["stop", "--machine"],
            Operation::StartMachine => &["start", "--machine"],
            Operation::RemoveEnvironment => &["rm", folder],
            Operation::RemoveMachine => &["rm", "--machine", "--yes"],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }

    /// Whatever the kill left half done, the same command completes it.
    #[track_caller]
    fn complete(&self, operation: Operation) {
        let phase = self.settled();
        let again = || run(&self.arguments(operation));
        match operation {
            Operation::RemoveEnvironment if self.environment().is_none() => {}
            Operation::RemoveMachine if phase == REMOVED => {}
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
    }

    /// Waits until the machine has come to rest in one of its lasting phases, or is removed, and returns that.
    #[track_caller]
    fn settled(&self) -> String {
        let mut phase = String::new();
        wait_until("the machine has settled", 120, || {
            let listed = DEVELOPER.garret(&["--json", "ls"]);
            // The daemon may be starting.
            let Ok(listed) = serde_json::from_slice::<Value>(&listed.stdout) else { return false };
            let machine = of_developer(&listed["machines"]);
            phase = machine.map_or(REMOVED, |machine| machine["phase"].as_str().unwrap_or_default()).to_owned();
            ["running", "stopped", "failed", REMOVED].contains(&phase.as_str())
        });
        phase
    }

    #[track_caller]
    fn is_as_desired(&self, case: &Case, before: &Census) {
        match case.operation {
            Operation::StopMachine => {
                let phase = self.settled();
                // A machine whose VMM ended before the request had failed already. A stop does not hide that.
                assert!(phase == "stopped" || phase == "failed" && case.victim == Victim::Vmm, "{phase}");
                assert_eq!(self.own_vmms(), 0, "a VMM runs on");
                return;
            }
            Operation::StopEnvironment => {
                wait_until("the environment has stopped", 120, || {
                    self.environment().is_some_and(|environment| environment["status"]["phase"] == "stopped")
                });
                // An environment can be stopped without its machine.
                DEVELOPER.garret(&["start", "--machine"]).ok();
            }
            Operation::RemoveEnvironment => {
                assert!(self.environment().is_none(), "it is still there");
                // An environment can be removed without its machine.
                DEVELOPER.garret(&["start", "--machine"]).ok();
            }
            Operation::RemoveMachine => {
                assert_eq!(self.settled(), REMOVED);
                before.assert_nothing_remains();
                self.make_machine();
            }
            _ => {
                wait_until("the environment is ready", 120, || {
                    self.environment().is_some_and(|environment| environment["status"]["phase"] == "ready")
                });
                self.workspace.exec(&["true"]).ok();
            }
        }
        assert_eq!(DEVELOPER.guest(&format!("cat {ACKNOWLEDGED}")).ok(), "kept\n");
        assert_eq!(self.own_vmms(), 1, "not one VMM");
    }

    /// How many VMMs this developer has.
    fn own_vmms(&self) -> usize {
        vmms().iter().filter(|pid| !self.others.contains(pid)).count()
    }

    fn environment(&self) -> Option<Value> {
        let listed = DEVELOPER.json(&["ls"]);
        of_developer(&listed["environments"]).cloned()
    }
}

/// `garret` with these arguments.
fn run(arguments: &[String]) -> Ran {
    DEVELOPER.garret(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The developer's entry of a list: there is at most one machine, and one environment.
fn of_developer(list: &Value) -> Option<&Value> {
    list.as_array()?.iter().find(|entry| entry["developer"] == DEVELOPER.name)
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
