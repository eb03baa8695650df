//! Several machines started together, as after a reboot of the host: the time until the last agent answers.

use tempfile::TempDir;

use super::{Bench, Measurement, Sampled, boot};
use crate::clock;
use crate::lab::Lab;
use crate::result::Unit;
use crate::subject::{Running, Subject};

pub(super) struct BootAtOnce;

impl Bench for BootAtOnce {
    fn name(&self) -> &'static str {
        "boot_at_once"
    }

    fn run(&self, lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Sampled> {
        let mut sampled = Sampled::default();
        for count in lab.scale.at_once {
            let machines = start(lab, subject, *count)?;
            let began_ns = machines.iter().map(|up| up.running.began_ns).min().unwrap_or_default();
            let seconds = (clock::now_ns() - began_ns) as f64 / 1e9;
            let metric = format!("last_of_{count}_seconds");
            sampled.measurements.push(Measurement::less(metric, Unit::Seconds, seconds));
            sampled.setup = machines.first().map(|up| up.running.setup.clone()).unwrap_or_default();
        }
        Ok(sampled)
    }
}

/// A machine whose agent answers, with its folder. Fields drop in order, so the folder is removed last.
pub(super) struct Up {
    pub running: Running,
    _folder: TempDir,
}

/// Starts `count` machines without waiting between them; returns when all agents have answered.
///
/// # Errors
/// A machine does not start.
pub(super) fn start(lab: &Lab, subject: &dyn Subject, count: usize) -> anyhow::Result<Vec<Up>> {
    let start = |_| {
        let folder = lab.folder()?;
        let running = subject.start(&boot::machine(lab, folder.path(), boot::AGENT)?, folder.path())?;
        Ok(Up { running, _folder: folder })
    };
    let mut machines = (0..count).map(start).collect::<anyhow::Result<Vec<_>>>()?;
    machines.iter_mut().try_for_each(|up| up.running.wait_for_agent(lab.scale.deadline))?;
    Ok(machines)
}
