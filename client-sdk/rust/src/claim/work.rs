//! Work under a lease.
//!
//! Invariant: the lease is extended for as long as the work lasts, and the work is dropped once the lease is lost. It
//! deliberately decides nothing about failures: whoever has claimed the event does.

use std::time::Duration;

use super::{Claim, Claims, Hold};
use crate::inbox::InboxError;

/// Why work under a lease came to nothing that counts.
pub(crate) enum Unfinished<E> {
    /// The work failed; the lease has been given back.
    Failed(E),
    /// The lease was lost: another may have done the work, or be doing it.
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
    let worked = tokio::select! {
        // Work that is quick needs no timer.
        biased;
        worked = work => worked,
        () = until_lost(claims, claim, lease) => return Err(Unfinished::Late),
    };
    let result = match worked {
        Ok(result) => result,
        Err(error) => {
            // A lease that cannot be given back runs out by itself.
            let _ = claims.release(claim).await;
            return Err(Unfinished::Failed(error));
        }
    };
    match claims.complete(claim, result.as_ref()).await {
        Ok(Hold::Kept) => Ok(result),
        Ok(Hold::Lost) => Err(Unfinished::Late),
        Err(error) => Err(Unfinished::Store(error)),
    }
}

/// Extends the lease in time, for as long as the store lets it.
async fn until_lost(claims: &impl Claims, claim: &Claim, lease: Duration) {
    loop {
        tokio::time::sleep(lease / 3).await;
        match claims.extend(claim, lease).await {
            Ok(Hold::Kept) => {}
            Ok(Hold::Lost) => return,
            Err(error) => {
                tracing::warn!(event_id = %claim.event_id(), %error, "a lease cannot be extended; it is tried again");
            }
        }
    }
}
