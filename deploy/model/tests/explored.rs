//! The model is explored as a whole: with every guard in place nothing goes wrong; without one, that is found.

use outbox_model::{GUARDS, Guard, Outbox, Scope, promises, scopes};
use stateright::{Checker as _, HasDiscoveries, Model as _};

/// The scope is explored until `promise` is broken.
fn is_broken(promise: &'static str, scope: Scope, without: Guard) -> bool {
    let until = HasDiscoveries::AnyOf([promise].into());
    let model = Outbox { scope, without: Some(without) };
    model.checker().threads(2).finish_when(until).spawn_bfs().join().discovery(promise).is_some()
}

#[test]
fn with_every_guard_nothing_goes_wrong() {
    for (scope, states_min) in [(scopes::POLLING, 500_000), (scopes::SWITCHING, 90_000)] {
        let checker = Outbox { scope, without: None }.checker().threads(2).spawn_bfs().join();
        checker.assert_properties();
        let states = checker.unique_state_count();
        assert!(states > states_min, "{scope:?} has only {states} states: something no longer happens");
    }
}

#[test]
fn without_any_one_guard_something_does() {
    for guard in GUARDS {
        let (promise, scope) = match guard {
            Guard::SlotLock | Guard::NothingPassesInFlight | Guard::NothingPassesAHold => {
                (promises::IN_ORDER, scopes::POLLING)
            }
            Guard::Snapshot | Guard::HeldFirst | Guard::DrainedOnly => (promises::NOTHING_LOST, scopes::POLLING),
            Guard::Epoch => (promises::FORWARD_ONLY, scopes::POLLING),
            Guard::SnapshotCovered | Guard::SlotTrust | Guard::SnapshotFirst => {
                (promises::NOTHING_LOST, scopes::SWITCHING)
            }
            Guard::DoneAlready | Guard::SettledAdded => (promises::REPEATS_BOUNDED, scopes::SWITCHING),
        };
        assert!(is_broken(promise, scope, guard), "«{promise}» holds without {guard:?}");
    }
}
