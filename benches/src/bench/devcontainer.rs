//! `garret up` by the installed runner: with nothing there, with a stopped machine, and for a second environment in a
//! running machine. It reports each step as the runner's events do. No peer has this.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use garret_api::agent::Progress;
use garret_api::client::Client;
use garret_api::runner::{Environment, Event, EventKind, SOCKET};
use hyper::Method;

use super::{Bench, Measurement, Sampled};
use crate::lab::Lab;
use crate::process::run;
use crate::result::Unit;
use crate::scale::{Scale, Size};
use crate::subject::Subject;

/// The image that garret's tests use. The emulated host has it.
const CONFIGURATION: &str = r#"{"image": "mcr.microsoft.com/devcontainers/base:debian", "postCreateCommand": "true"}"#;

pub(super) struct Devcontainer;

impl Bench for Devcontainer {
    fn name(&self) -> &'static str {
        "devcontainer"
    }

    fn warms_up(&self, _size: Size) -> bool {
        false // this bench measures the cold start
    }

    fn kept(&self, scale: &Scale) -> usize {
        scale.long_rounds.div_ceil(2)
    }

    fn takes(&self, subject: &str, _size: Size) -> bool {
        subject == "garret"
    }

    fn run(&self, lab: &Lab, _subject: &dyn Subject) -> anyhow::Result<Sampled> {
        start_runner()?;
        let developer = Developer::find(&lab.developer)?;
        let folder = lab.folder()?;
        let workspaces = [developer.workspace(folder.path(), "first")?, developer.workspace(folder.path(), "second")?];
        let _ = developer.garret(&["rm", "--machine", "--yes"]); // ignores the error: there may be no machine
        let mut measurements = developer.up(&workspaces[0], "cold")?;
        developer.garret(&["stop"])?;
        measurements.extend(developer.up(&workspaces[0], "warm")?);
        measurements.extend(developer.up(&workspaces[1], "second")?);
        developer.garret(&["rm", "--machine", "--yes"])?;
        Ok(Sampled { setup: format!("the installed runner, as {}", lab.developer), measurements })
    }
}

/// Starts the daemon as this host does: by systemd, or by the script for hosts without it.
fn start_runner() -> anyhow::Result<()> {
    if Path::new("/run/systemd/system").exists() {
        run("systemctl", &["start", "garret"]).map(drop)
    } else {
        run("garret-daemon-start", &[]).map(drop)
    }
}

/// The account that the bench acts as.
struct Developer {
    uid: u32,
    gid: u32,
    home: String,
}

impl Developer {
    fn find(name: &str) -> anyhow::Result<Self> {
        let passwd = fs::read_to_string("/etc/passwd").context("/etc/passwd")?;
        parse_account(&passwd, name).with_context(|| format!("there is no account {name}: see --developer"))
    }

    fn workspace(&self, folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
        let workspace = folder.join(name);
        fs::create_dir_all(workspace.join(".devcontainer"))?;
        let configuration = workspace.join(".devcontainer/devcontainer.json");
        fs::write(&configuration, CONFIGURATION)?;
        for path in [&workspace, &workspace.join(".devcontainer"), &configuration] {
            chown(path, Some(self.uid), Some(self.gid))?;
        }
        Ok(workspace)
    }

    /// Runs the command as that account.
    fn garret(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let (uid, gid) = (self.uid.to_string(), self.gid.to_string());
        let home = format!("HOME={}", self.home);
        let account = ["--reuid", &uid, "--regid", &gid, "--clear-groups", "env", &home, "garret"];
        run("setpriv", &[&account[..], arguments].concat())
    }

    fn up(&self, workspace: &Path, way: &str) -> anyhow::Result<Vec<Measurement>> {
        let began = Instant::now();
        let told = self.garret(&["--json", "up", workspace.to_str().context("path")?])?;
        let seconds = began.elapsed().as_secs_f64();
        let environment: Environment = serde_json::from_str(&told).context("what `garret --json up` prints")?;
        let mut measurements = vec![Measurement::less(format!("{way}_seconds"), Unit::Seconds, seconds)];
        for (step, ms) in steps(&events(&environment.id)?, environment.generation) {
            let metric = format!("{way}_{}_seconds", simplified(&step));
            measurements.push(Measurement::less(metric, Unit::Seconds, ms as f64 / 1e3).with(format!("step: {step}")));
        }
        Ok(measurements)
    }
}

/// `name:x:uid:gid:comment:home:shell`
fn parse_account(passwd: &str, name: &str) -> Option<Developer> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let fields: Vec<&str> = line.split(':').collect();
    let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
    Some(Developer { uid, gid, home: (*fields.get(5)?).to_owned() })
}

fn events(environment: &str) -> anyhow::Result<Vec<Event>> {
    let path = format!("/v1/environments/{environment}/events?after=0&follow=false");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut lines = Client::unix(SOCKET).lines::<Event, ()>(Method::GET, &path, None).await?;
        let mut events = Vec::new();
        while let Some(event) = lines.next().await? {
            events.push(event);
        }
        if events.is_empty() {
            bail!("the runner reports no events of {environment}");
        }
        Ok(events)
    })
}

/// How long each step of a run took, in milliseconds. Times of a repeated step are added.
fn steps(events: &[Event], run: u64) -> BTreeMap<String, u64> {
    let mut steps = BTreeMap::new();
    for event in events {
        if let EventKind::Environment { generation, progress: Progress::Finished { step, ms } } = &event.what
            && *generation == run
        {
            *steps.entry(step.clone()).or_default() += ms;
        }
    }
    steps
}

/// Converts a step's name to part of a metric's name.
fn simplified(step: &str) -> String {
    let words = step.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_exact_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nalice:x:1001:1002::/home/alice:/bin/bash\nbroken:x:\n";
        let alice = parse_account(passwd, "alice").unwrap();
        assert_eq!((alice.uid, alice.gid, alice.home.as_str()), (1001, 1002, "/home/alice"));
        assert!(parse_account(passwd, "ali").is_none() && parse_account(passwd, "broken").is_none());
    }

    #[test]
    fn steps_of_one_run_become_metrics() {
        let event = |generation: u64, step: &str, ms: u64| Event {
            id: 0,
            at_ms: 0,
            machine: "m1".parse().unwrap(),
            developer: "alice".into(),
            environment: None,
            what: EventKind::Environment { generation, progress: Progress::Finished { step: step.into(), ms } },
        };
        let events = [event(1, "pull image", 500), event(2, "pull image", 7), event(2, "pull image", 3)];
        assert_eq!(steps(&events, 2), BTreeMap::from([("pull image".into(), 10)]));
        assert_eq!(simplified("postCreateCommand (feature x)"), "postcreatecommand_feature_x");
    }
}
