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

    several(&claims).await;
    several_by_two(&claims).await;
}

/// What is claimed together is answered as if it were claimed one after the other.
async fn several(claims: &impl Claims) {
    let [done, held, given_up, fresh, slow] =
        [(); 5].map(|()| EventKey::new("/shop", Uuid::now_v7()).holding(Content::of([b"activated".as_slice()])));
    let other = |key: EventKey<'static>| key.holding(Content::of([b"deleted".as_slice()]));
    let elsewhere = EventKey::new("/billing", fresh.id());
    let claim = yours(claims, done, LEASE).await;
    claims.complete(&claim, b"sent").await.expect("the store answers");
    yours(claims, held, LEASE).await;
    let released = yours(claims, given_up, LEASE).await;
    claims.release(&released).await.expect("the store answers");

    let keys = [fresh, done, elsewhere, held, given_up, fresh, slow, other(done), other(slow)];
    let answers = claims.claim_all("mailer", &keys, LEASE).await.expect("the store answers");
    let [one, Claimed::Done(result), two, Claimed::Held { .. }, three, Claimed::Held { left }, four, rest @ ..] =
        &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert_eq!((&result[..], rest), (b"sent".as_slice(), &[Claimed::Conflict, Claimed::Conflict][..]));
    assert!(*left > LEASE / 2 && *left <= LEASE, "{left:?}");
    let ours: Vec<Claim> = [one, two, three, four].into_iter().cloned().map(granted).collect();
    let ids = [fresh, elsewhere, given_up, slow].map(|key| key.id());
    assert!(ours.iter().map(Claim::event_id).eq(ids), "{ours:?}");
    assert!(ours.iter().map(Claim::attempt).eq([1, 1, 2, 1]), "{ours:?}");
    let tokens: std::collections::HashSet<_> = ours.iter().map(Claim::token).collect();
    assert_eq!(tokens.len(), 4, "each lease has a name of its own");

    // Only what is still the caller's is extended, completed or given back.
    let kept =
        |kept: &[bool]| -> Vec<Hold> { kept.iter().map(|kept| if *kept { Hold::Kept } else { Hold::Lost }).collect() };
    assert_eq!(claims.extend_all(&ours, LEASE).await.expect("the store answers"), kept(&[true; 4]));
    claims.release(&ours[3]).await.expect("the store answers");
    let taken = yours(claims, slow, LEASE).await;
    let but_one = kept(&[true, true, true, false]);
    assert_eq!(claims.extend_all(&ours, LEASE).await.expect("the store answers"), but_one);
    assert_eq!(claims.release_all(&ours[2..]).await.expect("the store answers"), kept(&[true, false]));
    let is_held = |answer: &Claimed| matches!(answer, Claimed::Held { .. });
    let others = claims.claim("mailer", &slow, LEASE).await.expect("the store answers");
    assert!(is_held(&others), "what is another's is left alone: {others:?}");
    let again = yours(claims, given_up, LEASE).await;
    assert_eq!(again.attempt(), 3);
    assert_eq!(claims.complete_all(&ours).await.expect("the store answers"), kept(&[true, true, false, false]));
    let others = claims.claim_all("mailer", &[given_up, slow], LEASE).await.expect("the store answers");
    assert!(others.iter().all(is_held), "what is another's is left alone: {others:?}");
    assert_eq!(
        claims.complete_all(&ours[..2]).await.expect("the store answers"),
        kept(&[true; 2]),
        "the first answer may have been lost"
    );
    assert_eq!(claims.extend_all(&ours[..1], LEASE).await.expect("the store answers"), [Hold::Lost]);
    assert_eq!(claims.complete_all(&[taken, again]).await.expect("the store answers"), kept(&[true; 2]));
    let keys = [fresh, elsewhere, given_up, slow];
    let answers = claims.claim_all("mailer", &keys, LEASE).await.expect("the store answers");
    assert_eq!(answers, vec![Claimed::Done(Vec::new()); 4]);

    assert_eq!(claims.claim_all("mailer", &[], LEASE).await.expect("the store answers"), []);
    assert_eq!(claims.complete_all(&[]).await.expect("the store answers"), []);
}

/// Each event has one holder, and nobody waits for one who waits for him.
async fn several_by_two(claims: &impl Claims) {
    let keys: Vec<_> = (0..60).map(|_| EventKey::new("/shop", Uuid::now_v7())).collect();
    let reversed: Vec<_> = keys.iter().rev().copied().collect();
    for _ in 0..5 {
        let both = [&keys, &reversed].map(|keys| claims.claim_all("mailer", keys, LEASE));
        let both = futures_util::future::join_all(both).await;
        let claimed = both.into_iter().map(|answers| answers.expect("the store answers"));
        let held = claimed.map(|answers| answers.into_iter().filter(is_yours).map(granted).collect::<Vec<_>>());
        let held: Vec<Vec<Claim>> = held.collect();
        assert_eq!(held[0].len() + held[1].len(), keys.len());
        let given_back = futures_util::future::join_all(held.iter().map(|held| claims.release_all(held))).await;
        let holds: Vec<Hold> = given_back.into_iter().flat_map(|holds| holds.expect("the store answers")).collect();
        assert_eq!(holds, vec![Hold::Kept; keys.len()]);
    }
    let held = claims.claim_all("mailer", &keys, LEASE).await.expect("the store answers");
    let held: Vec<Claim> = held.into_iter().map(granted).collect();
    let extending = async {
        for _ in 0..10 {
            let holds = claims.extend_all(&held, LEASE).await.expect("the store answers");
            assert_eq!(holds, vec![Hold::Kept; keys.len()]);
        }
    };
    let claiming = async {
        for _ in 0..10 {
            let answers = claims.claim_all("mailer", &reversed, LEASE).await.expect("the store answers");
            assert!(answers.iter().all(|answer| matches!(answer, Claimed::Held { .. })), "{answers:?}");
        }
    };
    futures_util::future::join(extending, claiming).await;
}

fn is_yours(claimed: &Claimed) -> bool {
    matches!(claimed, Claimed::Yours(_))
}

fn granted(claimed: Claimed) -> Claim {
    match claimed {
        Claimed::Yours(claim) => claim,
        other => panic!("expected the lease, got {other:?}"),
    }
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
    granted(claims.claim("mailer", &key, lease).await.expect("the store answers"))
}
