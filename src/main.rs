//! The makegate binary; everything is in [`makegate::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    makegate::cli::run()
}
