//! File operations that are typical for development, in the virtio-fs share and on the data disk of the same machine.

use std::fs as files;

use super::work::{Case, Work};
use super::{Bench, Measurement, Sampled, fio};
use crate::count::{memory, open_descriptors};
use crate::guest;
use crate::lab::Lab;
use crate::result::Unit;
use crate::scale::Size;
use crate::subject::{Disk, Machine, Running, Subject};

pub(super) struct Fs;

impl Bench for Fs {
    fn name(&self) -> &'static str {
        "fs"
    }

    fn takes(&self, subject: &str, _size: Size) -> bool {
        subject != "firecracker" // it has no virtio-fs
    }

    fn run(&self, lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Sampled> {
        let folder = lab.folder()?;
        let machine = machine(lab, folder.path())?;
        let mut work = Work::start(lab, subject, &machine, folder.path())?;
        let mut before = None;
        let report = work.follow(|running, case| {
            if case.is_some() && before.is_none() {
                before = Some(server(running, lab)?);
            }
            Ok(())
        })?;

        let files = lab.scale.files;
        let mut measurements = Vec::new();
        for case in &report.cases {
            match report.value(&format!("fio:{}", case.name)) {
                Some(_) => measurements.push(fio::measurement(&report, &case.name)?),
                None => measurements.extend(measured(case, files)),
            }
        }
        if let Some(before) = before {
            measurements.extend(growth(before, server(&work.running, lab)?));
        }
        Ok(Sampled { setup: work.running.setup.clone(), measurements })
    }
}

fn machine(lab: &Lab, folder: &std::path::Path) -> anyhow::Result<Machine> {
    let (cases, targets) = match lab.size {
        Size::Gate => ("untar git_add git_status", "share"),
        Size::Quick => ("untar git_add git_status git_status_cold find rm fio", "share data"),
        Size::Full => ("untar git_add git_status git_status_cold find rm fio npm_ci c_build", "share data"),
    };
    let needs_tools = lab.size != Size::Gate;
    let share = folder.join("share");
    files::create_dir(&share)?;
    let mut variables = vec![
        ("CASES", cases.to_owned()),
        ("TARGETS", targets.to_owned()),
        ("SOURCE", "/dev/vdc".to_owned()),
        ("FILE_MIB", lab.scale.file_mib.to_string()),
        ("TRANSFER_S", lab.scale.transfer_s.to_string()),
    ];
    let mut extra: Vec<Disk> = vec![lab.source_disk()?];
    if needs_tools {
        variables.push(("TOOLS", "/dev/vdd".to_owned()));
        extra.push(lab.tools_disk()?);
    }
    let own = [lab.data_disk(folder)?, lab.job_disk(folder, &variables, guest::FS)?];
    let disks = own.into_iter().chain(extra).collect();
    Ok(Machine { disks, share: Some(share), ..lab.machine(guest::CMDLINE) })
}

/// Time and counts. Requests and kicks exist only if the VMM reports them; exits and the servers' system calls exist
/// for all.
fn measured(case: &Case, files: usize) -> Vec<Measurement> {
    let (name, counts) = (&case.name, &case.counts);
    let device = if name.ends_with("_on_disk") { "block0" } else { "fs0" };
    let detail = if name.starts_with("npm") || name.starts_with("c_build") {
        "a real project".to_owned()
    } else {
        format!("{files} files")
    };
    let mut all = vec![
        Measurement::less(format!("{name}_seconds"), Unit::Seconds, case.seconds),
        Measurement::bytes(format!("{name}_io_bytes"), counts.io_bytes),
    ];
    all.extend(counts.system_calls.map(|calls| Measurement::count(format!("{name}_system_calls"), calls)));
    all.extend(counts.exits("exits").map(|exits| Measurement::count(format!("{name}_exits"), exits)));
    if let Some(device) = counts.devices.get(device) {
        all.push(Measurement::count(format!("{name}_requests"), device.chains));
        all.push(Measurement::count(format!("{name}_kicks"), device.kicks));
        all.push(Measurement::count(format!("{name}_interrupts"), device.interrupts));
    }
    all.into_iter().map(|measurement| measurement.with(detail.clone())).collect()
}

/// Descriptors and private memory of the file server, or of the VMM that contains it.
fn server(running: &Running, lab: &Lab) -> anyhow::Result<(u64, u64)> {
    let descriptors = running.pids().into_iter().map(open_descriptors).sum();
    Ok((descriptors, memory::of(running, lab.guest_bytes())?.own_private))
}

/// Compares the server after the first case with the server at the end, when all files are removed again.
fn growth(before: (u64, u64), after: (u64, u64)) -> [Measurement; 2] {
    let detail = "VMM and server, from after the first case to after the last";
    [
        Measurement::count("server_descriptors_end", after.0).with(format!("{detail}; {} before", before.0)),
        Measurement::bytes("server_private_bytes_end", after.1).with(format!("{detail}; {} before", before.1)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count::Snapshot;
    use garret_api::vmm::DeviceMetrics;
    use std::collections::BTreeMap;

    #[test]
    fn a_case_on_the_share_counts_the_shares_requests() {
        let device = |chains| DeviceMetrics { kicks: 1, interrupts: 2, chains, ..Default::default() };
        let devices = BTreeMap::from([("fs0".into(), device(500)), ("block0".into(), device(30))]);
        let counts = Snapshot { devices, ..Snapshot::default() };
        for (name, requests) in [("find", 500.0), ("find_on_disk", 30.0)] {
            let case = Case { name: name.into(), seconds: 1.0, counts: counts.clone() };
            let measurements = measured(&case, 2000);
            let of = format!("{name}_requests");
            let found = measurements.iter().find(|measurement| measurement.metric == of).unwrap();
            assert_eq!((found.value, found.detail.as_str()), (requests, "2000 files"));
        }
    }
}
