//! The command line of accentor; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    accentor::cli::run()
}
