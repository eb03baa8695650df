//! `garret-vmm`: runs one machine.

fn main() {}
