//! A hostile neighbor: what another developer of the host, or a compromised VMM, may try with paths, sockets and processes.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use garret_integration::stage::{ALICE, BOB, CAROL, Developer, Workspace, restart_daemon, wait_until};

const SOCKETS: [&str; 2] = ["api.sock", "vsock.sock"];

/// What only this developer's guest can say.
fn guest_secret(developer: Developer) -> String {
    developer.garret(&["exec", "--machine", "--", "cat", "/proc/sys/kernel/random/boot_id"]).ok()
}

fn vmm_pid(developer: Developer) -> u64 {
    developer.machine()["vmm_pid"].as_u64().expect("a running machine")
}

/// The folder that a VMM may write.
fn vm_folder(developer: Developer) -> PathBuf {
    developer.run_folder().join("vm")
}

/// Puts something in the place of each socket that the VMM's folder once held.
fn plant(folder: &Path, make: impl Fn(&Path, &str)) {
    for socket in SOCKETS {
        let path = folder.join(socket);
        let _absent = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        make(&path, socket);
    }
}

#[test]
fn nothing_planted_in_a_vmms_folder_leads_to_another_machine() {
    for developer in [ALICE, BOB] {
        developer.garret(&["start", "--machine"]).ok();
    }
    let (alice, bob) = (guest_secret(ALICE), guest_secret(BOB));
    let bobs_vmm = vmm_pid(BOB);
    assert_ne!(alice, bob);
    let folder = vm_folder(ALICE);
    // A descriptor of the folder, kept over stop and start.
    let kept = File::open(&folder).unwrap();
    let kept = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), kept.as_raw_fd()));
    let bobs = BOB.run_folder();
    let to_bob = |path: &Path, socket: &str| symlink(bobs.join(socket), path).unwrap();

    plant(&folder, to_bob);
    assert_eq!(guest_secret(ALICE), alice, "alice's command reached another guest");
    restart_daemon();
    assert_eq!(guest_secret(ALICE), alice, "the next daemon adopted another machine");

    plant(&folder, |path, _| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()));
    assert_eq!(guest_secret(ALICE), alice, "a FIFO in the place of a socket");
    plant(&folder, |path, _| fs::create_dir(path).unwrap());
    assert_eq!(guest_secret(ALICE), alice, "a folder in the place of a socket");
    let listeners = RefCell::new(Vec::new());
    plant(&folder, |path, _| listeners.borrow_mut().push(UnixListener::bind(path).unwrap()));
    assert_eq!(guest_secret(ALICE), alice, "a listener in the place of a socket");
    restart_daemon();
    assert_eq!(guest_secret(ALICE), alice, "the next daemon asked a listener of the neighbor's");

    ALICE.garret(&["stop", "--machine"]).ok();
    drop(listeners);
    // A link that is left after the stop, found by the next daemon and by the next start.
    fs::create_dir_all(&folder).unwrap();
    plant(&folder, to_bob);
    restart_daemon();
    assert_eq!(ALICE.machine()["phase"], "stopped", "a link was adopted");
    ALICE.garret(&["start", "--machine"]).ok();
    if kept.exists() {
        plant(&kept, to_bob);
    }
    let again = guest_secret(ALICE);
    assert!(again != alice && again != bob, "another guest answered after the start");
    ALICE.garret(&["stop", "--machine"]).ok();
    assert_eq!((vmm_pid(BOB), guest_secret(BOB)), (bobs_vmm, bob), "bob's machine was touched");
}

#[test]
fn a_developer_cannot_enter_the_process_of_their_machine() {
    ALICE.garret(&["start", "--machine"]).ok();
    let pid = vmm_pid(ALICE);
    for line in [
        format!("ls /proc/{pid}/root/run"),
        format!("cd /proc/{pid}/cwd"),
        format!("ls /proc/{pid}/fd/"),
        format!("head -c 1 /proc/{pid}/mem"),
        format!("head -c 1 /proc/{pid}/environ"),
        format!(": >>/proc/{pid}/root/data.img"),
        format!("kill -0 {pid}"),
        format!("python3 -c 'import ctypes; c = ctypes.CDLL(None); exit(c.ptrace(16, {pid}, 0, 0) != 0)'"),
        format!("ls {}", ALICE.run_folder().display()),
        "ls /var/lib/garret".to_owned(),
    ] {
        assert_ne!(ALICE.run("sh", &["-c", &line], &[], b"").status, 0, "{line}");
        // The same by root shows that the line itself works.
        if !line.contains("ptrace") && !line.contains("/mem") {
            let status = Command::new("sh").args(["-c", &line]).stdout(std::process::Stdio::null()).status().unwrap();
            assert!(status.success(), "{line}: not even root");
        }
    }
    assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0, "the VMM is dumpable");
}

#[test]
fn two_machines_never_share_a_uid() {
    for developer in [ALICE, BOB] {
        developer.garret(&["start", "--machine"]).ok();
    }
    let owner = |developer: Developer| fs::metadata(vm_folder(developer)).unwrap().uid();
    assert_ne!(owner(ALICE), owner(BOB));
    for developer in [ALICE, BOB] {
        let disk = developer.data_folder().join("data.img");
        let metadata = fs::metadata(disk).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (owner(developer), 0o600));
    }
}

/// A file system whose server never answers, mounted for everybody.
struct Hung {
    path: PathBuf,
    _device: OwnedFd,
}

impl Hung {
    fn mount(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        let device = open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        mount("hung", path, "fuse", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Self { path: path.into(), _device: device }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _gone = unmount(&self.path, UnmountFlags::DETACH);
        let _gone = fs::remove_dir(&self.path);
    }
}

#[test]
fn a_path_that_hangs_delays_no_other_developer() {
    let _loaded = Command::new("modprobe").arg("fuse").status();
    let workspace = Workspace::shared(BOB);
    workspace.up(&[]).ok();
    let hung = Hung::mount(Path::new("/var/tmp/garret-hung"));
    // `garret up` would hang by itself, before it asks the daemon.
    let line = format!(
        r#"folder={}/workspace; id=workspace-$(printf %s "$UID:$folder" | sha256sum | cut -c 1-32)
           curl -sS --unix-socket /run/garret/garret.sock -X PUT -H 'content-type: application/json' \
             -d '{{"workspace":"'$folder'","desired":"running"}}' http://garret/v1/environments/$id"#,
        hung.path.display()
    );
    // Each is answered at the daemon's deadline, so that all together last longer than what bob does.
    let ask = move || ALICE.run("bash", &["-c", &line], &[], b"").ok();
    let alices: Vec<_> = (0..12).map(|_| std::thread::spawn(ask.clone())).collect();
    // Bob's machine is looked at, entered and changed meanwhile.
    workspace.exec(&["true"]).ok();
    BOB.garret(&["ls"]).ok();
    workspace.up(&["true"]).ok();
    let waits = alices.iter().any(|alice| !alice.is_finished());
    assert!(waits, "bob waited for alice's file system");
    let answers: Vec<String> = alices.into_iter().map(|alice| alice.join().unwrap()).collect();
    drop(hung);
    for answer in answers {
        assert!(answer.contains("its file system did not answer"), "{answer}");
    }
}

#[test]
fn a_workspace_made_again_is_the_new_folder() {
    let workspace = Workspace::with_image(ALICE, "again", "");
    workspace.write("which", "first");
    workspace.up(&["sh", "-c", "test $(cat which) = first"]).ok();
    let config = workspace.read(".devcontainer/devcontainer.json");
    let former = workspace.path().with_extension("former");
    fs::rename(workspace.path(), &former).unwrap();
    fs::create_dir(workspace.path()).unwrap();
    std::os::unix::fs::chown(workspace.path(), Some(ALICE.uid), Some(ALICE.uid)).unwrap();
    workspace.write(".devcontainer/devcontainer.json", &config);
    workspace.write("which", "second");
    workspace.up(&["sh", "-c", "test $(cat which) = second && echo from-inside >made"]).ok();
    assert_eq!(workspace.read("made"), "from-inside\n");
    assert!(!former.join("made").exists());
    // Shared once: neither a stale mount nor a second one.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let id = workspace.environment()["id"].as_str().unwrap().to_owned();
    assert_eq!(mounts.matches(&id).count(), 1, "{mounts}");
    wait_until("the environment is ready", 5, || workspace.environment()["status"]["phase"] == "ready");
}

#[test]
fn mounts_below_a_shared_folder_stay_their_owners() {
    let workspace = Workspace::with_image(ALICE, "mounts", "");
    fs::create_dir(workspace.path().join("below")).unwrap();
    workspace.up(&["true"]).ok();
    let below = workspace.path().join("below");
    let mount = |arguments: &[&str]| {
        assert!(Command::new("mount").args(arguments).arg(&below).status().unwrap().success());
    };
    let is_mounted = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().filter(|line| line.contains("/mounts/below ")).count()
    };
    mount(&["-t", "tmpfs", "none"]);
    fs::write(below.join("of-root"), "").unwrap();
    let seen = workspace.sh("ls below").ok();
    let times = is_mounted();
    ALICE.garret(&["rm", workspace.str()]).ok();
    let after = is_mounted();
    assert!(Command::new("umount").arg(&below).status().unwrap().success(), "removing the environment unmounted it");
    assert_eq!((seen.as_str(), times, after), ("", 1, 1));
}

#[test]
fn a_machine_takes_an_account() {
    // An account's subordinate uids (subuid(5)) would be thousands of developers.
    Developer { name: "200001", uid: 200_001 }.garret(&["start", "--machine"]).fails_with(&["200001", "no account"]);
    CAROL.make_account();
    CAROL.garret(&["start", "--machine", "--memory", "512"]).ok();
    CAROL.garret(&["rm", "--machine", "--yes"]).ok();
}
