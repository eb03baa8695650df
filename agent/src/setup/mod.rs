//! `PUT /v1/machine`: what the guest is told of its host, and the files that make it so.

mod facts;

pub use facts::{FactMount, HostFacts};
