//! makegate's one binary.
fn main() {}
