//! PCI with as little of it as Linux needs: one bus, one function per device, no bridge, configuration space by the ports
//! 0xCF8 and 0xCFC.
//!
//! Boot Linux with `pci=conf1,noearly,lastbus=0`: `conf1` makes it believe in the ports without looking for a host bridge (there
//! is none), `noearly` spares a first scan for old chipsets' quirks, `lastbus=0` keeps it from looking for other buses. The
//! root bridge itself is in the DSDT.

mod config_space;
mod function;
mod msix;
mod registers;
mod wiring;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use garret_api::vmm::DeviceMetrics;

use crate::bus::BusDevice;
use crate::virtio::{Counters, GuestRam, VirtioDevice};
use function::{BAR_SIZE, Function};
pub use wiring::{Msi, Wiring};

/// The ports of configuration space: the address, then the data.
pub const PORTS: Range<u64> = 0xCF8..0xD00;
/// Devices on a bus.
const SLOTS: usize = 32;
/// The address register's bit that makes the data port one of configuration space.
const ENABLE: u32 = 1 << 31;

/// A device could not be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every slot or the whole window is taken.
    #[error("{0}: the PCI bus is full: at most {SLOTS} devices")]
    Full(String),
    /// The host failed.
    #[error("{device}: cannot put it on the PCI bus: {source}")]
    Host {
        /// The device's name.
        device: String,
        /// Why.
        source: io::Error,
    },
}

/// A device did not stop in time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is still finishing requests; try again")]
pub struct StillBusy(pub String);

/// The bus: slot 0 is the device added first.
pub struct PciBus {
    functions: Vec<Mutex<Function>>,
    /// Names and counters by slot, apart from the functions: a function may be locked for as long as its device is busy.
    counters: Vec<(String, Arc<Counters>)>,
    mem: Arc<GuestRam>,
    wiring: Arc<dyn Wiring>,
    window: Range<u64>,
    address: Mutex<u32>,
}

impl PciBus {
    /// An empty bus whose BARs lie in `window`, a range below 4 GiB.
    pub fn new(wiring: Arc<dyn Wiring>, mem: GuestRam, window: Range<u64>) -> Self {
        Self { functions: Vec::new(), counters: Vec::new(), mem: Arc::new(mem), wiring, window, address: Mutex::new(0) }
    }

    /// Puts `device` into the next slot.
    pub fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), Error> {
        let name = device.identity().name.clone();
        let bar = self.window.start.next_multiple_of(BAR_SIZE) + self.functions.len() as u64 * BAR_SIZE;
        let place = u32::try_from(bar).ok().filter(|_| bar + BAR_SIZE <= self.window.end);
        let Some(place) = place.filter(|_| self.functions.len() < SLOTS) else { return Err(Error::Full(name)) };
        let counters = device.config_interrupt().counters().clone();
        let function = Function::new(device, place, self.mem.clone(), self.wiring.clone());
        let function = function.map_err(|source| Error::Host { device: name.clone(), source })?;
        self.functions.push(Mutex::new(function));
        self.counters.push((name, counters));
        Ok(())
    }

    /// Stops every device that runs, so that guest memory and the queues stand still. The vCPUs must stand still already. When
    /// one is still busy after `deadline`, all go on.
    pub fn pause(&self, deadline: Duration) -> Result<(), StillBusy> {
        let until = Instant::now() + deadline;
        for function in &self.functions {
            let mut function = lock(function);
            if function.pause(until.saturating_duration_since(Instant::now())).is_err() {
                let name = function.name().to_owned();
                drop(function);
                self.resume();
                return Err(StillBusy(name));
            }
        }
        Ok(())
    }

    /// Undoes [`PciBus::pause`].
    pub fn resume(&self) {
        self.functions.iter().for_each(|function| lock(function).resume());
    }

    /// Every device's counters, by its name.
    pub fn metrics(&self) -> BTreeMap<String, DeviceMetrics> {
        self.counters.iter().map(|(name, counters)| (name.clone(), counters.metrics())).collect()
    }

    /// The function the address register names, and the register.
    fn selected(&self) -> Option<(&Mutex<Function>, usize)> {
        let address = *lock(&self.address);
        let (bus, slot, function) = (address >> 16 & 0xFF, address >> 11 & 0x1F, address >> 8 & 7);
        let is_ours = address & ENABLE != 0 && bus == 0 && function == 0;
        let found = is_ours.then(|| self.functions.get(slot as usize)).flatten()?;
        Some((found, (address & 0xFC) as usize))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of another vCPU thread ends the process; until then the state is no worse than the guest's own doing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bus as seen through [`PORTS`].
pub struct ConfigPorts(pub Arc<PciBus>);

/// The first data port.
const DATA: u64 = 4;

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
        if offset < DATA {
            if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(data)) {
                *data = lock(&self.0.address).to_le_bytes();
            }
        } else if let Some((function, register)) = self.0.selected() {
            lock(function).read_config(register + (offset - DATA) as usize, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset < DATA {
            if let (0, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
                *lock(&self.0.address) = u32::from_le_bytes(data);
            }
        } else if let Some((function, register)) = self.0.selected() {
            lock(function).write_config(register + (offset - DATA) as usize, data);
        }
    }
}

/// The bus as seen through its memory window.
pub struct BarWindow(pub Arc<PciBus>);

impl BarWindow {
    fn find(&self, offset: u64) -> Option<(&Mutex<Function>, u64)> {
        let first = self.0.window.start.next_multiple_of(BAR_SIZE) - self.0.window.start;
        let offset = offset.checked_sub(first)?;
        Some((self.0.functions.get(usize::try_from(offset / BAR_SIZE).ok()?)?, offset % BAR_SIZE))
    }
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((function, offset)) => lock(function).read_bar(offset, data),
            None => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.find(offset) {
            lock(function).write_bar(offset, data);
        }
    }
}
