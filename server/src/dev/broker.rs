//! A broker in this process that speaks Kafka's protocol: librdkafka's mock cluster.
//!
//! For development only: it keeps everything in memory, each partition only its newest 5 MiB, and it is no Kafka, so
//! it proves nothing about one. Invariant: it lives exactly as long as its [`Broker`].

use std::{sync::mpsc, thread};

use rdkafka::mocking::MockCluster;

use super::Error;

/// A running broker; dropping it ends it.
pub struct Broker {
    bootstrap_servers: String,
    /// Dropped before the thread is waited for: that is what the thread waits for.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Broker {
    /// Starts a broker on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// [`Error::Broker`].
    pub fn start() -> Result<Self, Error> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (started, start) = mpsc::channel();
        // The cluster cannot move between threads, so it has one of its own.
        let serve = move || match MockCluster::new(1) {
            Ok(cluster) => {
                let told = started.send(Ok(cluster.bootstrap_servers()));
                if told.is_ok() {
                    // Nothing is ever sent: this ends when the sender is dropped.
                    let _ = stopped.recv();
                }
            }
            Err(error) => drop(started.send(Err(error))),
        };
        let failed = |reason: String| Error::Broker(reason);
        let thread = thread::Builder::new().name("broker".into()).spawn(serve);
        let thread = thread.map_err(|error| failed(error.to_string()))?;
        let bootstrap_servers = start
            .recv()
            .map_err(|_| failed("its thread has ended".into()))?
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { bootstrap_servers, stop: Some(stop), thread: Some(thread) })
    }

    /// Its address, `host:port`.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the in-process broker's thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_broker_listens_on_this_machine_only_until_it_is_dropped() {
        let broker = Broker::start().expect("a broker starts");
        let address = broker.bootstrap_servers().to_owned();
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        TcpStream::connect(&address).expect("it listens");
        drop(broker);
        TcpStream::connect(&address).expect_err("it has ended");
    }
}
