//! Restricts the requests of a guest to the passthrough file system. The server behind it trusts its client's kernel:
//! it joins names unchecked and panics at some numbers. This module rejects what a hostile kernel must not do, and sets
//! the owners of files.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, OpenOptions, SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::passthrough::PassthroughFs;

type Inode = <PassthroughFs as FileSystem>::Inode;
type Handle = <PassthroughFs as FileSystem>::Handle;

/// See the module.
pub(super) struct Guard {
    files: PassthroughFs,
    /// How long the guest may cache that a name does not exist.
    negative_timeout: Duration,
}

impl Guard {
    /// Guards `files`; the guest may cache for `negative_timeout` that a name does not exist.
    pub(super) fn new(files: PassthroughFs, negative_timeout: Duration) -> Self {
        Self { files, negative_timeout }
    }

    /// No file may run with another identity. A folder's set-group-id bit is allowed: it only selects the group of new
    /// files.
    fn permitted_mode(&self, ctx: Context, inode: Inode, mode: u32) -> io::Result<u32> {
        let mode = mode & !libc::S_ISUID;
        if mode & libc::S_ISGID != 0 {
            let (attributes, _) = self.files.getattr(ctx, inode, None)?;
            return Ok(if is_folder(attributes.mode) { mode } else { mode & !libc::S_ISGID });
        }
        Ok(mode)
    }
}

/// The requests that are passed on unchanged.
macro_rules! pass {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(fn $name(&self, $($argument: $type),*) $(-> $result)? {
            self.files.$name($($argument),*)
        })*
    };
}

impl FileSystem for Guard {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    pass! {
        destroy();
        forget(ctx: Context, inode: Inode, count: u64);
        batch_forget(ctx: Context, requests: Vec<(Inode, u64)>);
        getattr(ctx: Context, inode: Inode, handle: Option<Handle>) -> io::Result<(Attr, Duration)>;
        readlink(ctx: Context, inode: Inode) -> io::Result<Vec<u8>>;
        flush(ctx: Context, inode: Inode, handle: Handle, owner: u64) -> io::Result<()>;
        fsync(ctx: Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()>;
        fallocate(ctx: Context, inode: Inode, handle: Handle, mode: u32, offset: u64, length: u64) -> io::Result<()>;
        release(ctx: Context, inode: Inode, flags: u32, handle: Handle, flush: bool, unlock: bool, owner: Option<u64>)
            -> io::Result<()>;
        statfs(ctx: Context, inode: Inode) -> io::Result<libc::statvfs64>;
        opendir(ctx: Context, inode: Inode, flags: u32) -> io::Result<(Option<Handle>, OpenOptions)>;
        readdir(ctx: Context, inode: Inode, handle: Handle, size: u32, offset: u64) -> io::Result<Self::DirIter>;
        fsyncdir(ctx: Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()>;
        releasedir(ctx: Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()>;
        access(ctx: Context, inode: Inode, mask: u32) -> io::Result<()>;
        lseek(ctx: Context, inode: Inode, handle: Handle, offset: u64, whence: u32) -> io::Result<u64>;
        copyfilerange(ctx: Context, from: Inode, from_handle: Handle, from_offset: u64, to: Inode, to_handle: Handle,
            to_offset: u64, len: u64, flags: u64) -> io::Result<usize>;
        syncfs(ctx: Context, inode: Inode) -> io::Result<()>;
    }

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // Without submounts, inode numbers of two workspaces could be mistaken for the same file.
        if !capable.contains(FsOptions::SUBMOUNTS) {
            return Err(errno(libc::EPROTO));
        }
        self.files.init(capable)
    }

    fn lookup(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<Entry> {
        match self.files.lookup(ctx, parent, one_name(name)?) {
            // Inode 0 means "no such name, and you may cache that". In a READDIRPLUS it means "removed since it was
            // listed"; an error would end the listing there.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Entry {
                inode: 0,
                generation: 0,
                attr: Attr::default(),
                attr_timeout: Duration::ZERO,
                entry_timeout: self.negative_timeout,
            }),
            result => result,
        }
    }

    fn open(&self, ctx: Context, inode: Inode, kill: bool, flags: u32) -> io::Result<(Option<Handle>, OpenOptions)> {
        let (handle, mut options) = self.files.open(ctx, inode, kill, flags)?;
        // After a read-only open, closing a copy of the descriptor cannot fail with a write error. This saves one
        // request for every file that is read.
        options.set(OpenOptions::NOFLUSH, flags as i32 & libc::O_ACCMODE == libc::O_RDONLY);
        Ok((handle, options))
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: Inode,
        mut attr: SetattrIn,
        handle: Option<Handle>,
        mut valid: SetattrValid,
    ) -> io::Result<(Attr, Duration)> {
        if valid.contains(SetattrValid::MODE) {
            attr.mode = self.permitted_mode(ctx, inode, attr.mode)?;
        }
        // There is only one owner, so a chown changes nothing. It still fails on files of another user. The group does
        // not change: the file may have one of the owner's other groups on the host.
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            valid.insert(SetattrValid::UID);
            valid.remove(SetattrValid::GID);
        }
        self.files.setattr(ctx, inode, attr, handle, valid)
    }

    fn symlink(&self, ctx: Context, target: &CStr, parent: Inode, name: &CStr, _: Extensions) -> io::Result<Entry> {
        self.files.symlink(ctx, target, parent, one_name(name)?, Extensions::default())
    }

    fn mknod(
        &self,
        ctx: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        _: u32,
        umask: u32,
        _: Extensions,
    ) -> io::Result<Entry> {
        match mode & libc::S_IFMT {
            0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => {
                let mode = mode & !(libc::S_ISUID | libc::S_ISGID);
                self.files.mknod(ctx, parent, one_name(name)?, mode, 0, umask, Extensions::default())
            }
            _ => Err(errno(libc::EPERM)),
        }
    }

    fn mkdir(
        &self,
        ctx: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        umask: u32,
        _: Extensions,
    ) -> io::Result<Entry> {
        let mode = mode & !libc::S_ISUID;
        self.files.mkdir(ctx, parent, one_name(name)?, mode, umask, Extensions::default())
    }

    fn unlink(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.files.unlink(ctx, parent, one_name(name)?)
    }

    fn rmdir(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.files.rmdir(ctx, parent, one_name(name)?)
    }

    fn rename(
        &self,
        ctx: Context,
        from: Inode,
        from_name: &CStr,
        to: Inode,
        to_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        // A whiteout is a device node.
        if flags & libc::RENAME_WHITEOUT != 0 {
            return Err(errno(libc::EINVAL));
        }
        self.files.rename(ctx, from, one_name(from_name)?, to, one_name(to_name)?, flags)
    }

    fn link(&self, ctx: Context, inode: Inode, parent: Inode, name: &CStr) -> io::Result<Entry> {
        self.files.link(ctx, inode, parent, one_name(name)?)
    }

    fn create(
        &self,
        ctx: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        kill: bool,
        flags: u32,
        umask: u32,
        _: Extensions,
    ) -> io::Result<(Entry, Option<Handle>, OpenOptions)> {
        let mode = mode & !(libc::S_ISUID | libc::S_ISGID);
        self.files.create(ctx, parent, one_name(name)?, mode, kill, flags, umask, Extensions::default())
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Handle,
        to: W,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        check_range(offset, size)?;
        self.files.read(ctx, inode, handle, to, size, offset, owner, flags)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Handle,
        from: R,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        delayed: bool,
        kill: bool,
        flags: u32,
    ) -> io::Result<usize> {
        check_range(offset, size)?;
        self.files.write(ctx, inode, handle, from, size, offset, owner, delayed, kill, flags)
    }
}

/// A name must be exactly one path component: most calls of the server pass it to the kernel unchanged.
fn one_name(name: &CStr) -> io::Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(errno(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(errno(libc::EINVAL)),
        _ => Ok(name),
    }
}

/// The server panics for offsets beyond the largest offset of a file.
fn check_range(offset: u64, size: u32) -> io::Result<()> {
    match offset.checked_add(u64::from(size)) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(errno(libc::EINVAL)),
    }
}

fn is_folder(mode: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFDIR
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_step_down() {
        for good in [c"a", c"...", c"..a", c".git", c"name with space", c"\xff\xfe", c"\n"] {
            assert!(one_name(good).is_ok(), "{good:?}");
        }
        for bad in [c"", c".", c"..", c"/", c"a/b", c"../x", c"/etc", c"a/", c"./a"] {
            assert!(one_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_range_ends_within_the_largest_file() {
        assert!(check_range(i64::MAX as u64, 0).is_ok());
        assert!(check_range(i64::MAX as u64 - 10, 10).is_ok());
        assert!(check_range(i64::MAX as u64 - 10, 11).is_err());
        assert!(check_range(u64::MAX, 0).is_err());
        assert!(check_range(u64::MAX, 1).is_err());
    }
}
