//! A device: its identity and its workers.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::EventManager;
use vmm_sys_util::eventfd::EventFd;

use super::worker::{EVENTS_MAX, Worker};
use super::{
    Backend, Busy, COMMON_FEATURES, ConfigInterrupt, Identity, QUEUE_SIZE_MAX, QueueState, Ring, Start, VirtioDevice,
};
use crate::seccomp::Role;
use crate::thread;

/// How long a device that is dropped waits for the requests in flight.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

/// Why a device could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// The queue groups do not cover all queues in order, or the size of a queue is invalid.
    #[error("{device}: {why}")]
    Queues {
        device: String,
        /// The problem.
        why: &'static str,
    },
    #[error("{device}: cannot start a worker thread: {source}")]
    Worker { device: String, source: io::Error },
}

/// A device with a worker thread per queue group. `new` creates the threads, each idle and under its role's seccomp
/// filter, because the thread that later starts the device, a vCPU, may not create threads.
pub(crate) struct Device {
    identity: Identity,
    config_interrupt: ConfigInterrupt,
    groups: Vec<Group>,
}

/// The device's side of one worker.
struct Group {
    queues: Range<usize>,
    /// `None` once the device is dropped, which ends the thread.
    starts: Option<Sender<Start>>,
    stop: Arc<EventFd>,
    stopped: Receiver<Vec<Ring>>,
    thread: Option<JoinHandle<()>>,
    phase: Phase,
}

enum Phase {
    Idle,
    /// The worker has the rings.
    Running,
    /// The worker has the rings and was asked to stop.
    Stopping,
    /// The worker has stopped; the other groups may still run.
    Stopped(Vec<QueueState>),
}

impl Device {
    /// Builds a device with one kind of backend. `groups` lists the queues of each backend; together they are all
    /// queues of `identity`, in order. Runs each backend's `prepare`.
    pub(crate) fn new<B: Backend>(
        mut identity: Identity,
        groups: Vec<(B, Range<usize>)>,
        role: Role,
    ) -> Result<Self, BuildError> {
        check(&identity, groups.iter().map(|(_, queues)| queues))
            .map_err(|why| BuildError::Queues { device: identity.name.clone(), why })?;
        identity.features |= COMMON_FEATURES;
        let config_interrupt = ConfigInterrupt::default();
        let several = groups.len() > 1;
        let groups = groups.into_iter().enumerate().map(|(at, (backend, queues))| {
            let name = if several { format!("{}.{at}", identity.name) } else { identity.name.clone() };
            Group::spawn(name, backend, queues, role, &config_interrupt)
        });
        let groups = groups
            .collect::<io::Result<_>>()
            .map_err(|source| BuildError::Worker { device: identity.name.clone(), source })?;
        Ok(Self { identity, config_interrupt, groups })
    }
}

fn check<'r>(identity: &Identity, groups: impl Iterator<Item = &'r Range<usize>>) -> Result<(), &'static str> {
    if identity.queue_sizes.iter().any(|size| !size.is_power_of_two() || *size > QUEUE_SIZE_MAX) {
        return Err("a queue's size is not a power of two up to 1024");
    }
    let mut next = 0;
    for queues in groups {
        if queues.start != next || queues.is_empty() {
            return Err("the queue groups are not in order");
        }
        next = queues.end;
    }
    if next == identity.queue_sizes.len() { Ok(()) } else { Err("the queue groups do not cover the queues") }
}

impl Group {
    fn spawn<B: Backend>(
        name: String,
        mut backend: B,
        queues: Range<usize>,
        role: Role,
        config_interrupt: &ConfigInterrupt,
    ) -> io::Result<Self> {
        let (starts, to_start) = mpsc::channel();
        let (to_stopped, stopped) = mpsc::channel();
        let stop = Arc::new(EventFd::new(libc::EFD_CLOEXEC)?);
        let worker = {
            let (name, stop, config_interrupt) = (name.clone(), stop.clone(), config_interrupt.clone());
            let events = EventManager::new_with_capacity(EVENTS_MAX).map_err(io::Error::other)?;
            let worker = Worker { name, events, starts: to_start, stop, stopped: to_stopped, config_interrupt };
            move |backend| worker.run(backend)
        };
        let thread = thread::spawn_prepared(&name, role, move || backend.prepare().map(|()| backend), worker)?;
        Ok(Self { queues, starts: Some(starts), stop, stopped, thread: Some(thread), phase: Phase::Idle })
    }

    fn start(&mut self, start: Start) -> io::Result<()> {
        let sent = self.starts.as_ref().map(|starts| starts.send(start));
        self.phase = Phase::Running;
        sent.and_then(Result::ok).ok_or_else(|| io::Error::other("the worker is gone"))
    }

    fn ask_to_stop(&mut self) {
        if let Phase::Running = self.phase {
            // The counter cannot be full: it is written once per stop.
            let _ = self.stop.write(1);
            self.phase = Phase::Stopping;
        }
    }

    fn wait_stopped(&mut self, until: Instant) -> Result<(), Busy> {
        if let Phase::Stopping = self.phase {
            let states = match self.stopped.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(rings) => rings.into_iter().map(Ring::into_state).collect(),
                Err(RecvTimeoutError::Timeout) => return Err(Busy),
                // The thread died. It catches panics, so only an abort can cause this; its queues are lost.
                Err(RecvTimeoutError::Disconnected) => vec![QueueState::default(); self.queues.len()],
            };
            self.phase = Phase::Stopped(states);
        }
        Ok(())
    }
}

impl VirtioDevice for Device {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn config_interrupt(&self) -> &ConfigInterrupt {
        &self.config_interrupt
    }

    fn start(&mut self, Start { features, rings, resumed }: Start) -> io::Result<()> {
        if rings.len() != self.identity.queue_sizes.len() {
            return Err(io::Error::other("one ring per queue is wanted"));
        }
        if !self.groups.iter().all(|group| matches!(group.phase, Phase::Idle)) {
            return Err(io::Error::other("the device runs already"));
        }
        let mut rings = rings.into_iter();
        for group in &mut self.groups {
            let rings = rings.by_ref().take(group.queues.len()).collect();
            group.start(Start { features, rings, resumed })?;
        }
        Ok(())
    }

    fn stop(&mut self, deadline: Duration) -> Result<Vec<QueueState>, Busy> {
        let until = Instant::now() + deadline;
        // Ask all groups first, so that they finish in parallel.
        self.groups.iter_mut().for_each(Group::ask_to_stop);
        for group in &mut self.groups {
            group.wait_stopped(until)?;
        }
        let phases = self.groups.iter_mut().map(|group| std::mem::replace(&mut group.phase, Phase::Idle));
        Ok(phases.flat_map(|phase| if let Phase::Stopped(states) = phase { states } else { Vec::new() }).collect())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.stop(DROP_DEADLINE).is_err() {
            tracing::warn!(device = self.identity.name, "the device is abandoned with requests in flight");
            return;
        }
        for group in &mut self.groups {
            drop(group.starts.take());
            if let Some(thread) = group.thread.take() {
                // The thread catches the panics of its backend, so the result has no information.
                let _ = thread.join();
            }
        }
    }
}
