//! tmp
#![allow(missing_docs)]
use tokio::{sync::watch, task::JoinHandle};
#[derive(Clone)]
pub struct Wake;
impl Wake {
    pub fn new() -> Self {
        Wake
    }
    pub fn wake(&self) {}
}
#[derive(Clone, Default)]
pub struct Status;
impl Status {
    pub fn is_healthy(&self) -> bool {
        true
    }
}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error;
pub fn spawn(
    _c: &crate::config::Config,
    _w: Wake,
    s: tokio_util::sync::CancellationToken,
    _d: std::time::Duration,
) -> (JoinHandle<Result<(), Error>>, watch::Receiver<Status>) {
    let (tx, rx) = watch::channel(Status);
    (
        tokio::spawn(async move {
            s.cancelled().await;
            drop(tx);
            Ok(())
        }),
        rx,
    )
}
