//! The VMM's jail: `garret jail SPEC`, a program that the daemon runs and that becomes the VMM.
//!
//! It creates the VMM's two sockets and enters the machine's control group and network namespace. It creates mount,
//! IPC, UTS and process namespaces, builds a root folder that holds only the machine's files, and pivots into it. Then
//! it drops every capability and identity but the machine's, and becomes the VMM. Afterwards the process can open only
//! what it was given: the root is read-only except for `/run`, the data disk and the workspaces.
//!
//! There are two processes, because only a child enters a new process namespace. The first waits until the second is
//! the VMM (its pipe closes on `execve`). It prints the VMM's process id and leaves the VMM to the host's init, because
//! machines outlive the runner.

#![allow(unsafe_code, reason = "fork, and setrlimit before exec")]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{ForkResult, Gid, Uid, dup2_raw, execve, fork, pivot_root, setgroups, setresgid, setresuid};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, socket};
use rustix::process::{Resource, Rlimit, getpid, setrlimit};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, CoreSchedulingScope, LinkNameSpaceType, UnshareFlags,
    create_core_scheduling_cookie, move_into_link_name_space, set_capabilities, set_capabilities_secure_bits,
    set_no_new_privs,
};
use serde::{Deserialize, Serialize};

use super::descriptors::close_inherited;
use super::share::Identity;

/// The hidden subcommand that runs [`main`].
pub(crate) const SUBCOMMAND: &str = "jail";
/// RLIMIT_NOFILE of a VMM: the files that a guest may make virtio-fs hold open, plus room for everything else.
pub(crate) const OPEN_FILES_MAX: u64 = 262_144;
/// The descriptors at which the VMM finds its sockets. The numbers are above those that the daemon was started with.
pub(crate) const API_FD: RawFd = 100;
/// See [`API_FD`].
pub(crate) const VSOCK_FD: RawFd = 101;
/// The device nodes a VMM has, with their numbers: Documentation/admin-guide/devices.txt.
const DEVICES: [(&str, u64, u64); 3] = [("kvm", 10, 232), ("net/tun", 10, 200), ("null", 1, 3)];

/// The parts of a jail. Paths are the host's; the second path of a pair is relative to the new root.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JailSpec {
    /// An empty folder on which the new root is mounted.
    pub root: PathBuf,
    /// The control group to enter.
    pub cgroup: PathBuf,
    /// The network namespace to enter, by its `ip netns` name.
    pub namespace: String,
    /// Where the VMM's API socket is created.
    pub api_socket: PathBuf,
    /// Where the socket to the guest is created.
    pub vsock_socket: PathBuf,
    /// The identity with which the VMM runs.
    pub identity: Identity,
    /// Files the VMM may read.
    pub read_only: Vec<(PathBuf, PathBuf)>,
    /// Files and folders the VMM may write.
    pub writable: Vec<(PathBuf, PathBuf)>,
    /// The folder with the workspaces; later mounts in it also appear in the jail.
    pub workspaces: PathBuf,
    /// The program and its arguments inside the jail.
    pub command: Vec<String>,
    /// What the VMM logs.
    pub log: String,
}

/// Becomes the VMM's ancestor; the caller must still be single-threaded. Prints the VMM's process id.
///
/// # Errors
/// Any step fails; the message names it.
pub(crate) fn main(spec: &str) -> anyhow::Result<()> {
    close_inherited()?;
    let spec: JailSpec = serde_json::from_str(spec).context("the jail's specification")?;
    // Created by root where only root may enter, and before any process of the machine runs: no other process can put a
    // socket there.
    make_socket(&spec.api_socket, API_FD)?;
    make_socket(&spec.vsock_socket, VSOCK_FD)?;
    fs::write(spec.cgroup.join("cgroup.procs"), "0").context("cannot enter the control group")?;
    let network =
        File::open(Path::new("/run/netns").join(&spec.namespace)).context("cannot open the network namespace")?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    // SAFETY: this process has one thread and shares no file system information or descriptors with another.
    unsafe { rustix::thread::unshare_unsafe(namespaces()) }.context("cannot make namespaces")?;

    let (mut reader, mut writer) = std::io::pipe()?;
    // SAFETY: the process is single-threaded, so the child may run ordinary code.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => {
            drop(reader);
            // Returns only on failure: on success, this process is the VMM.
            let Err(error) = become_vmm(&spec);
            let _ = write!(writer, "{error:#}");
            std::process::exit(1);
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut error = String::new();
            reader.read_to_string(&mut error)?;
            if !error.is_empty() {
                bail!("{error}");
            }
            println!("{child}");
            Ok(())
        }
    }
}

fn namespaces() -> UnshareFlags {
    UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWPID
}

/// Binds a socket to this descriptor number, which `execve` leaves open. The VMM itself listens, so `SO_PEERCRED` names
/// it.
fn make_socket(path: &Path, number: RawFd) -> anyhow::Result<()> {
    let made = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::net::bind(&made, &SocketAddrUnix::new(path)?).with_context(|| format!("cannot make {}", path.display()))?;
    // SAFETY: no value of this program owns this number.
    let kept = unsafe { dup2_raw(&made, number) }?;
    std::mem::forget(kept);
    Ok(())
}

fn become_vmm(spec: &JailSpec) -> anyhow::Result<std::convert::Infallible> {
    rustix::process::setsid()?;
    share_no_core()?;
    build_root(spec)?;
    enter_root(&spec.root)?;
    redirect_standard_streams()?;
    let limit = Some(OPEN_FILES_MAX);
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).context("RLIMIT_NOFILE")?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).context("RLIMIT_CORE")?;
    drop_privileges(spec)?;
    let arguments: Vec<CString> = spec.command.iter().map(|a| CString::new(a.as_str())).collect::<Result<_, _>>()?;
    let program = arguments.first().context("no program")?;
    let environment = [c"RUST_BACKTRACE=1".to_owned(), CString::new(format!("GARRET_LOG={}", spec.log))?];
    execve(program, &arguments, &environment).with_context(|| format!("cannot run {program:?} in the jail"))
}

/// Hardware threads of one core share caches and predictors. With a core scheduling cookie of its own, the machine
/// shares no core with other processes.
fn share_no_core() -> anyhow::Result<()> {
    match create_core_scheduling_cookie(getpid(), CoreSchedulingScope::ThreadGroup) {
        // One thread per core: nothing is shared.
        Ok(()) | Err(Errno::NODEV) => Ok(()),
        Err(Errno::INVAL) => {
            eprintln!("warning: this kernel has no core scheduling: machines may share a processor core");
            Ok(())
        }
        Err(error) => Err(error).context("core scheduling"),
    }
}

/// Builds the new root: a small tmpfs into which the machine's files are bound.
fn build_root(spec: &JailSpec) -> anyhow::Result<()> {
    let root = &spec.root;
    // Slave, not private: workspaces bound on the host later must appear here.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    mount("tmpfs", root, "tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, Some(c"mode=755,size=1m"))
        .context("cannot mount the jail's root")?;
    for (source, target) in &spec.read_only {
        let target = bind(root, source, target)?;
        mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, "")?;
    }
    for (source, target) in &spec.writable {
        let target = bind(root, source, target)?;
        mount_remount(&target, MountFlags::BIND | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV, "")?;
    }
    let workspaces = root.join("workspaces");
    fs::create_dir(&workspaces)?;
    mount_bind_recursive(&spec.workspaces, &workspaces).context("cannot bind the workspaces")?;
    make_devices(spec)?;
    let proc = root.join("proc");
    fs::create_dir(&proc)?;
    // virtio-fs reaches its own descriptors through /proc/self/fd; nothing else of /proc is in the jail.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", &proc, "proc", flags, Some(c"subset=pid")).context("cannot mount /proc")
}

fn bind(root: &Path, source: &Path, target: &Path) -> anyhow::Result<PathBuf> {
    let target = root.join(target);
    if fs::metadata(source).with_context(|| format!("cannot use {}", source.display()))?.is_dir() {
        fs::create_dir(&target)?;
    } else {
        File::create(&target)?;
    }
    mount_bind(source, &target).with_context(|| format!("cannot bind {}", source.display()))?;
    Ok(target)
}

fn make_devices(spec: &JailSpec) -> anyhow::Result<()> {
    for (name, major, minor) in DEVICES {
        let path = spec.root.join("dev").join(name);
        fs::create_dir_all(path.parent().context("no parent")?)?;
        mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(major, minor))
            .with_context(|| format!("cannot make {}", path.display()))?;
        chown(&path, Some(spec.identity.uid), Some(spec.identity.gid))?;
    }
    Ok(())
}

/// pivot_root(2) with the same folder twice stacks the old root on the new one; then the old root is unmounted.
fn enter_root(root: &Path) -> anyhow::Result<()> {
    std::env::set_current_dir(root)?;
    pivot_root(".", ".").context("cannot pivot into the jail")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC, "")
        .context("cannot make the jail's root read-only")
}

/// Standard error remains the VMM's log; the daemon's pipe must not stay open.
fn redirect_standard_streams() -> anyhow::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

/// The order matters: the bounding set and the groups need capabilities that the last steps drop. The secure bits are
/// needed if the developer is root: without them, `execve` would return every capability to uid 0.
fn drop_privileges(spec: &JailSpec) -> anyhow::Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
            break; // past the last one this kernel knows
        }
    }
    use CapabilitiesSecureBits as Bits;
    set_capabilities_secure_bits(
        Bits::NO_ROOT
            | Bits::NO_ROOT_LOCKED
            | Bits::NO_SETUID_FIXUP
            | Bits::NO_SETUID_FIXUP_LOCKED
            | Bits::NO_CAP_AMBIENT_RAISE
            | Bits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )
    .context("cannot lock the secure bits")?;
    let Identity { uid, gid, groups } = &spec.identity;
    setgroups(&groups.iter().copied().map(Gid::from_raw).collect::<Vec<_>>())?;
    let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    set_no_new_privs(true)?;
    Ok(())
}
