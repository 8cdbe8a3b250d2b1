//! The path of a field inside a message: names joined by dots, through messages that are not repeated.

use std::borrow::Cow;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value as Field};

use super::form::Form;
use crate::catalog;

/// A field that is there, and its form.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// As it is written.
    pub(super) text: String,
    pub(super) form: Form,
    /// The messages on the way, from the outside in.
    outer: Vec<FieldDescriptor>,
    field: FieldDescriptor,
}

impl Path {
    /// Finds the field.
    ///
    /// # Errors
    /// Why there is none, with the names that are alike.
    pub(super) fn resolve(root: &MessageDescriptor, text: &str) -> Result<Self, String> {
        let (mut message, mut outer) = (root.clone(), Vec::new());
        let mut names = text.split('.').peekable();
        while let Some(name) = names.next() {
            let field = message.get_field_by_name(name).ok_or_else(|| unknown(&message, name))?;
            if names.peek().is_none() {
                let form = Form::of(&field).ok_or_else(|| {
                    format!("{} is a map; only as part of a message can it be used", field.full_name())
                })?;
                return Ok(Self { text: text.to_owned(), form, outer, field });
            }
            message = match field.kind() {
                Kind::Message(inner) if !field.is_list() && is_plain(&inner) => inner,
                _ => return Err(format!("{} is no message that a path can go through", field.full_name())),
            };
            outer.push(field);
        }
        Err(format!("{} has no field without a name", root.full_name()))
    }

    /// Its value; none where it, or a message on the way, is absent.
    pub(super) fn get<'a>(&self, message: &'a DynamicMessage) -> Option<Cow<'a, Field>> {
        let mut message = message;
        for field in &self.outer {
            message = match message.has_field(field).then(|| message.get_field(field))? {
                Cow::Borrowed(Field::Message(inner)) => inner,
                _ => return None,
            };
        }
        (!self.field.supports_presence() || message.has_field(&self.field)).then(|| message.get_field(&self.field))
    }

    /// Its value, if it is a text that is not empty.
    pub(super) fn text_in<'a>(&self, message: &'a DynamicMessage) -> Option<Cow<'a, str>> {
        match self.get(message)? {
            Cow::Borrowed(Field::String(text)) if !text.is_empty() => Some(Cow::Borrowed(text)),
            Cow::Owned(Field::String(text)) if !text.is_empty() => Some(Cow::Owned(text)),
            _ => None,
        }
    }

    /// Puts a value of its form there.
    ///
    /// # Errors
    /// When the value has another form.
    pub(super) fn set(&self, message: &mut DynamicMessage, value: Field) -> Result<(), String> {
        let mut message = message;
        for field in &self.outer {
            message = match message.get_field_mut(field) {
                Field::Message(inner) => inner,
                _ => return Err(format!("{} is no message", field.full_name())),
            };
        }
        message.try_set_field(&self.field, value).map_err(|error| error.to_string())
    }

    /// The message that it, or each of its elements, is; none if it is none.
    pub(super) fn message(&self) -> Option<MessageDescriptor> {
        match self.field.kind() {
            Kind::Message(message) if is_plain(&message) => Some(message),
            _ => None,
        }
    }

    /// Whether it is repeated.
    pub(super) fn is_list(&self) -> bool {
        self.field.is_list()
    }

    /// The outermost field's name.
    pub(super) fn first(&self) -> &str {
        self.outer.first().unwrap_or(&self.field).name()
    }

    /// Its names in JSON, from the outside in.
    pub(super) fn json_names(&self) -> impl Iterator<Item = &str> {
        self.outer.iter().chain([&self.field]).map(FieldDescriptor::json_name)
    }
}

/// Protobuf's own messages are values, not places to look into.
fn is_plain(message: &MessageDescriptor) -> bool {
    !message.full_name().starts_with("google.protobuf.")
}

fn unknown(message: &MessageDescriptor, name: &str) -> String {
    let fields: Vec<FieldDescriptor> = message.fields().collect();
    let near = catalog::nearest(name, fields.iter().map(FieldDescriptor::name));
    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    format!("{} has no field `{name}`{hint}", message.full_name())
}
