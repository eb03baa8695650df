//! Throughput and latency of vsock, between a program on the host and one in the guest.

use std::time::Duration;

use anyhow::Context;

use super::work::Work;
use super::{Bench, Measurement, Sampled};
use crate::guest;
use crate::lab::Lab;
use crate::result::Unit;
use crate::subject::{Machine, Subject};

pub(super) struct Vsock;

impl Bench for Vsock {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn run(&self, lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Sampled> {
        let folder = lab.folder()?;
        let job = lab.job_disk(folder.path(), &[("HELPER", "/dev/vdc".to_owned())], guest::VSOCK)?;
        let disks = vec![lab.data_disk(folder.path())?, job, lab.helper_disk()];
        let machine = Machine { disks, vsock: true, ..lab.machine(guest::CMDLINE) };
        let mut work = Work::start(lab, subject, &machine, folder.path())?;
        work.until_ready()?;
        let socket = work.running.guest.clone().context("the machine has no vsock")?;
        let time = Duration::from_secs(u64::from(lab.scale.transfer_s));
        let connect = || socket.connect(guest::PORT);
        let to = guest::throughput_to(&mut connect()?, time).context("to the guest")?;
        let from = guest::throughput_from(&mut connect()?, time).context("from the guest")?;
        let trip = guest::round_trips(&mut connect()?, lab.scale.round_trips).context("round trips")?;
        let measurements = vec![
            Measurement::more("to_guest_rate", Unit::BytesPerSecond, to).with("64 KiB blocks"),
            Measurement::more("from_guest_rate", Unit::BytesPerSecond, from).with("64 KiB blocks"),
            Measurement::less("round_trip_seconds", Unit::Seconds, trip)
                .with(format!("one byte, mean of {}", lab.scale.round_trips)),
        ];
        Ok(Sampled { setup: work.running.setup.clone(), measurements })
    }
}
