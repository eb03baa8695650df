//! A machine that runs a job, and what its console and the host's counters report of each case.

use std::time::Duration;

use anyhow::bail;

use crate::console::{Console, Mark};
use crate::count::{Counter, Snapshot};
use crate::lab::Lab;
use crate::subject::{Machine, Running, Subject};

/// Poll interval: a small part of the guest's pause around a case, and long enough not to slow the guests down.
const EVERY: Duration = Duration::from_millis(20);

/// One case of a job.
#[derive(Clone, Debug, Default)]
pub(super) struct Case {
    pub name: String,
    /// How long the guest's command took, by the guest's clock.
    pub seconds: f64,
    /// The counts of that time.
    pub counts: Snapshot,
}

/// The results of a job.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    /// The cases, in order.
    pub cases: Vec<Case>,
    /// The output of commands, by name.
    pub values: Vec<(String, String)>,
}

impl Report {
    /// The output with this name.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(key, _)| key == name).map(|(_, text)| text.as_str())
    }
}

/// A machine that runs a job.
pub(super) struct Work<'a> {
    pub running: Running,
    console: Console,
    counter: Counter<'a>,
    deadline: Duration,
}

impl<'a> Work<'a> {
    /// Starts a machine.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(
        lab: &'a Lab,
        subject: &dyn Subject,
        machine: &Machine,
        folder: &std::path::Path,
    ) -> anyhow::Result<Self> {
        let running = subject.start(machine, folder)?;
        let console = Console::new(&running.console);
        Ok(Self { running, console, counter: Counter::new(&lab.tracer), deadline: lab.scale.deadline })
    }

    /// Waits until the guest is ready.
    ///
    /// # Errors
    /// The guest does not report this in time.
    pub(super) fn until_ready(&mut self) -> anyhow::Result<()> {
        let Self { running, console, .. } = self;
        running.wait("the guest", self.deadline, EVERY, |_| Ok(console.marks()?.contains(&Mark::Ready).then_some(())))
    }

    /// Follows the job to its end, and calls `watch` meanwhile, with the case that has just ended or with `None`.
    ///
    /// # Errors
    /// A case fails, or the job does not end in time.
    pub(super) fn follow(
        &mut self,
        mut watch: impl FnMut(&mut Running, Option<&str>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Report> {
        let Self { running, console, counter, deadline } = self;
        let mut report = Report::default();
        let mut before = Snapshot::default();
        running.wait("the job", *deadline, EVERY, |running| {
            for mark in console.marks()? {
                match mark {
                    Mark::Begin(_) => before = counter.before(running)?,
                    Mark::End { case, status, seconds } => {
                        let counts = counter.after(running)?.since(&before);
                        watch(running, Some(&case))?;
                        if status != 0 {
                            report.values.push((format!("failed:{case}"), status.to_string()));
                        }
                        report.cases.push(Case { name: case, seconds, counts });
                    }
                    Mark::Value { name, text } if name == "error" => bail!("the guest: {text}"),
                    Mark::Value { name, text } => report.values.push((name, text)),
                    Mark::Ready => {}
                    Mark::Done => return Ok(Some(())),
                }
            }
            counter.look(running);
            watch(running, None)?;
            Ok(None)
        })?;
        if let Some((name, status)) = report.values.iter().find(|(name, _)| name.starts_with("failed:")) {
            let case = &name["failed:".len()..];
            let said = report.value(&format!("error:{case}")).unwrap_or("there is no output");
            bail!("{case} ended with status {status}: {said}");
        }
        Ok(report)
    }
}
