//! The `keeptime` binary.
fn main() {}
