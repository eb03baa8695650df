//! The devices at fixed ports or with wired interrupts: serial port, power, reset, power button, panic device, and
//! placeholders for PC devices that this machine lacks.

mod absent;
pub(crate) mod ports;
mod power;
mod serial;

use std::sync::Arc;

pub(crate) use absent::AbsentDevice;
pub(crate) use power::{PanicPort, PowerButton, PowerPorts};
pub(crate) use serial::SerialPort;

use crate::bus::{Bus, Overlap};
use crate::console_log::ConsoleLog;
use crate::control::Events;
use crate::kvm::{self, Vm};

/// Why the platform devices could not be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    #[error(transparent)]
    Bus(#[from] Overlap),
    /// The event descriptor for a wired interrupt could not be created.
    #[error("cannot create an event descriptor for an interrupt: {0}")]
    Wire(#[from] std::io::Error),
}

/// Builds the bus with all devices at fixed ports.
pub(crate) fn port_bus(vm: &Vm, log: Arc<ConsoleLog>, events: &Events) -> Result<Bus, Error> {
    let range = |range: std::ops::Range<u16>| u64::from(range.start)..u64::from(range.end);
    let one = |port: u16| u64::from(port)..u64::from(port) + 1;
    let absent = Arc::new(AbsentDevice::new(events.clone()));
    let mut bus = Bus::default();
    bus.add(range(ports::SERIAL), Arc::new(SerialPort::new(vm, log)?))?;
    bus.add(range(ports::SLEEP_CONTROL..ports::RESET + 1), Arc::new(PowerPorts::new(events.clone())))?;
    bus.add(one(ports::PANIC), Arc::new(PanicPort::new(events.clone())))?;
    bus.add(one(ports::I8042_DATA), absent.clone())?;
    bus.add(one(ports::I8042_COMMAND), absent.clone())?;
    bus.add(range(ports::RTC), absent)?;
    Ok(bus)
}
