//! The open streams between clients and guests: who has one, to which machine, and how much it carries.
//!
//! A stream is in the registry from before the agent is asked for it until its last connection is closed. It leaves the
//! registry when its [`OpenStream`] is dropped, however it ends.

mod frames;
mod relay;

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use garret_api::runner::Stream;
use garret_api::stream::StreamKind;
use garret_api::{Code, MachineId, Problem};
use tokio::sync::watch;

use super::line_limit::{self, LineLimit};
use super::state::now_ms;
pub(super) use relay::relay;

/// The most streams that one uid other than root's has open.
pub(super) const OF_ACCOUNT_MAX: usize = 224;
/// The most streams that lead to one machine: as many as its agent serves at the same time.
const OF_MACHINE_MAX: usize = 256;

/// All open streams.
#[derive(Debug, Default)]
pub(super) struct Streams(Arc<Mutex<Registry>>);

#[derive(Debug, Default)]
struct Registry {
    open: HashMap<String, Entry>,
    /// How many ids were made. The ids of two daemons differ, because each has hash keys of its own.
    ids: (RandomState, u64),
    /// The daemon ends.
    closed: bool,
    /// Of the log, by the uid that opened the stream.
    lines: LineLimit<u32>,
}

#[derive(Debug)]
struct Entry {
    stream: Stream,
    bytes: Arc<Bytes>,
    /// Why it should end, once it should. The receivers belong to its [`OpenStream`].
    end: watch::Sender<Option<End>>,
}

/// What the streams have carried so far.
#[derive(Debug, Default)]
struct Bytes {
    to_guest: AtomicU64,
    from_guest: AtomicU64,
}

/// A stream to be opened.
#[derive(Clone, Debug)]
pub(super) struct NewStream {
    pub kind: StreamKind,
    /// The machine that it leads to.
    pub machine: MachineId,
    /// The developer whose machine that is, and their uid.
    pub developer: String,
    pub uid: u32,
    /// `None`: it leads to the guest itself.
    pub environment: Option<String>,
    pub opened_by: u32,
}

/// Why a stream ends. Its text is for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client closed its connection, or was lost.
    Client,
    /// The guest closed its connection, or was lost.
    Guest,
    /// A client of this uid requested it.
    Requested { by: u32 },
    /// The daemon ends.
    Shutdown,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => write!(f, "the client closed it"),
            Self::Guest => write!(f, "the machine closed it: see `garret show --machine`"),
            Self::Requested { by } => write!(f, "uid {by} ended it (`garret streams end`)"),
            Self::Shutdown => write!(f, "the garret daemon was stopped"),
        }
    }
}

impl Streams {
    /// Adds a stream.
    ///
    /// # Errors
    /// The account or the machine has too many, or the daemon ends.
    pub(super) fn open(&self, new: NewStream) -> Result<OpenStream, Problem> {
        let mut registry = lock(&self.0);
        registry.admit(&new)?;
        let id = registry.free_id();
        let stream = Stream {
            id: id.clone(),
            kind: new.kind,
            machine: new.machine,
            developer: new.developer,
            uid: new.uid,
            environment: new.environment,
            opened_by: new.opened_by,
            opened_ms: now_ms(),
            to_guest_bytes: 0,
            from_guest_bytes: 0,
        };
        let (bytes, (end, requested)) = (Arc::<Bytes>::default(), watch::channel(None));
        registry.open.insert(id.clone(), Entry { stream, bytes: bytes.clone(), end });
        Ok(OpenStream { registry: self.0.clone(), id, bytes, requested, ended: None })
    }

    /// The streams for which `which` returns true, the oldest first.
    pub(super) fn list(&self, which: impl Fn(&Stream) -> bool) -> Vec<Stream> {
        let registry = lock(&self.0);
        let mut list: Vec<Stream> = registry.open.values().map(Entry::show).filter(which).collect();
        list.sort_by(|a, b| (a.opened_ms, &a.id).cmp(&(b.opened_ms, &b.id)));
        list
    }

    /// Ends the stream if `which` returns true for it. Returns false if there is none, else when it has ended.
    pub(super) async fn end(&self, id: &str, which: impl FnOnce(&Stream) -> bool, why: End) -> bool {
        let end = {
            let registry = lock(&self.0);
            let Some(entry) = registry.open.get(id).filter(|entry| which(&entry.stream)) else { return false };
            entry.request_end(why);
            entry.end.clone()
        };
        end.closed().await;
        true
    }

    /// Ends all streams, and opens no more. Does not wait for their end.
    pub(super) fn close(&self) {
        let mut registry = lock(&self.0);
        registry.closed = true;
        registry.open.values().for_each(|entry| entry.request_end(End::Shutdown));
    }
}

impl Registry {
    fn admit(&self, new: &NewStream) -> Result<(), Problem> {
        if self.closed {
            return Err(Problem::new(Code::Unavailable, format!("{}: try again in a moment", End::Shutdown)));
        }
        let count = |which: &dyn Fn(&Stream) -> bool| self.open.values().filter(|entry| which(&entry.stream)).count();
        let full = if new.opened_by != 0 && count(&|stream| stream.opened_by == new.opened_by) >= OF_ACCOUNT_MAX {
            format!("this account has {OF_ACCOUNT_MAX} streams open")
        } else if count(&|stream| stream.machine == new.machine) >= OF_MACHINE_MAX {
            format!("the machine of {} has {OF_MACHINE_MAX} streams open", new.developer)
        } else {
            return Ok(());
        };
        let said = format!("{full}: `garret streams` lists them, `garret streams end ID` ends one");
        Err(Problem::new(Code::Unavailable, said))
    }

    fn free_id(&mut self) -> String {
        let (keys, count) = &mut self.ids;
        loop {
            *count += 1;
            let id = format!("{:08x}", keys.hash_one(*count) as u32);
            if !self.open.contains_key(&id) {
                return id;
            }
        }
    }
}

impl Entry {
    fn show(&self) -> Stream {
        Stream {
            to_guest_bytes: self.bytes.to_guest.load(Ordering::Relaxed),
            from_guest_bytes: self.bytes.from_guest.load(Ordering::Relaxed),
            ..self.stream.clone()
        }
    }

    /// The first reason counts.
    fn request_end(&self, why: End) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(why);
            first
        });
    }
}

/// A stream in the registry; dropping it is its end.
#[derive(Debug)]
pub(super) struct OpenStream {
    registry: Arc<Mutex<Registry>>,
    id: String,
    bytes: Arc<Bytes>,
    requested: watch::Receiver<Option<End>>,
    /// For the log; `None`: the client or the agent did not complete the handshake.
    ended: Option<End>,
}

impl OpenStream {
    /// Returns when the stream should end.
    pub(super) async fn end_requested(&self) -> End {
        let mut requested = self.requested.clone();
        if let Ok(end) = requested.wait_for(Option::is_some).await
            && let Some(end) = &*end
        {
            return end.clone();
        }
        // The sender is in the registry as long as the stream is.
        std::future::pending().await
    }

    /// Removes the stream.
    pub(super) fn finish(mut self, end: End) {
        self.ended = Some(end);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut registry = lock(&self.registry);
        let Some(entry) = registry.open.remove(&self.id) else { return };
        let lines = registry.lines.count(entry.stream.opened_by, Instant::now());
        drop(registry);
        // A guest may refuse streams as fast as they are opened.
        if lines == line_limit::OF_ACCOUNT_MAX {
            tracing::warn!(uid = entry.stream.opened_by, "more streams end, which are not logged for some seconds");
        }
        if lines >= line_limit::OF_ACCOUNT_MAX {
            return;
        }
        let Stream { id, kind, machine, environment, opened_by, to_guest_bytes, from_guest_bytes, .. } = entry.show();
        let why = self.ended.as_ref().map_or_else(|| "it did not begin".into(), End::to_string);
        tracing::info!(
            stream = id,
            %kind,
            uid = opened_by,
            %machine,
            environment,
            to_guest_bytes,
            from_guest_bytes,
            "a stream ended: {why}"
        );
    }
}

fn lock(registry: &Mutex<Registry>) -> MutexGuard<'_, Registry> {
    registry.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
