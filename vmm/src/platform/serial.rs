//! The 16550 serial port: output only, to the console log.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Error, ports};
use crate::bus::BusDevice;
use crate::console_log::ConsoleLog;
use crate::kvm::Vm;

/// The port with its wired interrupt.
pub(crate) struct SerialPort {
    uart: Mutex<Serial<Wire, NoEvents, Output>>,
}

/// The interrupt line; each trigger is an edge.
struct Wire(EventFd);

impl Trigger for Wire {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The destination of the transmitted bytes.
struct Output(Arc<ConsoleLog>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SerialPort {
    /// Creates a port that prints to `log`.
    pub(crate) fn new(vm: &Vm, log: Arc<ConsoleLog>) -> Result<Self, Error> {
        let wire = EventFd::new(EFD_NONBLOCK)?;
        vm.register_irqfd(&wire, ports::SERIAL_GSI)?;
        Ok(Self { uart: Mutex::new(Serial::new(Wire(wire), Output(log))) })
    }

    fn uart(&self) -> std::sync::MutexGuard<'_, Serial<Wire, NoEvents, Output>> {
        self.uart.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
        if let [value] = data {
            *value = self.uart().read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let [value] = data {
            // It fails only if the event counter is full: then the interrupt is already pending.
            let _ = self.uart().write(offset as u8, *value);
        }
    }
}
