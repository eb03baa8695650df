//! The few devices at fixed ports and with wired interrupts: serial port, power, reset, power button, panic, and answers for
//! what a PC would have and this machine has not.

mod absent;
pub mod ports;
mod power;
mod serial;

use std::sync::Arc;

pub use absent::Absent;
pub use power::{PanicPort, PowerButton, PowerPorts};
pub use serial::SerialPort;

use crate::bus::{Bus, Overlap};
use crate::console_log::ConsoleLog;
use crate::control::Events;
use crate::kvm::{self, Vm};

/// The platform could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM refused a wired interrupt.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// Two devices at one port.
    #[error(transparent)]
    Bus(#[from] Overlap),
    /// No descriptor for a wired interrupt.
    #[error("cannot create an event descriptor for an interrupt: {0}")]
    Wire(#[from] std::io::Error),
}

/// Everything at fixed ports.
pub fn port_bus(vm: &Vm, log: Arc<ConsoleLog>, events: &Events) -> Result<Bus, Error> {
    let range = |range: std::ops::Range<u16>| u64::from(range.start)..u64::from(range.end);
    let one = |port: u16| u64::from(port)..u64::from(port) + 1;
    let absent = Arc::new(Absent::new(events.clone()));
    let mut bus = Bus::default();
    bus.add(range(ports::SERIAL), Arc::new(SerialPort::new(vm, log)?))?;
    bus.add(range(ports::SLEEP_CONTROL..ports::RESET + 1), Arc::new(PowerPorts::new(events.clone())))?;
    bus.add(one(ports::PANIC), Arc::new(PanicPort::new(events.clone())))?;
    bus.add(one(ports::I8042_DATA), absent.clone())?;
    bus.add(one(ports::I8042_COMMAND), absent.clone())?;
    bus.add(range(ports::RTC), absent)?;
    Ok(bus)
}
