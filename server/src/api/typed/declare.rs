//! A declaration made a plan: every name looked up in messages and catalog, every pair of types held together.
//!
//! Invariant: every fault of a declaration is found, not only the first. What is wrong with any request of its shape, as a
//! topic that Kafka does not take, is found by the rules that hold for every commit: the request of an empty message is
//! held against them.

mod event;
mod response;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use outbox_proto::v1::{self, TypedOperation, origin};
use prost_reflect::{DynamicMessage, MethodDescriptor};

use super::{
    form::Form,
    option::Declaration,
    path::Path,
    plan::{Call, Given, Parameter, Rpc},
};
use crate::{
    api::convert,
    catalog::{self, Catalog, Command},
    commit::{self, Violation},
    config,
    model::{
        link::{Links, OperationLinks, Reference},
        value::{SqlType, Value},
    },
};

/// Events of one RPC: metadata, which is small, tells their ids.
const EVENTS_MAX: usize = 64;

/// What every declaration is held against.
#[derive(Clone, Copy)]
pub(super) struct Against<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) config: &'a config::Commit,
}

/// The plan of a method.
///
/// # Errors
/// Everything that is wrong, each with its place.
pub(super) fn declare(
    method: &MethodDescriptor,
    declaration: &Declaration,
    against: Against<'_>,
) -> Result<Rpc, Vec<Violation>> {
    let Declaration { rpc, read_only } = declaration;
    let mut declaring = Declaring {
        against,
        rpc: Rpc {
            name: format!("{}/{}", method.parent_service().full_name(), method.name()),
            request: method.input(),
            response: method.output(),
            read_only: *read_only,
            request_id: None,
            namespace: None,
            operations: Vec::new(),
            events: Vec::new(),
            links: Links::default(),
            fills: Vec::new(),
        },
        commands: rpc.operations.iter().map(|operation| against.catalog.get(&operation.command).cloned()).collect(),
        used: BTreeSet::new(),
        faults: Vec::new(),
    };
    declaring.method(method, rpc);
    declaring.identity(rpc);
    for (index, operation) in rpc.operations.iter().enumerate() {
        declaring.operation(index, operation);
    }
    for (index, event) in rpc.events.iter().enumerate() {
        declaring.event(index, event);
    }
    declaring.response(rpc);
    declaring.unused();
    declaring.finish()
}

struct Declaring<'a> {
    against: Against<'a>,
    rpc: Rpc,
    /// The operations' commands, as far as there are any.
    commands: Vec<Option<Arc<Command>>>,
    /// Outermost fields of the request that something is made of.
    used: BTreeSet<String>,
    faults: Vec<Violation>,
}

/// A value of either kind.
enum From {
    Given(Given),
    Column(Reference),
}

impl Declaring<'_> {
    fn fault(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.faults.push(Violation { field: field.into(), description: description.into() });
    }

    /// What must hold for the method as a whole.
    fn method(&mut self, method: &MethodDescriptor, rpc: &v1::TypedRpc) {
        if method.is_client_streaming() || method.is_server_streaming() {
            self.fault("", "is a streaming method; only a unary one can be a commit");
        }
        if rpc.events.len() > EVENTS_MAX {
            self.fault("events", format!("are {}; at most {EVENTS_MAX} are allowed", rpc.events.len()));
        }
        if !self.rpc.read_only {
            return;
        }
        let only_reads = self.commands.iter().flatten().all(|command| command.read_only);
        if rpc.operations.len() != 1 || !rpc.events.is_empty() || !only_reads {
            self.fault(
                "idempotency_level",
                "is NO_SIDE_EFFECTS: such a method has one operation, whose command is `access: read_only`, and no events",
            );
        }
        if !rpc.request_id_field.is_empty() {
            self.fault("request_id_field", "is of no use to a method with NO_SIDE_EFFECTS: it has no request id");
        }
    }

    /// What a call is known by.
    fn identity(&mut self, rpc: &v1::TypedRpc) {
        self.rpc.request_id = self.name("request_id_field", &rpc.request_id_field);
        self.rpc.namespace = self.name("namespace_field", &rpc.namespace_field);
    }

    fn name(&mut self, place: &str, text: &str) -> Option<Path> {
        if text.is_empty() {
            return None;
        }
        let path = self.request_path(place, text)?;
        if path.form != Form::Text {
            self.fault(place, format!("`{text}` is {}; it must be a string", path.form));
        }
        Some(path)
    }

    fn operation(&mut self, index: usize, operation: &TypedOperation) {
        let place = format!("operations[{index}]");
        let Some(command) = self.commands[index].clone() else {
            let near = self.against.catalog.suggest(&operation.command).map(|near| format!("; did you mean {near:?}?"));
            let description = format!("there is no command {:?}{}", operation.command, near.unwrap_or_default());
            return self.fault(format!("{place}.command"), description);
        };
        let mut assigned = BTreeMap::new();
        for assignment in &operation.parameters {
            let place = format!("{place}.parameters[{}]", assignment.to);
            if !command.parameters.iter().any(|parameter| parameter.name == assignment.to) {
                let known = command.parameters.iter().map(|parameter| parameter.name.as_str());
                let near = catalog::nearest(&assignment.to, known).map(|near| format!("; did you mean `{near}`?"));
                self.fault(place, format!("the command has no such parameter{}", near.unwrap_or_default()));
            } else if assigned.insert(assignment.to.as_str(), assignment.from.clone().unwrap_or_default()).is_some() {
                self.fault(place, "is assigned twice");
            }
        }
        let (mut parameters, mut links) = (Vec::new(), OperationLinks::default());
        for catalog::Parameter { name, ty } in &command.parameters {
            let place = format!("{place}.parameters[{name}]");
            let from = match assigned.get(name.as_str()) {
                Some(origin) => self.origin(&place, origin),
                None => self.same_name(&place, name),
            };
            match from {
                Some(From::Given(from)) => {
                    self.check_parameter(&place, &from, ty);
                    parameters.push(Parameter { name: name.clone(), ty: ty.clone(), from });
                }
                Some(From::Column(reference)) => drop(links.parameters.insert(name.clone(), reference)),
                None => {}
            }
        }
        links.only_if = operation.only_if.map(convert::condition);
        if links != OperationLinks::default() {
            self.rpc.links.operations.insert(index, links);
        }
        self.rpc.operations.push(Call { command: operation.command.clone(), parameters });
    }

    /// The request's field of a parameter's name.
    fn same_name(&mut self, place: &str, name: &str) -> Option<From> {
        if self.rpc.request.get_field_by_name(name).is_none() {
            let request = self.rpc.request.full_name();
            let description =
                format!("nothing gives it a value: {request} has no field `{name}`; add one, or assign it");
            self.fault(place, description);
            return None;
        }
        self.request_path(place, name).map(|path| From::Given(Given::Field(path)))
    }

    fn check_parameter(&mut self, place: &str, from: &Given, ty: &SqlType) {
        match from {
            Given::Field(path) if !path.form.becomes(ty) => {
                let suiting = suiting(|ty| path.form.becomes(ty));
                let description = format!(
                    "`{}` is {}, which cannot be a parameter of type {ty}, but of {suiting}",
                    path.text, path.form
                );
                self.fault(place, description);
            }
            Given::Text(text) => {
                if let Err(error) = Value::Text(text.clone()).to_sql_text(ty) {
                    self.fault(place, format!("the text {error}"));
                }
            }
            Given::Field(_) => {}
        }
    }

    /// Where a value comes from.
    fn origin(&mut self, place: &str, origin: &v1::Origin) -> Option<From> {
        match &origin.kind {
            Some(origin::Kind::Field(text)) => {
                self.request_path(place, text).map(|path| From::Given(Given::Field(path)))
            }
            Some(origin::Kind::Text(text)) => Some(From::Given(Given::Text(text.clone()))),
            Some(origin::Kind::Column(column)) => {
                let operation = usize::try_from(origin.operation).unwrap_or(usize::MAX);
                Some(From::Column(Reference { operation, column: column.clone(), row: 0 }))
            }
            None => {
                self.fault(place, "has no value: say `field`, `column` or `text`");
                None
            }
        }
    }

    fn request_path(&mut self, place: &str, text: &str) -> Option<Path> {
        match Path::resolve(&self.rpc.request, text) {
            Ok(path) => {
                self.used.insert(path.first().to_owned());
                Some(path)
            }
            Err(description) => {
                self.fault(place, description);
                None
            }
        }
    }

    /// A field that nothing is made of would take values and lose them.
    fn unused(&mut self) {
        let fields = self.rpc.request.fields().filter(|field| !self.used.contains(field.name()));
        let unused: Vec<String> = fields.map(|field| field.full_name().to_owned()).collect();
        for field in unused {
            self.fault(field, "nothing uses this field of the request; remove it, or say what takes it");
        }
    }

    /// Once everything is found, holds the request of an empty message against the rules of every commit.
    fn finish(self) -> Result<Rpc, Vec<Violation>> {
        if !self.faults.is_empty() {
            return Err(self.faults);
        }
        let request = self.rpc.request(&DynamicMessage::new(self.rpc.request.clone()))?;
        let faults = commit::shape::faults(self.against.catalog, self.against.config, &request);
        if faults.is_empty() { Ok(self.rpc) } else { Err(faults) }
    }
}

/// The SQL types that suit, in words.
fn suiting(suits: impl Fn(&SqlType) -> bool) -> String {
    let arrays = SqlType::named().map(|ty| SqlType::Array(Box::new(ty)));
    let suiting: Vec<String> = SqlType::named().chain(arrays).filter(|ty| suits(ty)).map(|ty| ty.to_string()).collect();
    if suiting.is_empty() { "none".into() } else { suiting.join(", ") }
}
