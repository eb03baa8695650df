//! The machines of this bench: a data disk, the helper behind a vsock, and, if the subject has virtio-mem, a part of
//! the memory from it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tempfile::TempDir;

use super::kept::Kept;
use crate::bench::work::Work;
use crate::guest;
use crate::lab::Lab;
use crate::scale::Size;
use crate::subject::{GuestSocket, Machine, Subject};

/// How long memory is held before it is freed.
const HOLD: Duration = Duration::from_secs(2);
/// Poll interval meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// The work of a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    /// Build the project and remove it again.
    pub builds: bool,
    /// Whether the guest reclaims memory by all means that the subject has. False measures what these cost.
    pub gives_back: bool,
}

/// A machine with its folder. Fields drop in order, so the folder is removed last.
pub(super) struct Guest<'a> {
    /// The machine and its job.
    pub work: Work<'a>,
    /// How the machine was started, and what runs in it.
    pub setup: String,
    /// The runner's part, if it has one.
    pub kept: Option<Kept>,
    _folder: TempDir,
}

impl<'a> Guest<'a> {
    /// Starts a machine without waiting for it.
    ///
    /// # Errors
    /// It cannot be started, or a disk cannot be created.
    pub(super) fn start(lab: &'a Lab, subject: &dyn Subject, task: Task) -> anyhow::Result<Self> {
        let folder = lab.folder()?;
        let reclaims = task.gives_back && subject.reclaims();
        let machine = machine(lab, folder.path(), task, reclaims)?;
        let start = || Work::start(lab, subject, &machine, folder.path());
        // Only a machine that builds is left idle afterwards.
        let kept = if reclaims && task.builds { Kept::new()? } else { None };
        let work = kept.as_ref().map_or_else(start, |kept| kept.start(start))?;
        let beside = if reclaims { "garret-agent memory-loop, and swap in zram" } else { "nothing" };
        let setup = format!("{}; in the guest beside the work: {beside}", work.running.setup);
        Ok(Self { work, setup, kept, _folder: folder })
    }

    /// Returns the address of its helper.
    ///
    /// # Errors
    /// It has no vsock.
    pub(super) fn socket(&self) -> anyhow::Result<GuestSocket> {
        self.work.running.guest.clone().context("the machine has no vsock")
    }
}

fn machine(lab: &Lab, folder: &Path, task: Task, reclaims: bool) -> anyhow::Result<Machine> {
    let mut variables = vec![("HELPER", "/dev/vdc".to_owned())];
    let mut extra = vec![lab.helper_disk()];
    let (mut project, mut goal) = ("", "");
    if task.builds {
        variables.push(("TOOLS", "/dev/vdd".to_owned()));
        extra.push(lab.tools_disk()?);
        (project, goal) = project_and_goal(lab.size);
        if lab.size != Size::Full {
            extra.push(lab.project_disk()?);
        }
    }
    let reclaim = if reclaims { "yes" } else { "" };
    variables
        .extend([("PROJECT", project), ("GOAL", goal), ("RECLAIM", reclaim)].map(|(name, is)| (name, is.to_owned())));
    let own = [lab.data_disk(folder)?, lab.job_disk(folder, &variables, guest::MEMORY)?];
    Ok(Machine {
        disks: own.into_iter().chain(extra).collect(),
        vsock: true,
        hotplug_mib: lab.scale.fill_mib,
        reporting: task.gives_back,
        ..lab.machine(guest::HOTPLUG_CMDLINE)
    })
}

/// The path of the source in the guest, and the target of `make`.
fn project_and_goal(size: Size) -> (&'static str, &'static str) {
    match size {
        Size::Full => ("/tmp/tools/opt/bench/c.tar", "linux"),
        Size::Gate | Size::Quick => ("/dev/vde", "all"),
    }
}

/// Makes guests take `mib` at the same time, hold it and free it, and calls `watch` meanwhile. Returns the moment at
/// which the last guest had freed it.
///
/// # Errors
/// A guest cannot be reached, or `watch` fails.
pub(super) fn fill(
    sockets: &[GuestSocket],
    mib: u32,
    mut watch: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Instant> {
    let one = |socket: &GuestSocket| {
        guest::fill(&mut socket.connect(guest::PORT)?, mib, HOLD)?;
        anyhow::Ok(Instant::now())
    };
    thread::scope(|scope| {
        let guests: Vec<_> = sockets.iter().map(|socket| scope.spawn(move || one(socket))).collect();
        while !guests.iter().all(|guest| guest.is_finished()) {
            watch()?;
            thread::sleep(LOOK);
        }
        let freed = guests.into_iter().map(|guest| guest.join().map_err(|_| anyhow!("a fill has panicked"))?);
        let freed = freed.collect::<anyhow::Result<Vec<_>>>().context("memory taken in the guest")?;
        freed.into_iter().max().context("no guest")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_guest_is_an_error() {
        let error = fill(&[GuestSocket::Unix("/no/such".into())], 1, || Ok(())).unwrap_err();
        assert!(format!("{error:#}").starts_with("memory taken in the guest: /no/such"), "{error:#}");
    }
}
