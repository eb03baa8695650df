//! Memory that comes back: after a build and its cleaning up, after a program has freed it, and when it is asked for.
//!
//! | file | what |
//! |---|---|
//! | `build` | what a machine holds during a build, after it and idle, and what that costs the build |
//! | `freed` | how soon freed memory is the host's again, asked for or not; and the guest's |
//! | `bursts` | three machines, one after the other and all at once |
//! | `kept` | what garret's runner does for an idle machine |
//! | `guest` | the machines all of this is measured in |
//! | `means` | how memory is asked back: virtio-mem or balloon |
//! | `course` | resident memory over time: what it tells is pure |
//!
//! All guests have the same kernel and the same work. Those of garret also run what a guest of garret always runs: the
//! agent's loop that takes back cold memory, and swap in compressed memory; and one that idles after a build is kept as
//! the runner keeps it on a host that has promised more than it has.

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

/// The bench.
pub(super) struct Memory;

impl Bench for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn kept(&self, scale: &Scale) -> usize {
        scale.long_rounds.div_ceil(2)
    }

    /// In the quick size one QEMU with balloon and free page reporting has to do: the leaner one.
    fn takes(&self, subject: &str, size: Size) -> bool {
        size == Size::Full || subject != "qemu-q35"
    }

    fn run(&self, lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Sampled> {
        let mib = lab.scale.fill_mib;
        let Built { mut guest, build, mut measurements } = build::run(lab, subject)?;
        measurements.push(freed::unasked(&mut guest, mib)?);
        measurements.extend(freed::asked(&mut guest, mib)?);
        let setup = guest.setup.clone();
        drop(guest); // it would take processor time and memory from what follows
        measurements.extend(build::compared(lab, subject, &build)?);
        measurements.extend(bursts::run(lab, subject)?);
        Ok(Sampled { setup, measurements })
    }
}
