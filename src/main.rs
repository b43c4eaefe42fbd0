//! The `roundhouse` command.
fn main() {}
