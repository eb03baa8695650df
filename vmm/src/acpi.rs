//! The few ACPI tables of a hardware-reduced machine (ACPI 6.5 §4.1): processors and interrupt controller (MADT), power
//! and reset registers (FADT), PCI configuration space (MCFG), host bridge, motherboard, serial port, panic device and
//! power button (DSDT). The tables declare which devices are absent, so that no guest polls for them.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{self, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::{GuestRam, layout};
use crate::platform::ports;

const OEM: [u8; 6] = *b"GARRET";
const TABLE: [u8; 8] = *b"GARRETVM";
const REVISION: u32 = 1;

/// FADT "IA-PC boot architecture": no VGA, no CMOS clock; and by their absence: no legacy devices, no 8042 controller.
const BOOT_ARCHITECTURE: u16 = (1 << 2) | (1 << 5);

/// Writes the tables for `vcpus` processors; returns the root pointer's address.
pub(crate) fn write(memory: &GuestRam, vcpus: u8) -> Result<u64, GuestMemoryError> {
    let mut tables = Tables { memory, next: layout::ACPI.start + 64 };
    let dsdt = tables.put(&bytes(&dsdt()))?;
    let fadt = tables.put(&bytes(&fadt(dsdt)))?;
    let madt = tables.put(&bytes(&madt(vcpus)))?;
    let mcfg = tables.put(&bytes(&mcfg()))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    xsdt.add_entry(mcfg);
    let xsdt = tables.put(&bytes(&xsdt))?;
    memory.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(layout::ACPI.start))?;
    Ok(layout::ACPI.start)
}

struct Tables<'a> {
    memory: &'a GuestRam,
    next: u64,
}

impl Tables<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, GuestMemoryError> {
        let at = self.next;
        self.memory.write_slice(table, GuestAddress(at))?;
        self.next = (at + table.len() as u64).next_multiple_of(16);
        debug_assert!(self.next <= layout::ACPI.end);
        Ok(at)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |port: u16| GAS::new(gas::AddressSpace::SystemIo, 8, 0, gas::AccessSize::ByteAccess, port.into());
    let mut table = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton) // the button is a device in the DSDT, not a fixed register
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    table.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    table.reset_reg = port(ports::RESET);
    table.reset_value = ports::RESET_VALUE;
    table.sleep_control_reg = port(ports::SLEEP_CONTROL);
    table.sleep_status_reg = port(ports::SLEEP_STATUS);
    table.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut table = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(layout::LOCAL_APIC as u32));
    for index in 0..vcpus {
        table.add_structure(ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, layout::IO_APIC as u32, 0));
    table
}

/// The address of PCI configuration space: segment 0, bus 0.
fn mcfg() -> MCFG {
    let mut table = MCFG::new(OEM, TABLE, REVISION);
    table.add_ecam(layout::PCI_CONFIG.start, 0, 0, 0);
    table
}

fn dsdt() -> Sdt {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    let mut body = Vec::new();
    host_bridge(&mut body);
    motherboard(&mut body);
    serial_port(&mut body);
    panic_device(&mut body);
    power_button(&mut body);
    // S5, "soft off": the value the guest writes to the sleep control register.
    let zero = 0u8;
    Name::new(Path::new("_S5_"), &Package::new(vec![&ports::SLEEP_TYPE_OFF, &zero, &zero, &zero]))
        .to_aml_bytes(&mut body);
    table.append_slice(&body);
    table.update_checksum();
    table
}

/// Writes a device of the system bus with its properties.
fn device(sink: &mut dyn AmlSink, name: &str, properties: &[(&str, &dyn Aml)]) {
    let properties: Vec<_> = properties.iter().map(|(name, value)| Name::new(Path::new(name), *value)).collect();
    let device = Device::new(Path::new(name), properties.iter().map(|property| property as &dyn Aml).collect());
    Scope::new(Path::new("\\_SB_"), vec![&device]).to_aml_bytes(sink);
}

/// One bus, one window for memory BARs; interrupts are messages, so no routing table.
fn host_bridge(sink: &mut dyn AmlSink) {
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::PCI_WINDOW.start as u32,
        (layout::PCI_WINDOW.end - 1) as u32,
        None,
    );
    let buses = AddressSpace::new_bus_number(0u16, 0u16);
    let resources = ResourceTemplate::new(vec![&buses, &window]);
    let (id, zero) = (EISAName::new("PNP0A03"), 0u8);
    let properties: [(&str, &dyn Aml); 5] =
        [("_HID", &id), ("_UID", &zero), ("_SEG", &zero), ("_BBN", &zero), ("_CRS", &resources)];
    device(sink, "PCI0", &properties);
}

/// Reserves PCI configuration space: Linux uses the MCFG table only if a motherboard device reserves the same range
/// (PCI Firmware 3.0, §4.1.2).
fn motherboard(sink: &mut dyn AmlSink) {
    let (start, len) = (layout::PCI_CONFIG.start as u32, (layout::PCI_CONFIG.end - layout::PCI_CONFIG.start) as u32);
    let memory = Memory32Fixed::new(true, start, len);
    let resources = ResourceTemplate::new(vec![&memory]);
    device(sink, "MBRD", &[("_HID", &EISAName::new("PNP0C02")), ("_CRS", &resources)]);
}

/// The port has a wired interrupt: without it, a guest hangs at its first write to the terminal from user space.
fn serial_port(sink: &mut dyn AmlSink) {
    let start = ports::SERIAL.start;
    let interrupt = Interrupt::new(true, true, false, false, ports::SERIAL_GSI);
    let registers = IO::new(start, start, 1, ports::SERIAL.len() as u8);
    let resources = ResourceTemplate::new(vec![&interrupt, &registers]);
    device(sink, "COM1", &[("_HID", &EISAName::new("PNP0501")), ("_UID", &0u8), ("_CRS", &resources)]);
}

/// pvpanic: Linux writes to its port when the kernel panics.
fn panic_device(sink: &mut dyn AmlSink) {
    let port = IO::new(ports::PANIC, ports::PANIC, 1, 1);
    let resources = ResourceTemplate::new(vec![&port]);
    device(sink, "PEVT", &[("_HID", &"QEMU0001"), ("_STA", &0x0Fu8), ("_CRS", &resources)]);
}

/// The notification value of a pressed power button (ACPI 6.5 §4.8.2.2.1.2).
const BUTTON_PRESSED: u8 = 0x80;

/// A control-method power button. A hardware-reduced machine has no fixed one: a generic event device (§5.6.9) turns
/// the interrupt into the notification.
fn power_button(sink: &mut dyn AmlSink) {
    device(sink, "PWRB", &[("_HID", &EISAName::new("PNP0C0C")), ("_UID", &0u8)]);
    let interrupt = Interrupt::new(true, true, false, false, ports::POWER_BUTTON_GSI);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let button = Path::new("\\_SB_.PWRB");
    let notify = Notify::new(&button, &BUTTON_PRESSED);
    let event = Method::new(Path::new("_EVT"), 1, true, vec![&notify]);
    let id = Name::new(Path::new("_HID"), &"ACPI0013");
    let crs = Name::new(Path::new("_CRS"), &resources);
    let device = Device::new(Path::new("GED_"), vec![&id, &crs, &event]);
    Scope::new(Path::new("\\_SB_"), vec![&device]).to_aml_bytes(sink);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u32_at(memory: &GuestRam, at: u64) -> u32 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn u64_at(memory: &GuestRam, at: u64) -> u64 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn table(memory: &GuestRam, at: u64) -> Vec<u8> {
        let mut bytes = vec![0; u32_at(memory, at + 4) as usize];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    #[test]
    fn every_table_is_reachable_whole_and_in_place() {
        for vcpus in [1, 32] {
            let memory = crate::memory::ram(64 << 20).unwrap();
            let root = write(&memory, vcpus).unwrap();
            let mut rsdp = [0; 36];
            memory.read_slice(&mut rsdp, GuestAddress(root)).unwrap();
            assert_eq!((&rsdp[..8], sum(&rsdp), sum(&rsdp[..20])), (&b"RSD PTR "[..], 0, 0));
            let xsdt = u64_at(&memory, root + 24);
            let (fadt, madt) = (u64_at(&memory, xsdt + 36), u64_at(&memory, xsdt + 44));
            let dsdt = u64_at(&memory, fadt + 140);
            let mcfg = u64_at(&memory, xsdt + 52);
            for (at, signature) in [(xsdt, b"XSDT"), (fadt, b"FACP"), (madt, b"APIC"), (dsdt, b"DSDT"), (mcfg, b"MCFG")]
            {
                let bytes = table(&memory, at);
                assert_eq!((&bytes[..4], sum(&bytes)), (&signature[..], 0));
                assert!(layout::ACPI.contains(&(at + bytes.len() as u64)), "{at:#x}");
            }
            assert_eq!(table(&memory, madt).len(), 44 + 8 * usize::from(vcpus) + 12);
            assert_eq!(u32_at(&memory, fadt + 112) & (1 << 20), 1 << 20, "hardware-reduced");
        }
    }

    #[test]
    fn event_interrupt_notifies_the_power_button() {
        let dsdt = bytes(&dsdt());
        let holds = |part: &[u8]| dsdt.windows(part.len()).any(|window| window == part);
        let mut notify = vec![0x86, b'\\', 0x2E]; // NotifyOp, root, DualNamePrefix
        notify.extend(b"_SB_PWRB\x0A\x80");
        assert!(holds(b"ACPI0013") && holds(&bytes(&EISAName::new("PNP0C0C"))));
        assert!(holds(&[&b"_EVT\x09"[..], &notify].concat()), "one argument, serialized, then the notification");
        let interrupt = bytes(&Interrupt::new(true, true, false, false, ports::POWER_BUTTON_GSI));
        assert!(holds(&interrupt));
        assert_ne!(ports::POWER_BUTTON_GSI, ports::SERIAL_GSI);
    }
}
