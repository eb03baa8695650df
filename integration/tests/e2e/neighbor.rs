//! A hostile neighbor: what another developer of the host, or a compromised VMM, may try with paths, sockets and processes.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::settings::{Settings, table};
use crate::vmm;
use garret_integration::stage::{ALICE, BOB, CAROL, Developer, Workspace, restart_daemon, wait_until};

const SOCKETS: [&str; 2] = ["api.sock", "vsock.sock"];

/// What only this developer's guest can say.
fn guest_secret(developer: Developer) -> String {
    developer.garret(&["exec", "--machine", "--", "cat", "/proc/sys/kernel/random/boot_id"]).ok()
}

/// The folder that a VMM may write, and who the VMM is.
struct VmmFolder {
    /// A descriptor, kept over stop and start of the machine.
    folder: File,
    owner: u32,
}

impl VmmFolder {
    fn of(developer: Developer) -> Self {
        let path = developer.run_folder().join("vm");
        Self { folder: File::open(&path).unwrap(), owner: fs::metadata(path).unwrap().uid() }
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd())).join(name)
    }

    /// Puts something in the place of each socket that the folder once held, with the VMM's own rights: what a compromised VMM
    /// can do.
    fn plant(&self, make: impl Fn(&Path, &str) + Sync) {
        let plant_all = || {
            let (user, group) = (Uid::from_raw(self.owner), Gid::from_raw(self.owner));
            set_thread_groups(&[]).unwrap();
            set_thread_res_gid(group, group, group).unwrap();
            set_thread_res_uid(user, user, user).unwrap();
            assert!(fs::read_dir("/var/lib/garret").is_err(), "these are root's rights");
            for socket in SOCKETS {
                let path = self.path(socket);
                let _absent = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
                make(&path, socket);
            }
        };
        thread::scope(|scope| scope.spawn(plant_all).join().expect("the VMM may write its folder"));
    }
}

/// Links a socket to the one of bob's machine. The folder is asked for here, with root's rights.
fn to_bob() -> impl Fn(&Path, &str) {
    let folder = BOB.run_folder();
    move |path, socket| symlink(folder.join(socket), path).unwrap()
}

/// Plants everything while alice's machine runs. Returns what only her guest can say.
fn plant_beside_a_running_machine(folder: &VmmFolder, bobs_vmm: u64) -> String {
    let alice = guest_secret(ALICE);
    folder.plant(to_bob());
    // With root's rights the link does lead to bob's machine.
    let peer = socket_peercred(UnixStream::connect(folder.path("vsock.sock")).unwrap()).unwrap();
    assert_eq!(peer.pid.as_raw_nonzero().get().unsigned_abs(), u32::try_from(bobs_vmm).unwrap());
    assert_eq!(guest_secret(ALICE), alice, "alice's command reached another guest");
    restart_daemon();
    assert_eq!(guest_secret(ALICE), alice, "the next daemon adopted another machine");

    folder.plant(|path, _| mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap());
    assert_eq!(guest_secret(ALICE), alice, "a FIFO in the place of a socket");
    folder.plant(|path, _| fs::create_dir(path).unwrap());
    assert_eq!(guest_secret(ALICE), alice, "a folder in the place of a socket");
    let listeners = Mutex::new(Vec::new());
    folder.plant(|path, _| listeners.lock().unwrap().push(UnixListener::bind(path).unwrap()));
    assert_eq!(guest_secret(ALICE), alice, "a listener in the place of a socket");
    restart_daemon();
    assert_eq!(guest_secret(ALICE), alice, "the next daemon asked a listener of the neighbor's");
    alice
}

#[test]
fn nothing_planted_in_a_vmms_folder_leads_to_another_machine() {
    for developer in [ALICE, BOB] {
        developer.garret(&["start", "--machine"]).ok();
    }
    let (bobs_vmm, bob) = (vmm::pid(BOB), guest_secret(BOB));
    let mut folder = VmmFolder::of(ALICE);
    let alice = plant_beside_a_running_machine(&folder, bobs_vmm);
    assert_ne!(alice, bob);
    ALICE.garret(&["stop", "--machine"]).ok();
    // A link that is left after the stop, found by the next daemon and by the next start.
    folder.plant(to_bob());
    // From now on alice's VMM has her uid, as where workspaces cannot be id-mapped.
    let _settings =
        Settings::change(|config| drop(table(config, "machine").insert("run_as".into(), "developer".into())));
    assert_eq!(ALICE.machine()["phase"], "stopped", "a link was adopted");
    ALICE.garret(&["start", "--machine"]).ok();
    assert_eq!(VmmFolder::of(ALICE).owner, ALICE.uid);
    folder.owner = ALICE.uid;
    let again = plant_beside_a_running_machine(&folder, bobs_vmm);
    assert!(again != alice && again != bob, "another guest answered after the start");
    // She may signal it, and no more.
    keeps_its_developer_out(&["kill -0"]);
    ALICE.garret(&["stop", "--machine"]).ok();
    assert_eq!((vmm::pid(BOB), guest_secret(BOB)), (bobs_vmm, bob), "bob's machine was touched");
}

#[test]
fn a_developer_cannot_enter_the_process_of_their_machine() {
    ALICE.garret(&["start", "--machine"]).ok();
    keeps_its_developer_out(&[]);
}

/// Whether alice's shell gets into her VMM's process by any line but those that contain one of `allowed`.
#[track_caller]
fn keeps_its_developer_out(allowed: &[&str]) {
    let pid = vmm::pid(ALICE);
    // Some page of its memory: the first is not mapped.
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let address = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
    // Seized, a process does not stop, and with its tracer's end it is free again.
    let seize = format!("import ctypes; exit(ctypes.CDLL(None).ptrace(0x4206, {pid}, None, None) != 0)");
    for line in [
        format!("ls /proc/{pid}/root/run"),
        format!("cd /proc/{pid}/cwd"),
        format!("ls /proc/{pid}/fd/"),
        format!("dd if=/proc/{pid}/mem bs=4096 count=1 skip={} status=none", address / 4096),
        format!("head -c 1 /proc/{pid}/environ"),
        format!(": >>/proc/{pid}/root/data.img"),
        format!("kill -0 {pid}"),
        format!("python3 -c '{seize}'"),
        format!("ls {}", ALICE.run_folder().display()),
        "ls /var/lib/garret".to_owned(),
    ] {
        let may = allowed.iter().any(|part| line.contains(part));
        assert_eq!(ALICE.run("sh", &["-c", &line], &[], b"").status == 0, may, "{line}");
        // The same by root shows that the line itself works.
        let status = Command::new("sh").args(["-c", &line]).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{line}: not even root");
    }
    assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0, "the VMM is dumpable");
}

#[test]
fn two_machines_never_share_a_uid() {
    for developer in [ALICE, BOB] {
        developer.garret(&["start", "--machine"]).ok();
    }
    let owner = |developer: Developer| VmmFolder::of(developer).owner;
    assert_ne!(owner(ALICE), owner(BOB));
    for developer in [ALICE, BOB] {
        let disk = developer.data_folder().join("data.img");
        let metadata = fs::metadata(disk).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (owner(developer), 0o600));
    }
}

/// A file system whose server never answers, mounted for all users.
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
