//! Environments with a script instead of the engine; the script records its calls. No container ever runs, so a run of
//! `up` that reaches the container's start fails with "the container has ended".

use std::path::Path;

use super::record::ContainerRecord;
use super::*;
use garret_testing::program;

/// Environments in a folder of their own, with a workspace `p-1` that names an image.
struct Fixture {
    folder: tempfile::TempDir,
    all: Arc<Environments>,
}

impl Fixture {
    /// `engine` is a shell script; `$1` is the engine's subcommand, and `$calls` the file that records all calls.
    fn new(engine: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let workspace = folder.path().join("workspaces/p-1");
        std::fs::create_dir_all(&workspace).unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        std::fs::write(workspace.join("devcontainer.json"), r#"{"image": "debian"}"#).unwrap();
        let program = folder.path().join("engine");
        let calls = folder.path().join("calls");
        let script = format!("#!/bin/sh\ncalls={}\necho \"$*\" >> $calls\n{engine}\n", calls.display());
        program::write(&program, &script);
        let all = environments(folder.path());
        Self { folder, all }
    }

    /// Starts another agent on the same disk.
    fn restart(&mut self) {
        self.all = environments(self.folder.path());
    }

    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn called(&self, command: &str) -> bool {
        self.calls().iter().any(|call| call.starts_with(command))
    }

    async fn wait_for_call(&self, command: &str) {
        while !self.called(command) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// The record of a container made by run 7.
    fn record_container(&mut self) {
        let container = ContainerRecord { id: "ab".into(), generation: 7, ..ContainerRecord::default() };
        let record = Record { container: Some(container), generation: 7, ..Record::new("p-1", "p-1") };
        Store::new(self.folder.path().join("state/environments")).save(&record).unwrap();
        self.restart();
    }

    async fn up(&self, spec: EnvironmentSpec) -> (String, Problem) {
        match last(self.all.up("p-1", spec).await.unwrap()).await {
            Progress::Failed { step, problem } => (step, problem),
            other => panic!("no container ever runs: {other:?}"),
        }
    }
}

fn environments(folder: &Path) -> Arc<Environments> {
    let dirs = Dirs { workspaces: folder.join("workspaces"), state: folder.join("state"), run: folder.join("run") };
    let all = Environments::new(dirs, watch::channel(Arc::default()).1);
    let all = Arc::into_inner(all).unwrap();
    Arc::new(Environments { engine: folder.join("engine"), ..all })
}

fn spec(generation: u64) -> EnvironmentSpec {
    EnvironmentSpec {
        share: "p-1".into(),
        host_path: "/home/ann/p".into(),
        config: None,
        local_env: BTreeMap::new(),
        rebuild: false,
        generation,
    }
}

async fn last(mut lines: mpsc::Receiver<Progress>) -> Progress {
    let mut last = None;
    while let Some(line) = lines.recv().await {
        last = Some(line);
    }
    last.expect("there is a last line")
}

/// An engine without containers and images. Its pull does not end and removes nothing by itself.
const STALLS: &str = "case $1 in ps) echo '[]';; image) echo image not known >&2; exit 1;;
    pull) echo layer > $TMPDIR/layer; echo $TMPDIR >> $calls; exec sleep 1000;; esac";

#[tokio::test]
async fn a_failed_start_is_recorded_and_survives() {
    let mut fixture = Fixture::new("");
    std::fs::remove_file(fixture.folder.path().join("workspaces/p-1/devcontainer.json")).unwrap();
    let all = &fixture.all;
    let (one, two) = (all.up("p-1", spec(1)).await.unwrap(), all.up("p-1", spec(1)).await.unwrap());
    let Progress::Failed { step, problem } = last(one).await else { panic!("it must fail") };
    assert_eq!((step.as_str(), problem.code), ("read devcontainer.json", Code::Invalid));
    assert_eq!(last(two).await, Progress::Failed { step, problem: problem.clone() });
    fixture.restart();
    let status = fixture.all.get("p-1").await.unwrap();
    assert_eq!((status.phase, status.problem), (EnvironmentPhase::Failed, Some(problem)));
    let refused = fixture.all.exec("p-1", ExecRequest::default()).await.unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
}

#[tokio::test]
async fn unknown_environments_are_not_found() {
    let fixture = Fixture::new("");
    let all = &fixture.all;
    assert_eq!(all.get("x").await.unwrap_err().code, Code::NotFound);
    assert_eq!(all.exec("x", ExecRequest::default()).await.unwrap_err().code, Code::NotFound);
    for id in ["", "-x", "a/b", "../x", "ü", &"x".repeat(101)] {
        assert_eq!(all.up(id, spec(1)).await.unwrap_err().code, Code::Invalid, "{id}");
    }
}

#[tokio::test]
async fn a_newer_run_replaces_a_stalled_one_and_its_layers() {
    let fixture = Fixture::new(STALLS);
    let first = fixture.all.up("p-1", spec(1)).await.unwrap();
    fixture.wait_for_call("/var/tmp").await;
    let scratch = fixture.calls().pop().unwrap();
    // The file was invalid and has been corrected in the meantime.
    let workspace = fixture.folder.path().join("workspaces/p-1");
    std::fs::write(workspace.join("devcontainer.json"), r#"{"image": "localhost/corrected"}"#).unwrap();
    let (step, problem) = fixture.up(EnvironmentSpec { rebuild: true, ..spec(2) }).await;
    assert_eq!(step, "pull image");
    assert!(problem.detail.contains("localhost/corrected"), "{problem}");
    let Progress::Failed { problem, .. } = last(first).await else { panic!("it was replaced") };
    assert_eq!(problem.detail, "a newer request replaced this run");
    assert!(!Path::new(&scratch).exists(), "a cancelled pull left its layers in {scratch}");
    assert_eq!(fixture.all.up("p-1", spec(1)).await.unwrap_err().code, Code::Conflict);
}

#[tokio::test]
async fn a_rebuild_is_done_once_per_generation() {
    let mut fixture = Fixture::new("case $1 in ps) echo '[]';; image) echo image not known >&2; exit 1;; esac");
    fixture.record_container();
    let again = EnvironmentSpec { rebuild: true, ..spec(7) };
    assert_eq!(fixture.up(again).await.0, "read container");
    assert!(!fixture.called("rm") && !fixture.called("pull"), "{:?}", fixture.calls());
    let newer = EnvironmentSpec { rebuild: true, ..spec(8) };
    assert_eq!(fixture.up(newer.clone()).await.0, "pull image");
    assert!(fixture.called("rm --force --ignore --time 10 --volumes"), "{:?}", fixture.calls());
    // The next run completes what an interrupted rebuild has not done.
    fixture.restart();
    let pulls = fixture.calls().iter().filter(|call| call.starts_with("pull")).count();
    fixture.up(newer).await;
    assert_eq!(fixture.calls().iter().filter(|call| call.starts_with("pull")).count(), pulls + 1);
}

#[tokio::test]
async fn a_name_held_by_a_half_made_container_is_freed() {
    // The record has `ab`: that container was created, so it stays. A container of another name stays, recorded or not.
    for (name, id, removed) in
        [("garret-p-1", "0baa", true), ("garret-p-1", "ab", false), ("garret-p-12", "0baa", false)]
    {
        let mut fixture = Fixture::new(&format!(
            r#"case "$1" in
                ps) echo '[]';;
                start) echo 'Error: no such container' >&2; exit 125;;
                image) echo '[{{"Id": "img"}}]';;
                run) grep -q '^rm' $calls || {{ echo 'Error: creating container storage: the container name "{name}" is already in' \
                    'use by {id}. You have to remove that container: that name is already in use by an external entity' >&2
                    exit 125; }}; echo cd;;
            esac"#
        ));
        fixture.record_container();
        let (_, problem) = fixture.up(spec(8)).await;
        assert_eq!(
            fixture.called("rm --force --ignore --time 10 --volumes garret-p-1"),
            removed,
            "{:?}",
            fixture.calls()
        );
        let runs = fixture.calls().iter().filter(|call| call.starts_with("run")).count();
        assert_eq!(runs, 1 + usize::from(removed), "{:?}", fixture.calls());
        assert_eq!(problem.detail.contains("--rebuild"), id == "ab", "{problem}");
    }
}

/// An engine with containers that no record knows.
const LOST: &str = r#"case "$1 $2" in
            "ps --all") echo '[{"Id": "old", "Created": 1}, {"Id": "new", "Created": 2}]';;
            "container inspect") echo '[{"Id": "new", "Image": "img", "Mounts": [
                {"Type": "volume", "Name": "cache"}, {"Type": "bind", "Source": "/workspaces/p"}]}]';;
            "image inspect") echo '[{"Id": "img", "Config": {"User": "app"}}]';;
    esac"#;

#[tokio::test]
async fn a_container_that_the_record_lost_is_adopted() {
    let fixture = Fixture::new(LOST);
    assert_eq!(fixture.up(spec(1)).await.0, "read container");
    assert!(fixture.called("start new"), "{:?}", fixture.calls());
    assert!(!fixture.called("run") && !fixture.called("rm"), "{:?}", fixture.calls());
    let record = Store::new(fixture.folder.path().join("state/environments")).load().remove(0);
    assert_eq!(
        record.container.map(|container| (container.id, container.image.user)),
        Some(("new".into(), "app".into()))
    );
    assert!(record.volumes.contains("cache"));
}

#[tokio::test]
async fn log_lines_name_environment_and_generation() {
    let fixture = Fixture::new(LOST);
    let log = fixture.folder.path().join("log");
    let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(Arc::new(std::fs::File::create(&log).unwrap()));
    let _until_dropped = tracing::subscriber::set_default(lines.finish());
    fixture.up(spec(3)).await;
    let log = std::fs::read_to_string(log).unwrap();
    let adopted = log.lines().find(|line| line.ends_with("is adopted")).expect("a line about it");
    assert!(adopted.contains(r#"environment{id="p-1" generation=3}"#), "{adopted}");
}

#[tokio::test]
async fn a_pull_into_a_full_disk_reports_the_disk() {
    let fixture = Fixture::new(
        "case $1 in ps) echo '[]';; image) echo image not known >&2; exit 1;;
            pull) echo 'Error: writing blob: write /x: no space left on device' >&2; exit 125;; esac",
    );
    let (step, problem) = fixture.up(spec(1)).await;
    assert_eq!((step.as_str(), problem.code), ("pull image", Code::DiskFull));
}

#[tokio::test]
async fn a_record_that_cannot_be_written_fails_the_run() {
    let fixture = Fixture::new(STALLS);
    // A file in place of the folder: no user can write below it, not even root.
    std::fs::write(fixture.folder.path().join("state"), "").unwrap();
    assert_eq!(fixture.up(spec(1)).await.0, "save state");
    assert!(!fixture.called("pull"));
}

#[tokio::test]
async fn a_removal_includes_unknown_containers() {
    let fixture = Fixture::new("");
    fixture.all.delete("p-1").await.unwrap();
    let all = "rm --force --ignore --time 10 --volumes --filter label=garret.environment=p-1";
    assert!(fixture.called(all), "{:?}", fixture.calls());
}

#[tokio::test]
async fn after_a_removal_without_a_caller_up_works() {
    let fixture = Fixture::new("");
    fixture.up(spec(1)).await;
    // What the call has done when its caller goes: the record is gone, the entry is not.
    fixture.all.entry("p-1").unwrap().delete_record().await.unwrap();
    let (step, problem) = fixture.up(spec(2)).await;
    assert_ne!(step, "up", "{problem}");
}

#[tokio::test]
async fn the_next_run_waits_for_a_stop_without_a_caller() {
    let mut fixture = Fixture::new("case $1 in stop) sleep 0.5; echo stopped >> $calls;; esac");
    fixture.record_container();
    {
        let mut stop = std::pin::pin!(fixture.all.stop("p-1"));
        tokio::select! {
            _ = &mut stop => panic!("the engine takes longer"),
            () = fixture.wait_for_call("stop") => {}
        }
    }
    fixture.up(spec(8)).await;
    let calls = fixture.calls();
    let stopped = calls.iter().position(|call| call == "stopped").expect("it continued");
    assert!(calls[..stopped].last().unwrap().starts_with("stop "), "the engine was called before its end: {calls:?}");
}

/// Starts a removal and leaves it as soon as the engine works on it.
async fn removal_without_a_caller(fixture: &Fixture) {
    let mut removal = std::pin::pin!(fixture.all.delete("p-1"));
    tokio::select! {
        _ = &mut removal => panic!("the engine takes longer"),
        () = fixture.wait_for_call("rm ") => {}
    }
}

#[tokio::test]
async fn a_run_that_waited_for_a_removal_makes_the_environment_again() {
    let mut fixture = Fixture::new("case $1 in rm) sleep 0.5;; esac");
    fixture.record_container();
    removal_without_a_caller(&fixture).await;
    let mut lines = fixture.all.up("p-1", spec(8)).await.unwrap();
    let Some(Progress::Started { step }) = lines.recv().await else { panic!("no step") };
    assert_eq!(step, "wait for an earlier request");
    let Progress::Failed { step, problem } = last(lines).await else { panic!("no container ever runs") };
    assert!(!["up", "wait for an earlier request"].contains(&&*step), "{problem}");
    fixture.restart();
    let recorded = fixture.all.entry("p-1").expect("its record was written").with(|record| record.generation);
    assert_eq!(recorded, 8);
}

#[tokio::test]
async fn a_waiting_run_can_be_cancelled() {
    let mut fixture = Fixture::new("case $1 in rm) sleep 5;; esac");
    fixture.record_container();
    removal_without_a_caller(&fixture).await;
    let lines = fixture.all.up("p-1", spec(8)).await.unwrap();
    tokio::task::yield_now().await;
    fixture.all.entry("p-1").unwrap().cancel();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(3), last(lines)).await;
    assert!(matches!(ended.expect("it does not wait for the engine"), Progress::Failed { .. }));
}

#[tokio::test]
async fn a_removal_that_fails_makes_no_environment() {
    let fixture = Fixture::new("case $1 in rm) exit 1;; esac");
    fixture.all.delete("p-2").await.unwrap_err();
    assert_eq!(fixture.all.get("p-2").await.unwrap_err().code, Code::NotFound);
}

#[tokio::test]
async fn a_release_continues_without_its_caller() {
    let mut fixture = Fixture::new("case $1 in stop) sleep 0.5; echo stopped >> $calls;; esac");
    fixture.record_container();
    {
        let mut release = std::pin::pin!(fixture.all.release("p-1"));
        tokio::select! {
            _ = &mut release => panic!("the engine takes longer"),
            () = fixture.wait_for_call("stop") => {}
        }
    }
    fixture.up(spec(8)).await;
    assert!(fixture.called("stopped"));
}

#[tokio::test]
async fn removals_side_by_side_remove_once() {
    let fixture = Fixture::new("case $1 in rm) sleep 0.2;; esac");
    let (first, second) = tokio::join!(fixture.all.delete("p-1"), fixture.all.delete("p-1"));
    first.and(second).unwrap();
    let removals = fixture.calls().iter().filter(|call| call.starts_with("rm ") && call.contains("label=")).count();
    assert_eq!(removals, 1, "{:?}", fixture.calls());
}
