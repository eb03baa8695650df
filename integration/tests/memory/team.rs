//! The four developers, their machines, and programs in these that take memory.

use std::fs;
use std::thread::JoinHandle;

use serde_json::Value;

use garret_integration::stage::{ALICE, BOB, CAROL, Developer, LOAD, Ran, SLOWER};

pub(crate) const MIB: u64 = 1 << 20;

/// The promise of each machine. Four times that is more than three times the host's memory.
pub(crate) const PROMISED_MIB: u32 = 1792;
/// The guarantee of each machine.
pub(crate) const GUARANTEED_MIB: u32 = 256;

pub(crate) const TEAM: [Developer; 4] = [ALICE, BOB, CAROL, Developer { name: "dave", uid: 1004 }];
/// A fifth developer, whose machine does not run yet.
pub(crate) const NEWCOMER: Developer = Developer { name: "erin", uid: 1005 };

/// Held loads end when this file exists.
const RELEASED: &str = "/run/released";

pub(crate) const SOCKET: &str = "/run/garret/garret.sock";

const ROOT: Developer = Developer { name: "root", uid: 0 };

/// All machines, running, each with the program that takes memory.
pub(crate) struct Team {
    /// Kills on this host before the test.
    kills: u64,
    vmms: Vec<Value>,
}

impl Team {
    /// Starts the machines that do not run.
    pub(crate) fn assemble() -> Self {
        if vmms().len() < TEAM.len() {
            TEAM.iter().for_each(prepare);
        }
        Self { kills: kills(), vmms: vmms() }
    }

    /// Asserts that nothing was killed for lack of memory, on the host or in a guest.
    #[track_caller]
    pub(crate) fn nothing_killed(&self) {
        assert_eq!(kills(), self.kills, "the host's kernel killed something");
        for machine in top()["machines"].as_array().expect("a list") {
            assert_eq!(machine["oom_kills"], 0, "{machine}");
        }
    }

    /// Asserts this, and that each machine still has the same VMM.
    #[track_caller]
    pub(crate) fn all_well(self) {
        self.nothing_killed();
        let now = vmms();
        assert!(now == self.vmms, "the VMMs were {:?} and are {now:?}; the guests say: {}", self.vmms, consoles());
    }
}

/// Starts the developer's machine and copies the load into it.
fn prepare(developer: &Developer) {
    developer.make_account();
    let (promised, guaranteed) = (PROMISED_MIB.to_string(), GUARANTEED_MIB.to_string());
    developer.garret(&["start", "--machine", "--memory", &promised, "--guaranteed", &guaranteed]).ok();
    developer.put_load();
}

/// The last lines of each guest's console.
fn consoles() -> String {
    let last_lines = |developer: &Developer| {
        let log = developer.garret(&["logs", "--machine"]).out();
        let lines: Vec<_> = log.lines().rev().take(40).collect();
        format!("{}:\n{}\n", developer.name, lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
    };
    TEAM.iter().map(last_lines).collect()
}

/// The process ids of the running machines' VMMs.
#[track_caller]
fn vmms() -> Vec<Value> {
    let all = ROOT.json(&["ls"]);
    let machines = all["machines"].as_array().expect("a list").iter();
    machines.filter(|machine| machine["phase"] == "running").map(|machine| machine["vmm_pid"].clone()).collect()
}

/// Processes that this host's kernel has killed for lack of memory.
fn kills() -> u64 {
    let vmstat = fs::read_to_string("/proc/vmstat").expect("it is readable");
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).expect("the kernel counts them")
}

/// `GET /v1/top` as root.
#[track_caller]
pub(crate) fn top() -> Value {
    ROOT.json(&["top"])
}

/// One machine's entry in [`top`].
#[track_caller]
pub(crate) fn machine(developer: &Developer) -> Value {
    let top = top();
    let found = top["machines"].as_array().expect("a list").iter().find(|one| one["developer"] == developer.name);
    found.unwrap_or_else(|| panic!("{} is not in {top}", developer.name)).clone()
}

/// A figure of one machine in MiB.
#[track_caller]
pub(crate) fn mib(developer: &Developer, what: &str) -> u64 {
    let machine = machine(developer);
    machine[what].as_u64().unwrap_or_else(|| panic!("no {what} in {machine}")) / MIB
}

/// Polls `condition` every two seconds: on a host that is short of memory, polling costs time as well.
#[track_caller]
pub(crate) fn wait_slowly(what: &str, seconds: u32, mut condition: impl FnMut() -> bool) {
    for _ in 0..seconds * SLOWER / 2 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    panic!("{what}: not within {} s", seconds * SLOWER);
}

/// A program in a guest that takes memory, keeps it for some time and checks every byte.
pub(crate) struct Load(JoinHandle<Ran>);

impl Load {
    pub(crate) fn start(developer: Developer, mib: u32, hold_s: u32) -> Self {
        Self::start_with(developer, &format!("{LOAD} load {mib} --hold {hold_s}"))
    }

    /// The same, kept until [`release`], so that a slow host has enough time for what should happen meanwhile.
    pub(crate) fn hold(developer: Developer, mib: u32) -> Self {
        Self::start_with(developer, &held(&developer, mib))
    }

    /// The same, which reads all of it repeatedly.
    pub(crate) fn start_busy(developer: Developer, mib: u32, hold_s: u32) -> Self {
        Self::start_with(developer, &format!("{LOAD} load {mib} --hold {hold_s} --busy"))
    }

    fn start_with(developer: Developer, line: &str) -> Self {
        let line = line.to_owned();
        Self(std::thread::spawn(move || developer.guest(&line)))
    }

    /// Waits for its end, and asserts that every page was right.
    #[track_caller]
    pub(crate) fn right(self) -> String {
        let said = self.0.join().expect("the thread ends").ok();
        assert!(said.contains("right: "), "{said}");
        said
    }
}

/// The same without a connection, so that it outlives the daemon.
pub(crate) struct Detached(Developer);

impl Detached {
    #[track_caller]
    pub(crate) fn hold(developer: Developer, mib: u32) -> Self {
        let line = format!("setsid {} > /run/load 2>&1 < /dev/null & true", held(&developer, mib));
        developer.guest(&line).ok();
        Self(developer)
    }

    /// Waits for its end, and asserts that every page was right.
    #[track_caller]
    pub(crate) fn right(self) {
        wait_slowly("the load has ended", 240, || self.0.guest("pgrep -x load").status == 1);
        let said = self.0.guest("cat /run/load").ok();
        assert!(said.contains("right: "), "{said}");
    }
}

/// A shell command that takes memory and keeps it until [`release`].
#[track_caller]
fn held(developer: &Developer, mib: u32) -> String {
    developer.guest(&format!("rm -f {RELEASED}")).ok();
    format!("{LOAD} load {mib} --until {RELEASED}")
}

/// Ends the developer's held loads.
#[track_caller]
pub(crate) fn release(developer: &Developer) {
    developer.guest(&format!("touch {RELEASED}")).ok();
}

/// All events that the caller may see, one per line.
#[track_caller]
pub(crate) fn events(caller: &Developer) -> String {
    let request = ["-sS", "--unix-socket", SOCKET, "http://garret/v1/events?after=0&follow=false"];
    caller.run("curl", &request, &[], b"").ok()
}

/// The number of events until now that report a shortage of the host's memory.
#[track_caller]
pub(crate) fn shortages() -> usize {
    events(&ROOT).lines().filter(|line| line.contains("host memory is short")).count()
}
