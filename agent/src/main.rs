//! Placeholder of the binary until its parts are in.
fn main() {}
