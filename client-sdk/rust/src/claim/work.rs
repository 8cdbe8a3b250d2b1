//! Work under leases.
//!
//! Invariants: leases are extended for as long as the work lasts, and the work is dropped once one of them is lost; work
//! that is done is not done again because the store could not be told at once. It deliberately decides nothing about
//! failures: whoever has claimed the events does.

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    slice,
    time::Duration,
};

use futures_util::FutureExt as _;

use super::{Claim, Claims, Hold};
use crate::{backoff::Backoff, inbox::InboxError};

/// Between two times that the store is told of work that is done.
const AGAIN: Backoff = Backoff { base: Duration::from_millis(100), ceiling: Duration::from_secs(2) };

/// Why work under leases came to nothing that counts.
pub(crate) enum Unfinished<E> {
    /// The work failed. Its leases have been given back; those that could not be given back run out.
    Failed(E),
    /// A lease was lost: another may have done its event's work, or be doing it. The leases on other events have been given
    /// back, or, where one was lost only at the very end, the others are completed.
    Late,
    /// The store could not be told that the work is done, for as long as a lease lasts. The leases run out, unless it has
    /// been told after all.
    Store(InboxError),
}

/// Works, and completes the claim with the result. A panic of the work is passed on.
pub(crate) async fn complete<R: AsRef<[u8]>, E>(
    claims: &impl Claims,
    claim: &Claim,
    lease: Duration,
    work: impl Future<Output = Result<R, E>>,
) -> Result<R, Unfinished<E>> {
    let held = Held { claims, held: slice::from_ref(claim), lease };
    let result = held.work(work).await?;
    let stored = result.as_ref();
    held.tell(|| claims.complete(claim, stored)).await?;
    Ok(result)
}

/// Works, and completes all of these claims, without results. A panic of the work is passed on.
pub(crate) async fn complete_all<E>(
    claims: &impl Claims,
    held: &[Claim],
    lease: Duration,
    work: impl Future<Output = Result<(), E>>,
) -> Result<(), Unfinished<E>> {
    let leases = Held { claims, held, lease };
    leases.work(work).await?;
    leases.tell(|| async { claims.complete_all(held).await.map(|holds| all_kept(&holds)) }).await
}

/// Holds these leases for this long from now on; says whether none of them was lost.
pub(crate) async fn extend_all(claims: &impl Claims, held: &[Claim], lease: Duration) -> Result<Hold, InboxError> {
    claims.extend_all(held, lease).await.map(|holds| all_kept(&holds))
}

fn all_kept(holds: &[Hold]) -> Hold {
    if holds.contains(&Hold::Lost) { Hold::Lost } else { Hold::Kept }
}

/// Leases, of which each is to be extended by so much in time.
struct Held<'c, C> {
    claims: &'c C,
    held: &'c [Claim],
    lease: Duration,
}

impl<C: Claims> Held<'_, C> {
    /// Works while the leases are held, and gives them back unless that succeeds.
    async fn work<R, E>(&self, work: impl Future<Output = Result<R, E>>) -> Result<R, Unfinished<E>> {
        let while_held = async {
            tokio::select! {
                // Work that is quick needs no timer.
                biased;
                worked = work => worked.map_err(Unfinished::Failed),
                () = self.until_lost() => Err(Unfinished::Late),
            }
        };
        // Unwind safety: nothing that the work shares is looked at after a panic.
        match AssertUnwindSafe(while_held).catch_unwind().await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(unfinished)) => {
                self.release().await;
                Err(unfinished)
            }
            Err(panic) => {
                self.release().await;
                resume_unwind(panic)
            }
        }
    }

    /// Extends the leases in time, for as long as all of them are kept.
    async fn until_lost(&self) {
        loop {
            tokio::time::sleep(self.lease / 3).await;
            if let Some(Hold::Lost) = self.extend().await {
                return;
            }
        }
    }

    /// Tells the store that the work is done. Where it does not answer it is told again for as long as a lease lasts, which
    /// does no harm, for to work again may.
    async fn tell<E, H: Future<Output = Result<Hold, InboxError>>>(
        &self,
        complete: impl Fn() -> H,
    ) -> Result<(), Unfinished<E>> {
        let mut told = complete().await;
        // A store that answers needs no timer.
        if told.as_ref().is_err_and(|error| !error.stays()) {
            let again = async {
                for failures in 1.. {
                    let Err(error) = &told else { break };
                    let events = self.held.len();
                    tracing::warn!(events, %error, "what is done cannot be completed; it is tried again");
                    tokio::time::sleep(AGAIN.delay(failures)).await;
                    // Whether they are still held, completing them tells.
                    self.extend().await;
                    told = complete().await;
                }
            };
            // What it was told last is what remains.
            let _ = tokio::time::timeout(self.lease, again).await;
        }
        match told {
            Ok(Hold::Kept) => Ok(()),
            Ok(Hold::Lost) => Err(Unfinished::Late),
            Err(error) => Err(Unfinished::Store(error)),
        }
    }

    /// What became of the leases, unless that cannot be told.
    async fn extend(&self) -> Option<Hold> {
        let extended = extend_all(self.claims, self.held, self.lease).await;
        let (events, first) = (self.held.len(), self.held.first().map(Claim::event_id));
        extended
            .inspect_err(|error| tracing::warn!(events, ?first, %error, "leases cannot be extended; it is tried again"))
            .ok()
    }

    async fn release(&self) {
        // What cannot be given back runs out by itself.
        let _ = self.claims.release_all(self.held).await;
    }
}
