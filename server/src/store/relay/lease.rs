//! Which relay owns which lane, and until when.
//!
//! One row per running relay in `outbox.relays`; its lanes carry its instance in `outbox.progress`. Time is the
//! database's. Claiming a lane raises its epoch, so that a former owner's late write fails. Releasing is either
//! explicit or done by whoever finds the owner dead; only then does the next claim count as one after a death. A relay
//! is dead when its lease has run out, or when its *presence* is gone: a lock that its connection holds, and that ends
//! with the connection at once when the process is killed. One that is stopped or cut off keeps it, and its lease.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    interval,
    progress::{self, LaneRow},
};

/// When a relay counts among those that share the lanes. One measure for all of them, whatever their leases are.
pub const LASTS_AFTER: Duration = Duration::from_secs(5);

/// A point that a renewal marks: every transaction with an id above `xid` took all its positions above `floor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The highest position taken before the renewal.
    pub floor: i64,
    /// The renewal's own transaction.
    pub xid: u64,
}

/// What a relay should do about its share.
#[derive(Debug)]
pub struct Share {
    /// Lanes it has just claimed.
    pub claimed: Vec<LaneRow>,
    /// How many it owns above its share.
    pub surplus: usize,
}

/// Enters the relay, or renews it when it is there, with its presence on this connection. Where an earlier connection
/// of its own still has that, or none of ours keeps its session, the lease alone speaks for it.
///
/// # Errors
/// When the statement fails.
pub async fn register(connection: &mut PgConnection, instance: Uuid, host: &str, ttl: Duration) -> sqlx::Result<()> {
    sqlx::query(
        "insert into outbox.relays (instance, host, lease_until, present)
         values ($1, $2, clock_timestamp() + $3,
                 pg_try_advisory_lock(outbox.presence_class(), outbox.presence_key($1)))
         on conflict (instance) do update set lease_until = excluded.lease_until, present = excluded.present",
    )
    .bind(instance)
    .bind(host)
    .bind(interval(ttl))
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes over the lanes that the relay owned on an earlier connection, under a new epoch.
///
/// # Errors
/// When the statement fails.
pub async fn reclaim(connection: &mut PgConnection, instance: Uuid) -> sqlx::Result<Vec<LaneRow>> {
    let rows = sqlx::query(
        "update outbox.progress set epoch = epoch + 1 where owner = $1
         returning lane, epoch, snapshot::text, floor, target::text, target_floor, position",
    )
    .bind(instance)
    .fetch_all(connection)
    .await?;
    rows.iter().map(progress::lane_row).collect()
}

/// Renews the lease; `None` when it has run out. A durable commit: every transaction that was seen as committed
/// before it is flushed once it returns.
///
/// # Errors
/// When a statement fails.
pub async fn renew(connection: &mut PgConnection, instance: Uuid, ttl: Duration) -> sqlx::Result<Option<Mark>> {
    // First the position, then the transaction id, which the update takes: the mark's promise rests on this order.
    let floor: i64 = sqlx::query_scalar("select last_value - (not is_called)::integer from outbox.positions")
        .fetch_one(&mut *connection)
        .await?;
    let xid: Option<String> = sqlx::query_scalar(
        "update outbox.relays set lease_until = clock_timestamp() + $2
         where instance = $1 and lease_until > clock_timestamp()
         returning pg_current_xact_id()::text",
    )
    .bind(instance)
    .bind(interval(ttl))
    .fetch_optional(connection)
    .await?;
    xid.map(|xid| Ok(Mark { floor, xid: xid.parse().map_err(super::decode_error)? })).transpose()
}

/// Frees the lanes of relays that are dead, claims free ones up to the relay's share, and says how many it
/// owns above it. A share is `share`, or the lanes divided by the live relays that count, rounded up.
///
/// A relay counts once it has lived for [`LASTS_AFTER`], or owns lanes; and where none has lived for so long, each does.
/// So one that dies again and again soon after its start takes no lanes from those that last: it would get nothing
/// done in them.
///
/// # Errors
/// When a statement fails.
pub async fn share(connection: &mut PgConnection, instance: Uuid, share: Option<i64>) -> sqlx::Result<Share> {
    // The lanes' owner becomes null with it. Whoever gets the lock of another finds it gone; shared, so that two who
    // look at once do not take each other for the owner.
    let bury = "
        delete from outbox.relays where lease_until < clock_timestamp() or
            case when present and instance <> $1
                 then pg_try_advisory_xact_lock_shared(outbox.presence_class(), outbox.presence_key(instance)) end";
    sqlx::query(bury).bind(instance).execute(&mut *connection).await?;
    let (share, owned): (i64, i64) = sqlx::query_as(
        "with owned as (select owner, count(*) as lanes from outbox.progress group by owner),
              live as (select r.instance, o.lanes, r.started_at < clock_timestamp() - $3 as lasts
                       from outbox.relays r left join owned o on o.owner = r.instance),
              counting as (select instance from live
                           where lasts or lanes > 0 or not exists (select from live where lasts))
         select coalesce($2, case when exists (select from counting where instance = $1)
                                  then ceil((select sum(lanes) from owned) / (select count(*) from counting))
                                  else 0 end::bigint),
                coalesce((select lanes from owned where owner = $1), 0)",
    )
    .bind(instance)
    .bind(share)
    .bind(interval(LASTS_AFTER))
    .fetch_one(&mut *connection)
    .await?;
    let claimed = if owned < share { claim(connection, instance, share - owned).await? } else { Vec::new() };
    Ok(Share { claimed, surplus: usize::try_from(owned - share).unwrap_or(0) })
}

async fn claim(connection: &mut PgConnection, instance: Uuid, lanes: i64) -> sqlx::Result<Vec<LaneRow>> {
    let rows = sqlx::query(
        "update outbox.progress set owner = $1, epoch = epoch + 1, claims = claims + 1
         where lane in (select lane from outbox.progress where owner is null order by lane limit $2 for update)
         returning lane, epoch, snapshot::text, floor, target::text, target_floor, position",
    )
    .bind(instance)
    .bind(lanes)
    .fetch_all(connection)
    .await?;
    rows.iter().map(progress::lane_row).collect()
}

/// Gives lanes back. Those that another relay has claimed since are left alone.
///
/// # Errors
/// When the statement fails.
pub async fn release(connection: &mut PgConnection, instance: Uuid, lanes: &[i16]) -> sqlx::Result<()> {
    // What is given back was not lost: the claim does not count.
    let release = "update outbox.progress set owner = null, claims = greatest(claims - 1, 0)
                   where lane = any($2) and owner = $1";
    sqlx::query(release).bind(instance).bind(lanes).execute(connection).await?;
    Ok(())
}

/// Gives every lane back and removes the relay.
///
/// # Errors
/// When a statement fails.
pub async fn leave(connection: &mut PgConnection, instance: Uuid) -> sqlx::Result<()> {
    let release = "update outbox.progress set owner = null, claims = greatest(claims - 1, 0) where owner = $1";
    sqlx::query(release).bind(instance).execute(&mut *connection).await?;
    sqlx::query("delete from outbox.relays where instance = $1").bind(instance).execute(connection).await?;
    Ok(())
}
