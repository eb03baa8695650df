//! End to end: the real daemon, real machines, real containers, on whatever host this runs (the emulated one or bare metal).
//!
//! Run by `make test` as root on a host with garret installed and its daemon up, one test at a time: all tests of a
//! developer share that developer's machine, as a person's environments do.

mod acknowledged;
mod adoption;
mod bad_input;
mod burst;
mod clock;
mod devcontainer;
mod exec;
mod full_disk;
mod isolation;
mod life;
mod limits;
mod neighbor;
mod others;
mod ownership;
mod records;
mod recovery;
mod resolvers;
mod revocation;
mod settings;
mod streams;
mod sweep;
mod vmm;
