//! What must hold in every state, whatever happened before.

use stateright::Property;

use crate::Outbox;
use crate::world::World;

/// Nothing is said to be settled that Kafka has not got and that is not held.
pub const NOTHING_LOST: &str = "what is settled is in Kafka or held";
/// A key's events are in Kafka in the order of their commits, but for repeats.
pub const IN_ORDER: &str = "each key keeps its order";
/// Only what was under way when something failed is repeated.
pub const REPEATS_BOUNDED: &str = "repeats are bounded by faults";
/// What was settled stays so.
pub const FORWARD_ONLY: &str = "progress never goes back";
/// When nothing is left to do, all is done.
pub const NOTHING_STUCK: &str = "everything gets to Kafka in the end";

pub(crate) fn all() -> Vec<Property<Outbox>> {
    vec![
        Property::always(NOTHING_LOST, nothing_lost),
        Property::always(IN_ORDER, in_order),
        Property::always(REPEATS_BOUNDED, |_, world: &World| {
            world.log.len() - firsts(world).len() <= usize::from(world.repeats_allowed)
        }),
        Property::always(FORWARD_ONLY, |_, world: &World| !world.went_back),
        Property::always(NOTHING_STUCK, nothing_stuck),
    ]
}

/// Kafka's log without repeats.
fn firsts(world: &World) -> Vec<u8> {
    let mut firsts = Vec::new();
    for event in &world.log {
        if !firsts.contains(event) {
            firsts.push(*event);
        }
    }
    firsts
}

fn nothing_lost(_: &Outbox, world: &World) -> bool {
    let safe = |event: &u8| world.log.contains(event) || world.table.held.has(*event);
    world.table.commits.iter().filter(|event| world.table.settled(**event)).all(safe)
}

fn in_order(model: &Outbox, world: &World) -> bool {
    let firsts = firsts(world);
    let of_key = |events: &[u8], key| -> Vec<u8> {
        events.iter().copied().filter(|event| model.scope.keys[usize::from(*event)] == key).collect()
    };
    model.scope.keys.iter().all(|key| of_key(&world.table.commits, *key).starts_with(&of_key(&firsts, *key)))
}

fn nothing_stuck(model: &Outbox, world: &World) -> bool {
    let busy = || {
        let steps = model.steps(world).into_iter().filter(|step| !step.is_chosen());
        steps.into_iter().any(|step| model.take(&mut world.clone(), step))
    };
    let done = firsts(world).len() == model.scope.keys.len() && world.table.held.is_empty();
    done || busy()
}
