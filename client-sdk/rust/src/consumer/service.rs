//! Handlers and effects made of tower services, with whatever layers are around them: timeouts, limits, one's own.
//!
//! Invariant: what a service says of an event is what a handler would say. It deliberately has no opinion on layers: one
//! that answers in the service's place answers for it.

use std::error::Error;

use sqlx::{Database, Postgres};
use tower::{Service, ServiceExt as _};

use super::{BatchEffect, BatchHandler, Effect, Event, Handler, HandlerError};
use crate::{claim::Claim, inbox::Transaction};

/// An event, and the transaction that its effects belong to: the request of a service that is a [`Handler`].
#[derive(Debug)]
pub struct InTransaction<'t, DB: Database = Postgres> {
    /// The event.
    pub event: Event,
    /// What is done through it happens exactly once, as [`Handler`] says.
    pub tx: &'t mut Transaction<DB>,
}

/// Events, and the transaction that their effects belong to: the request of a service that is a [`BatchHandler`].
#[derive(Debug)]
pub struct BatchInTransaction<'t, DB: Database = Postgres> {
    /// The events, as [`BatchHandler`] gets them.
    pub events: Vec<Event>,
    /// What is done through it happens exactly once for each of them, as [`BatchHandler`] says.
    pub tx: &'t mut Transaction<DB>,
}

/// Makes an [`Effect`] of a tower service of events, whose answer is the result that is stored; a [`BatchEffect`] of one of
/// vectors of events; a [`Handler`] of one of events [in a transaction](InTransaction); or a [`BatchHandler`] of one of
/// [batches in a transaction](BatchInTransaction).
/// Its error is tried again, unless it is a [`HandlerError`](HandlerError::boxed) that says otherwise. Each event, or
/// batch, has a clone of the service.
///
/// A layer that gives a service up, as a timeout does, ends no statement that it has sent: the transaction is rolled back
/// when the database has done with that. Bound statements by the database's own `statement_timeout`.
///
/// ```
/// use std::time::Duration;
/// use outbox_sdk::{
///     BatchEffect, BatchHandler, BatchInTransaction, Effect, Event, Handler, HandlerError, InTransaction, service,
/// };
/// use tower::{BoxError, ServiceBuilder, service_fn};
///
/// let mail = ServiceBuilder::new().timeout(Duration::from_secs(5)).service(service_fn(async |event: Event| {
///     Ok::<_, std::io::Error>(event.id().as_bytes().to_vec())
/// }));
/// fn is_effect(_: impl Effect) {}
/// is_effect(service(mail));
///
/// let index = ServiceBuilder::new().timeout(Duration::from_secs(30)).service(service_fn(async |events: Vec<Event>| {
///     println!("{} documents", events.len());
///     Ok::<_, std::io::Error>(())
/// }));
/// fn is_batch_effect(_: impl BatchEffect) {}
/// is_batch_effect(service(index));
///
/// async fn welcome(InTransaction { event, tx }: InTransaction<'_>) -> Result<(), BoxError> {
///     let Some(user) = event.key() else { return Err(HandlerError::dead_letter("there is no user").boxed()) };
///     sqlx::query("insert into mails (user_id) values ($1)").bind(user).execute(&mut **tx).await?;
///     Ok(())
/// }
/// let welcome = ServiceBuilder::new().timeout(Duration::from_secs(5)).service(service_fn(welcome));
/// fn is_handler(_: impl Handler) {}
/// is_handler(service(welcome));
///
/// async fn count(BatchInTransaction { events, tx }: BatchInTransaction<'_>) -> Result<(), BoxError> {
///     let ids: Vec<_> = events.iter().map(Event::id).collect();
///     sqlx::query("insert into seen (event_id) select unnest($1::uuid[])").bind(ids).execute(&mut **tx).await?;
///     Ok(())
/// }
/// fn is_batch_handler(_: impl BatchHandler) {}
/// is_batch_handler(service(ServiceBuilder::new().timeout(Duration::from_secs(5)).service(service_fn(count))));
/// ```
pub fn service<S>(service: S) -> FromService<S> {
    FromService(service)
}

/// What [`service`] makes.
#[derive(Clone, Debug)]
pub struct FromService<S>(S);

impl<S> Effect for FromService<S>
where
    S: Service<Event, Response = Vec<u8>> + Clone + Send + Sync + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>> + Send,
    S::Future: Send,
{
    async fn perform(&self, event: &Event, _: &Claim) -> Result<Vec<u8>, HandlerError> {
        self.0.clone().oneshot(event.clone()).await.map_err(HandlerError::of_service)
    }
}

impl<S> BatchEffect for FromService<S>
where
    S: Service<Vec<Event>, Response = ()> + Clone + Send + Sync + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>> + Send,
    S::Future: Send,
{
    async fn perform(&self, events: &[&Event], _: &[Claim]) -> Result<(), HandlerError> {
        self.0.clone().oneshot(owned(events)).await.map_err(HandlerError::of_service)
    }
}

impl<S, DB: Database> Handler<DB> for FromService<S>
where
    S: for<'t> Service<
            InTransaction<'t, DB>,
            Response = (),
            Error: Into<Box<dyn Error + Send + Sync>> + Send,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    async fn handle(&self, event: &Event, tx: &mut Transaction<DB>) -> Result<(), HandlerError> {
        let request = InTransaction { event: event.clone(), tx };
        self.0.clone().oneshot(request).await.map_err(HandlerError::of_service)
    }
}

impl<S, DB: Database> BatchHandler<DB> for FromService<S>
where
    S: for<'t> Service<
            BatchInTransaction<'t, DB>,
            Response = (),
            Error: Into<Box<dyn Error + Send + Sync>> + Send,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    async fn handle(&self, events: &[&Event], tx: &mut Transaction<DB>) -> Result<(), HandlerError> {
        let request = BatchInTransaction { events: owned(events), tx };
        self.0.clone().oneshot(request).await.map_err(HandlerError::of_service)
    }
}

fn owned(events: &[&Event]) -> Vec<Event> {
    events.iter().copied().cloned().collect()
}
