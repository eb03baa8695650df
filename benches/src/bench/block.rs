//! A raw virtio-blk disk without a file system or a cache: fio in the guest.

use super::work::Work;
use super::{Bench, Measurement, Sampled, fio};
use crate::guest;
use crate::lab::Lab;
use crate::result::Unit;
use crate::subject::{Machine, Subject};

pub(super) struct Block;

impl Bench for Block {
    fn name(&self) -> &'static str {
        "block"
    }

    fn run(&self, lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Sampled> {
        let folder = lab.folder()?;
        let mib = lab.scale.file_mib * 2;
        let variables = [
            ("DISK", "/dev/vda".to_owned()),
            ("TOOLS", "/dev/vdc".to_owned()),
            ("TRANSFER_S", lab.scale.transfer_s.to_string()),
        ];
        let job = lab.job_disk(folder.path(), &variables, guest::BLOCK)?;
        let disks = vec![lab.scratch_disk(mib)?, job, lab.tools_disk()?];
        let mut work = Work::start(lab, subject, &Machine { disks, ..lab.machine(guest::CMDLINE) }, folder.path())?;
        let report = work.follow(|_, _| Ok(()))?;
        let mut measurements = Vec::new();
        for case in &report.cases {
            let rate = fio::measurement(&report, &case.name)?.with(format!("direct, a disk of {mib} MiB"));
            let operations = rate.value * f64::from(lab.scale.transfer_s);
            if !case.name.starts_with("seq_") && operations > 0.0 {
                let each = [("system_calls", case.counts.system_calls), ("exits", case.counts.exits("exits"))];
                measurements.extend(each.into_iter().filter_map(|(name, count)| {
                    let metric = format!("{}_{name}_each", case.name);
                    Some(Measurement::less(metric, Unit::Count, count? as f64 / operations))
                }));
            }
            measurements.push(rate);
        }
        Ok(Sampled { setup: work.running.setup.clone(), measurements })
    }
}
