//! A TCP proxy in front of Postgres that can cut its connections at the worst moment.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Forwards to a database. While armed, the first connection whose client sends a message that contains the trigger is
/// cut.
pub struct Proxy {
    /// The database's URL, by way of the proxy.
    pub url: String,
    judge: Judge,
}

/// When a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Before the message reaches the database.
    Before,
    /// While the database works on it: the client loses the link at once, and the database does not notice.
    During,
    /// When the database has answered: its answer is lost.
    After,
}

/// Decides about each message of a client.
type Judge = Arc<Mutex<Box<dyn FnMut(&[u8]) -> Option<Cut> + Send>>>;

impl Proxy {
    /// Starts one on a port of its own; it runs for as long as the runtime does.
    pub async fn start(url: &str) -> Self {
        let rest = url.strip_prefix("postgres://").expect("a postgres URL");
        let (user, rest) = rest.split_once('@').expect("a URL with a user");
        let (server, database) = rest.split_once('/').expect("a URL with a database");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("the listener has an address");
        let judge: Judge = Arc::new(Mutex::new(Box::new(|_| None)));
        let (asked, server) = (Arc::clone(&judge), server.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let database = TcpStream::connect(&server).await.expect("the database can be reached");
                tokio::spawn(forward(client, database, Arc::clone(&asked)));
            }
        });
        Self { url: format!("postgres://{user}@{address}/{database}?sslmode=disable"), judge }
    }

    /// Cuts the next connection that sends this text; the flag it returns says when that has happened.
    pub fn arm(&self, trigger: &str, cut: Cut) -> Arc<Mutex<bool>> {
        let (trigger, done) = (trigger.to_owned(), Arc::new(Mutex::new(false)));
        let told = Arc::clone(&done);
        self.judge(move |message| {
            let mut done = done.lock().expect("no holder panics");
            (!*done && contains(message, &trigger)).then(|| {
                *done = true;
                cut
            })
        });
        told
    }

    /// Has this decide about every message from now on.
    pub fn judge(&self, judge: impl FnMut(&[u8]) -> Option<Cut> + Send + 'static) {
        *self.judge.lock().expect("no holder panics") = Box::new(judge);
    }
}

/// Whether a message holds this text.
pub fn contains(message: &[u8], text: &str) -> bool {
    message.windows(text.len()).any(|part| part == text.as_bytes())
}

async fn forward(mut client: TcpStream, mut database: TcpStream, judge: Judge) {
    let (mut to_database, mut to_client) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut to_database) => {
                let Ok(count @ 1..) = read else { return };
                let message = &to_database[..count];
                let cut = (judge.lock().expect("no holder panics"))(message);
                if cut == Some(Cut::Before) || database.write_all(message).await.is_err() {
                    return;
                }
                match cut {
                    Some(Cut::During) => return hold(database, Some(client)).await,
                    Some(Cut::After) => {
                        hold(database, None).await;
                        return drop(client);
                    }
                    _ => {}
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

/// Cuts the client off at once, if it is given, and lets the database work on until it has answered.
async fn hold(mut database: TcpStream, client: Option<TcpStream>) {
    drop(client);
    let mut ignored = [0; 65_536];
    let _ = database.read(&mut ignored).await;
}
