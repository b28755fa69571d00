//! The operator-backend process.

fn main() {}
