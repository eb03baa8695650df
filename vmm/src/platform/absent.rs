//! Devices that a PC has and this machine lacks: the keyboard controller and the CMOS clock.
//!
//! ACPI declares them absent. A kernel that still accesses them reads zeros, which mean "not busy" and "no update in
//! progress". All ones would mean the opposite, and a driver would poll ten thousand times.

use crate::bus::BusDevice;
use crate::control::{Event, Events};

/// The keyboard controller's command that pulses the processor's reset line: the oldest way to reboot a PC.
const PULSE_RESET: u8 = 0xFE;

/// Every register reads as zero.
pub(crate) struct AbsentDevice {
    events: Events,
}

impl AbsentDevice {
    /// `events` receives a reset by the keyboard controller.
    pub(crate) fn new(events: Events) -> Self {
        Self { events }
    }
}

impl BusDevice for AbsentDevice {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [PULSE_RESET] {
            self.events.send(Event::Reset);
        }
    }
}
