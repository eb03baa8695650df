//! virtio-console (virtio 1.2, §5.3), one port: the guest's output goes to the console log. There is no input.

#[cfg(test)]
pub(crate) mod tests;

use std::io::Read;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use crate::console_log::ConsoleLog;
use crate::seccomp::Role;
use crate::virtio::{Backend, BuildError, Chain, ConfigBytes, Device, Fault, Identity, Ring, Served};

const TRANSMIT: usize = 1;
/// The most bytes of one request that are printed; the rest is lost.
const REQUEST_MAX: usize = 64 << 10;
/// The most bytes of one write to the log.
const PIECE: usize = 4096;

/// Builds the device.
pub(crate) fn new(log: Arc<ConsoleLog>) -> Result<Device, BuildError> {
    let identity = Identity {
        name: "console".into(),
        device_type: VIRTIO_ID_CONSOLE,
        features: 0,
        // Receive, transmit.
        queue_sizes: vec![16, 64],
        // Columns, rows, ports: without meaning if their features are not offered.
        config: Arc::new(ConfigBytes(vec![0; 12])),
    };
    Device::new(identity, vec![(Console { log }, 0..2)], Role::Quiet)
}

struct Console {
    log: Arc<ConsoleLog>,
}

impl Backend for Console {
    fn kicked(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        match queue {
            TRANSMIT => rings[queue].drain(|chain| self.print(&chain)),
            // Receive buffers stay where they are: there is no input.
            _ => Ok(()),
        }
    }
}

impl Console {
    fn print(&self, chain: &Chain) -> Result<Served, Fault> {
        // §5.3.6.1: the driver must not put a writable buffer here.
        if chain.writable_len() > 0 {
            return Err(Fault::Request("a buffer to print is writable"));
        }
        let (mut reader, _) = chain.reader().split_at(REQUEST_MAX.min(chain.readable_len() as usize))?;
        let mut piece = [0; PIECE];
        while reader.remaining() > 0 {
            let count = reader.read(&mut piece)?;
            self.log.write(&piece[..count]);
        }
        Ok(Served::Used(0))
    }
}
