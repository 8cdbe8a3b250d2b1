//! What handling an event costs in round trips to the database, counted on the wire.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::rig::{Effect, Rig, Running, builder, events};

/// Stands between the consumer and its database and counts the server's ReadyForQuery messages: each ends a round trip.
async fn counting(host: String, port: u16) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (own, trips) = (listener.local_addr().unwrap().port(), Arc::<AtomicU64>::default());
    let counted = Arc::clone(&trips);
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect((host.as_str(), port)).await.unwrap();
            // Messages pass one by one, which must not wait for each other's acknowledgement.
            near.set_nodelay(true).and(far.set_nodelay(true)).unwrap();
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (near.into_split(), far.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                // A message is a letter, a length that counts itself, and the rest.
                let mut head = [0; 5];
                while from_server.read_exact(&mut head).await.is_ok() {
                    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
                    let mut rest = vec![0; length];
                    from_server.read_exact(&mut rest).await.unwrap();
                    counted.fetch_add(u64::from(head[0] == b'Z'), SeqCst);
                    if to_client.write_all(&[&head[..], &rest].concat()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (own, trips)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_worker_needs_two_round_trips_for_an_event_besides_its_handlers_own() {
    let rig = Rig::new(1).await;
    let options: PgConnectOptions = rig.database.url.parse().unwrap();
    let (port, trips) = counting(options.get_host().to_owned(), options.get_port()).await;
    let options = options.host("127.0.0.1").port(port).ssl_mode(PgSslMode::Disable);
    let counted = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    rig.publish(events(1_000).into_iter().map(|event| (0, event))).await;

    let running = Running::start(builder("mailer", &rig.topic, &counted).handler(Effect("mailer")).build().unwrap());
    rig.until_effects("mailer", 100).await;
    let (before, already) = (trips.load(SeqCst), running.stats().handled);
    running.until("all to be handled", |stats| stats.handled == 1_000).await;
    let trips = trips.load(SeqCst) - before;
    running.shut_down().await.unwrap();

    // The handler has one statement of its own. Once a second the connection goes back to the pool.
    let each = trips as f64 / (1_000 - already) as f64;
    assert!((2.9..3.3).contains(&each), "{each} round trips for an event, {trips} in all");
}
