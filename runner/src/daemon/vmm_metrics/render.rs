//! The VMMs' counters as metrics.

use garret_api::vmm::{DeviceMetrics, Metrics};

use super::OfMachine;
use crate::daemon::prometheus::Page;

/// A counter of each device: the end of its metric's name, its help, its value.
type DeviceCounter = (&'static str, &'static str, fn(&DeviceMetrics) -> u64);

const DEVICE_COUNTERS: [DeviceCounter; 6] = [
    ("requests", "Requests that a device of the machine has served, or packets.", |device| device.chains),
    ("bytes", "Bytes of these requests and their answers, headers included.", |device| device.bytes),
    ("kicks", "Notifications of the guest's driver to a device.", |device| device.kicks),
    ("interrupts", "Interrupts of a device to the guest's driver.", |device| device.interrupts),
    ("faults", "Times the guest's driver broke a device's rules.", |device| device.faults),
    ("host_failures", "Requests to a device that the host failed.", |device| device.host_failures),
];

/// Adds the counters of all VMMs to the page.
pub(crate) fn render(page: &mut Page, machines: &[OfMachine]) {
    let name = "garret_vmm_up";
    page.family(name, "gauge", "Whether the VMM of a machine answered this request.");
    for (developer, metrics) in machines {
        page.sample(name, &[("developer", developer)], u8::from(metrics.is_some()));
    }
    let answered = || machines.iter().filter_map(|(developer, metrics)| Some((developer.as_str(), metrics.as_ref()?)));
    let name = "garret_vmm_exits_total";
    page.family(name, "counter", "Exits of a machine's vCPUs to the VMM, by reason.");
    for (developer, metrics) in answered() {
        for (reason, count) in &metrics.exits {
            page.sample(name, &[("developer", developer), ("reason", reason)], count);
        }
    }
    let name = "garret_vmm_reported_free_bytes_total";
    page.family(name, "counter", "Memory that the guest has reported free and that returned to the host.");
    for (developer, Metrics { reported_free, .. }) in answered() {
        page.sample(name, &[("developer", developer)], reported_free);
    }
    for (counter, help, value) in DEVICE_COUNTERS {
        let name = format!("garret_vmm_device_{counter}_total");
        page.family(&name, "counter", help);
        for (developer, metrics) in answered() {
            for (device, counters) in &metrics.devices {
                page.sample(&name, &[("developer", developer), ("device", device)], value(counters));
            }
        }
    }
}
