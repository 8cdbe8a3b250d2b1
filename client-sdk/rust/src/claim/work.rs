//! Work under a lease.
//!
//! Invariant: the lease is extended for as long as the work lasts, and the work is dropped once the lease is lost. It
//! deliberately decides nothing about failures: whoever has claimed the event does.

use std::time::Duration;

use super::{Claim, Claims, Hold};
use crate::inbox::InboxError;

const NOT_EXTENDED: &str = "a lease cannot be extended; it is tried again";

/// Why work under a lease came to nothing that counts.
pub(crate) enum Unfinished<E> {
    /// The work failed; the lease has been given back.
    Failed(E),
    /// The lease was lost: another may have done the work, or be doing it. What is left of others has been given back.
    Late,
    /// The store could not be told that the work is done.
    Store(InboxError),
}

/// Works, and completes the claim with the result.
pub(crate) async fn complete<R: AsRef<[u8]>, E>(
    claims: &impl Claims,
    claim: &Claim,
    lease: Duration,
    work: impl Future<Output = Result<R, E>>,
) -> Result<R, Unfinished<E>> {
    let extend = || async {
        let extended = claims.extend(claim, lease).await;
        extended.inspect_err(|error| tracing::warn!(event_id = %claim.event_id(), %error, "{NOT_EXTENDED}"))
    };
    let worked = while_held(lease, extend, work).await;
    if worked.is_err() {
        // A lease that cannot be given back runs out by itself.
        let _ = claims.release(claim).await;
    }
    let result = worked?;
    match claims.complete(claim, result.as_ref()).await {
        Ok(Hold::Kept) => Ok(result),
        Ok(Hold::Lost) => Err(Unfinished::Late),
        Err(error) => Err(Unfinished::Store(error)),
    }
}

/// Works, and completes all of the claims, without results. The work counts only if none of them was lost.
pub(crate) async fn complete_all<E>(
    claims: &impl Claims,
    held: &[Claim],
    lease: Duration,
    work: impl Future<Output = Result<(), E>>,
) -> Result<(), Unfinished<E>> {
    let extend = || async {
        let extended = claims.extend_all(held, lease).await.map(|holds| all_kept(&holds));
        extended.inspect_err(|error| tracing::warn!(events = held.len(), %error, "{NOT_EXTENDED}"))
    };
    let worked = while_held(lease, extend, work).await;
    if worked.is_err() {
        let _ = claims.release_all(held).await;
    }
    worked?;
    match claims.complete_all(held).await.map(|holds| all_kept(&holds)) {
        Ok(Hold::Kept) => Ok(()),
        Ok(Hold::Lost) => Err(Unfinished::Late),
        Err(error) => Err(Unfinished::Store(error)),
    }
}

fn all_kept(holds: &[Hold]) -> Hold {
    if holds.contains(&Hold::Lost) { Hold::Lost } else { Hold::Kept }
}

/// Works, and extends the lease in time meanwhile, for as long as `extend` says that it is kept. An error of it says
/// nothing: it is tried again.
async fn while_held<R, E, H: Future<Output = Result<Hold, InboxError>>>(
    lease: Duration,
    extend: impl Fn() -> H,
    work: impl Future<Output = Result<R, E>>,
) -> Result<R, Unfinished<E>> {
    let until_lost = async {
        loop {
            tokio::time::sleep(lease / 3).await;
            if let Ok(Hold::Lost) = extend().await {
                return;
            }
        }
    };
    tokio::select! {
        // Work that is quick needs no timer.
        biased;
        worked = work => worked.map_err(Unfinished::Failed),
        () = until_lost => Err(Unfinished::Late),
    }
}
