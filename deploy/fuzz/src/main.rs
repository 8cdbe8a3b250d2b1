//! Fuzzes what callers and operators hand in: values, command files, descriptor sets and their options, messages of RPCs,
//! Kafka headers, page tokens.
//!
//! `cargo run --release -p outbox-fuzz -- [--seconds N] [--seed N] [--target NAME]…`
//!
//! What is looked for: a panic, something that does not come back as it was, an error that is none of ours. Prints
//! executions, how many inputs were accepted, and findings with the input that shows each. Exits 0 only without findings.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

mod mutate;
mod targets;

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;

use self::{
    mutate::Mutator,
    targets::{TARGETS, Target},
};

/// Findings of a target after which it is given up.
const FINDINGS_MAX: usize = 5;

#[derive(Parser)]
#[command(about = "Fuzzes what callers and operators hand in")]
struct Arguments {
    /// For each target
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The same seed makes the same inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this one; may be repeated
    #[arg(long)]
    target: Vec<String>,
}

/// What a target came to.
#[derive(Default)]
struct Outcome {
    executions: u64,
    accepted: u64,
    findings: Vec<(String, Vec<u8>)>,
}

fn main() -> ExitCode {
    let Arguments { seconds, seed, target } = Arguments::parse();
    // A panic is told as a finding, with its input.
    panic::set_hook(Box::new(|_| {}));
    let chosen = TARGETS.iter().filter(|it| target.is_empty() || target.iter().any(|name| name == it.name));
    let mut findings = 0;
    for target in chosen {
        let outcome = fuzz(target, seed, Duration::from_secs(seconds));
        let Outcome { executions, accepted, findings: found } = outcome;
        println!("{:<15} {executions:>10} executions, {accepted:>10} accepted, {} findings", target.name, found.len());
        for (what, input) in &found {
            println!("  {what}\n  input: {}", input.escape_ascii());
        }
        findings += found.len();
    }
    println!("seed {seed}: {findings} findings");
    if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fuzz(target: &Target, seed: u64, time: Duration) -> Outcome {
    let mut mutator = Mutator::new(seed, (target.samples)(), target.words);
    let (start, mut outcome) = (Instant::now(), Outcome::default());
    while start.elapsed() < time && outcome.findings.len() < FINDINGS_MAX {
        let input = mutator.next();
        outcome.executions += 1;
        match panic::catch_unwind(AssertUnwindSafe(|| (target.run)(&input))) {
            Ok(true) => {
                outcome.accepted += 1;
                mutator.keep(input);
            }
            Ok(false) => {}
            Err(panic) => outcome.findings.push((message(panic.as_ref()), input)),
        }
    }
    outcome
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}
