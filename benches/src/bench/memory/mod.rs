//! Memory that returns to the host: after a build and its cleanup, after a program has freed it, and on request.
//!
//! | file | what |
//! |---|---|
//! | `build` | the memory that a machine holds during a build, after it and idle, and the build's cost of reclaim |
//! | `freed` | how soon freed memory returns to the host, with and without a request, and to the guest |
//! | `bursts` | three machines, one after the other and at the same time |
//! | `kept` | the runner's memory policy for an idle machine |
//! | `guest` | the machines that this is measured in |
//! | `means` | how memory is reclaimed: virtio-mem or balloon |
//! | `course` | resident memory over time; pure |
//!
//! All guests have the same kernel and the same work. Those of garret also run what every guest of garret runs: the
//! agent's reclaim loop, and swap in compressed memory. A machine of garret that is idle after a build is treated as
//! the runner does on an overcommitted host.

mod build;
mod bursts;
mod course;
mod freed;
mod guest;
mod kept;
mod means;

use self::build::Built;
use super::{Bench, Sampled};
use crate::lab::Lab;
use crate::scale::{Scale, Size};
use crate::subject::Subject;

pub(super) struct Memory;

impl Bench for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn kept(&self, scale: &Scale) -> usize {
        scale.long_rounds.div_ceil(2)
    }

    /// The quick size has one QEMU with balloon and free page reporting: the smaller one.
    fn takes(&self, subject: &str, size: Size) -> bool {
        size == Size::Full || subject != "qemu-q35"
    }

    fn run(&self, lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Sampled> {
        let mib = lab.scale.fill_mib;
        let Built { mut guest, build, mut measurements } = build::run(lab, subject)?;
        measurements.push(freed::unasked(&mut guest, mib)?);
        measurements.extend(freed::asked(&mut guest, mib)?);
        let setup = guest.setup.clone();
        drop(guest); // it would take CPU time and memory from the next measurement
        measurements.extend(build::compared(lab, subject, &build)?);
        measurements.extend(bursts::run(lab, subject)?);
        Ok(Sampled { setup, measurements })
    }
}
