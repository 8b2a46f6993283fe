//! makegate's one binary: [`makegate::cli`] is all of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    makegate::cli::run()
}
