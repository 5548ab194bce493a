//! The `kwitness` program.
fn main() {}
