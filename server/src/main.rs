//! The `outboxd` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    outbox_server::cli::main()
}
