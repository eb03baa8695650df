//! A snapshot as metrics.

use garret_api::runner::{MachineMemory, Means};

use super::snapshot::Snapshot;
use crate::daemon::prometheus::Page;

/// Adds all figures of the snapshot to the page.
pub(crate) fn render(page: &mut Page, snapshot: &Snapshot) {
    host(page, snapshot);
    machines(page, snapshot);
}

fn host(page: &mut Page, snapshot: &Snapshot) {
    let host = &snapshot.host;
    let name = "garret_host_memory_bytes";
    page.family(
        name,
        "gauge",
        "The host's memory: as its kernel has it, and what machines were promised of it and hold.",
    );
    for (kind, bytes) in [
        ("total", host.total),
        ("available", host.available),
        ("swap_total", host.swap_total),
        ("swap_free", host.swap_free),
        ("capacity", host.capacity),
        ("promised", host.promised),
        ("guaranteed", host.guaranteed),
        ("resident", host.resident),
    ] {
        page.sample(name, &[("kind", kind)], bytes);
    }
    let name = "garret_host_overcommit_ratio";
    page.family(name, "gauge", "Memory promised to machines, divided by the host's memory.");
    page.sample(name, &[], host.overcommit);
    let name = "garret_host_memory_pressure_ratio";
    page.family(name, "gauge", "Share of the last 10 s in which some or all tasks of the host waited for memory.");
    for (kind, percent) in [("some", host.pressure_some), ("full", host.pressure_full)] {
        if let Some(percent) = percent {
            page.sample(name, &[("kind", kind)], percent / 100.0);
        }
    }
}

fn machines(page: &mut Page, snapshot: &Snapshot) {
    let machines = || snapshot.machines.iter().map(|(_, machine)| machine);
    let name = "garret_machine_memory_bytes";
    page.family(name, "gauge", "Memory of a running machine.");
    for machine in machines() {
        for (kind, bytes) in sizes(machine) {
            page.sample(name, &[("developer", &machine.developer), ("kind", kind)], bytes);
        }
    }
    let name = "garret_machine_target_bytes";
    page.family(name, "gauge", "Host memory that a running machine should hold.");
    for machine in machines() {
        page.sample(name, &[("developer", &machine.developer)], machine.target);
    }
    let name = "garret_machine_memory_weight";
    page.family(name, "gauge", "A machine's share of the memory beyond the guarantees.");
    for machine in machines() {
        page.sample(name, &[("developer", &machine.developer)], machine.weight);
    }
    let name = "garret_machine_memory_pressure_ratio";
    page.family(
        name,
        "gauge",
        "Share of the last 10 s in which some task of the guest waited for memory, as the guest reports.",
    );
    for machine in machines() {
        if let Some(percent) = machine.pressure_some {
            page.sample(name, &[("developer", &machine.developer)], percent / 100.0);
        }
    }
    let name = "garret_machine_oom_kills_total";
    page.family(
        name,
        "counter",
        "Processes that a guest's kernel killed for lack of memory since its boot, as the guest reports.",
    );
    for machine in machines() {
        page.sample(name, &[("developer", &machine.developer)], machine.oom_kills);
    }
    let name = "garret_machine_broken_reports_total";
    page.family(name, "counter", "Times a guest's memory reports ended or were invalid.");
    for (developer, count) in &snapshot.broken_reports {
        page.sample(name, &[("developer", developer)], count);
    }
    let name = "garret_squeezes_total";
    page.family(name, "counter", "Times memory was taken from a machine, by means, since the daemon started.");
    for ((developer, means), count) in &snapshot.squeezes {
        page.sample(name, &[("developer", developer), ("means", means_name(*means))], count);
    }
}

fn sizes(machine: &MachineMemory) -> [(&'static str, u64); 6] {
    [
        ("promised", machine.promised),
        ("guaranteed", machine.guaranteed),
        ("limit", machine.limit),
        ("resident", machine.resident),
        ("swapped", machine.swapped),
        ("working_set", machine.working_set),
    ]
}

/// The name of the means in the API.
fn means_name(means: Means) -> &'static str {
    match means {
        Means::Released => "released",
        Means::Guest => "guest",
        Means::Swap => "swap",
        Means::Paused => "paused",
    }
}

#[cfg(test)]
mod tests {
    use garret_api::runner::HostMemory;

    use super::*;
    use crate::daemon::prometheus::is_grouped;

    fn text(snapshot: &Snapshot) -> String {
        let mut page = Page::default();
        render(&mut page, snapshot);
        page.into_text()
    }

    fn snapshot() -> Snapshot {
        let alice = MachineMemory {
            developer: "alice".into(),
            promised: 8 << 30,
            pressure_some: Some(12.5),
            oom_kills: 2,
            ..MachineMemory::default()
        };
        Snapshot {
            host: HostMemory { total: 1 << 30, overcommit: 3.5, pressure_some: Some(1.0), ..HostMemory::default() },
            machines: vec![(7, alice)],
            broken_reports: [("alice".to_string(), 1)].into(),
            squeezes: [(("alice".to_string(), Means::Swap), 4)].into(),
        }
    }

    #[test]
    fn every_figure_is_there() {
        let text = text(&snapshot());
        for line in [
            "garret_host_memory_bytes{kind=\"total\"} 1073741824",
            "garret_host_overcommit_ratio 3.5",
            "garret_host_memory_pressure_ratio{kind=\"some\"} 0.01",
            "garret_machine_memory_bytes{developer=\"alice\",kind=\"promised\"} 8589934592",
            "garret_machine_target_bytes{developer=\"alice\"} 0",
            "garret_machine_memory_pressure_ratio{developer=\"alice\"} 0.125",
            "garret_machine_oom_kills_total{developer=\"alice\"} 2",
            "garret_machine_broken_reports_total{developer=\"alice\"} 1",
            "garret_squeezes_total{developer=\"alice\",means=\"swap\"} 4",
        ] {
            assert!(text.lines().any(|there| there == line), "no `{line}` in:\n{text}");
        }
        assert!(!text.contains("kind=\"full\""), "a host without PSI does not tell it");
        assert!(is_grouped(&text), "{text}");
    }
}
