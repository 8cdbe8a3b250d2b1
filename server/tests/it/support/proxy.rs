//! A TCP proxy in front of Postgres that can cut its connections at the worst moment.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Forwards to a database. While armed, the first connection whose client sends a message that contains the trigger
/// gets that message through to the database, and is then cut before any answer comes back.
pub(crate) struct Proxy {
    /// The database's URL, by way of the proxy.
    pub(crate) url: String,
    trigger: Trigger,
}

type Trigger = Arc<Mutex<Option<String>>>;

impl Proxy {
    pub(crate) async fn start(url: &str) -> Self {
        let rest = url.strip_prefix("postgres://").expect("a postgres URL");
        let (user, rest) = rest.split_once('@').expect("a URL with a user");
        let (server, database) = rest.split_once('/').expect("a URL with a database");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("the listener has an address");
        let trigger = Trigger::default();
        let (armed, server) = (Arc::clone(&trigger), server.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let database = TcpStream::connect(&server).await.expect("the database can be reached");
                tokio::spawn(forward(client, database, Arc::clone(&armed)));
            }
        });
        Self { url: format!("postgres://{user}@{address}/{database}?sslmode=disable"), trigger }
    }

    /// Cuts the next connection that sends this text.
    pub(crate) fn arm(&self, trigger: &str) {
        *self.trigger.lock().expect("no holder panics") = Some(trigger.to_owned());
    }

    /// Whether the cut has not happened yet.
    pub(crate) fn is_armed(&self) -> bool {
        self.trigger.lock().expect("no holder panics").is_some()
    }
}

async fn forward(mut client: TcpStream, mut database: TcpStream, trigger: Trigger) {
    let (mut to_database, mut to_client) = ([0; 65_536], [0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut to_database) => {
                let Ok(count @ 1..) = read else { return };
                let message = &to_database[..count];
                if database.write_all(message).await.is_err() {
                    return;
                }
                let contains = |text: &mut String| message.windows(text.len()).any(|part| part == text.as_bytes());
                if trigger.lock().expect("no holder panics").take_if(contains).is_some() {
                    return hold(database, client).await;
                }
            }
            read = database.read(&mut to_client) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&to_client[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Cuts the client off at once, but lets the database work on until it has answered: it does not notice.
async fn hold(mut database: TcpStream, client: TcpStream) {
    drop(client);
    let mut ignored = [0; 65_536];
    let _ = database.read(&mut ignored).await;
}
