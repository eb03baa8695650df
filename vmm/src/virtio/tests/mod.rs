//! Tests of the virtio core by itself; `conformance` tests it under every device.

mod chains;
mod rings;
mod workers;
