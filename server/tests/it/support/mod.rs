//! What the tests share: a server on a fresh database, its clients, and readable requests.

pub(crate) mod cli;
pub(crate) mod faulty;
pub(crate) mod otlp;
pub(crate) mod outbox;
pub(crate) mod page;
pub(crate) mod request;
pub(crate) mod server;
pub(crate) mod transaction;
pub(crate) mod typed;
