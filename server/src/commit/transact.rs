//! Interactive transactions: the same checks, binding, limits and idempotency as a commit's, one step at a time.
//!
//! Invariant: until it ends, an open transaction is its request's flight in this process, so whoever sends the same
//! request id meanwhile waits here and not in the database. It deliberately knows no time limits: its caller does.

use std::sync::Arc;

use chrono::Utc;
use tokio::time::Instant;

use super::{
    Committer, Error, Inner, Violation, draft,
    fingerprint::TRANSACT,
    flight::{Boarding, Flight, Outcome, Passenger},
    limits, operation,
};
use crate::{
    catalog::Command,
    model::{
        commit::{Answer, OperationResult, Request, RequestKey},
        document::Document,
        event::{NewEvent, TraceContext},
        transact::{Begin, Step},
    },
    store::commit::{Claim, transact},
};

/// What beginning came to.
pub enum Begun {
    /// It is open.
    Open(Box<Transaction>),
    /// Its request has been answered before.
    Answered(Answer),
}

/// An open transaction. Dropping it rolls it back.
pub struct Transaction {
    inner: Arc<Inner>,
    open: transact::Transaction,
    begin: Begin,
    claim: Option<Claim>,
    flight: Option<Flight>,
    trace: Option<TraceContext>,
    results: Vec<OperationResult>,
    events: Vec<NewEvent>,
    events_bytes: usize,
    steps: usize,
    /// The command of the open read, and the rows of its pages.
    read: Option<(Arc<Command>, u32)>,
}

/// What a step came to.
pub enum Done {
    /// Operations have run, events are staged.
    Ran {
        /// One result per operation of the step.
        results: Vec<OperationResult>,
        /// One id per event of the step.
        event_ids: Vec<uuid::Uuid>,
    },
    /// A page of rows.
    Page {
        /// The rows, with their columns.
        result: OperationResult,
        /// Whether there may be more.
        more: bool,
    },
    /// A document, if there is one.
    Document(Option<Document>),
}

impl Committer {
    /// Begins a transaction, and claims its request id before anything is read.
    ///
    /// # Errors
    /// As a commit.
    pub async fn begin(
        &self,
        begin: Begin,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<Begun, Arc<Error>> {
        let faults = limits::begin(&begin, &self.0.config, Utc::now());
        if !faults.found.is_empty() {
            return Err(Arc::new(Error::Invalid(faults.found)));
        }
        let Some(request_id) = &begin.request_id else {
            return self.open(begin, None, None, trace, deadline).await;
        };
        let key = RequestKey::new(&begin.namespace, request_id);
        let consume = begin.consume.clone();
        let passenger = Passenger { request_key: key.key, fingerprint: TRANSACT, consumes: consume.is_some() };
        let flight = consume.as_ref().map_or(key.key, |consume| consume.key(&begin.namespace));
        let claim = Claim { namespace: begin.namespace.clone(), request_key: key.key, fingerprint: TRANSACT, consume };
        loop {
            match self.0.flights.board(flight, passenger).map_err(Error::from)? {
                Boarding::Lead(flight) => return self.open(begin, Some(claim), Some(flight), trace, deadline).await,
                Boarding::Follow(follower) => match follower.outcome(deadline).await {
                    Some(outcome) => return outcome.map(Begun::Answered),
                    None => continue,
                },
            }
        }
    }

    async fn open(
        &self,
        begin: Begin,
        claim: Option<Claim>,
        flight: Option<Flight>,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<Begun, Arc<Error>> {
        let begun = self.0.transactions.begin(claim.as_ref(), begin.isolation, deadline).await;
        let open = match begun.map_err(Error::from)? {
            transact::Begun::Open(open) => *open,
            transact::Begun::Answered(answer) => {
                if let Some(flight) = flight {
                    flight.land(Ok(answer.clone()));
                }
                return Ok(Begun::Answered(answer));
            }
        };
        let expired =
            begin.request_id.as_ref().and_then(|id| self.0.expired(RequestKey::new(&begin.namespace, id), Utc::now()));
        if let Some(expired) = expired {
            open.end().await;
            return Err(Arc::new(expired));
        }
        Ok(Begun::Open(Box::new(Transaction {
            inner: Arc::clone(&self.0),
            open,
            begin,
            claim,
            flight,
            trace,
            results: Vec::new(),
            events: Vec::new(),
            events_bytes: 0,
            steps: 0,
            read: None,
        })))
    }
}

impl Transaction {
    /// Does a step that neither commits nor rolls back. After an error only ending it is left.
    ///
    /// # Errors
    /// As a commit.
    pub async fn step(&mut self, step: Step) -> Result<Done, Error> {
        self.count()?;
        match step {
            Step::Run(request) => self.run(request).await,
            Step::Read { call, page_rows } => {
                let operation = operation::read(&self.inner.catalog, &self.begin.namespace, &call)?;
                self.open.open(&operation).await?;
                self.read = Some((operation.command, page_rows));
                self.page().await
            }
            Step::NextPage => self.page().await,
            Step::ReadDocument { collection, id } => {
                Ok(Done::Document(self.open.document(&self.begin.namespace, &collection, &id).await?))
            }
            Step::Commit(_) | Step::Rollback => unreachable!("they end the transaction, and have calls of their own"),
        }
    }

    /// Runs the last operations, stages the last events, and commits.
    ///
    /// # Errors
    /// As a commit; the transaction is rolled back.
    pub async fn commit(mut self, last: Request) -> Outcome {
        let last = if last.operations.is_empty() && last.events.is_empty() { Ok(()) } else { self.last(last).await };
        if let Err(error) = last {
            self.open.end().await;
            return Err(Arc::new(error));
        }
        let (Some(claim), Some(request_id)) = (self.claim, self.begin.request_id) else {
            self.open.close().await.map_err(Error::from)?;
            return Ok(Answer::nothing(self.results));
        };
        let (inner, has_events) = (self.inner, !self.events.is_empty());
        let outcome = self.open.commit(claim, request_id, self.results, self.events).await;
        let outcome = outcome.map_err(|error| Arc::new(Error::from(error)));
        if outcome.is_ok() && has_events {
            (inner.committed)();
        }
        if let Some(flight) = self.flight {
            flight.land(outcome.clone());
        }
        outcome
    }

    /// Rolls back at once.
    pub async fn end(self) {
        self.open.end().await;
    }

    async fn last(&mut self, request: Request) -> Result<(), Error> {
        self.count()?;
        self.run(request).await.map(drop)
    }

    async fn run(&mut self, mut request: Request) -> Result<Done, Error> {
        let now = Utc::now();
        request.namespace.clone_from(&self.begin.namespace);
        let mut faults = limits::step(&request, &self.inner.config, &self.inner.records, now);
        let (operations, events) =
            (self.results.len() + request.operations.len(), self.events.len() + request.events.len());
        let bytes = self.events_bytes + request.events.iter().map(limits::event_bytes).sum::<usize>();
        let config = &self.inner.config;
        for (field, count, max) in [
            ("operations", operations, config.operations_max),
            ("events", events, config.events_max),
            ("events", bytes, self.inner.transact.events_bytes_max),
        ] {
            if count > max {
                let description = format!("would bring the transaction to {count}; at most {max} are allowed");
                faults.found.push(Violation { field: field.into(), description });
            }
        }
        if !request.links.is_empty() {
            let description =
                "has references or conditions, which a transaction has no need of: its caller sees the results";
            faults.found.push(Violation { field: "step".into(), description: description.into() });
        }
        if self.claim.is_none() && !request.events.is_empty() {
            let description = "cannot be stored by a transaction that only reads".into();
            faults.found.push(Violation { field: "events".into(), description });
        }
        if !faults.found.is_empty() {
            return Err(Error::Invalid(faults.found));
        }
        let bound =
            operation::bind(&self.inner.catalog, config, &self.begin.namespace, &request.operations, &request.links)?;
        let first = self.results.len();
        for (index, operation) in bound.iter().enumerate() {
            self.results.push(self.open.run(operation, index).await?);
        }
        let (source, staged) = (&config.default_source, self.events.len());
        let trace = self.trace.as_ref();
        self.events.extend(request.events.into_iter().map(|event| draft::complete(event, source, trace, now)));
        self.events_bytes = bytes;
        let event_ids = self.events[staged..].iter().map(|event| event.id).collect();
        Ok(Done::Ran { results: self.results[first..].to_vec(), event_ids })
    }

    async fn page(&mut self) -> Result<Done, Error> {
        let none = || Violation { field: "next_page".into(), description: "there is no open read".into() };
        let Some((command, page_rows)) = &self.read else { return Err(Error::Invalid(vec![none()])) };
        let rows = self.open.page(*page_rows).await?.unwrap_or_default();
        let more = rows.len() >= *page_rows as usize;
        let columns = command.columns.iter().map(|column| (column.name.clone(), column.ty.to_string())).collect();
        let rows_affected = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        Ok(Done::Page { result: OperationResult { rows_affected, columns, rows, skipped: false }, more })
    }

    fn count(&mut self) -> Result<(), Error> {
        self.steps += 1;
        let max = self.inner.transact.steps_max;
        if self.steps <= max {
            return Ok(());
        }
        let description = format!("is one too many: a transaction has at most {max}");
        Err(Error::Invalid(vec![Violation { field: "step".into(), description }]))
    }
}
