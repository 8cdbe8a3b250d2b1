//! Several handlers by event type.
//!
//! Invariant: an event reaches exactly one handler. It deliberately does not skip an event of a type that nobody
//! handles unless told to: a new type that is deployed before its handler must not be lost.

use std::{collections::HashMap, fmt};

use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use sqlx::{Database, Postgres};

use super::{Event, Handler, HandlerError, PayloadError};
use crate::inbox::Transaction;

/// Hands each event to the handler of its type.
///
/// ```
/// use outbox_sdk::{Event, HandlerError, Router, Transaction, json};
///
/// #[derive(serde::Deserialize)]
/// struct User { id: String }
///
/// async fn welcome(_: &Event, user: User, tx: &mut Transaction) -> Result<(), HandlerError> {
///     sqlx::query("insert into mails (user_id) values ($1)").bind(user.id).execute(&mut **tx).await?;
///     Ok(())
/// }
///
/// async fn forget(event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
///     sqlx::query("delete from mails where user_id = $1").bind(event.subject()).execute(&mut **tx).await?;
///     Ok(())
/// }
///
/// let router: Router = Router::new().on("user.activated", json(welcome)).on("user.deleted", forget).pass_others();
/// # let _ = router;
/// ```
pub struct Router<DB: Database = Postgres> {
    routes: HashMap<String, Box<dyn Route<DB>>>,
    pass_others: bool,
}

impl<DB: Database> Default for Router<DB> {
    fn default() -> Self {
        Self { routes: HashMap::new(), pass_others: false }
    }
}

impl<DB: Database> fmt::Debug for Router<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.routes.keys()).finish()
    }
}

impl<DB: Database> Router<DB> {
    /// Without handlers so far. An event of any other type is dead-lettered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the handler of a type; a later one of the same type takes the place of the earlier.
    #[must_use]
    pub fn on(mut self, event_type: impl Into<String>, handler: impl Handler<DB>) -> Self {
        self.routes.insert(event_type.into(), Box::new(handler));
        self
    }

    /// Events of other types count as handled, without an effect.
    #[must_use]
    pub fn pass_others(mut self) -> Self {
        self.pass_others = true;
        self
    }
}

impl<DB: Database> Handler<DB> for Router<DB> {
    async fn handle(&self, event: &Event, tx: &mut Transaction<DB>) -> Result<(), HandlerError> {
        match self.routes.get(event.event_type()) {
            Some(route) => route.take(event, tx).await,
            None if self.pass_others => Ok(()),
            None => Err(HandlerError::dead_letter(format!("no handler for the type `{}`", event.event_type()))),
        }
    }
}

/// A [`Handler`] behind a pointer.
trait Route<DB: Database>: Send + Sync {
    fn take<'a>(&'a self, event: &'a Event, tx: &'a mut Transaction<DB>) -> BoxFuture<'a, Result<(), HandlerError>>;
}

impl<DB: Database, H: Handler<DB>> Route<DB> for H {
    fn take<'a>(&'a self, event: &'a Event, tx: &'a mut Transaction<DB>) -> BoxFuture<'a, Result<(), HandlerError>> {
        Box::pin(self.handle(event, tx))
    }
}

/// Makes a [`Handler`] of a function that takes the payload, read as JSON. A payload that does not have the shape of
/// `T` goes to the dead-letter topic.
pub fn json<T: DeserializeOwned, F>(handler: F) -> Typed<T, F> {
    Typed { handler, read: Event::json }
}

/// Makes a [`Handler`] of a function that takes the payload, read as a Protobuf message. A payload that cannot be read as
/// `T` goes to the dead-letter topic.
///
/// ```
/// use outbox_sdk::{Event, HandlerError, Router, Transaction, protobuf};
/// use prost_types::Timestamp;
///
/// async fn strike(_: &Event, at: Timestamp, tx: &mut Transaction) -> Result<(), HandlerError> {
///     sqlx::query("insert into strikes (at) values (to_timestamp($1))").bind(at.seconds).execute(&mut **tx).await?;
///     Ok(())
/// }
///
/// let router: Router = Router::new().on("clock.struck", protobuf(strike));
/// ```
pub fn protobuf<T: prost::Message + Default, F>(handler: F) -> Typed<T, F> {
    Typed { handler, read: Event::protobuf }
}

/// The handler that [`json`] and [`protobuf`] make.
pub struct Typed<T, F> {
    handler: F,
    read: fn(&Event) -> Result<T, PayloadError>,
}

impl<T, F> fmt::Debug for Typed<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Typed<{}>", std::any::type_name::<T>())
    }
}

/// A function that can be given to [`json`] or [`protobuf`]. Not meant to be implemented.
pub trait PayloadFn<'a, T, DB: Database>: Fn(&'a Event, T, &'a mut Transaction<DB>) -> Self::Handled {
    /// The function's future.
    type Handled: Future<Output = Result<(), HandlerError>> + Send + 'a;
}

impl<'a, T, DB: Database, F, R> PayloadFn<'a, T, DB> for F
where
    F: Fn(&'a Event, T, &'a mut Transaction<DB>) -> R,
    R: Future<Output = Result<(), HandlerError>> + Send + 'a,
{
    type Handled = R;
}

impl<T, DB: Database, F> Handler<DB> for Typed<T, F>
where
    T: Send + 'static,
    F: for<'a> PayloadFn<'a, T, DB> + Send + Sync + 'static,
{
    async fn handle(&self, event: &Event, tx: &mut Transaction<DB>) -> Result<(), HandlerError> {
        (self.handler)(event, (self.read)(event)?, tx).await
    }
}
