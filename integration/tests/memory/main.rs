//! Four machines on a host that has promised them more than three times its memory. The host is an emulated one everywhere:
//! 2 GiB of memory, 8 GiB of swap.
//!
//! Every test begins with the same four machines and ends by looking that nothing was killed in or outside them.

mod admission;
mod bursts;
mod hostile;
mod seen;
mod team;
