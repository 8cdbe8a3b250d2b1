//! A call's message as the commit's request.
//!
//! Invariant: equal messages make equal requests, since a retry is known by that.

use prost::Message as _;
use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::{Map, Value as Json};

use super::{
    call::{NAMESPACE, REQUEST_ID},
    form,
    path::Path,
    plan::{Call, Event, Given, Member, MemberOrigin, Payload, Rpc},
};
use crate::{
    commit::Violation,
    model::{
        commit::{CommandCall, EventDraft, Operation, Request},
        template::Template,
        value::{SqlType, Value},
    },
};

impl Rpc {
    /// The operations, events and links of a message; the caller says under which name it is known.
    ///
    /// # Errors
    /// Every field whose value cannot be used.
    pub(super) fn request(&self, message: &DynamicMessage) -> Result<Request, Vec<Violation>> {
        let mut request = Request { links: self.links.clone(), ..Request::default() };
        let mut faults = Vec::new();
        for call in &self.operations {
            request.operations.push(Operation::Command(command(call, message, &mut faults)));
        }
        for (index, event) in self.events.iter().enumerate() {
            let (draft, template) = draft(event, index, message, &mut faults);
            if template.is_some() {
                request.links.events.entry(index).or_default().data = template;
            }
            request.events.push(draft);
        }
        if faults.is_empty() { Ok(request) } else { Err(faults) }
    }

    /// The command of a query.
    ///
    /// # Errors
    /// As [`Rpc::request`].
    pub(super) fn query(&self, message: &DynamicMessage) -> Result<CommandCall, Vec<Violation>> {
        let mut faults = Vec::new();
        let call = self.operations.first().map(|call| command(call, message, &mut faults)).unwrap_or_default();
        if faults.is_empty() { Ok(call) } else { Err(faults) }
    }

    /// A fault of the commit's request as one of the caller's: of the field that a value is from, and by the names that
    /// the RPC has for what a call is known by.
    pub(super) fn blame(&self, violation: &Violation) -> Violation {
        let name = |path: &Option<Path>, metadata: &str| path.as_ref().map_or(metadata, |path| &path.text).to_owned();
        let field = match violation.field.as_str() {
            "request_id" => name(&self.request_id, REQUEST_ID),
            "namespace" => name(&self.namespace, NAMESPACE),
            field => self.parameter_field(field).or_else(|| self.subject_field(field)).unwrap_or(field).to_owned(),
        };
        Violation { field, description: violation.description.clone() }
    }

    /// The message's field that is behind `operations[0].command.parameters[name]`, or a query's `command.parameters[name]`.
    fn parameter_field(&self, field: &str) -> Option<&str> {
        let (before, name) = field.strip_suffix(']')?.split_once("command.parameters[")?;
        let index = match before {
            "" => 0,
            operation => operation.strip_prefix("operations[")?.strip_suffix("].")?.parse().ok()?,
        };
        let call = self.operations.get(index)?;
        let parameter = call.parameters.iter().find(|parameter| parameter.name == name)?;
        parameter.from.field()
    }

    /// The message's field that is behind `events[0].subject`.
    fn subject_field(&self, field: &str) -> Option<&str> {
        let index: usize = field.strip_prefix("events[")?.strip_suffix("].subject")?.parse().ok()?;
        self.events.get(index)?.subject.as_ref()?.field()
    }
}

impl Given {
    /// The path of the field, if it is one.
    fn field(&self) -> Option<&str> {
        match self {
            Self::Field(path) => Some(&path.text),
            Self::Text(_) => None,
        }
    }

    /// The value for an SQL type; NULL where the field is absent.
    fn value(&self, message: &DynamicMessage, ty: &SqlType) -> Result<Value, Violation> {
        match self {
            Self::Text(text) => Ok(Value::Text(text.clone())),
            Self::Field(path) => match path.get(message) {
                None => Ok(Value::Null),
                Some(field) => {
                    let failed = |description| Violation { field: path.text.clone(), description };
                    path.form.write(&field, ty).map_err(failed)
                }
            },
        }
    }
}

fn command(call: &Call, message: &DynamicMessage, faults: &mut Vec<Violation>) -> CommandCall {
    let parameters = call.parameters.iter().map(|parameter| {
        let value = parameter.from.value(message, &parameter.ty);
        let value = value.map_err(|fault| faults.push(fault)).unwrap_or(Value::Null);
        (parameter.name.clone(), value)
    });
    CommandCall { name: call.command.clone(), parameters: parameters.collect() }
}

/// The event, and its payload's template if something in it follows from results.
fn draft(
    event: &Event,
    index: usize,
    message: &DynamicMessage,
    faults: &mut Vec<Violation>,
) -> (EventDraft, Option<Template>) {
    let mut text = |given: &Option<Given>| match given.as_ref()?.value(message, &SqlType::Text) {
        Ok(value) => Some(value),
        Err(fault) => {
            faults.push(fault);
            None
        }
    };
    let key = text(&event.key).and_then(key_bytes);
    let subject = text(&event.subject).and_then(|subject| match subject {
        Value::Text(subject) if !subject.is_empty() => Some(subject),
        _ => None,
    });
    let mut template = None;
    let data = match &event.payload {
        Payload::Tombstone => Ok(None),
        Payload::Protobuf => Ok(Some((message.encode_to_vec(), "application/protobuf"))),
        Payload::Json => form::json(message).map(|json| Some((json.to_string().into_bytes(), "application/json"))),
        Payload::Object(members) => object(members, message).map(|object| {
            let bytes = object.json.clone().into_bytes();
            template = Some(object).filter(|object| !object.values.is_empty());
            Some((bytes, "application/json"))
        }),
    };
    let data = data.unwrap_or_else(|description| {
        faults.push(Violation { field: format!("events[{index}].payload"), description });
        None
    });
    let (data, content_type) = data.map(|(data, media_type)| (data, media_type.to_owned())).unzip();
    let draft = EventDraft {
        topic: event.topic.clone(),
        event_type: event.event_type.clone(),
        source: event.source.clone(),
        key,
        subject,
        data,
        content_type,
        ..EventDraft::default()
    };
    (draft, template)
}

fn key_bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::Text(text) => Some(text.into_bytes()),
        Value::Int(number) => Some(number.to_string().into_bytes()),
        Value::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

/// The object, with null in the places of what follows from results.
fn object(members: &[Member], message: &DynamicMessage) -> Result<Template, String> {
    // A member that is asked for is there, also at its default.
    let options = SerializeOptions::new().skip_default_fields(false);
    let request = message.serialize_with_options(serde_json::value::Serializer, &options);
    let request = request.map_err(|error| format!("has no JSON form: {error}"))?;
    let (mut root, mut template) = (Map::new(), Template::default());
    for Member { names, from } in members {
        let value = match from {
            MemberOrigin::Given(Given::Text(text)) => Json::from(text.as_str()),
            MemberOrigin::Given(Given::Field(path)) => {
                path.json_names().try_fold(&request, |json, name| json.get(name)).cloned().unwrap_or(Json::Null)
            }
            MemberOrigin::Column(reference) => {
                let escaped = names.iter().map(|name| format!("/{}", name.replace('~', "~0").replace('/', "~1")));
                template.values.insert(escaped.collect(), reference.clone());
                Json::Null
            }
        };
        put(&mut root, names, value);
    }
    template.json = Json::Object(root).to_string();
    Ok(template)
}

/// Puts a member into the object that the names before its own lead to.
fn put(object: &mut Map<String, Json>, names: &[String], value: Json) {
    match names {
        [] => {}
        [name] => drop(object.insert(name.clone(), value)),
        [name, rest @ ..] => {
            let inner = object.entry(name.clone()).or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}
