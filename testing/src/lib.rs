//! What the tests of several crates use.

pub mod npm;
pub mod program;
