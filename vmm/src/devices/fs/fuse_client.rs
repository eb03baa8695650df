//! A FUSE client for tests: builds real messages, writes them into guest memory as descriptor chains, and reads the
//! answers.

use std::path::Path;

use garret_api::vmm::ShareConfig;
use virtiofsd::filesystem::FsOptions;
use virtiofsd::fuse::*;
use virtiofsd::soft_idmap::{GuestGid, GuestUid};
use vm_memory::ByteValued;

use crate::virtio::testing::{BUFFER, Rig};

/// The queue for forget requests.
pub(super) const HIGH_PRIORITY: usize = 0;
/// The first request queue.
pub(super) const REQUESTS: usize = 1;

/// An error number of the answer.
pub(super) type Errno = i32;

/// The device asked for a reset in place of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

pub(super) fn share(path: &Path) -> ShareConfig {
    ShareConfig { tag: "t".into(), path: path.to_owned(), queues: 1, staleness_ms: 500, guest_id: 1000, fd_limit: 200 }
}

pub(super) struct Client {
    pub rig: Rig,
    unique: u64,
    /// The queue for requests.
    pub queue: usize,
    /// The user id of the requests.
    pub uid: u32,
}

impl Client {
    /// A client of a device for `path`, after FUSE_INIT.
    pub(super) fn new(path: &Path) -> Self {
        let mut client = Self::silent(&share(path));
        client.init().unwrap();
        client
    }

    /// A client that has not sent FUSE_INIT.
    pub(super) fn silent(config: &ShareConfig) -> Self {
        let mut rig = Rig::new(Box::new(super::new(0, config).unwrap()));
        rig.start();
        Self { rig, unique: 0, queue: REQUESTS, uid: 0 }
    }

    /// Restarts like a driver after a fault.
    pub(super) fn restart(&mut self) {
        self.rig.stop();
        self.rig.start();
        self.init().unwrap();
    }

    /// Offers one chain with these readable bytes, divided in two, and room for `room` bytes.
    pub(super) fn offer(&mut self, message: &[u8], room: usize) -> u16 {
        let (front, rest) = message.split_at(message.len() / 3);
        let readable: Vec<Vec<u8>> =
            [front, rest].into_iter().filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect();
        let whole = room / BUFFER as usize;
        let mut writable = vec![BUFFER; whole];
        writable.extend(Some((room % BUFFER as usize) as u32).filter(|len| *len > 0));
        let queue = &mut self.rig.queues[self.queue];
        let head = queue.add(&readable, &writable);
        queue.kick();
        head
    }

    /// Sends one message and returns the answer.
    pub(super) fn exchange(&mut self, message: &[u8], room: usize) -> Result<Vec<u8>, Broken> {
        let head = self.offer(message, room);
        let interrupt = self.rig.device.config_interrupt().clone();
        let answer = self.rig.queues[self.queue].wait_used_unless(|| interrupt.is_reset_needed()).ok_or(Broken)?;
        assert_eq!(answer.head, head);
        Ok(answer.bytes)
    }

    pub(super) fn message(&mut self, opcode: Opcode, node: u64, body: &[&[u8]]) -> Vec<u8> {
        self.unique += 1;
        let len = size_of::<InHeader>() + body.iter().map(|part| part.len()).sum::<usize>();
        let header = InHeader {
            len: len as u32,
            opcode: opcode as u32,
            unique: self.unique,
            nodeid: node,
            uid: GuestUid::from(self.uid),
            gid: GuestGid::from(self.uid),
            ..InHeader::default()
        };
        [&[header.as_slice()], body].concat().concat()
    }

    pub(super) fn call(&mut self, opcode: Opcode, node: u64, body: &[&[u8]], room: usize) -> Result<Vec<u8>, Errno> {
        let message = self.message(opcode, node, body);
        let answer = self.exchange(&message, size_of::<OutHeader>() + room).unwrap();
        let header: OutHeader = object(&answer);
        assert_eq!(header.unique, self.unique);
        assert_eq!(header.len as usize, answer.len());
        if header.error == 0 { Ok(answer[size_of::<OutHeader>()..].to_vec()) } else { Err(-header.error) }
    }

    fn entry(&mut self, opcode: Opcode, node: u64, body: &[&[u8]]) -> Result<EntryOut, Errno> {
        self.call(opcode, node, body, size_of::<EntryOut>()).map(|bytes| object(&bytes))
    }

    pub(super) fn init(&mut self) -> Result<InitOut, Errno> {
        let capable = FsOptions::all().bits();
        let first = InitInCompat { major: 7, minor: 38, max_readahead: 1 << 17, flags: capable as u32 };
        let rest = InitInExt { flags2: (capable >> 32) as u32, unused: [0; 11] };
        self.call(Opcode::Init, 0, &[first.as_slice(), rest.as_slice()], size_of::<InitOut>())
            .map(|bytes| object(&bytes))
    }

    pub(super) fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, Errno> {
        self.entry(Opcode::Lookup, parent, &[&zero(name)])
    }

    /// The node of a path below the root.
    pub(super) fn walk(&mut self, path: &str) -> u64 {
        path.split('/').fold(ROOT_ID, |node, name| self.lookup(node, name).unwrap().nodeid)
    }

    pub(super) fn mkdir(&mut self, parent: u64, name: &str, mode: u32) -> Result<EntryOut, Errno> {
        self.entry(Opcode::Mkdir, parent, &[MkdirIn { mode, umask: 0 }.as_slice(), &zero(name)])
    }

    pub(super) fn mknod(&mut self, parent: u64, name: &str, mode: u32, rdev: u32) -> Result<EntryOut, Errno> {
        self.entry(Opcode::Mknod, parent, &[MknodIn { mode, rdev, umask: 0, padding: 0 }.as_slice(), &zero(name)])
    }

    pub(super) fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Result<EntryOut, Errno> {
        self.entry(Opcode::Symlink, parent, &[&zero(name), &zero(target)])
    }

    pub(super) fn link(&mut self, node: u64, parent: u64, name: &str) -> Result<EntryOut, Errno> {
        self.entry(Opcode::Link, parent, &[LinkIn { oldnodeid: node }.as_slice(), &zero(name)])
    }

    pub(super) fn create(&mut self, parent: u64, name: &str, mode: u32) -> Result<(EntryOut, u64), Errno> {
        let body = CreateIn { flags: libc::O_RDWR as u32, mode, umask: 0, open_flags: 0 };
        let room = size_of::<EntryOut>() + size_of::<OpenOut>();
        let bytes = self.call(Opcode::Create, parent, &[body.as_slice(), &zero(name)], room)?;
        let open: OpenOut = object(&bytes[size_of::<EntryOut>()..]);
        Ok((object(&bytes), open.fh))
    }

    pub(super) fn open(&mut self, node: u64, flags: i32) -> Result<u64, Errno> {
        let body = OpenIn { flags: flags as u32, open_flags: 0 };
        let bytes = self.call(Opcode::Open, node, &[body.as_slice()], size_of::<OpenOut>())?;
        Ok(object::<OpenOut>(&bytes).fh)
    }

    pub(super) fn release(&mut self, node: u64, fh: u64) -> Result<(), Errno> {
        let body = ReleaseIn { fh, ..ReleaseIn::default() };
        self.call(Opcode::Release, node, &[body.as_slice()], 0).map(drop)
    }

    pub(super) fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let body = ReadIn { fh, offset, size, ..ReadIn::default() };
        self.call(Opcode::Read, node, &[body.as_slice()], size as usize)
    }

    pub(super) fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let body = WriteIn { fh, offset, size: data.len() as u32, ..WriteIn::default() };
        let bytes = self.call(Opcode::Write, node, &[body.as_slice(), data], size_of::<WriteOut>())?;
        Ok(object::<WriteOut>(&bytes).size)
    }

    pub(super) fn getattr(&mut self, node: u64) -> Result<Attr, Errno> {
        let bytes = self.call(Opcode::Getattr, node, &[GetattrIn::default().as_slice()], size_of::<AttrOut>())?;
        Ok(object::<AttrOut>(&bytes).attr)
    }

    pub(super) fn setattr(&mut self, node: u64, body: SetattrIn) -> Result<Attr, Errno> {
        let bytes = self.call(Opcode::Setattr, node, &[body.as_slice()], size_of::<AttrOut>())?;
        Ok(object::<AttrOut>(&bytes).attr)
    }

    pub(super) fn chmod(&mut self, node: u64, mode: u32) -> Result<Attr, Errno> {
        self.setattr(node, SetattrIn { valid: FATTR_MODE, mode, ..SetattrIn::default() })
    }

    pub(super) fn chown(&mut self, node: u64, uid: Option<u32>, gid: Option<u32>) -> Result<Attr, Errno> {
        let valid = uid.map_or(0, |_| FATTR_UID) | gid.map_or(0, |_| FATTR_GID);
        let (uid, gid) = (uid.unwrap_or(0).into(), gid.unwrap_or(0).into());
        self.setattr(node, SetattrIn { valid, uid, gid, ..SetattrIn::default() })
    }

    pub(super) fn rename(&mut self, from: u64, name: &str, to: u64, new: &str, flags: u32) -> Result<(), Errno> {
        let body = Rename2In { newdir: to, flags, padding: 0 };
        self.call(Opcode::Rename2, from, &[body.as_slice(), &zero(name), &zero(new)], 0).map(drop)
    }

    pub(super) fn unlink(&mut self, parent: u64, name: &str) -> Result<(), Errno> {
        self.call(Opcode::Unlink, parent, &[&zero(name)], 0).map(drop)
    }

    pub(super) fn rmdir(&mut self, parent: u64, name: &str) -> Result<(), Errno> {
        self.call(Opcode::Rmdir, parent, &[&zero(name)], 0).map(drop)
    }

    pub(super) fn readlink(&mut self, node: u64) -> Result<String, Errno> {
        self.call(Opcode::Readlink, node, &[], 4096).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    pub(super) fn forget(&mut self, node: u64, nlookup: u64) {
        let message = self.message(Opcode::Forget, node, &[ForgetIn { nlookup }.as_slice()]);
        assert_eq!(self.exchange(&message, 0).unwrap(), b"");
    }

    /// The names in a folder, with the inode numbers that READDIRPLUS returns for them.
    pub(super) fn list(&mut self, node: u64) -> Result<Vec<(String, u64)>, Errno> {
        let body = OpenIn::default();
        let fh = object::<OpenOut>(&self.call(Opcode::Opendir, node, &[body.as_slice()], size_of::<OpenOut>())?).fh;
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let body = ReadIn { fh, offset, size: 4096, ..ReadIn::default() };
            let bytes = self.call(Opcode::Readdirplus, node, &[body.as_slice()], 4096)?;
            if bytes.is_empty() {
                break;
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (entry, dirent) = rest.split_at(size_of::<EntryOut>());
                let head: Dirent = object(dirent);
                let name = &dirent[size_of::<Dirent>()..][..head.namelen as usize];
                names.push((String::from_utf8(name.to_vec()).unwrap(), object::<EntryOut>(entry).nodeid));
                offset = head.off;
                let len = size_of::<Dirent>() + head.namelen as usize;
                rest = &dirent[len.next_multiple_of(8)..];
            }
        }
        let body = ReleaseIn { fh, ..ReleaseIn::default() };
        self.call(Opcode::Releasedir, node, &[body.as_slice()], 0)?;
        names.sort();
        Ok(names)
    }
}

/// The root node's id, and the bits for valid fields of a `Setattr`: FUSE's own numbers.
pub(super) const ROOT_ID: u64 = 1;
const FATTR_MODE: u32 = 1;
const FATTR_UID: u32 = 2;
const FATTR_GID: u32 = 4;

pub(super) fn zero(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

fn object<T: ByteValued>(bytes: &[u8]) -> T {
    let mut object = T::zeroed();
    object.as_mut_slice().copy_from_slice(&bytes[..size_of::<T>()]);
    object
}
