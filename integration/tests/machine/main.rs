//! One `garret-vmm` at a time, without the runner: how a machine starts and ends, and what it reports if it cannot
//! start.

mod bad_input;
mod clock;
mod control;
mod ends;
mod hotplug;
mod power_button;
mod stage;
