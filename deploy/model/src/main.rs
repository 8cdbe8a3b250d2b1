//! Explores the larger scopes, which takes minutes and some gigabytes of memory.

use std::time::Instant;

use clap::Parser;
use outbox_model::{Outbox, Scope, scopes};
use stateright::{Checker as _, Model as _};

/// Explores every state of the relay's model in the larger scopes, and holds each against the relay's promises.
///
/// Prints one line for each scope, as it is done. Ends with an error and the shortest way to a broken promise, if there
/// is one.
///
/// Example: cargo run --release -p outbox-model -- --only switching
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Only scopes whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Processors to use
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

#[expect(clippy::print_stdout, reason = "it is what the program is for")]
fn main() {
    let options = Options::parse();
    let small = [("polling", scopes::POLLING), ("switching", scopes::SWITCHING)];
    let all: Vec<(&str, Scope)> = small.into_iter().chain(scopes::LARGE).collect();
    for (name, scope) in all.into_iter().filter(|(name, _)| name.contains(&options.only)) {
        let start = Instant::now();
        let checker = Outbox { scope, without: None }.checker().threads(options.threads).spawn_bfs().join();
        checker.assert_properties();
        let (states, seconds) = (checker.unique_state_count(), start.elapsed().as_secs_f64());
        println!("ok  {name}: {states} states, {seconds:.1} s");
    }
}
