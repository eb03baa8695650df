//! The reports: one sampler makes those of all listeners.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Instant;

use garret_api::agent::MemoryReport;
use rustix::fs::OFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};

use super::kernel::Zones;
use super::oom::OomKills;
use super::policy::pace::Pace;
use super::readings;
use super::reclaim::Figures;
use super::tuning::STALL_TRIGGER;

/// One sampler for all listeners; it does nothing while there are no listeners.
pub(super) struct Sampler {
    reports: watch::Sender<MemoryReport>,
    wanted: Notify,
}

/// What woke the sampler.
enum Woken {
    Tick,
    Stall,
    Listener,
}

impl Sampler {
    /// Must be called within the runtime. `figures` are the loop's.
    pub(super) fn start(figures: watch::Receiver<Figures>) -> Arc<Self> {
        let sampler = Arc::new(Self { reports: watch::Sender::default(), wanted: Notify::new() });
        tokio::spawn(sampler.clone().serve(figures));
        sampler
    }

    /// A new listener. A report is made for it at once.
    pub(super) fn follow(&self) -> watch::Receiver<MemoryReport> {
        let reports = self.reports.subscribe();
        self.wanted.notify_one();
        reports
    }

    async fn serve(self: Arc<Self>, figures: watch::Receiver<Figures>) {
        let mut oom = OomKills::new();
        let mut zones = Zones::new().ok();
        loop {
            self.wanted.notified().await;
            self.sample(&figures, &mut oom, &mut zones).await;
        }
    }

    /// Samples until the last listener has gone.
    async fn sample(&self, figures: &watch::Receiver<Figures>, oom: &mut OomKills, zones: &mut Option<Zones>) {
        let begun = Instant::now();
        let trigger = Trigger::arm().ok();
        let mut pace = Pace::default();
        while self.reports.receiver_count() > 0 {
            match report(*figures.borrow(), oom) {
                Ok(mut report) => {
                    let now = begun.elapsed();
                    report.short = is_short(zones) || pace.is_short(now, report.total, report.available);
                    if pace.is_due(now, &report) {
                        self.reports.send_replace(report);
                    }
                }
                Err(error) => tracing::warn!("memory cannot be read: {error}"),
            }
            match self.woken(&trigger, &pace).await {
                Woken::Tick => {}
                Woken::Stall => pace.stalled(begun.elapsed()),
                Woken::Listener => pace.ask(),
            }
        }
    }

    async fn woken(&self, trigger: &Option<Trigger>, pace: &Pace) -> Woken {
        let stall = async {
            match trigger {
                Some(trigger) => trigger.fired().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.wanted.notified() => Woken::Listener,
            () = stall => Woken::Stall,
            () = tokio::time::sleep(pace.tick()) => Woken::Tick,
        }
    }
}

/// Whether the kernel's own memory is short; false if the kernel does not report it.
fn is_short(zones: &mut Option<Zones>) -> bool {
    let looked = zones.as_mut().map(Zones::look);
    if let Some(Err(error)) = &looked {
        tracing::warn!("a shortage of kernel memory is no longer detected: cannot read the kernel's zones: {error}");
        *zones = None;
    }
    matches!(looked, Some(Ok(true)))
}

fn report(figures: Figures, oom: &mut OomKills) -> io::Result<MemoryReport> {
    let memory = readings::meminfo()?;
    Ok(MemoryReport {
        total: memory.total,
        free: memory.free,
        available: memory.available,
        cold: figures.cold,
        swap_total: memory.swap_total,
        swap_used: memory.swap_total.saturating_sub(memory.swap_free),
        pressure: readings::memory_pressure(),
        short: false,
        reclaimed: figures.reclaimed,
        oom_kills: oom.of(readings::vmstat()?.oom_kills),
    })
}

/// The kernel's event that memory is short.
struct Trigger(AsyncFd<File>);

impl Trigger {
    /// Must be called within the runtime.
    ///
    /// # Errors
    /// This kernel does not report pressure, or the agent may not read it.
    #[allow(unsafe_code, reason = "register_with_interest has no safe variant for a file")]
    fn arm() -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
        let mut file = options.open("/proc/pressure/memory")?;
        file.write_all(STALL_TRIGGER)?;
        // SAFETY: the file owns its descriptor, which does not change until the file is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?))
    }

    /// Waits for the event, which comes at most once every half second.
    async fn fired(&self) {
        match self.0.ready(Interest::PRIORITY).await {
            Ok(mut guard) => guard.clear_ready(),
            // The runtime is ending.
            Err(_) => std::future::pending().await,
        }
    }
}
