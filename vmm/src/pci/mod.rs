//! The part of PCI that Linux needs: one bus, one function per device, no bridge, and configuration space in memory
//! (ECAM) at the address in the MCFG table. The root bridge is in the DSDT.
//!
//! A scan reads each register of each function several times. So each function's space is a page that the guest reads
//! without an exit, and only its writes cause one. There are no configuration ports, because Linux would prefer them.

mod config_space;
mod function;
mod hypervisor;
mod msix;
mod registers;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use garret_api::vmm::DeviceMetrics;

use crate::bus::BusDevice;
use crate::memory::PAGE;
use crate::virtio::{Counters, GuestRam, VirtioDevice};
use function::{BAR_SIZE, Function};
pub(crate) use hypervisor::Hypervisor;

/// Devices on a bus.
const SLOTS: usize = 32;
/// Configuration space of one device: its eight functions.
const DEVICE_SIZE: u64 = 8 * PAGE as u64;

/// A device could not be put on the bus.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}: the PCI bus is full: at most {SLOTS} devices")]
    Full(String),
    #[error("{device}: cannot put it on the PCI bus: {source}")]
    Host { device: String, source: io::Error },
}

/// The device of this name did not stop in time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is still finishing requests")]
pub(crate) struct StillBusy(pub String);

/// The bus: slot 0 is the device added first.
pub(crate) struct PciBus {
    functions: Vec<Mutex<Function>>,
    /// Names and counters by slot, separate from the functions: a function may be locked for as long as its device is
    /// busy.
    counters: Vec<(String, Arc<Counters>)>,
    mem: Arc<GuestRam>,
    hypervisor: Arc<dyn Hypervisor>,
    window: Range<u64>,
    config: u64,
}

impl PciBus {
    /// An empty bus whose BARs lie in `window`, a range below 4 GiB, and whose configuration space begins at `config`.
    pub(crate) fn new(hypervisor: Arc<dyn Hypervisor>, mem: GuestRam, window: Range<u64>, config: u64) -> Self {
        Self { functions: Vec::new(), counters: Vec::new(), mem: Arc::new(mem), hypervisor, window, config }
    }

    /// Puts `device` into the next slot.
    pub(crate) fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), Error> {
        let name = device.identity().name.clone();
        let bar = self.window.start.next_multiple_of(BAR_SIZE) + self.functions.len() as u64 * BAR_SIZE;
        let place = u32::try_from(bar).ok().filter(|_| bar + BAR_SIZE <= self.window.end);
        let Some(place) = place.filter(|_| self.functions.len() < SLOTS) else { return Err(Error::Full(name)) };
        let counters = device.config_interrupt().counters().clone();
        let config = self.config + self.functions.len() as u64 * DEVICE_SIZE;
        let function = Function::new(device, place, config, self.mem.clone(), self.hypervisor.clone());
        let function = function.map_err(|source| Error::Host { device: name.clone(), source })?;
        self.functions.push(Mutex::new(function));
        self.counters.push((name, counters));
        Ok(())
    }

    /// Stops every running device, so that guest memory and the queues do not change. The vCPUs must be paused already.
    /// If one device is still busy after `deadline`, all others resume. The busy one resumes when a call of
    /// [`PciBus::resume`] finds that it has stopped.
    pub(crate) fn pause(&self, deadline: Duration) -> Result<(), StillBusy> {
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

    /// Undoes [`PciBus::pause`]. Returns whether all devices run. If a device is still busy, it does not resume: call
    /// this again.
    pub(crate) fn resume(&self) -> bool {
        self.functions.iter().filter(|function| lock(function).resume().is_err()).count() == 0
    }

    /// The first device with requests that wait for space on the host. It cannot stop before the host has space.
    pub(crate) fn device_waiting_for_space(&self) -> Option<&str> {
        self.counters.iter().find(|(_, counters)| counters.short_of_space() > 0).map(|(name, _)| name.as_str())
    }

    /// Every device's counters, by its name.
    pub(crate) fn metrics(&self) -> BTreeMap<String, DeviceMetrics> {
        self.counters.iter().map(|(name, counters)| (name.clone(), counters.metrics())).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of another vCPU thread ends the process. Until then the state is no worse than what the guest itself
    // could cause.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The accesses to configuration space that need an exit: all writes, and reads of empty slots.
pub(crate) struct ConfigWindow(pub Arc<PciBus>);

impl ConfigWindow {
    /// The function at `offset`, and the register.
    fn find(&self, offset: u64) -> Option<(&Mutex<Function>, usize)> {
        let is_first_function = offset % DEVICE_SIZE < PAGE as u64;
        let slot = is_first_function.then_some(offset / DEVICE_SIZE)?;
        Some((self.0.functions.get(usize::try_from(slot).ok()?)?, offset as usize % PAGE))
    }
}

impl BusDevice for ConfigWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((function, register)) => lock(function).read_config(register, data),
            None => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, register)) = self.find(offset) {
            lock(function).write_config(register, data);
        }
    }
}

/// The bus as seen through its memory window.
pub(crate) struct BarWindow(pub Arc<PciBus>);

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
