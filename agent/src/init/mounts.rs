//! The mounts of the guest: kernel file systems, folders in memory, layers on the data disk, workspaces.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_remount};

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const STRICT: MountFlags = PLAIN.union(MountFlags::NOEXEC);

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static str,
}

const fn entry(kind: &'static str, target: &'static str, flags: MountFlags, options: &'static str) -> Mount {
    Mount { kind, target, flags, options }
}

/// In this order: `/dev` comes before the mounts below it.
const EARLY: &[Mount] = &[
    entry("proc", "/proc", STRICT, ""),
    entry("sysfs", "/sys", STRICT, ""),
    entry("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
    entry("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC), "mode=0620,gid=5,ptmxmode=0666"),
    entry("tmpfs", "/dev/shm", PLAIN, "mode=1777"),
    entry("mqueue", "/dev/mqueue", STRICT, ""),
    entry("tmpfs", "/run", PLAIN, "mode=0755"),
    entry("tmpfs", "/tmp", PLAIN, "mode=1777"),
    entry("cgroup2", "/sys/fs/cgroup", STRICT, "nsdelegate,memory_recursiveprot"),
    entry("bpf", "/sys/fs/bpf", STRICT, "mode=0700"),
];

/// Those mounts that programs fill. The kernel limits each to half of the memory at the time of the mount, which is the
/// memory at boot.
const IN_MEMORY: &[&str] = &["/dev/shm", "/tmp"];

/// Persistent folders on the data disk, and their mount points.
const PERSISTENT: &[(&str, &str)] =
    &[("/data/containers", "/var/lib/containers"), ("/data/home", "/home"), ("/data/root", "/root")];

/// Links in `/dev` that user space expects.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts the kernel's file systems and those in memory.
pub(super) fn early() -> anyhow::Result<()> {
    for entry in EARLY {
        make(entry).with_context(|| format!("mount {} on {}", entry.kind, entry.target))?;
    }
    for (target, link) in LINKS {
        match std::os::unix::fs::symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).context(*link),
            _ => {}
        }
    }
    // Container engines expect this: a mount made here is visible in containers that ask for it.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).context("make / shared")
}

fn make(entry: &Mount) -> io::Result<()> {
    if entry.target.starts_with("/dev/") {
        fs::create_dir_all(entry.target)?;
    }
    let options = CString::new(entry.options)?;
    match mount(entry.kind, entry.target, entry.kind, entry.flags, options.as_c_str()) {
        // The kernel has already mounted /dev.
        Err(rustix::io::Errno::BUSY) => Ok(()),
        result => Ok(result?),
    }
}

/// Limits each folder that programs fill in memory to half of `mib`.
pub(super) fn resize_in_memory(mib: u64) -> anyhow::Result<()> {
    let size = CString::new(format!("size={}M", mib / 2))?;
    for target in IN_MEMORY {
        mount_remount(*target, PLAIN, size.as_c_str()).with_context(|| format!("resize {target}"))?;
    }
    Ok(())
}

/// Mounts what needs `/data`: the writable layers over the image, persistent folders, and the workspaces.
pub(super) fn late() -> anyhow::Result<()> {
    overlay("/etc", "/run/garret/overlay/etc")?;
    overlay("/var", "/data/overlay/var")?;
    for (source, target) in PERSISTENT {
        let new = !Path::new(source).exists();
        fs::create_dir_all(source).with_context(|| source.to_string())?;
        if new {
            copy_skeleton(Path::new(target), Path::new(source)).with_context(|| format!("fill {source}"))?;
        }
        fs::create_dir_all(target).with_context(|| target.to_string())?;
        mount_bind_recursive(*source, *target).with_context(|| format!("bind {source} on {target}"))?;
    }
    let tag = garret_api::agent::WORKSPACES_TAG;
    let folder = garret_api::agent::WORKSPACES_DIR;
    if let Err(error) = mount(tag, folder, "virtiofs", PLAIN, None) {
        super::say(format_args!("no workspaces: mount virtio-fs {tag:?} on {folder}: {error}"));
    }
    Ok(())
}

/// Mounts a writable layer, stored in `folder`, over one folder of the read-only image.
fn overlay(target: &str, folder: &str) -> anyhow::Result<()> {
    // The work folder is for overlayfs only and must be on the same file system.
    let (upper, work) = (format!("{folder}/upper"), format!("{folder}/work"));
    for made in [&upper, &work] {
        fs::create_dir_all(made).with_context(|| made.clone())?;
    }
    let options = CString::new(format!("lowerdir={target},upperdir={upper},workdir={work}"))?;
    mount("overlay", target, "overlay", MountFlags::NODEV, options.as_c_str())
        .with_context(|| format!("mount a writable layer on {target}"))
}

/// Copies the image's own files into a folder that is new on the data disk (root's shell settings).
fn copy_skeleton(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            copy_skeleton(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            fs::copy(entry.path(), &target)?;
        }
    }
    fs::set_permissions(to, fs::metadata(from)?.permissions())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_folder_gets_the_images_files() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("sub")).unwrap();
        fs::write(from.path().join("sub/.profile"), "x").unwrap();
        copy_skeleton(from.path(), to.path()).unwrap();
        assert_eq!(fs::read_to_string(to.path().join("sub/.profile")).unwrap(), "x");
        assert!(copy_skeleton(Path::new("/no such folder"), to.path()).is_ok());
    }
}
