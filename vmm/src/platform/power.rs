//! Power-off and reset through the FADT's registers, the power button, and the panic device.

use std::io;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Error, ports};
use crate::bus::BusDevice;
use crate::control::{Event, Events};
use crate::kvm::Vm;

/// Sleep control register (ACPI 6.5 §4.8.3.7): bit 5 starts the transition to the type in bits 2 to 4.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// Sleep control, sleep status and reset register.
pub(crate) struct PowerPorts {
    events: Events,
}

impl PowerPorts {
    /// `events` receives power-off and reset.
    pub(crate) fn new(events: Events) -> Self {
        Self { events }
    }
}

/// The event that a write to a power register requests; `offset` counts from the sleep control register.
fn requested_event(offset: u64, value: u8) -> Option<Event> {
    const RESET: u64 = (ports::RESET - ports::SLEEP_CONTROL) as u64;
    let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
    match offset {
        0 if value & SLEEP_ENABLE != 0 && sleep_type == ports::SLEEP_TYPE_OFF => Some(Event::PowerOff),
        RESET if value == ports::RESET_VALUE => Some(Event::Reset),
        _ => None,
    }
}

impl BusDevice for PowerPorts {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(event) = data.first().and_then(|value| requested_event(offset, *value)) {
            self.events.send(event);
        }
    }
}

/// The ACPI power button: an edge on its interrupt is a press.
pub(crate) struct PowerButton(EventFd);

impl PowerButton {
    /// Connects the button to the guest.
    pub(crate) fn new(vm: &Vm) -> Result<Self, Error> {
        let wire = EventFd::new(EFD_NONBLOCK)?;
        vm.register_irqfd(&wire, ports::POWER_BUTTON_GSI)?;
        Ok(Self(wire))
    }

    /// Asks the guest to power off. A guest whose kernel has not set up the interrupt yet does not notice it.
    pub(crate) fn press(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// pvpanic: a read returns the supported events, a write reports events.
pub(crate) struct PanicPort {
    events: Events,
}

/// The guest's kernel panicked.
const PANICKED: u8 = 1;

impl PanicPort {
    /// `events` receives the panic.
    pub(crate) fn new(events: Events) -> Self {
        Self { events }
    }
}

impl BusDevice for PanicPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|event| event & PANICKED != 0) {
            self.events.send(Event::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_soft_off_and_the_reset_value_do_something() {
        let off = SLEEP_ENABLE | (ports::SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT);
        for (offset, value, expected) in [
            (0, off, Some(Event::PowerOff)),
            (0, off & !SLEEP_ENABLE, None),
            (0, SLEEP_ENABLE | (3 << SLEEP_TYPE_SHIFT), None),
            (1, off, None),
            (2, ports::RESET_VALUE, Some(Event::Reset)),
            (2, 0, None),
        ] {
            assert_eq!(
                requested_event(offset, value).map(|event| format!("{event:?}")),
                expected.map(|event: Event| format!("{event:?}")),
                "{offset} {value:#x}"
            );
        }
    }
}
