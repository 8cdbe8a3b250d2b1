//! What makes two requests the same: a hash over the meaning of a request.
//!
//! Versioned, and over the semantic form, not the bytes: field order on the wire, the trace context and what the
//! server fills in do not count. Every part is preceded by its length or a tag, so that no two different requests
//! write the same input. It deliberately does not include the request id and namespace, under which it is stored.

use sha2::{Digest as _, Sha256};

use crate::model::{
    commit::{CommandCall, Consume, EventDraft, Operation, Request},
    document::{DocumentCall, Precondition, Verb},
    link::{Condition, Element, EventLinks, Links, OperationLinks, Reference},
    template::Template,
    value::Value,
};

const VERSION: u8 = 1;

/// The fingerprint of every interactive transaction: what one will do is not known when it begins. No hash is all
/// zeros, so no other request has it.
pub const TRANSACT: [u8; 32] = [0; 32];

/// The fingerprint of a request, 32 bytes.
pub fn of(request: &Request) -> [u8; 32] {
    let mut hash = Hash(Sha256::new());
    hash.tag(VERSION);
    hash.length(request.operations.len());
    for operation in &request.operations {
        match operation {
            Operation::Command(call) => hash.call(call),
            Operation::Document(call) => hash.document(call),
        }
    }
    hash.length(request.events.len());
    for event in &request.events {
        hash.event(event);
    }
    if let Some(consume) = &request.consume {
        hash.consume(consume);
    }
    if !request.links.is_empty() {
        hash.links(&request.links);
    }
    for (index, event) in request.events.iter().enumerate() {
        if let Some(after) = event.deliver_after {
            hash.delay(index, after.timestamp_micros());
        }
    }
    hash.0.finalize().into()
}

struct Hash(Sha256);

impl Hash {
    fn tag(&mut self, tag: u8) {
        self.0.update([tag]);
    }

    fn length(&mut self, length: usize) {
        self.0.update((length as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.0.update(bytes);
    }

    fn optional(&mut self, bytes: Option<&[u8]>) {
        self.tag(u8::from(bytes.is_some()));
        self.bytes(bytes.unwrap_or_default());
    }

    fn call(&mut self, call: &CommandCall) {
        self.bytes(call.name.as_bytes());
        self.length(call.parameters.len());
        for (name, value) in &call.parameters {
            self.bytes(name.as_bytes());
            self.value(value);
        }
    }

    fn document(&mut self, call: &DocumentCall) {
        // In the place of a command's name, whose length it cannot be.
        self.length(usize::MAX);
        self.tag(match call.verb {
            Verb::Put(_) => 1,
            Verb::Merge(_) => 2,
            Verb::Delete => 3,
            Verb::Check => 4,
        });
        self.bytes(call.collection.as_bytes());
        self.bytes(call.id.as_bytes());
        self.optional(call.verb.json().map(str::as_bytes));
        match call.precondition {
            None => self.tag(0),
            Some(Precondition::Version(version)) => self.tagged(1, &version.to_le_bytes()),
            Some(Precondition::Exists(exists)) => self.tagged(2, &[u8::from(exists)]),
        }
    }

    fn event(&mut self, event: &EventDraft) {
        self.optional(event.id.as_ref().map(|id| id.as_bytes().as_slice()));
        self.bytes(event.topic.as_bytes());
        self.optional(event.key.as_deref());
        self.optional(event.source.as_deref().map(str::as_bytes));
        self.bytes(event.event_type.as_bytes());
        self.optional(event.subject.as_deref().map(str::as_bytes));
        self.optional(event.data.as_deref());
        self.optional(event.content_type.as_deref().map(str::as_bytes));
        self.length(event.headers.len());
        for (name, value) in &event.headers {
            self.bytes(name.as_bytes());
            self.bytes(value.as_bytes());
        }
        self.optional(event.time.map(|t| t.timestamp_micros().to_le_bytes()).as_ref().map(<[u8; 8]>::as_slice));
    }

    fn consume(&mut self, consume: &Consume) {
        self.bytes(consume.consumer.as_bytes());
        self.bytes(consume.source.as_bytes());
        self.bytes(consume.event_id.as_bytes());
        self.bytes(&consume.event_time.timestamp_micros().to_le_bytes());
    }

    fn delay(&mut self, event: usize, after_micros: i64) {
        // In the place of a consumer's name, whose length it cannot be.
        self.length(usize::MAX - 1);
        self.length(event);
        self.bytes(&after_micros.to_le_bytes());
    }

    fn links(&mut self, links: &Links) {
        // In the place of a consumer's name, whose length it cannot be.
        self.length(usize::MAX);
        self.length(links.operations.len());
        for (index, OperationLinks { only_if, parameters, arrays, document }) in &links.operations {
            self.length(*index);
            self.condition(only_if.as_ref());
            self.length(parameters.len());
            for (name, reference) in parameters {
                self.bytes(name.as_bytes());
                self.reference(reference);
            }
            for (name, elements) in arrays {
                // In the place of the next operation's index, whose value it cannot be.
                self.length(usize::MAX);
                self.bytes(name.as_bytes());
                self.elements(elements);
            }
            if let Some(template) = document {
                self.length(usize::MAX - 1);
                self.template(template);
            }
        }
        self.length(links.events.len());
        for (index, EventLinks { only_if, key, data }) in &links.events {
            self.length(*index);
            self.condition(only_if.as_ref());
            self.tag(u8::from(key.is_some()));
            key.iter().for_each(|key| self.reference(key));
            self.optional(data.as_ref().map(|template| template.json.as_bytes()));
            self.values(data.iter().flat_map(|template| &template.values));
        }
    }

    fn template(&mut self, template: &Template) {
        self.bytes(template.json.as_bytes());
        self.values(template.values.iter());
    }

    fn values<'a>(&mut self, values: impl Iterator<Item = (&'a String, &'a Reference)> + Clone) {
        self.length(values.clone().count());
        for (pointer, reference) in values {
            self.bytes(pointer.as_bytes());
            self.reference(reference);
        }
    }

    fn elements(&mut self, elements: &[Element]) {
        self.length(elements.len());
        for element in elements {
            match element {
                Element::Value(value) => {
                    self.tag(0);
                    self.value(value);
                }
                Element::Reference(reference) => {
                    self.tag(1);
                    self.reference(reference);
                }
                Element::Array(elements) => {
                    self.tag(2);
                    self.elements(elements);
                }
            }
        }
    }

    fn condition(&mut self, condition: Option<&Condition>) {
        self.tag(u8::from(condition.is_some()));
        if let Some(Condition { operation, rows_min, rows_max }) = condition {
            self.length(*operation);
            self.bytes(&rows_min.to_le_bytes());
            self.bytes(&rows_max.to_le_bytes());
        }
    }

    fn reference(&mut self, reference: &Reference) {
        self.length(reference.operation);
        self.bytes(reference.column.as_bytes());
        self.length(reference.row);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.tag(0),
            Value::Bool(v) => self.tagged(1, &[u8::from(*v)]),
            Value::Int(v) => self.tagged(2, &v.to_le_bytes()),
            Value::Double(v) => self.tagged(3, &v.to_bits().to_le_bytes()),
            Value::Text(v) => self.tagged(4, v.as_bytes()),
            Value::Bytes(v) => self.tagged(5, v),
            Value::Numeric(v) => self.tagged(6, v.as_bytes()),
            Value::Uuid(v) => self.tagged(7, v.as_bytes()),
            Value::Date(v) => self.tagged(8, v.as_bytes()),
            Value::Time(v) => self.tagged(9, v.as_bytes()),
            Value::Timestamp(v) => self.tagged(10, v.as_bytes()),
            Value::Timestamptz(v) => self.tagged(11, v.as_bytes()),
            Value::Interval(v) => self.tagged(12, v.as_bytes()),
            Value::Json(v) => self.tagged(13, v.as_bytes()),
            Value::Array(elements) => {
                self.tag(14);
                self.array(elements);
            }
            Value::ArrayFrom { lower_bounds, elements } => {
                self.tag(15);
                self.length(lower_bounds.len());
                for lower in lower_bounds {
                    self.bytes(&lower.to_le_bytes());
                }
                self.array(elements);
            }
        }
    }

    fn array(&mut self, elements: &[Value]) {
        self.length(elements.len());
        for element in elements {
            self.value(element);
        }
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.tag(tag);
        self.bytes(bytes);
    }
}

#[cfg(test)]
mod tests;
