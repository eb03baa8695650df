//! Tests the file server on a real folder with FUSE messages.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use rustix::process::{Gid, Uid};
use virtiofsd::filesystem::FsOptions;
use virtiofsd::fuse::{
    Attr, CopyfilerangeIn, FallocateIn, FlushIn, FsyncIn, GetattrIn, InHeader, LseekIn, Opcode, OpenIn, OutHeader,
    ReadIn, SetattrIn,
};
use virtiofsd::soft_idmap::Id;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::fuse_client::{Broken, Client, HIGH_PRIORITY, REQUESTS, ROOT_ID, share, zero};
use crate::devices::conformance::{Request, Subject};
use crate::virtio::testing::panics;

/// The user id of the developer on the host, in these tests.
const OWNER: u32 = 4321;

/// A folder that belongs to the owner, and a file beside it that must never be accessed.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        fs::write(dir.path().join("canary"), "alive").unwrap();
        fs::set_permissions(dir.path().join("canary"), fs::Permissions::from_mode(0o666)).unwrap();
        Self { dir }
    }

    fn share(&self) -> std::path::PathBuf {
        self.dir.path().join("share")
    }

    fn check_outside(&self) {
        assert_eq!(fs::read_to_string(self.dir.path().join("canary")).unwrap(), "alive");
        let mut names: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["canary", "share"]);
    }
}

/// Runs `body` as the owner without any capability, as the VMM runs in its jail. A test that does not run as root
/// cannot become another user, and is then the owner itself.
fn as_owner(path: &Path, body: impl FnOnce(u32) + Send) {
    let root = rustix::process::geteuid().is_root();
    let owner = if root { OWNER } else { rustix::process::geteuid().as_raw() };
    if root {
        std::os::unix::fs::chown(path, Some(OWNER), Some(OWNER)).unwrap();
    }
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                if root {
                    // The ids of this thread only. When no id is 0 any more, the kernel drops the capabilities.
                    let (uid, gid) = (Uid::from_raw(OWNER), Gid::from_raw(OWNER));
                    rustix::thread::set_thread_groups(&[]).unwrap();
                    rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                }
                body(owner);
            })
            .join()
            .unwrap();
    });
}

/// The requests of the conformance suite: initialize, look up a missing name, and read the root's attributes.
pub(crate) fn subject() -> Subject {
    let message = |opcode: Opcode, node: u64, body: &[u8]| {
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader { len, opcode: opcode as u32, unique: 7, nodeid: node, ..InHeader::default() };
        [header.as_slice(), body].concat()
    };
    let flags = FsOptions::SUBMOUNTS.bits() as u32;
    let init = message(Opcode::Init, 0, &[7, 38, 1 << 17, flags].map(u32::to_le_bytes).concat());
    let lookup = message(Opcode::Lookup, ROOT_ID, b"missing\0");
    let attributes = message(Opcode::Getattr, ROOT_ID, GetattrIn::default().as_slice());
    let read = message(Opcode::Read, ROOT_ID, ReadIn { size: 100, ..ReadIn::default() }.as_slice());
    // Length, error, the request's number.
    fn answers(bytes: &[u8], len: u32, error: i32) -> bool {
        bytes.len() == len as usize
            && bytes[..4] == len.to_le_bytes()
            && bytes[4..8] == error.to_le_bytes()
            && bytes[8] == 7
    }
    Subject {
        build: || {
            let place = Place::new();
            (Box::new(super::new(0, &share(&place.share())).unwrap()), Box::new(place))
        },
        session: vec![
            Request::new(REQUESTS, &[&init], &[80], |bytes| answers(bytes, 80, 0)),
            Request::new(REQUESTS, &[&lookup], &[16, 128], |bytes| answers(bytes, 144, 0)),
            Request::new(REQUESTS, &[&read], &[116], |bytes| answers(bytes, 16, -libc::EBADF)),
            Request::new(REQUESTS, &[&attributes], &[120], |bytes| answers(bytes, 120, 0)),
        ],
    }
}

fn owner_of(attributes: &Attr) -> (u32, u32) {
    (attributes.uid.into_inner(), attributes.gid.into_inner())
}

#[test]
fn a_file_is_made_written_read_renamed_and_removed() {
    let place = Place::new();
    let mut client = Client::new(&place.share());
    let folder = client.mkdir(ROOT_ID, "src", 0o755).unwrap().nodeid;
    let (file, handle) = client.create(folder, "main.rs", 0o640).unwrap();
    assert_eq!(client.write(file.nodeid, handle, 0, b"fn main() {}").unwrap(), 12);
    assert_eq!(client.write(file.nodeid, handle, 5, b"s").unwrap(), 1);
    assert_eq!(client.read(file.nodeid, handle, 3, 100).unwrap(), b"masn() {}");
    assert_eq!(client.read(file.nodeid, handle, 100, 10).unwrap(), b"");
    let sync = FsyncIn { fh: handle, ..FsyncIn::default() };
    client.call(Opcode::Fsync, file.nodeid, &[sync.as_slice()], 0).unwrap();
    client.release(file.nodeid, handle).unwrap();
    assert_eq!(fs::read_to_string(place.share().join("src/main.rs")).unwrap(), "fn masn() {}");
    assert_eq!(fs::metadata(place.share().join("src/main.rs")).unwrap().mode() & 0o7777, 0o640);

    client.rename(folder, "main.rs", ROOT_ID, "lib.rs", 0).unwrap();
    assert_eq!(client.lookup(ROOT_ID, "lib.rs").unwrap().nodeid, file.nodeid, "the same file by another name");
    client.link(file.nodeid, folder, "again.rs").unwrap();
    assert_eq!(fs::metadata(place.share().join("lib.rs")).unwrap().nlink(), 2);
    client.unlink(ROOT_ID, "lib.rs").unwrap();
    client.unlink(folder, "again.rs").unwrap();
    client.rmdir(ROOT_ID, "src").unwrap();
    assert_eq!(fs::read_dir(place.share()).unwrap().count(), 0);
}

#[test]
fn a_missing_name_may_be_remembered_as_long_as_any_other() {
    let place = Place::new();
    let mut client = Client::new(&place.share());
    let missing = client.lookup(ROOT_ID, "later").unwrap();
    assert_eq!((missing.nodeid, missing.entry_valid, missing.entry_valid_nsec), (0, 0, 500_000_000));
    fs::write(place.share().join("later"), "x").unwrap();
    let there = client.lookup(ROOT_ID, "later").unwrap();
    assert_eq!((there.entry_valid, there.entry_valid_nsec, there.attr_valid_nsec), (0, 500_000_000, 500_000_000));
    assert_eq!(there.attr.size, 1);
}

#[test]
fn only_what_was_written_is_flushed() {
    let place = Place::new();
    fs::write(place.share().join("file"), "x").unwrap();
    let mut client = Client::new(&place.share());
    let node = client.walk("file");
    for (flags, noflush) in [(libc::O_RDONLY, 1 << 5), (libc::O_WRONLY, 0), (libc::O_RDWR, 0)] {
        let body = OpenIn { flags: flags as u32, open_flags: 0 };
        let answer = client.call(Opcode::Open, node, &[body.as_slice()], 16).unwrap();
        assert_eq!(u32::from_le_bytes(answer[8..12].try_into().unwrap()), noflush);
    }
}

#[test]
fn a_folder_is_listed_whole() {
    let place = Place::new();
    let mut expected: Vec<String> = (0..300).map(|n| format!("file-{n}")).collect();
    for name in &expected {
        fs::write(place.share().join(name), name).unwrap();
    }
    let config = garret_api::vmm::ShareConfig { fd_limit: 1000, ..share(&place.share()) };
    let mut client = Client::silent(&config);
    client.init().unwrap();
    let listed = client.list(ROOT_ID).unwrap();
    expected.extend([".".into(), "..".into()]);
    expected.sort();
    assert_eq!(listed.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), expected);
    for (name, node) in listed.into_iter().filter(|(name, _)| !name.starts_with('.')) {
        assert_eq!(client.getattr(node).unwrap().size as usize, name.len());
    }
}

#[test]
fn names_do_not_leave_the_share() {
    let place = Place::new();
    let mut client = Client::new(&place.share());
    let inside = client.create(ROOT_ID, "inside", 0o600).unwrap().0.nodeid;
    let outside = place.dir.path().join("canary").display().to_string();
    for name in ["..", ".", "", "../canary", "../new", &outside, "inside/../../canary", "a/b"] {
        let refused = [
            client.lookup(ROOT_ID, name).err(),
            client.create(ROOT_ID, name, 0o600).err(),
            client.mkdir(ROOT_ID, name, 0o700).err(),
            client.mknod(ROOT_ID, name, libc::S_IFREG | 0o600, 0).err(),
            client.symlink(ROOT_ID, name, "x").err(),
            client.link(inside, ROOT_ID, name).err(),
            client.unlink(ROOT_ID, name).err(),
            client.rmdir(ROOT_ID, name).err(),
            client.rename(ROOT_ID, "inside", ROOT_ID, name, 0).err(),
            client.rename(ROOT_ID, name, ROOT_ID, "stolen", 0).err(),
            client.rename(ROOT_ID, "inside", ROOT_ID, name, libc::RENAME_EXCHANGE).err(),
        ];
        assert_eq!(refused, [Some(libc::EINVAL); 11], "{name:?}");
    }
    place.check_outside();
}

#[test]
fn symlinks_are_never_followed_on_the_host() {
    let place = Place::new();
    symlink("../canary", place.share().join("relative")).unwrap();
    symlink(place.dir.path().join("canary"), place.share().join("absolute")).unwrap();
    symlink("..", place.share().join("up")).unwrap();
    let mut client = Client::new(&place.share());
    for name in ["relative", "absolute"] {
        let link = client.lookup(ROOT_ID, name).unwrap();
        assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(client.open(link.nodeid, libc::O_RDWR), Err(libc::EBADF));
        assert_eq!(client.open(link.nodeid, libc::O_RDWR | libc::O_TRUNC), Err(libc::EBADF));
        assert!(client.create(ROOT_ID, name, 0o666).is_err());
        let size = SetattrIn { valid: 8, size: 0, ..SetattrIn::default() };
        assert!(client.setattr(link.nodeid, size).is_err());
        assert!(client.chmod(link.nodeid, 0o000).is_err(), "a link has no mode");
    }
    let up = client.walk("up");
    assert!(client.lookup(up, "canary").is_err());
    assert!(client.create(up, "new", 0o600).is_err());
    assert_eq!(client.readlink(up).unwrap(), "..");
    client.symlink(ROOT_ID, "etc", "/etc").unwrap();
    let etc = client.walk("etc");
    assert!(client.lookup(etc, "passwd").is_err());
    place.check_outside();
    let mode = fs::metadata(place.dir.path().join("canary")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o666);
}

#[test]
fn files_of_every_guest_user_are_the_developers() {
    let place = Place::new();
    as_owner(&place.share(), |owner| {
        let mut client = Client::new(&place.share());
        for uid in [0, 999, 1000, 1_000_000] {
            client.uid = uid;
            let folder = client.mkdir(ROOT_ID, &format!("folder-{uid}"), 0o755).unwrap();
            let (file, _) = client.create(folder.nodeid, "file", 0o644).unwrap();
            let link = client.symlink(folder.nodeid, "link", "file").unwrap();
            for (entry, name) in [(folder, ""), (file, "/file"), (link, "/link")] {
                assert_eq!(owner_of(&entry.attr), (1000, 1000));
                let path = place.share().join(format!("folder-{uid}{name}"));
                let metadata = fs::symlink_metadata(path).unwrap();
                assert_eq!((metadata.uid(), metadata.gid()), (owner, owner));
            }
        }
    });
}

#[test]
fn a_chown_succeeds_and_changes_nothing() {
    let place = Place::new();
    as_owner(&place.share(), |owner| {
        let mut client = Client::new(&place.share());
        let file = client.create(ROOT_ID, "file", 0o644).unwrap().0.nodeid;
        let link = client.symlink(ROOT_ID, "link", "file").unwrap().nodeid;
        for (uid, gid) in [(Some(0), Some(0)), (Some(999), None), (None, Some(33)), (Some(1000), Some(1000))] {
            for node in [file, link] {
                let attr = client.chown(node, uid, gid).unwrap();
                assert_eq!(owner_of(&attr), (1000, 1000));
            }
        }
        assert_eq!(fs::metadata(place.share().join("file")).unwrap().uid(), owner);
    });
}

#[test]
fn files_of_others_are_nobodys_and_stay_theirs() {
    let place = Place::new();
    fs::write(place.share().join("theirs"), "untouched").unwrap();
    let theirs = fs::metadata(place.share().join("theirs")).unwrap().uid();
    as_owner(&place.share(), |owner| {
        if owner == theirs {
            return; // Not root: there is no other user whose file could lie here.
        }
        let mut client = Client::new(&place.share());
        let entry = client.lookup(ROOT_ID, "theirs").unwrap();
        assert_eq!(owner_of(&entry.attr), (65534, 65534));
        assert_eq!(client.chown(entry.nodeid, Some(0), None).err(), Some(libc::EPERM));
        assert_eq!(client.chown(entry.nodeid, None, Some(0)).err(), Some(libc::EPERM));
        assert_eq!(client.chmod(entry.nodeid, 0o777).err(), Some(libc::EPERM));
        assert_eq!(client.open(entry.nodeid, libc::O_RDWR).err(), Some(libc::EACCES));
        assert!(client.open(entry.nodeid, libc::O_RDONLY).is_ok());
    });
    assert_eq!(fs::read_to_string(place.share().join("theirs")).unwrap(), "untouched");
}

#[test]
fn no_file_takes_anothers_identity() {
    let place = Place::new();
    let mut client = Client::new(&place.share());
    let mode = |name: &str| fs::metadata(place.share().join(name)).unwrap().mode() & 0o7777;
    let file = client.create(ROOT_ID, "created", 0o6755).unwrap().0.nodeid;
    client.mknod(ROOT_ID, "node", libc::S_IFREG | 0o6755, 0).unwrap();
    assert_eq!((mode("created"), mode("node")), (0o755, 0o755));
    for kind in [0, libc::S_IFREG, libc::S_IFDIR] {
        let attr = client.chmod(file, kind | 0o6711).unwrap();
        assert_eq!((attr.mode & 0o7777, mode("created")), (0o711, 0o711), "told it was {kind:o}");
    }
    let folder = client.mkdir(ROOT_ID, "folder", 0o6755).unwrap().nodeid;
    client.chmod(folder, libc::S_IFDIR | 0o7770).unwrap();
    assert_eq!(mode("folder"), 0o3770, "a folder's group and sticky bits are no identity");
}

#[test]
fn there_are_no_device_nodes() {
    let place = Place::new();
    let mut client = Client::new(&place.share());
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, libc::S_IFLNK, libc::S_IFMT] {
        assert_eq!(client.mknod(ROOT_ID, "node", kind | 0o666, 0x0103).err(), Some(libc::EPERM), "{kind:o}");
    }
    client.create(ROOT_ID, "file", 0o600).unwrap();
    let whiteout = client.rename(ROOT_ID, "file", ROOT_ID, "moved", libc::RENAME_WHITEOUT);
    assert_eq!(whiteout, Err(libc::EINVAL));
    for kind in [libc::S_IFIFO, libc::S_IFSOCK] {
        let node = client.mknod(ROOT_ID, &format!("{kind:o}"), kind | 0o600, 0).unwrap().nodeid;
        // Opening a pipe could block a thread forever.
        assert_eq!(client.open(node, libc::O_RDONLY), Err(libc::EBADF));
    }
}

#[test]
fn open_files_of_the_guest_are_bounded_and_returned() {
    let place = Place::new();
    fs::write(place.share().join("file"), "").unwrap();
    let mut client = Client::silent(&garret_api::vmm::ShareConfig { fd_limit: 8, ..share(&place.share()) });
    client.init().unwrap();
    let node = client.walk("file");
    let handles: Vec<u64> = (0..6).map(|_| client.open(node, libc::O_RDONLY).unwrap()).collect();
    assert_eq!(client.open(node, libc::O_RDONLY), Err(libc::ENFILE));
    client.release(node, handles[0]).unwrap();
    client.open(node, libc::O_RDONLY).unwrap();
    client.forget(node, 1);
    assert_eq!(client.getattr(node).err(), Some(libc::EBADF));

    // After another FUSE_INIT, no file is open.
    client.init().unwrap();
    assert_eq!(client.release(node, handles[1]), Err(libc::EBADF));
    let node = client.walk("file");
    for _ in 0..6 {
        client.open(node, libc::O_RDONLY).unwrap();
    }
}

#[test]
fn created_and_removed_folders_are_seen() {
    let place = Place::new();
    let mut client = Client::new(&place.share());
    assert_eq!(client.lookup(ROOT_ID, "workspace").unwrap().nodeid, 0);
    fs::create_dir(place.share().join("workspace")).unwrap();
    fs::write(place.share().join("workspace/file"), "x").unwrap();
    let node = client.walk("workspace/file");
    assert_eq!(client.getattr(node).unwrap().size, 1);
    fs::remove_dir_all(place.share().join("workspace")).unwrap();
    assert_eq!(client.lookup(ROOT_ID, "workspace").unwrap().nodeid, 0);
    // The folder itself may be moved on the host: the opened folder is still served.
    fs::rename(place.share(), place.dir.path().join("moved")).unwrap();
    client.init().unwrap();
    client.create(ROOT_ID, "still", 0o600).unwrap();
    assert!(place.dir.path().join("moved/still").exists());
}

#[test]
fn answers_without_room_are_faults_not_panics() {
    panics("fs");
    let place = Place::new();
    let mut client = Client::new(&place.share());
    let (file, fh) = client.create(ROOT_ID, "file", 0o600).unwrap();
    for opcode in [Opcode::Read, Opcode::Readdir, Opcode::Readdirplus, Opcode::Getattr, Opcode::Lookup] {
        for room in 0..size_of::<OutHeader>() {
            let body = ReadIn { fh, size: 0, ..ReadIn::default() };
            let message = client.message(opcode, file.nodeid, &[body.as_slice()]);
            assert_eq!(client.exchange(&message, room), Err(Broken), "{opcode:?} {room}");
            assert_eq!(panics("fs"), 0, "{opcode:?} {room}");
            client.restart();
        }
    }
}

#[test]
fn numbers_beyond_all_files_are_errors_not_panics() {
    let place = Place::new();
    let mut client = Client::new(&place.share());
    let (file, fh) = client.create(ROOT_ID, "file", 0o600).unwrap();
    for offset in [u64::MAX, i64::MAX as u64 + 1, i64::MAX as u64, i64::MAX as u64 - 1] {
        assert_eq!(client.write(file.nodeid, fh, offset, b"xx"), Err(libc::EINVAL), "{offset}");
        assert_eq!(client.read(file.nodeid, fh, offset, 2), Err(libc::EINVAL), "{offset}");
    }
    let size = SetattrIn { valid: 8, size: u64::MAX, ..SetattrIn::default() };
    assert_eq!(client.setattr(file.nodeid, size).err(), Some(libc::EINVAL));
}

#[test]
fn an_old_protocol_or_no_submounts_is_refused() {
    let place = Place::new();
    let mut client = Client::silent(&share(&place.share()));
    let init = |minor: u32, flags: u32| [7, minor, 1 << 17, flags].map(u32::to_le_bytes).concat();
    assert_eq!(client.call(Opcode::Init, 0, &[&init(38, 0)], 64).err(), Some(libc::EPROTO));
    assert_eq!(client.call(Opcode::Init, 0, &[&init(5, 0)], 64).err(), Some(libc::EPROTO));
    assert_eq!(client.getattr(ROOT_ID).err(), Some(libc::EBADF), "nothing is served before it began");
    client.init().unwrap();
    client.getattr(ROOT_ID).unwrap();
}

/// Any message: an existing or unknown operation, a node and a handle that may exist, and any bytes.
fn messages() -> impl Strategy<Value = Vec<(u32, u64, i32, Vec<u8>, usize)>> {
    let name = prop_oneof![Just(zero("a")), Just(zero("file")), Just(zero("..")), Just(b"a/b\0c\0".to_vec())];
    let numbers = prop::collection::vec(
        prop_oneof![0u64..4, Just(u64::MAX), Just(i64::MAX as u64), any::<u64>()].prop_map(u64::to_le_bytes),
        0..12,
    );
    let body = (numbers, prop::option::of(name))
        .prop_map(|(numbers, name)| [numbers.concat(), name.unwrap_or_default()].concat());
    let room = prop_oneof![0usize..64, Just(16 + 4096), Just(200_000usize)];
    prop::collection::vec((0u32..56, 0u64..5, prop_oneof![Just(0), -80i32..80], body, room), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn no_message_makes_the_server_panic_or_reach_outside(messages in messages()) {
        panics("fs");
        let place = Place::new();
        fs::write(place.share().join("file"), "x").unwrap();
        let mut client = Client::new(&place.share());
        client.walk("file");
        client.create(ROOT_ID, "other", 0o600).unwrap();
        for (opcode, node, lie, body, room) in messages {
            let mut message = client.message(Opcode::Getattr, node, &[&body]);
            let len = (message.len() as i32 + lie).max(0) as u32;
            message[..4].copy_from_slice(&len.to_le_bytes());
            message[4..8].copy_from_slice(&opcode.to_le_bytes());
            if client.exchange(&message, room) == Err(Broken) {
                client.restart();
            }
            prop_assert_eq!(panics("fs"), 0, "operation {}", opcode);
        }
        place.check_outside();
    }
}

/// Holds a write lease on a file until it is dropped, so that an open of the file blocks. It simulates a disk that does
/// not respond, for as long as a test needs.
struct Lease {
    _file: fs::File,
}

impl Lease {
    #[allow(unsafe_code, reason = "leases have no safe wrapper")]
    fn take(path: &Path) -> Self {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        // SAFETY: only plain integers are passed. The signal has no effect by default; it replaces SIGIO, which would
        // kill.
        let taken = unsafe {
            libc::fcntl(file.as_raw_fd(), 10 /* F_SETSIG */, libc::SIGURG) == 0
                && libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0
        };
        assert!(taken, "{}", std::io::Error::last_os_error());
        Self { _file: file }
    }
}

/// A rig whose guest waits for an open that blocks.
fn stalled(place: &Place) -> (Client, Lease, u16) {
    fs::write(place.share().join("slow"), "x").unwrap();
    let mut client = Client::new(&place.share());
    let slow = client.walk("slow");
    let lease = Lease::take(&place.share().join("slow"));
    let body = OpenIn { flags: libc::O_RDONLY as u32, open_flags: 0 };
    let open = client.message(Opcode::Open, slow, &[body.as_slice()]);
    let look = client.message(Opcode::Getattr, ROOT_ID, &[GetattrIn::default().as_slice()]);
    // The device sees both requests at once: the ring's own thread would serve an open with no request behind it.
    let states = client.rig.stop();
    let (head, next) = (client.offer(&open, 64), client.offer(&look, 256));
    client.rig.resume(states);
    assert_eq!(client.rig.queues[REQUESTS].wait_used().head, next);
    (client, lease, head)
}

#[test]
fn a_slow_request_stalls_no_other() {
    let place = Place::new();
    let (mut client, lease, head) = stalled(&place);
    // Requests for names, attributes and data of other files are still served: every answer belongs to another request.
    let (file, handle) = client.create(ROOT_ID, "quick", 0o600).unwrap();
    assert_eq!(client.write(file.nodeid, handle, 0, b"data").unwrap(), 4);
    assert_eq!(client.read(file.nodeid, handle, 0, 4).unwrap(), b"data");
    assert_eq!(client.list(ROOT_ID).unwrap().len(), 4);
    drop(lease);
    assert_eq!(client.rig.queues[REQUESTS].wait_used().head, head);
}

/// A second processor changes a request that waits for a thread: the server gets the request that the device has
/// checked.
#[test]
fn a_request_changed_after_it_was_judged_is_the_judged_one() {
    panics("fs");
    let place = Place::new();
    fs::write(place.share().join("slow"), "x").unwrap();
    let mut client = Client::new(&place.share());
    let slow = client.walk("slow");
    let lease = Lease::take(&place.share().join("slow"));
    let body = OpenIn { flags: libc::O_RDONLY as u32, open_flags: 0 };
    let threads = super::THREADS_PER_QUEUE + super::THREADS_MORE;
    let opens: Vec<_> = (0..threads).map(|_| client.message(Opcode::Open, slow, &[body.as_slice()])).collect();
    let forget = client.message(Opcode::Forget, slow, &[&1_u64.to_le_bytes()]);
    let look = client.message(Opcode::Getattr, ROOT_ID, &[GetattrIn::default().as_slice()]);
    let states = client.rig.stop();
    for open in &opens {
        client.offer(open, 64);
    }
    let forgotten = client.rig.queues[REQUESTS].add(&[forget], &[]);
    let looked = client.offer(&look, 256);
    client.rig.resume(states);
    assert_eq!(client.rig.queues[REQUESTS].wait_used().head, looked);
    // All threads wait. A forget has no room for an answer, which a listing would need.
    let queue = &client.rig.queues[REQUESTS];
    let listing = (Opcode::Readdirplus as u32).to_le_bytes();
    queue.mem.write_slice(&listing, GuestAddress(queue.buffer(forgotten) + 4)).unwrap();
    drop(lease);
    let answers: Vec<_> = (0..=threads).map(|_| client.rig.queues[REQUESTS].wait_used()).collect();
    assert!(answers.iter().any(|answer| answer.head == forgotten && answer.bytes.is_empty()), "{answers:?}");
    assert_eq!((panics("fs"), client.rig.is_broken()), (0, false));
    client.getattr(ROOT_ID).unwrap();
}

#[test]
fn stop_waits_for_a_slow_request_until_its_deadline() {
    let place = Place::new();
    let (mut client, lease, head) = stalled(&place);
    assert!(client.rig.device.stop(Duration::from_millis(1)).is_err());
    drop(lease);
    let states = client.rig.stop();
    assert_eq!(client.rig.queues[REQUESTS].wait_used().head, head, "it was answered before the rings came back");
    // Open files stay open over a pause.
    client.rig.resume(states);
    client.getattr(ROOT_ID).unwrap();
}

#[test]
fn after_a_reset_nothing_is_served_before_init() {
    let place = Place::new();
    fs::write(place.share().join("file"), "x").unwrap();
    let config = garret_api::vmm::ShareConfig { queues: 3, ..share(&place.share()) };
    let mut client = Client::silent(&config);
    for round in 0..30 {
        // A driver may begin on any queue before the workers of the others have started.
        client.queue = REQUESTS + round % 3;
        client.init().unwrap();
        client.queue = REQUESTS + (round + 1) % 3;
        let node = client.walk("file");
        let states = client.rig.stop();
        client.rig.resume(states);
        client.getattr(node).unwrap();
        client.rig.stop();
        client.rig.start();
        if round % 2 == 0 {
            assert_eq!(client.getattr(node).err(), Some(libc::EBADF));
        }
    }
}

#[test]
fn every_queue_is_served() {
    let place = Place::new();
    let config = garret_api::vmm::ShareConfig { queues: 3, ..share(&place.share()) };
    let mut client = Client::silent(&config);
    client.init().unwrap();
    let mut space = [0; 40];
    client.rig.device.identity().config.read(0, &mut space);
    assert_eq!(space[..2], *b"t\0");
    assert_eq!(space[36..], 3u32.to_le_bytes());
    for queue in REQUESTS..REQUESTS + 3 {
        client.queue = queue;
        let folder = client.mkdir(ROOT_ID, &format!("{queue}"), 0o755).unwrap().nodeid;
        client.create(folder, "file", 0o644).unwrap();
    }
    client.queue = HIGH_PRIORITY;
    client.forget(99, 1);
    assert!((1..=3).all(|queue| place.share().join(format!("{queue}/file")).exists()));
}

/// Requests that the tests above do not send. A system call missing in the role's filter ends the process.
#[test]
fn the_rarer_operations_work() {
    let place = Place::new();
    let mut client = Client::new(&place.share());
    let (file, fh) = client.create(ROOT_ID, "file", 0o600).unwrap();
    let (copy, copy_fh) = client.create(ROOT_ID, "copy", 0o600).unwrap();
    let node = file.nodeid;
    client.write(node, fh, 0, b"0123456789").unwrap();

    let space = FallocateIn { fh, offset: 0, length: 100, mode: 0, padding: 0 };
    client.call(Opcode::Fallocate, node, &[space.as_slice()], 0).unwrap();
    assert_eq!(client.getattr(node).unwrap().size, 100);
    let seek = LseekIn { fh, offset: 50, whence: libc::SEEK_DATA as u32, padding: 0 };
    client.call(Opcode::Lseek, node, &[seek.as_slice()], 8).unwrap();
    let range =
        CopyfilerangeIn { fh_in: fh, nodeid_out: copy.nodeid, fh_out: copy_fh, len: 10, ..CopyfilerangeIn::default() };
    client.call(Opcode::CopyFileRange, node, &[range.as_slice()], 8).unwrap();
    assert_eq!(client.read(copy.nodeid, copy_fh, 0, 20).unwrap(), b"0123456789");

    // Truncate by handle and by name; set times by handle and by name.
    for handle in [Some(fh), None] {
        let of_handle = handle.map_or(0, |_| 1 << 6);
        let size = SetattrIn { valid: 8 | of_handle, fh: handle.unwrap_or(0), size: 5, ..SetattrIn::default() };
        assert_eq!(client.setattr(node, size).unwrap().size, 5);
        let times = SetattrIn { valid: 0x30 | of_handle, fh: handle.unwrap_or(0), mtime: 77, ..SetattrIn::default() };
        assert_eq!(client.setattr(node, times).unwrap().mtime, 77);
        let mode = SetattrIn { valid: 1 | of_handle, fh: handle.unwrap_or(0), mode: 0o640, ..SetattrIn::default() };
        assert_eq!(client.setattr(node, mode).unwrap().mode & 0o7777, 0o640);
    }
    let sync = FsyncIn { fh, fsync_flags: 1, padding: 0 };
    client.call(Opcode::Fsync, node, &[sync.as_slice()], 0).unwrap();
    let flush = FlushIn { fh, ..FlushIn::default() };
    client.call(Opcode::Flush, node, &[flush.as_slice()], 0).unwrap();
    client.call(Opcode::Syncfs, ROOT_ID, &[&[0; 8]], 0).unwrap();
    client.call(Opcode::Statfs, ROOT_ID, &[], 80).unwrap();
    client.call(Opcode::Access, node, &[&[4, 0, 0, 0, 0, 0, 0, 0]], 0).unwrap();
    let folder = client.call(Opcode::Opendir, ROOT_ID, &[&[0; 8]], 16).unwrap();
    let sync = FsyncIn { fh: u64::from_le_bytes(folder[..8].try_into().unwrap()), ..FsyncIn::default() };
    client.call(Opcode::Fsyncdir, ROOT_ID, &[sync.as_slice()], 0).unwrap();
    client.call(Opcode::Removexattr, node, &[&zero("user.a")], 0).expect_err("there are no attributes");
    for opcode in [Opcode::Getxattr, Opcode::Listxattr, Opcode::Setlk, Opcode::Ioctl, Opcode::TmpFile] {
        let body = [&4u64.to_le_bytes()[..], &zero("user.a")].concat();
        assert_eq!(client.call(opcode, node, &[&body], 64).err(), Some(libc::ENOSYS), "{opcode:?}");
    }
    let message = client.message(Opcode::Destroy, 0, &[]);
    assert_eq!(client.exchange(&message, 16).unwrap(), b"");
    client.init().unwrap();
}

#[test]
fn a_bad_configuration_is_one_clear_line() {
    let place = Place::new();
    let good = share(&place.share());
    let with = |change: fn(&mut garret_api::vmm::ShareConfig)| {
        let mut config = good.clone();
        change(&mut config);
        super::new(0, &config).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let missing = "share t: cannot open the folder /missing: No such file or directory (os error 2)";
    assert_eq!(with(|config| config.path = "/missing".into()), missing);
    let file = "share t: cannot open the folder /proc/version: Not a directory (os error 20)";
    assert_eq!(with(|config| config.path = "/proc/version".into()), file);
    for queues in [0, 9] {
        let mut config = good.clone();
        config.queues = queues;
        let error = super::new(0, &config).err().unwrap().to_string();
        assert_eq!(error, format!("share t: there can be 1 to 8 queues, not {queues}"));
    }
    assert!(with(|config| config.tag = String::new()).ends_with("a tag has 1 to 36 bytes and none of them is zero"));
    assert!(with(|config| config.tag = "x".repeat(37)).contains("a tag has 1 to 36 bytes"));
    assert!(with(|config| config.fd_limit = u64::MAX).contains("raise RLIMIT_NOFILE or lower fd_limit"));
}
