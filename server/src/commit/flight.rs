//! One flight per request in this process: whoever sends what is under way already waits for its outcome.
//!
//! A storm of retries of one request, or of deliveries of one event, would else fill every connection with callers that
//! wait for each other in the database. Invariant: at most one commit of a key is under way here; its outcome is told to
//! everyone who came while it was. The claim in the database remains the guard against other processes, and is what makes
//! a request apply once; this only saves connections.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use uuid::Uuid;

use super::Error;
use crate::{
    model::commit::{Answer, Disposition},
    store,
};

/// What a flight came to.
pub(super) type Outcome = Result<Answer, Arc<Error>>;

/// What makes two callers' requests the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passenger {
    pub(super) request_key: Uuid,
    pub(super) fingerprint: [u8; 32],
    /// Whether it handles an event: then its flight is everyone's who handles the same.
    pub(super) consumes: bool,
}

/// The flights under way, by key: who leads each, and where its outcome is told.
type UnderWay = HashMap<Uuid, (Passenger, watch::Receiver<Option<Outcome>>)>;

/// All flights of this process.
pub(super) struct Flights {
    under_way: Mutex<UnderWay>,
    waiting: AtomicUsize,
    waiting_max: usize,
}

/// What a caller is to do.
pub(super) enum Boarding {
    /// Nobody is at it: run the request, and land the flight.
    Lead(Flight),
    /// Somebody is: wait for the outcome.
    Follow(Follower),
}

/// A flight under way. Dropped without landing, it leaves its followers to start over.
pub(super) struct Flight {
    flights: Arc<Flights>,
    key: Uuid,
    outcome: watch::Sender<Option<Outcome>>,
}

/// One who waits for another's flight.
pub(super) struct Follower {
    flights: Arc<Flights>,
    leader: Passenger,
    passenger: Passenger,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Flights {
    pub(super) fn new(waiting_max: usize) -> Arc<Self> {
        Arc::new(Self { under_way: Mutex::default(), waiting: AtomicUsize::new(0), waiting_max })
    }

    /// Joins the flight of this key, or begins it.
    pub(super) fn board(self: &Arc<Self>, key: Uuid, passenger: Passenger) -> Result<Boarding, store::Error> {
        match self.lock().entry(key) {
            Entry::Vacant(place) => {
                let (outcome, told) = watch::channel(None);
                place.insert((passenger, told));
                Ok(Boarding::Lead(Flight { flights: Arc::clone(self), key, outcome }))
            }
            Entry::Occupied(flight) => {
                let follower = Follower {
                    flights: Arc::clone(self),
                    leader: flight.get().0,
                    passenger,
                    outcome: flight.get().1.clone(),
                };
                // Counted before it is asked for, and given back by the follower's end even when it is refused.
                if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.waiting_max {
                    return Err(store::Error::QueueFull(self.waiting_max));
                }
                Ok(Boarding::Follow(follower))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// Ends the flight and tells its outcome.
    pub(super) fn land(self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

impl Follower {
    /// Waits for the flight; `None` when its outcome says nothing about this caller, who has to board again.
    pub(super) async fn outcome(mut self, deadline: Instant) -> Option<Outcome> {
        let told = match timeout_at(deadline, self.outcome.wait_for(Option::is_some)).await {
            Ok(Ok(told)) => told.clone()?,
            Ok(Err(_abandoned)) => return None,
            Err(_) => return Some(Err(Arc::new(store::Error::DeadlineExceeded.into()))),
        };
        let same = self.leader == self.passenger;
        let handled = |answer: &Answer| {
            let elsewhere = self.leader.request_key != self.passenger.request_key;
            self.passenger.consumes && (elsewhere || answer.disposition == Disposition::Duplicate)
        };
        match told {
            Ok(answer) if handled(&answer) => Some(Ok(Answer { disposition: Disposition::Duplicate, ..answer })),
            Ok(answer) if same => Some(Ok(Answer { disposition: Disposition::Replayed, ..answer })),
            Ok(_) => Some(Err(Arc::new(store::Error::RequestIdReused.into()))),
            // Its leader had less time than this caller may have.
            Err(error) if matches!(*error, Error::Store(store::Error::DeadlineExceeded)) => None,
            Err(error) => same.then_some(Err(error)),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.flights.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
