//! The events of a declaration.

use std::collections::BTreeSet;

use outbox_proto::v1::{self, Origin, RequestPayload, TypedEvent, typed_event};
use prost_reflect::{Kind, MessageDescriptor};

use super::{Declaring, From};
use crate::{
    api::{
        convert,
        typed::{
            form::Form,
            plan::{Event, Given, Member, MemberOrigin, Payload},
        },
    },
    model::link::{EventLinks, Reference},
};

impl Declaring<'_> {
    pub(super) fn event(&mut self, index: usize, event: &TypedEvent) {
        let place = format!("events[{index}]");
        let mut links = EventLinks { only_if: event.only_if.map(convert::condition), ..EventLinks::default() };
        let key = match event.key.as_ref().and_then(|origin| self.origin(&format!("{place}.key"), origin)) {
            Some(From::Given(key)) => {
                self.check_key(&format!("{place}.key"), &key);
                Some(key)
            }
            Some(From::Column(reference)) => {
                links.key = Some(reference);
                None
            }
            None => None,
        };
        let subject = event.subject.as_ref().and_then(|origin| self.subject(&format!("{place}.subject"), origin));
        let payload = self.payload(&place, event.payload.as_ref());
        if links != EventLinks::default() {
            self.rpc.links.events.insert(index, links);
        }
        let TypedEvent { topic, r#type, source, .. } = event.clone();
        let source = Some(source).filter(|source| !source.is_empty());
        self.rpc.events.push(Event { topic, event_type: r#type, source, key, subject, payload });
    }

    fn check_key(&mut self, place: &str, key: &Given) {
        let Given::Field(path) = key else { return };
        let form = match &path.form {
            Form::Wrapper(_, inner) => inner,
            form => form,
        };
        let suits = matches!(
            form,
            Form::Text | Form::Bytes | Form::Enum(_) | Form::Int32 | Form::Int64 | Form::Uint32 | Form::Uint64
        );
        if !suits {
            self.fault(
                place,
                format!("`{}` is {}; a key is a string, bytes, an enum or a whole number", path.text, path.form),
            );
        }
    }

    fn subject(&mut self, place: &str, origin: &Origin) -> Option<Given> {
        match self.origin(place, origin)? {
            From::Given(Given::Field(path)) if path.form != Form::Text => {
                self.fault(place, format!("`{}` is {}; a subject is a string", path.text, path.form));
                None
            }
            From::Given(given) => Some(given),
            From::Column(_) => {
                self.fault(place, "is a column; a subject is a field of the request or a text");
                None
            }
        }
    }

    fn payload(&mut self, place: &str, payload: Option<&typed_event::Payload>) -> Payload {
        let place = format!("{place}.payload");
        match payload {
            None => self.whole_request(&place, RequestPayload::Json.into()),
            Some(typed_event::Payload::Request(form)) => self.whole_request(&place, *form),
            Some(typed_event::Payload::Row(operation)) => Payload::Object(self.row(&place, *operation)),
            Some(typed_event::Payload::Json(object)) => Payload::Object(self.members(&place, object)),
            Some(typed_event::Payload::Tombstone(_)) => Payload::Tombstone,
        }
    }

    fn whole_request(&mut self, place: &str, form: i32) -> Payload {
        let request = self.rpc.request.clone();
        self.used.extend(request.fields().map(|field| field.name().to_owned()));
        if form == i32::from(RequestPayload::Json) {
            return Payload::Json;
        }
        if let Some(map) = map_in(&request, &mut BTreeSet::new()) {
            self.fault(
                place,
                format!("{map} is a map, whose binary form differs from call to call; publish it as JSON"),
            );
        }
        Payload::Protobuf
    }

    fn row(&mut self, place: &str, operation: u32) -> Vec<Member> {
        let index = usize::try_from(operation).unwrap_or(usize::MAX);
        let Some(command) = self.commands.get(index) else {
            self.fault(place, format!("is about operation {operation}, which is not there"));
            return Vec::new();
        };
        // A command that is not there is told where it is named.
        let columns: Vec<String> = command.iter().flat_map(|c| &c.columns).map(|column| column.name.clone()).collect();
        if command.is_some() && columns.is_empty() {
            self.fault(place, format!("is the row of operation {operation}, which returns none"));
        }
        let member = |column: String| Member {
            names: vec![column.clone()],
            from: MemberOrigin::Column(Reference { operation: index, column, row: 0 }),
        };
        columns.into_iter().map(member).collect()
    }

    fn members(&mut self, place: &str, object: &v1::JsonObject) -> Vec<Member> {
        let (mut members, mut taken) = (Vec::new(), BTreeSet::new());
        for assignment in &object.members {
            let place = format!("{place}.members[{}]", assignment.to);
            let names: Vec<String> = assignment.to.split('.').map(str::to_owned).collect();
            let clashes = |other: &Vec<String>| other.starts_with(&names) || names.starts_with(other);
            if names.iter().any(String::is_empty) {
                self.fault(&place, "is not a name");
            } else if taken.iter().any(clashes) {
                self.fault(&place, "stands where another member does");
            }
            taken.insert(names.clone());
            let from = match self.origin(&place, &assignment.from.clone().unwrap_or_default()) {
                Some(From::Given(given)) => MemberOrigin::Given(given),
                Some(From::Column(reference)) => MemberOrigin::Column(reference),
                None => continue,
            };
            members.push(Member { names, from });
        }
        members
    }
}

/// A map in a message, or in one inside it.
fn map_in(message: &MessageDescriptor, seen: &mut BTreeSet<String>) -> Option<String> {
    if !seen.insert(message.full_name().to_owned()) {
        return None;
    }
    message.fields().find_map(|field| match field.kind() {
        _ if field.is_map() => Some(field.full_name().to_owned()),
        Kind::Message(inner) => map_in(&inner, seen),
        _ => None,
    })
}
