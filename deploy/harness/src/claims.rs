//! The contract of `Claims` as one suite, which every store of claims has to pass.

use std::time::Duration;

use outbox_sdk::{
    EventKey,
    claim::{Claim, Claimed, Claims, Hold},
    inbox::Content,
};
use uuid::Uuid;

use super::eventually;

const LEASE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(30);

/// Holds a fresh store against the contract of [`Claims`].
///
/// # Panics
/// Where it is not kept.
pub async fn keep_the_contract(claims: impl Claims) {
    let key = EventKey::new("/shop", Uuid::now_v7()).holding(Content::of([b"activated".as_slice()]));

    // One holder; a repeat is answered with the result.
    let claim = yours(&claims, key, LEASE).await;
    assert_eq!(claim.attempt(), 1);
    let second = claims.claim("mailer", &key, LEASE).await.expect("the store answers");
    assert!(matches!(second, Claimed::Held { left } if left > LEASE / 2 && left <= LEASE), "{second:?}");
    yours(&claims, EventKey::new("/billing", key.id()), LEASE).await;
    assert!(matches!(claims.claim("auditor", &key, LEASE).await.expect("the store answers"), Claimed::Yours(_)));
    assert_eq!(claims.complete(&claim, b"sent").await.expect("the store answers"), Hold::Kept);
    assert_eq!(
        claims.complete(&claim, b"sent").await.expect("the store answers"),
        Hold::Kept,
        "the first answer may have been lost"
    );
    assert_eq!(claims.extend(&claim, LEASE).await.expect("the store answers"), Hold::Lost);
    assert_eq!(claims.release(&claim).await.expect("the store answers"), Hold::Lost);
    assert_eq!(claims.claim("mailer", &key, LEASE).await.expect("the store answers"), Claimed::Done(b"sent".to_vec()));
    let other = key.holding(Content::of([b"deleted".as_slice()]));
    assert_eq!(claims.claim("mailer", &other, LEASE).await.expect("the store answers"), Claimed::Conflict);

    // An event of another time is the same event.
    let moved = key.at(chrono::Utc::now() - chrono::TimeDelta::hours(3));
    assert!(matches!(claims.claim("mailer", &moved, LEASE).await.expect("the store answers"), Claimed::Done(_)));

    // A lease that is given back is free at once.
    let key = EventKey::new("/shop", Uuid::now_v7());
    let claim = yours(&claims, key, LEASE).await;
    assert_eq!(claims.release(&claim).await.expect("the store answers"), Hold::Kept);
    let again = yours(&claims, key, LEASE).await;
    assert_eq!(again.attempt(), 2);
    assert_eq!(claims.complete(&claim, b"late").await.expect("the store answers"), Hold::Lost);
    assert_eq!(claims.complete(&again, b"sent").await.expect("the store answers"), Hold::Kept);

    // One that runs out is taken by another; what its old holder completes late is refused.
    let key = EventKey::new("/shop", Uuid::now_v7());
    let slow = yours(&claims, key, Duration::from_millis(50)).await;
    let quick = eventually("the lease to run out", SOON, async || {
        match claims.claim("mailer", &key, LEASE).await.expect("the store answers") {
            Claimed::Yours(claim) => Some(claim),
            _ => None,
        }
    })
    .await;
    assert_eq!(claims.extend(&slow, LEASE).await.expect("the store answers"), Hold::Lost);
    assert_eq!(
        claims.complete(&slow, b"late").await.expect("the store answers"),
        Hold::Lost,
        "a late Complete is refused"
    );
    assert_eq!(claims.complete(&quick, b"sent").await.expect("the store answers"), Hold::Kept);
    assert_eq!(claims.claim("mailer", &key, LEASE).await.expect("the store answers"), Claimed::Done(b"sent".to_vec()));

    // Many at once: one holder.
    let key = EventKey::new("/shop", Uuid::now_v7());
    let all = futures_util::future::join_all((0..16).map(|_| claims.claim("mailer", &key, LEASE))).await;
    let holders = all.iter().filter(|claimed| matches!(claimed, Ok(Claimed::Yours(_)))).count();
    assert_eq!(holders, 1, "{all:?}");
}

/// Holds a store that forgets by age against it: what is completed and what was given up goes, what is worked on stays.
///
/// # Panics
/// Where it does not.
pub async fn forget_what_is_old(claims: impl Claims) {
    let [sent, given_up, working, others] = [(); 4].map(|()| EventKey::new("/shop", Uuid::now_v7()));
    let claim = yours(&claims, sent, LEASE).await;
    claims.complete(&claim, b"sent").await.expect("the store answers");
    let claim = yours(&claims, given_up, LEASE).await;
    claims.release(&claim).await.expect("the store answers");
    yours(&claims, working, LEASE).await;
    let other = claims.claim("auditor", &others, LEASE).await.expect("the store answers");
    let Claimed::Yours(other) = other else { panic!("expected the lease, got {other:?}") };
    claims.release(&other).await.expect("the store answers");
    let expire = |age| claims.expire("mailer", age, 100);
    assert_eq!(expire(LEASE).await.expect("the store answers"), 0, "nothing is that old");

    let mut forgotten = 0;
    eventually("two to be forgotten", SOON, async || {
        forgotten += expire(Duration::ZERO).await.expect("the store answers");
        (forgotten == 2).then_some(())
    })
    .await;
    assert_eq!(yours(&claims, sent, LEASE).await.attempt(), 1);
    assert_eq!(yours(&claims, given_up, LEASE).await.attempt(), 1);
    let working = claims.claim("mailer", &working, LEASE).await.expect("the store answers");
    assert!(matches!(working, Claimed::Held { .. }), "{working:?}");
    let others = claims.claim("auditor", &others, LEASE).await.expect("the store answers");
    assert!(matches!(others, Claimed::Yours(claim) if claim.attempt() == 2), "another consumer's");
}

async fn yours(claims: &impl Claims, key: EventKey<'_>, lease: Duration) -> Claim {
    match claims.claim("mailer", &key, lease).await.expect("the store answers") {
        Claimed::Yours(claim) => claim,
        other => panic!("expected the lease, got {other:?}"),
    }
}
