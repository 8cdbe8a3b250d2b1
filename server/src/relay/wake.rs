//! Tells the relay of this process that there may be something to publish.
//!
//! A hint, never needed: the relay looks by itself, at most `poll_interval_max_ms` apart. Other processes' relays are
//! deliberately not told.

use std::sync::Arc;

use tokio::sync::Notify;

/// A handle that wakes the relay. Cheap to clone, never blocks.
#[derive(Clone, Debug, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Call it after each commit with events.
    pub fn wake(&self) {
        self.0.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.0.notified().await;
    }
}
