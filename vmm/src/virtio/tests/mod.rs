//! Tests of the virtio core alone; `conformance` tests it with every device.

mod chains;
mod rings;
mod workers;
