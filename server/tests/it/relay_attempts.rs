//! Attempts: the event that ends the process is found and held, and no other is blamed.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use outbox_harness::{backlog, eventually};
use outbox_server::{config, model::source::Source};
use sqlx::Executor as _;
use uuid::Uuid;

use crate::support::{
    faulty::{Faults, faulty, held_after_deaths},
    outbox::{Outbox, PATIENCE, key},
};

/// Trap 8: the attempt is counted when it starts, or nothing would ever count it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_ends_the_process_is_held() {
    let outbox = Outbox::fresh("deadly", 1).await;
    let mut ids = Vec::new();
    for n in 0..30 {
        ids.push(outbox.emit_to(&outbox.topic, Some(["a", "b", "c"][n % 3]), &n.to_string()).await);
    }
    let deadly = ids[12];
    let faults = Faults::default();
    faults.change(|plan| plan.die_before = Some(deadly));
    let config = config::Relay { attempts_max: 2, lease_ttl_ms: 1_000, ..Outbox::relay_config() };

    let (relay, deaths) = held_after_deaths(&outbox, &faults, &config, deadly, 8).await;
    outbox.all_settled().await;

    assert!(deaths > 2, "the first deaths are not taken for the event's fault");
    let found = outbox.published().await.by_key();
    let of_key = |n: usize| ids.iter().copied().skip(n).step_by(3);
    assert_eq!(found[&key("a")], of_key(0).take_while(|id| *id != deadly).collect::<Vec<_>>());
    assert_eq!(found[&key("b")], of_key(1).collect::<Vec<_>>());
    assert_eq!(found[&key("c")], of_key(2).collect::<Vec<_>>());
    // Noted after the progress itself.
    eventually("lanes that get on to be sent without care again", PATIENCE, async || {
        let careful = "select count(*) from outbox.progress where claims > 0 and settled > 0";
        let careful = sqlx::query_scalar::<_, i64>(careful).fetch_one(&mut outbox.connect().await).await;
        (careful.expect("they can be counted") == 0).then_some(())
    })
    .await;
    relay.stop().await;
}

/// An outage of Kafka that has the process killed again and again is not the event's fault.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_the_process_outlives_does_not_count() {
    let outbox = Outbox::fresh("outage", 1).await;
    outbox.connect().await.execute("update outbox.progress set claims = 9").await.expect("it can be set");
    let id = outbox.emit_to(&outbox.topic, Some("a"), "1").await;
    let faults = Faults::default();
    faults.change(|plan| plan.hold_reports = true);
    let relay = faulty(&outbox, &faults, config::Relay { attempts_max: 1, ..Outbox::relay_config() });

    let attempts = async || -> Option<i32> {
        let attempts = sqlx::query_scalar("select attempts from outbox.attempts where id = $1").bind(id);
        attempts.fetch_optional(&mut outbox.connect().await).await.expect("attempts can be read")
    };
    eventually("its attempt is written down first", PATIENCE, async || (attempts().await == Some(1)).then_some(()))
        .await;
    eventually("it is taken back", PATIENCE, async || (attempts().await == Some(0)).then_some(())).await;
    relay.crash().await;

    faults.change(|plan| plan.hold_reports = false);
    let relay = faulty(&outbox, &faults, config::Relay { attempts_max: 1, ..Outbox::relay_config() });
    outbox.all_settled().await;
    assert!(outbox.held().await.is_empty());
    outbox.assert_all_published_in_order().await;
    assert_eq!(attempts().await, None, "nothing is left of it");
    relay.stop().await;
}

/// A crash of the database ends a session in the middle of an attempt, not the process.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_does_not_count_when_only_the_database_was_lost() {
    let outbox = Outbox::fresh("cut", 1).await;
    let mut connection = outbox.connect().await;
    connection.execute("update outbox.progress set claims = 9").await.expect("it can be set");
    let id = outbox.emit_to(&outbox.topic, Some("a"), "1").await;
    let faults = Faults::default();
    faults.change(|plan| plan.hold_reports = true);
    let mut relay = faulty(&outbox, &faults, config::Relay { attempts_max: 1, ..Outbox::relay_config() });

    for _ in 0..3 {
        let counted = async || {
            let attempts: Option<i32> = sqlx::query_scalar("select attempts from outbox.attempts where id = $1")
                .bind(id)
                .fetch_optional(&mut outbox.connect().await)
                .await
                .expect("attempts can be read");
            (attempts == Some(1)).then_some(())
        };
        eventually("its attempt is written down", PATIENCE, counted).await;
        let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                   where datname = current_database() and pid <> pg_backend_pid()";
        connection.execute(cut).await.expect("connections can be ended");
        relay.until("it has lost its database", |status| status.last_error.is_some()).await;
        relay.until("it is back", |status| status.lanes_owned == 64).await;
    }
    faults.change(|plan| plan.hold_reports = false);
    outbox.all_settled().await;
    assert!(outbox.held().await.is_empty());
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

/// Deaths that come by themselves meet another event each time; those that an event makes meet it.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_events_the_least_suspected_is_tried_first() {
    // Any lane may be the first in the window.
    for blame in [[2, 1, 0], [0, 1, 2]] {
        let outbox = Outbox::fresh("suspects", 1).await;
        let mut connection = outbox.connect().await;
        connection.execute("update outbox.progress set claims = 9").await.expect("it can be set");
        let mut ids = Vec::new();
        for (key, attempts) in outbox.keys_in_different_lanes(&outbox.topic, 3).await.into_iter().zip(blame) {
            let id = outbox.emit_to(&outbox.topic, Some(&key), "1").await;
            let insert = "insert into outbox.attempts select id, lane, $2 from outbox.events where id = $1";
            sqlx::query(insert).bind(id).bind(attempts).execute(&mut connection).await.expect("it can be written");
            ids.push(id);
        }
        let attempts = async || -> Vec<i32> {
            let attempts = "select attempts from outbox.attempts order by array_position($1, id)";
            let attempts = sqlx::query_scalar(attempts).bind(&ids).fetch_all(&mut outbox.connect().await).await;
            attempts.expect("attempts can be read")
        };
        let mut expected = blame.to_vec();
        for _ in 0..2 {
            let faults = Faults::default();
            faults.change(|plan| (plan.hold_reports, plan.asking) = (true, true));
            let mut relay = faulty(&outbox, &faults, Outbox::relay_config());
            relay.until("all three are read", |status| status.in_flight == 3).await;
            let known = async || faults.plan().known.then_some(());
            eventually("the topic is known", PATIENCE, known).await;
            faults.change(|plan| plan.asking = false);
            let tried = async || Some(attempts().await).filter(|found| *found != expected);
            let found = eventually("one of them is tried", PATIENCE, tried).await;
            // The third is as suspect as the second once it has been tried: the first is still the most.
            let least = expected.iter().min().expect("there are three") + 1;
            assert!(found.iter().zip(&expected).all(|(now, before)| now == before || *now == least), "{found:?}");
            relay.crash().await;
            expected = found;
        }
        let relay = outbox.relay();
        outbox.all_settled().await;
        assert!(outbox.held().await.is_empty());
        relay.stop().await;
    }
}

/// A lane that was suspected for no reason costs little: what goes one at a time is no more than its first events.
#[tokio::test(flavor = "multi_thread")]
async fn lanes_that_get_on_are_soon_sent_without_care() {
    const EVENTS: usize = 2_000;
    let outbox = Outbox::fresh("careful", 1).await;
    let mut connection = outbox.connect().await;
    connection.execute("update outbox.progress set claims = 9").await.expect("it can be set");
    let counted =
        "do $$ begin execute format('alter database %I set track_functions = pl', current_database()); end $$";
    connection.execute(counted).await.expect("calls can be counted");
    let pool = sqlx::PgPool::connect(&outbox.url).await.expect("the database can be reached");
    backlog::store(&pool, &outbox.topic, EVENTS, 100).await;
    pool.close().await;

    let relay = outbox.relay();
    outbox.all_settled().await;
    relay.stop().await;

    let attempts = async || -> Option<i64> {
        let calls = "select sum(calls)::bigint from pg_stat_user_functions where funcname = 'start_attempt'";
        sqlx::query_scalar(calls).fetch_one(&mut outbox.connect().await).await.expect("they can be read")
    };
    let attempts = eventually("calls to be counted", PATIENCE, attempts).await;
    assert!((64..=EVENTS as i64 / 5).contains(&attempts), "{attempts} of {EVENTS} events were sent one at a time");
}

/// What goes one at a time, however slowly, neither fills the window nor keeps what others have done from being written.
#[tokio::test(flavor = "multi_thread")]
async fn lanes_sent_with_care_hold_up_no_others() {
    const EVENTS: usize = 1_000;
    let outbox = Outbox::fresh("beside", 1).await;
    let keys = outbox.keys_in_different_lanes(&outbox.topic, 2).await;
    let mut connection = outbox.connect().await;
    let mut first = None;
    for _ in 0..EVENTS {
        let id = outbox.emit_to(&outbox.topic, Some(&keys[0]), "1").await;
        first.get_or_insert(id);
        outbox.emit_to(&outbox.topic, Some(&keys[1]), "1").await;
    }
    let suspected = "update outbox.progress set claims = 9 where lane = (select lane from outbox.events where id = $1)";
    sqlx::query(suspected).bind(first).execute(&mut connection).await.expect("it can be set");

    let faults = Faults::default();
    faults.change(|plan| plan.swallow.extend(first));
    let config = config::Relay { in_flight_events_max: 100, ..Outbox::relay_config() };
    let relay = faulty(&outbox, &faults, config);
    let left = "select count(*) from outbox.events e where not outbox.is_settled(e)";
    eventually("the other lane's events to be settled", PATIENCE, async || {
        let left: i64 = sqlx::query_scalar(left).fetch_one(&mut connection).await.expect("they can be counted");
        (left == EVENTS as i64).then_some(())
    })
    .await;
    relay.crash().await;

    let relay = outbox.relay();
    outbox.all_settled().await;
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

/// Nor does a lane of which a single event is under way, in which nothing more is found each time it is looked at.
#[tokio::test(flavor = "multi_thread")]
async fn one_event_that_is_never_acknowledged_holds_up_no_others() {
    let outbox = Outbox::fresh("single", 1).await;
    let keys = outbox.keys_in_different_lanes(&outbox.topic, 2).await;
    let stuck = outbox.emit_to(&outbox.topic, Some(&keys[0]), "1").await;
    outbox.connect().await.execute("update outbox.progress set claims = 9").await.expect("it can be set");
    let faults = Faults::default();
    faults.change(|plan| plan.swallow.extend([stuck]));
    let relay = faulty(&outbox, &faults, Outbox::relay_config());
    let only_it_is_left = async || (outbox.unsettled().await == 1).then_some(());

    // Many polls, with something to be found elsewhere, and without.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        outbox.emit_to(&outbox.topic, Some(&keys[1]), "1").await;
    }
    eventually("the others are settled", PATIENCE, only_it_is_left).await;
    let quiet = "select clock_timestamp()::text";
    let quiet: String = sqlx::query_scalar(quiet).fetch_one(&mut outbox.connect().await).await.expect("it is answered");
    eventually("the other lanes' progress to be written without events", PATIENCE, async || {
        let written = "select count(*) from outbox.progress where updated_at > $1::timestamptz";
        let written = sqlx::query_scalar::<_, i64>(written).bind(&quiet).fetch_one(&mut outbox.connect().await).await;
        (written.expect("they can be counted") == 63).then_some(())
    })
    .await;
    outbox.emit_to(&outbox.topic, Some(&keys[1]), "1").await;
    eventually("one that comes later is settled", PATIENCE, only_it_is_left).await;
    relay.crash().await;

    let relay = outbox.relay();
    outbox.all_settled().await;
    relay.stop().await;
}

/// Deaths that come by themselves, one after the other: between two of them something is done with for good.
#[tokio::test(flavor = "multi_thread")]
async fn lanes_sent_with_care_get_on_between_deaths_in_quick_succession() {
    const BETWEEN: usize = 30;
    for source in [Source::Poll, Source::Wal] {
        let outbox = Outbox::fresh("deaths", 1).await;
        let relay = outbox.relay();
        outbox.switch(source).await;
        relay.stop().await;
        outbox.emit(640, 200).await;
        outbox.connect().await.execute("update outbox.progress set claims = 9").await.expect("it can be set");
        let careful = "select e.id from outbox.events e join outbox.progress p using (lane) where p.claims >= 3";
        let settled = async || (outbox.unsettled().await, outbox.stream().await.slot.map(|slot| slot.settled));
        let mut done = vec![settled().await];
        for _ in 0..5 {
            let careful = sqlx::query_scalar(careful).fetch_all(&mut outbox.connect().await).await;
            let careful: HashSet<Uuid> = careful.expect("they can be read").into_iter().collect();
            let faults = Faults::default();
            let relay = faulty(&outbox, &faults, Outbox::relay_config());
            eventually("it has sent some", PATIENCE, async || {
                let sent = faults.plan().enqueued.iter().filter(|id| careful.contains(*id)).count();
                (sent > BETWEEN).then_some(())
            })
            .await;
            relay.crash().await;
            done.push(settled().await);
        }
        let moves = done.windows(2).filter(|pair| pair[1] != pair[0]).count();
        assert!(moves > 3, "with `{source}` nothing was done with for good: {done:?}");
        let relay = outbox.relay();
        outbox.all_settled().await;
        outbox.assert_all_published_in_order().await;
        relay.stop().await;
    }
}

/// A relay that stops as it should gives its lanes back, however often it does.
#[tokio::test(flavor = "multi_thread")]
async fn clean_restarts_do_not_count() {
    let outbox = Outbox::fresh("restarts", 1).await;
    for _ in 0..5 {
        let mut relay = outbox.relay();
        relay.until("it owns its lanes", |s| s.lanes_owned == 64).await;
        relay.stop().await;
    }
    let claims: i32 = sqlx::query_scalar("select max(claims) from outbox.progress")
        .fetch_one(&mut outbox.connect().await)
        .await
        .expect("claims can be read");
    assert_eq!(claims, 0);
}
