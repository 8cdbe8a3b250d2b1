//! What follows from the results of operations, found while a commit runs: arguments, keys, payloads, and whether at all.
//!
//! Invariant: what is found is bound as an argument like any other value; none of it becomes part of a statement.

use uuid::Uuid;

use super::{Commit, Operation, Source};
use crate::{
    model::{
        commit::OperationResult,
        event::NewEvent,
        link::{Element, EventLinks},
        value::{self, SqlType},
    },
    store::{Error, Failure},
};

impl Commit {
    /// Whether an operation runs after these results.
    pub(super) fn runs(&self, index: usize, results: &[OperationResult]) -> bool {
        let condition = self.links.operations.get(&index).and_then(|links| links.only_if);
        condition.is_none_or(|condition| condition.holds(results))
    }

    /// The commit with the events that its results make of it; the others have no place in it any more. Also all ids,
    /// nil for an event whose condition does not hold.
    pub(super) fn resolved(
        &self,
        results: &[OperationResult],
        event_bytes_max: usize,
    ) -> Result<(Self, Vec<Uuid>), Failure> {
        let (mut ids, mut events) = (Vec::with_capacity(self.events.len()), Vec::with_capacity(self.events.len()));
        for (index, event) in self.events.iter().enumerate() {
            let links = self.links.events.get(&index);
            let stored = links.and_then(|links| links.only_if).is_none_or(|condition| condition.holds(results));
            ids.push(if stored { event.id } else { Uuid::nil() });
            if stored {
                let mut event = event.clone();
                if let Some(links) = links {
                    let room = self.rooms.get(&index).copied().unwrap_or(event_bytes_max);
                    fill(&mut event, links, results, room.min(event_bytes_max))
                        .map_err(|(field, description)| failed(format!("events[{index}].{field}"), description))?;
                }
                events.push(event);
            }
        }
        Ok((Self { events, ..self.clone() }, ids))
    }
}

impl Operation {
    /// The operation with its linked arguments.
    pub(super) fn resolved(&self, index: usize, results: &[OperationResult]) -> Result<Self, Failure> {
        let mut resolved = self.clone();
        for linked in &self.linked {
            let text = linked.source.text(results, &linked.ty).map_err(|(place, description)| {
                failed(format!("operations[{index}].{}{place}", linked.field), description)
            })?;
            resolved.arguments[linked.position] = text;
        }
        Ok(resolved)
    }
}

impl Source {
    /// The text of an argument of this type. An error names the place within the field, if there is one.
    fn text(&self, results: &[OperationResult], ty: &SqlType) -> Result<Option<String>, (String, String)> {
        let whole = |description| (String::new(), description);
        match self {
            Self::Value(reference) => reference.parameter(results, ty).map_err(whole),
            Self::Array(elements) => {
                let value = Element::Array(elements.clone()).value(results).map_err(whole)?;
                value.to_sql_text(ty).map_err(|error| whole(error.to_string()))
            }
            Self::Document(template, depth_max) => {
                let filled = template.fill(results);
                let filled = filled.map_err(|(pointer, description)| (format!(".values[{pointer}]"), description))?;
                match value::json_depth_fits(&filled, *depth_max) {
                    true => Ok(Some(filled)),
                    false => Err(whole(format!("has become nested more than {depth_max} deep"))),
                }
            }
        }
    }
}

/// Fills in an event; an error names the field within it.
fn fill(
    event: &mut NewEvent,
    links: &EventLinks,
    results: &[OperationResult],
    bytes_max: usize,
) -> Result<(), (String, String)> {
    if let Some(key) = &links.key {
        event.key = key.key(results).map_err(|description| ("key_from".to_owned(), description))?;
    }
    if let Some(template) = &links.data {
        let filled = template.fill(results);
        let filled = filled.map_err(|(pointer, description)| (format!("json.values[{pointer}]"), description))?;
        event.data = Some(filled.into_bytes());
    }
    let headers: usize = event.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    let bytes = headers + event.key.as_ref().map_or(0, Vec::len) + event.data.as_ref().map_or(0, Vec::len);
    if bytes > bytes_max {
        let description =
            format!("has become {bytes} bytes of key, payload and headers; at most {bytes_max} are allowed");
        return Err(("data".to_owned(), description));
    }
    Ok(())
}

fn failed(field: String, description: String) -> Failure {
    Failure::Final(Error::Reference { field, description })
}
