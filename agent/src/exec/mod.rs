//! Processes run for a client, in the guest or in a container.

mod spec;

pub use spec::{Credentials, Place, ProcessSpec};
