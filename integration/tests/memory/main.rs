//! Four machines on a host that has promised them more than three times its memory. It is always an emulated host, with
//! 2 GiB of memory and 8 GiB of swap.
//!
//! Every test begins with the same four machines. It ends with a check that nothing was killed in a machine or on the
//! host.

mod admission;
mod bursts;
mod hostile;
mod seen;
mod team;
