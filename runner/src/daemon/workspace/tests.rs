use std::fs;

use tempfile::TempDir;

use super::*;
use crate::host::share::{Identity, MountRequest};
use garret_testing::program;

const UID: u32 = 7;

fn spec() -> ShareSpec {
    let developer = Identity { uid: UID, gid: UID, groups: Vec::new() };
    ShareSpec { folder: "/w".into(), developer, mount_point: None, mount: None }
}

/// Workspaces whose program is this shell script. It runs in its folder.
fn workspaces(script: &str, deadline_ms: u64) -> (TempDir, Workspaces) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    program::write(&program, &format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display()));
    (dir, Workspaces::new(program, Duration::from_millis(deadline_ms)))
}

#[tokio::test]
async fn an_answer_is_passed_on_and_a_process_without_one_is_reported() {
    let (_dir, answers) = workspaces(r#"echo '{"Ok":"same"}'"#, 60_000);
    assert_eq!(answers.share(spec()).await, Ok(ExistingMount::Same));
    let (_dir, refuses) = workspaces(r#"echo '{"Err":{"code":"invalid","detail":"no such folder"}}'"#, 60_000);
    assert_eq!(refuses.share(spec()).await.unwrap_err().detail, "no such folder");
    let (_dir, dies) = workspaces("exit 3", 60_000);
    let problem = dies.share(spec()).await.unwrap_err();
    assert_eq!((problem.code, problem.detail.contains("exit status: 3")), (Code::Internal, true), "{problem}");
}

#[tokio::test]
async fn a_process_that_hangs_is_killed() {
    let (_dir, hangs) = workspaces("exec sleep 1000", 100);
    let problem = hangs.share(spec()).await.unwrap_err();
    assert!(problem.detail.contains("did not answer"), "{problem}");
    // The permit is returned when the process ends.
    for _ in 0..CONCURRENT_MAX {
        hangs.permits.acquire(UID).await.unwrap().forget();
    }
}

#[tokio::test]
async fn all_developers_together_have_so_many_processes() {
    let (dir, begins) = workspaces("touch begun; sleep 0.1; echo '{\"Ok\":\"same\"}'", 500);
    let others = begins.permits_of_all.clone().acquire_many_owned(CONCURRENT_TOTAL_MAX as u32).await.unwrap();
    assert!(begins.share(spec()).await.is_err());
    assert!(!dir.path().join("begun").exists());
    drop(others);
    assert_eq!(begins.share(spec()).await, Ok(ExistingMount::Same));
}

/// Starts a call with this script, whose first command must be `touch begun`, and drops it.
async fn start_and_drop(dir: &Path, workspaces: &Workspaces, spec: ShareSpec) {
    let begun = async {
        while !dir.join("begun").exists() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = workspaces.share(spec) => panic!("it answered"),
        () = begun => {}
    }
}

#[tokio::test]
async fn a_process_ends_with_its_caller() {
    let (dir, hangs) = workspaces("touch begun; exec sleep 1000", 60_000);
    start_and_drop(dir.path(), &hangs, spec()).await;
    for _ in 0..CONCURRENT_MAX {
        timeout(Duration::from_secs(10), hangs.permits.acquire(UID)).await.unwrap().unwrap().forget();
    }
}

/// A specification to mount the workspace `w` of the machine in this folder.
fn mounting(dir: &Path) -> (MachinePaths, ShareSpec) {
    let paths = MachinePaths::new(dir, "m".parse().unwrap());
    let mount_point = Some(paths.workspace("w"));
    let mount = Some(MountRequest { vmm_uid: UID, vmm_pid: None, note: paths.revocation("w") });
    (paths, ShareSpec { mount_point, mount, ..spec() })
}

#[tokio::test]
async fn share_whose_caller_left_mounts_nothing() {
    let (dir, mounts) = workspaces("touch begun; sleep 0.3; mkdir -p machines/m/workspaces/w", 60_000);
    let (paths, spec) = mounting(dir.path());
    start_and_drop(dir.path(), &mounts, spec).await;
    assert!(matches!(mounts.revoke(UID, &paths, "w", None).await.unwrap(), Revoked::Unused));
    sleep(Duration::from_millis(600)).await;
    assert!(!paths.workspace("w").exists());
}

#[tokio::test]
async fn revocation_waits_for_a_mount_in_progress() {
    let (dir, mounts) = workspaces("exit 3", 60_000);
    let (paths, _) = mounting(dir.path());
    fs::create_dir_all(paths.workspace("w")).unwrap();
    let mount = mounts.mounts.acquire(paths.workspace("w")).await.unwrap();
    let mut revoke = Box::pin(mounts.revoke(UID, &paths, "w", None));
    assert!(timeout(Duration::from_millis(50), &mut revoke).await.is_err());
    assert!(paths.workspace("w").exists());
    drop(mount);
    assert!(matches!(revoke.await.unwrap(), Revoked::Unused));
}

#[tokio::test]
async fn a_mount_point_is_one_processs_at_a_time() {
    let script = "mkdir mounting || exit 3; sleep 0.1; rmdir mounting; echo '{\"Ok\":\"same\"}'";
    let (dir, mounts) = workspaces(script, 60_000);
    let share = || mounts.share(mounting(dir.path()).1);
    assert_eq!(tokio::join!(share(), share()), (Ok(ExistingMount::Same), Ok(ExistingMount::Same)));
}

#[tokio::test]
async fn folders_that_hang_delay_no_revocation() {
    let (dir, mounts) = workspaces("exit 3", 60_000);
    let (paths, _) = mounting(dir.path());
    fs::create_dir_all(paths.workspace("w")).unwrap();
    let mut taken = Vec::new();
    for permits in [&mounts.permits, &mounts.scans] {
        for _ in 0..CONCURRENT_MAX {
            taken.push(permits.acquire(UID).await.unwrap());
        }
    }
    let gone = async {
        while paths.workspace("w").exists() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = mounts.revoke(UID, &paths, "w", None) => {}
        () = gone => {}
        () = sleep(Duration::from_secs(10)) => panic!("it waits for a permit"),
    }
    assert!(!paths.workspace("w").exists());
}
