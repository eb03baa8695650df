//! The threads that serve requests that may wait for the disk, so that an fsync does not block an `ls`. They never
//! access a ring: the ring's owner passes them chains and completes the answers.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::Mode;
use rustix::thread::UnshareFlags;
use vmm_sys_util::eventfd::EventFd;

use super::request::Message;
use super::share_server::ShareServer;
use crate::seccomp::Role;
use crate::thread;
use crate::virtio::{Chain, Fault, RawTable};

/// A request for a thread of the pool. The number of waiting requests is bounded by the entries of the rings.
pub(super) struct Job {
    /// The request.
    pub message: Message,
    /// The chain of the request; the answer is written into it.
    pub chain: Chain,
    /// The index of its ring in the ring owner's list.
    pub ring: usize,
    /// The destination of the answer.
    pub completions: Arc<Completions>,
}

/// A served request, returned to the owner of its ring.
pub(super) struct Answer {
    /// See [`Job::ring`].
    pub ring: usize,
    /// The chain's head.
    pub head: u16,
    /// The number of bytes written into the chain.
    pub result: Result<u32, Fault>,
}

/// The answers for one ring's owner.
pub(super) struct Completions {
    answers: Mutex<Vec<Answer>>,
    event: EventFd,
}

impl Completions {
    /// Creates an empty set of answers.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { answers: Mutex::default(), event: EventFd::new(libc::EFD_CLOEXEC)? })
    }

    /// Readable when there are answers.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Takes all answers; waits until there is at least one.
    pub(super) fn wait(&self) -> io::Result<Vec<Answer>> {
        self.event.read()?;
        Ok(std::mem::take(&mut *lock(&self.answers)))
    }

    fn push(&self, answer: Answer) {
        let mut answers = lock(&self.answers);
        answers.push(answer);
        // Answers that are already queued have raised the event. The thread that clears the event takes all of them
        // afterwards.
        if answers.len() == 1 {
            // The write fails only if the counter is full: then the event is raised.
            let _ = self.event.write(1);
        }
    }
}

/// The pool; it ends when its last clone is dropped.
pub(super) struct Pool {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Pool {
    /// Starts `count` threads named after `device` that serve requests with `server`.
    pub(super) fn start(device: &str, count: usize, server: &Arc<ShareServer>) -> io::Result<Self> {
        let mut pool = Self { queue: Arc::default(), threads: Vec::new() };
        for number in 0..count {
            let (queue, server) = (pool.queue.clone(), server.clone());
            let prepare = move || {
                unshare_umask()?;
                // The server must be created by a thread that does not share its umask.
                if number == 0 {
                    server.renew()?;
                }
                Ok((server, RawTable::new()?))
            };
            let body = move |(server, table): (Arc<ShareServer>, RawTable)| queue.serve(&server, table);
            pool.threads.push(thread::spawn_prepared(&format!("{device}-{number}"), Role::Fs, prepare, body)?);
        }
        Ok(pool)
    }

    /// Passes `job` to the next free thread.
    pub(super) fn submit(&self, job: Job) {
        lock(&self.queue.state).jobs.push_back(job);
        self.queue.changed.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.queue.state).closed = true;
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            // The thread catches the server's panics.
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn serve(&self, server: &ShareServer, mut table: RawTable) {
        while let Some(Job { message, chain, ring, completions }) = self.next() {
            let result = server.serve(&message, &chain, &mut table);
            completions.push(Answer { ring, head: chain.head(), result });
        }
    }

    fn next(&self) -> Option<Job> {
        let idle = |waiting: &mut Waiting| waiting.jobs.is_empty() && !waiting.closed;
        let state = self.changed.wait_while(lock(&self.state), idle);
        state.unwrap_or_else(PoisonError::into_inner).jobs.pop_front()
    }
}

/// Unshares the calling thread's umask and sets it to 0: the guest's kernel has already applied its process's umask.
#[allow(unsafe_code, reason = "unshare has no safe wrapper")]
pub(super) fn unshare_umask() -> io::Result<()> {
    // SAFETY: the call is unsafe only if it unshares the descriptor table, which CLONE_FS does not do.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
