//! What the transport asks of the hypervisor: a trait, so that the transport can be driven without one.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

pub use crate::kvm::Msi;
use crate::kvm::{Error, Vm};
use crate::memory::SharedPage;

/// Event descriptors in place of exits and injected interrupts.
pub trait Wiring: Send + Sync {
    /// A number for one message-signalled interrupt.
    fn allocate_gsi(&self) -> io::Result<u32>;
    /// From now on writing to `event` sends `msi`; what was written before counts.
    fn connect_interrupt(&self, gsi: u32, event: &EventFd, msi: Msi) -> io::Result<()>;
    /// A connected interrupt goes elsewhere.
    fn reroute_interrupt(&self, gsi: u32, msi: Msi) -> io::Result<()>;
    /// From now on what is written to `event` waits in it.
    fn disconnect_interrupt(&self, gsi: u32, event: &EventFd) -> io::Result<()>;
    /// A write by the guest at `address` writes to `event`.
    fn connect_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;
    /// The guest reads `page` at `address` without anybody's help.
    fn show_page(&self, address: u64, page: &Arc<SharedPage>) -> io::Result<()>;
}

fn other(error: Error) -> io::Error {
    io::Error::other(error)
}

impl Wiring for Vm {
    fn allocate_gsi(&self) -> io::Result<u32> {
        self.allocate_gsi().map_err(other)
    }

    fn connect_interrupt(&self, gsi: u32, event: &EventFd, msi: Msi) -> io::Result<()> {
        // The route first: registering an event that has been written to sends the interrupt at once.
        self.set_msi_route(gsi, Some(msi)).map_err(other)?;
        self.register_irqfd(event, gsi).map_err(other)
    }

    fn reroute_interrupt(&self, gsi: u32, msi: Msi) -> io::Result<()> {
        self.set_msi_route(gsi, Some(msi)).map_err(other)
    }

    fn disconnect_interrupt(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        self.unregister_irqfd(event, gsi).map_err(other)
    }

    fn connect_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.register_ioeventfd(event, address).map_err(other)
    }

    fn show_page(&self, address: u64, page: &Arc<SharedPage>) -> io::Result<()> {
        self.show_page(address, page.clone()).map_err(other)
    }
}
