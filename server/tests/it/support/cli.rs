//! The command line, run as an operator runs it.

use std::process::Command;

/// What it said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) succeeded: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// Asserts that it failed, with these words among what it says why.
    #[track_caller]
    pub(crate) fn assert_refused(&self, words: &[&str]) {
        assert!(!self.succeeded, "it is refused: {self:?}");
        for word in words {
            assert!(self.err.contains(word), "`{word}` is not told: {self:?}");
        }
    }

    /// Asserts that it succeeded, with these words among what it prints.
    #[track_caller]
    pub(crate) fn assert_done(&self, words: &[&str]) {
        assert!(self.succeeded, "it succeeds: {self:?}");
        for word in words {
            assert!(self.out.contains(word), "`{word}` is not told: {self:?}");
        }
    }
}

/// Runs `outboxd` with these arguments against a database, to its end. Other tasks of the test go on meanwhile.
pub(crate) async fn outboxd(url: &str, arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
    command.args(["--database-url", url]).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = output.await.expect("it does not panic").expect("outboxd can be run");
    Said {
        succeeded: output.status.success(),
        out: String::from_utf8(output.stdout).expect("it prints text"),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
