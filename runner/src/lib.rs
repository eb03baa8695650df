//! The runner: the host daemon and the command, one binary `garret`.

pub mod host;
