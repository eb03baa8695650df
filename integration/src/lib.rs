//! What the test programs in `tests/` share. The tests run as root on a host with garret installed and its daemon up.

pub mod stage;
