//! Boot: from the start of a process until the agent answers, with the counts of that time.
//!
//! Two boots make a sample. In one, init is a shell that prints a line; it measures the kernel's part. The other has
//! the agent as init. Both have the same devices.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Bench, Measurement, Sampled};
use crate::clock;
use crate::console::{Console, Mark};
use crate::count::{Counter, Snapshot};
use crate::lab::Lab;
use crate::result::Unit;
use crate::scale::{Scale, Size};
use crate::subject::{Machine, Subject};

/// The agent is the guest's init, as in production.
pub(super) const AGENT: &str = "quiet init=/usr/lib/garret/garret-agent";
const SHELL: &str = "quiet init=/bin/bash -- -c \"echo @bench ready; while :; do sleep 1000; done\"";

/// Poll interval of the console, and so the resolution of the time until a line appears.
const LOOK: Duration = Duration::from_millis(2);

pub(super) struct Boot;

impl Bench for Boot {
    fn name(&self) -> &'static str {
        "boot"
    }

    fn kept(&self, scale: &Scale) -> usize {
        scale.short_rounds
    }

    fn warms_up(&self, size: Size) -> bool {
        size != Size::Gate
    }

    fn run(&self, lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Sampled> {
        let mut measurements = to_init(lab, subject)?;
        let (setup, to_agent) = to_agent(lab, subject)?;
        measurements.extend(to_agent);
        let programs = subject.programs();
        let bytes = programs.iter().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum();
        measurements.push(Measurement::bytes("program_bytes", bytes).with("program files, without their libraries"));
        Ok(Sampled { setup, measurements })
    }
}

/// A machine with the devices of a developer's machine: a data disk and a vsock.
pub(super) fn machine(lab: &Lab, folder: &Path, cmdline: &str) -> anyhow::Result<Machine> {
    Ok(Machine { disks: vec![lab.data_disk(folder)?], vsock: true, ..lab.machine(cmdline) })
}

/// Measures the boot up to init. No client sends requests meanwhile, so these counts repeat best.
fn to_init(lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Vec<Measurement>> {
    let folder = lab.folder()?;
    let mut running = subject.start(&machine(lab, folder.path(), SHELL)?, folder.path())?;
    let mut console = Console::new(&running.console);
    let mut counter = Counter::new(&lab.tracer);
    running.wait("init", lab.scale.deadline, LOOK, |running| {
        counter.look(running);
        Ok(console.marks()?.contains(&Mark::Ready).then_some(()))
    })?;
    let seconds = (clock::now_ns() - running.began_ns) as f64 / 1e9;
    let counts = counter.after(&running)?;
    let time =
        Measurement::less("init_seconds", Unit::Seconds, seconds).with("until a shell as init has printed a line");
    Ok([time].into_iter().chain(instructions(lab, seconds, "init")).chain(counted(&counts, "init")).collect())
}

fn to_agent(lab: &Lab, subject: &dyn Subject) -> anyhow::Result<(String, Vec<Measurement>)> {
    let folder = lab.folder()?;
    let machine = machine(lab, folder.path(), AGENT)?;
    lab.tracer.record_runs(true)?;
    let mut running = subject.start(&machine, folder.path())?;
    let mut counter = Counter::new(&lab.tracer);
    counter.look(&running);
    running.wait_for_agent(lab.scale.deadline)?;
    let seconds = (clock::now_ns() - running.began_ns) as f64 / 1e9;
    let counts = counter.after(&running)?;
    let first_run_ns = counter.first_run_ns()?;
    lab.tracer.record_runs(false)?;

    let time = Measurement::less("agent_seconds", Unit::Seconds, seconds).with("until the agent answers over vsock");
    let setup = first_run_ns.map(|first| {
        let nanoseconds = first.saturating_sub(running.began_ns) as f64;
        Measurement::less("setup_ns", Unit::Nanoseconds, nanoseconds).with("process to first KVM_RUN")
    });
    let time = [time].into_iter().chain(instructions(lab, seconds, "agent"));
    Ok((running.setup.clone(), time.chain(setup).chain(counted(&counts, "agent")).collect()))
}

/// Instructions of host, VMM and guest together, if the emulator counts them.
fn instructions(lab: &Lab, seconds: f64, until: &str) -> Option<Measurement> {
    let count = (seconds * 1e9) as u64;
    lab.icount.then(|| Measurement::count(format!("instructions_to_{until}"), count).with("of host, VMM and guest"))
}

fn counted(counts: &Snapshot, until: &str) -> Vec<Measurement> {
    let own = [
        ("kvm_run", counts.kvm_runs, "entries into KVM_RUN"),
        ("system_calls", counts.system_calls, "of all processes"),
    ];
    let own = own.into_iter().filter_map(|(name, count, detail)| {
        count.map(|count| Measurement::count(format!("{name}_to_{until}"), count).with(detail))
    });
    let names = ["exits", "io_exits", "mmio_exits", "halt_exits", "pf_taken"];
    let exits = names.iter().filter_map(|name| {
        counts.exits(name).map(|count| Measurement::count(format!("{name}_to_{until}"), count).with("KVM's statistics"))
    });
    own.chain(exits).collect()
}
