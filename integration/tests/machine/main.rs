//! One `garret-vmm` at a time, without the runner: how a machine begins and ends, and what it says when it cannot.

mod bad_input;
mod clock;
mod control;
mod ends;
mod hotplug;
mod power_button;
mod stage;
