//! Id-mapped mounts (`mount_setattr(2)`). The files of a workspace belong to the developer on the disk and to the
//! machine's uid inside the jail, without a capability on either side.

#![allow(unsafe_code, reason = "mount_setattr has no safe wrapper; fork before exec")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::Context;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// The number of uids: `(uid_t) -1` means "no change" to the kernel.
const IDS_END: u64 = u32::MAX as u64;

/// Sets `nosuid` and `nodev` on a detached mount, and with `uids` swaps these two: files of the first belong to the
/// second. The mount leaves the peer group of the mount it was cloned from. Otherwise, later mounts below the folder
/// would appear in it without these attributes, and unmounting it would unmount them too.
///
/// # Errors
/// [`Errno::INVAL`] if the file system does not support id-mapped mounts.
pub(super) fn set_attributes(mount: BorrowedFd<'_>, uids: Option<(u32, u32)>) -> anyhow::Result<()> {
    let namespace = uids.map(|(first, second)| swapped(first, second)).transpose()?;
    let mut attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    if let Some(namespace) = &namespace {
        attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = u64::try_from(namespace.as_raw_fd())?;
    }
    // SAFETY: both pointers are to values that live through the call, and the size is that of the second.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO).into()),
    }
}

/// Creates a user namespace that maps every id to itself, except that these two uids are swapped. No id stays unmapped,
/// because the kernel refuses to change or remove a file with an unmapped owner.
fn swapped(first: u32, second: u32) -> anyhow::Result<OwnedFd> {
    let (mut from_child, mut to_parent) = std::io::pipe()?;
    let (from_parent, to_child) = std::io::pipe()?;
    // SAFETY: the process has one thread, so the child may run ordinary code.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => {
            drop((from_child, to_child));
            // SAFETY: the process has one thread and shares nothing with another.
            let entered = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }.is_ok();
            // The parent may be gone.
            let _ = to_parent.write_all(&[u8::from(entered)]);
            // The child lives until the parent has opened the namespace.
            let _ = { from_parent }.read(&mut [0]);
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            drop((to_parent, from_parent));
            let mut entered = [0];
            from_child.read_exact(&mut entered)?;
            anyhow::ensure!(entered == [1], "the kernel refuses a user namespace (user.max_user_namespaces)");
            let proc = Path::new("/proc").join(child.to_string());
            fs::write(proc.join("uid_map"), swap_map(first, second)).context("cannot write the uid map")?;
            fs::write(proc.join("gid_map"), format!("0 0 {IDS_END}\n")).context("cannot write the gid map")?;
            let namespace = File::open(proc.join("ns/user"))?;
            drop(to_child);
            waitpid(child, None)?;
            Ok(namespace.into())
        }
    }
}

/// The lines of `uid_map`: `<id on the disk> <id in the mount> <how many>`.
fn swap_map(first: u32, second: u32) -> String {
    let (low, high) = (u64::from(first.min(second)), u64::from(first.max(second)));
    let extents = match low == high {
        true => vec![(0, 0, IDS_END)],
        false => vec![
            (0, 0, low),
            (low, high, 1),
            (low + 1, low + 1, high - low - 1),
            (high, low, 1),
            (high + 1, high + 1, IDS_END - high - 1),
        ],
    };
    let lines = extents.into_iter().filter(|(_, _, count)| *count > 0);
    lines.map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(lines: &str, id: u64) -> Option<u64> {
        lines.lines().find_map(|line| {
            let fields: Vec<u64> = line.split(' ').map(|field| field.parse().unwrap()).collect();
            (fields[0]..fields[0] + fields[2]).contains(&id).then(|| id - fields[0] + fields[1])
        })
    }

    proptest! {
        #[test]
        fn every_id_maps_to_itself_but_the_two(first in 0..u32::MAX, second in 0..u32::MAX, other in 0..u32::MAX) {
            let lines = swap_map(first, second);
            prop_assert_eq!(map(&lines, first.into()), Some(second.into()));
            prop_assert_eq!(map(&lines, second.into()), Some(first.into()));
            if other != first && other != second {
                prop_assert_eq!(map(&lines, other.into()), Some(other.into()));
            }
            prop_assert_eq!(map(&lines, IDS_END), None);
        }
    }

    #[test]
    fn the_ends_of_the_range_can_be_swapped() {
        assert_eq!(swap_map(0, 2), "0 2 1\n1 1 1\n2 0 1\n3 3 4294967292\n");
        assert_eq!(swap_map(7, 7), "0 0 4294967295\n");
        assert_eq!(swap_map(4_294_967_294, 0), "0 4294967294 1\n1 1 4294967293\n4294967294 0 1\n");
    }
}
