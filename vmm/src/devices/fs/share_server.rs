//! The FUSE server of one share.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use garret_api::vmm::ShareConfig;
use rustix::fs::{Mode, OFlags};
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, NegotiationMode, PassthroughFs};
use virtiofsd::server::Server;

use super::guard::Guard;
use super::owners;
use super::request::Message;
use crate::virtio::{Chain, Fault, RawTable};

/// Serves one folder. Each new driver (FUSE_INIT, or a reset of the device) gets a new server. The files of the
/// previous one are closed first, so there are never more than `fd_limit`.
pub(super) struct ShareServer {
    /// The served folder, and `/proc/self/fd`, through which the server reopens known files. Opened before the jail
    /// closes.
    root: File,
    proc_self_fd: File,
    timeout: Duration,
    guest_id: u32,
    fd_limit: u64,
    /// `None` if the host refused to create one.
    server: RwLock<Option<Server<Guard>>>,
    /// How many workers serve it. Each of them starts and stops once in a session, from a start of the device to its stop.
    workers: usize,
    /// How often a worker has stopped. A worker may stop before another has noticed that the session began.
    stops: AtomicUsize,
    /// The session that the server belongs to.
    claimed: AtomicUsize,
}

impl ShareServer {
    /// Opens the folder of `config`; the guest may have `fd_limit` files open. `workers` threads serve it, at least one.
    pub(super) fn open(config: &ShareConfig, fd_limit: u64, workers: usize) -> io::Result<Self> {
        Ok(Self {
            root: open_folder(&config.path)?,
            proc_self_fd: open_folder(Path::new("/proc/self/fd"))?,
            timeout: Duration::from_millis(config.staleness_ms.into()),
            guest_id: config.guest_id,
            fd_limit,
            server: RwLock::new(None),
            workers,
            stops: AtomicUsize::new(0),
            claimed: AtomicUsize::new(usize::MAX),
        })
    }

    /// Waits for requests in flight, then replaces the server: no file is open or known. Sets the calling thread's
    /// umask to 0.
    pub(super) fn renew(&self) -> io::Result<()> {
        self.replace(&mut self.lock())
    }

    /// Must be called on each worker when the device starts with a new driver. Only the first call renews the server:
    /// the driver may already use the files through that worker's rings before the others start.
    pub(super) fn reset(&self) -> io::Result<()> {
        let session = self.session();
        if self.claimed.load(Ordering::Acquire) == session {
            return Ok(());
        }
        let mut server = self.lock();
        // Inside the lock: a worker that finds the renewal done has waited here for the new server.
        if self.claimed.swap(session, Ordering::AcqRel) == session { Ok(()) } else { self.replace(&mut server) }
    }

    /// Notes that a worker runs. After a pause the server of the session before is used further.
    pub(super) fn started(&self) {
        self.claimed.store(self.session(), Ordering::Release);
    }

    /// Notes that a worker stops, for a reset or a pause. No worker starts before all have stopped.
    pub(super) fn stopped(&self) {
        self.stops.fetch_add(1, Ordering::AcqRel);
    }

    fn session(&self) -> usize {
        self.stops.load(Ordering::Acquire) / self.workers
    }

    fn replace(&self, server: &mut Option<Server<Guard>>) -> io::Result<()> {
        *server = None;
        *server = Some(Server::new(Guard::new(PassthroughFs::new(self.config()?)?, self.timeout)));
        Ok(())
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Option<Server<Guard>>> {
        self.server.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves `message`, which arrived in `chain`; returns the number of bytes of the answer.
    pub(super) fn serve(&self, message: &Message, chain: &Chain, table: &mut RawTable) -> Result<u32, Fault> {
        let malformed = |_| Fault::Request("a FUSE message is malformed");
        let raw = table.lay_out(chain, message.front(), &message.rest(chain)?)?;
        let reader = Reader::new(&raw.mem, raw.descriptors.clone()).map_err(|_| chain.too_short())?;
        let writer = Writer::new(&raw.mem, raw.descriptors).map_err(|_| chain.too_short())?;
        let server = self.server.read().unwrap_or_else(PoisonError::into_inner);
        let server = server.as_ref().ok_or(Fault::Request("there is no file server: the host refused one"))?;
        let answer = catch_unwind(AssertUnwindSafe(|| server.handle_message(reader, writer, None::<&mut ()>)));
        match answer {
            Ok(result) => Ok(result.map_err(malformed)? as u32),
            // Locks that the server held stay locked; FUSE_INIT replaces the server.
            Err(panic) => Err(Fault::Panic(panic_message(&*panic))),
        }
    }

    fn config(&self) -> io::Result<Config> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Ok(Config {
            entry_timeout: self.timeout,
            attr_timeout: self.timeout,
            // Close-to-open. Within the timeouts, the guest drops pages of a file whose time or size has changed.
            cache_policy: CachePolicy::Auto,
            // Writeback needs exclusive access, but the host's editors and the guest share these files.
            writeback: false,
            // The server opens this name without following a link, so the link must not be its last component.
            root_dir: format!("/proc/self/fd/{}/.", self.root.as_raw_fd()),
            proc_sfd_rawfd: Some(self.proc_self_fd.try_clone()?),
            announce_submounts: true,
            // Opening by handle needs a capability that would defeat the jail.
            inode_file_handles: InodeFileHandlesMode::Never,
            readdirplus: true,
            xattr: false,
            posix_acl: NegotiationMode::Never,
            security_label: NegotiationMode::Never,
            // No file here has a set-id bit or file capabilities that a write must clear.
            killpriv_v2: false,
            uid_map: Some(owners::squash(uid, self.guest_id)),
            gid_map: Some(owners::squash(gid, self.guest_id)),
            guest_fd_limit: self.fd_limit,
            ..Config::default()
        })
    }
}

fn open_folder(path: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").to_owned()
}
