//! The numbers of ports and wired interrupts, used by the devices and by the ACPI tables.

use std::ops::Range;

/// The first serial port, at its standard address.
pub(crate) const SERIAL: Range<u16> = 0x3F8..0x400;
/// The serial port's interrupt.
pub(crate) const SERIAL_GSI: u32 = 4;
/// The power button's interrupt.
pub(crate) const POWER_BUTTON_GSI: u32 = 5;
/// pvpanic's usual port.
pub(crate) const PANIC: u16 = 0x505;
/// ACPI sleep control register; the status register and the reset register follow it.
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
/// ACPI sleep status register.
pub(crate) const SLEEP_STATUS: u16 = 0x601;
/// ACPI reset register.
pub(crate) const RESET: u16 = 0x602;
/// The value that resets the machine when written to [`RESET`].
pub(crate) const RESET_VALUE: u8 = 1;
/// The sleep type of S5, soft off.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
/// The keyboard controller's data port.
pub(crate) const I8042_DATA: u16 = 0x60;
/// The keyboard controller's status and command port.
pub(crate) const I8042_COMMAND: u16 = 0x64;
/// The CMOS clock's index port and data port.
pub(crate) const RTC: Range<u16> = 0x70..0x72;
