//! The common code of the test programs in `tests/`. The tests run as root on a host with garret installed and its
//! daemon running.

pub mod stage;
