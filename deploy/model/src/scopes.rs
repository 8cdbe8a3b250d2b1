//! How much happens in the explorations that are always run, and in the larger ones.

use crate::Scope;

/// Two keys, one of them with an event that Kafka rejects at first; a relay dies or sleeps once.
pub const POLLING: Scope = Scope { keys: &[0, 1, 0], bad: &[0], window: 2, faults: 1, switches: 0, spoils: 0 };
/// To the log and back, with a slot that is dropped, or read by somebody else.
pub const SWITCHING: Scope = Scope { keys: &[0, 0], bad: &[], window: 2, faults: 1, switches: 2, spoils: 1 };

/// Those that take minutes, by name.
pub const LARGE: [(&str, Scope); 4] = [
    ("polling, four events", Scope { keys: &[0, 1, 0, 0], ..POLLING }),
    ("polling, two faults", Scope { faults: 2, ..POLLING }),
    ("switching, two keys", Scope { keys: &[0, 1, 0], ..SWITCHING }),
    ("switching, with what is held", Scope { bad: &[0], ..SWITCHING }),
];
