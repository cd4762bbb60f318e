//! The `tandem` program: parse, run the verb, print the error chain, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    tandem::cli::main(std::env::args_os())
}
