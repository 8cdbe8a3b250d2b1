//! Operations bound to what runs them: a command of the catalog, or the server's own for documents.
//!
//! Invariant: what comes out has one argument for each parameter of its statement, each valid text of its type.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Error, Violation,
    limits::{PATCH_DEPTH_MAX, document_field},
};
use crate::{
    catalog::{Catalog, Command, ParameterError},
    config,
    model::{
        commit::{CommandCall, Operation},
        document::{DocumentCall, Precondition, Verb},
        link::{Links, OperationLinks},
        template::Template,
        value::{self, SqlType, Value},
    },
    store::commit::{self, Linked, Source},
};

/// Of the arguments of a change to a document.
const JSON_POSITION: usize = 5;

/// Every operation, or every fault in them.
pub(super) fn bind(
    catalog: &Catalog,
    config: &config::Commit,
    namespace: &str,
    operations: &[Operation],
    links: &Links,
) -> Result<Vec<commit::Operation>, Error> {
    let mut bound = Vec::with_capacity(operations.len());
    let mut violations = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        match operation {
            Operation::Command(call) => {
                let command = find(catalog, call, Some(index))?;
                let sources = links.operations.get(&index).map(sources).unwrap_or_default();
                let arguments = match sources.is_empty() {
                    true => command.bind(namespace, &call.parameters),
                    false => {
                        let places = sources.keys().map(|name| ((*name).to_owned(), Value::Null));
                        command.bind(namespace, &call.parameters.clone().into_iter().chain(places).collect())
                    }
                };
                match arguments {
                    Ok(arguments) => {
                        let linked = linked(command, &sources);
                        bound.push(commit::Operation { command: Arc::clone(command), arguments, linked });
                    }
                    Err(errors) => violations.extend(faults(&format!("operations[{index}].command"), errors)),
                }
            }
            Operation::Document(call) => {
                let template = links.operations.get(&index).and_then(|links| links.document.as_ref());
                bound.push(document(catalog, config, namespace, call, template));
            }
        }
    }
    if violations.is_empty() { Ok(bound) } else { Err(Error::Invalid(violations)) }
}

/// Where the parameters come from that follow from results, by name.
pub(super) fn sources(links: &OperationLinks) -> BTreeMap<&str, Source> {
    let values = links.parameters.iter().map(|(name, value)| (name.as_str(), Source::Value(value.clone())));
    let arrays = links.arrays.iter().map(|(name, elements)| (name.as_str(), Source::Array(elements.clone())));
    values.chain(arrays).collect()
}

/// Where among the arguments the linked parameters are.
pub(super) fn linked(command: &Command, sources: &BTreeMap<&str, Source>) -> Vec<Linked> {
    let before = usize::from(command.namespace_position.is_some());
    let parameters = command.parameters.iter().enumerate();
    let linked = parameters.filter_map(|(index, parameter)| {
        let source = sources.get(parameter.name.as_str())?.clone();
        let field = format!("command.parameters[{}]", parameter.name);
        Some(Linked { position: before + index, field, ty: parameter.ty.clone(), source })
    });
    linked.collect()
}

/// The command that a call names.
fn find<'a>(catalog: &'a Catalog, call: &CommandCall, operation: Option<usize>) -> Result<&'a Arc<Command>, Error> {
    catalog.get(&call.name).ok_or_else(|| {
        let suggestion = catalog.suggest(&call.name).map(str::to_owned);
        Error::UnknownCommand { operation, name: call.name.clone(), suggestion }
    })
}

/// A command that is declared read-only, to be read by itself.
pub(super) fn read(catalog: &Catalog, namespace: &str, call: &CommandCall) -> Result<commit::Operation, Error> {
    let command = find(catalog, call, None)?;
    if !command.read_only {
        return Err(Error::NotReadOnly { name: call.name.clone() });
    }
    let arguments = command.bind(namespace, &call.parameters);
    let arguments = arguments.map_err(|errors| Error::Invalid(faults("command", errors).collect()))?;
    Ok(commit::Operation { command: Arc::clone(command), arguments, linked: Vec::new() })
}

/// What is wrong with the parameters of a call that stands in this field.
fn faults(field: &str, errors: Vec<ParameterError>) -> impl Iterator<Item = Violation> {
    errors.into_iter().map(move |error| Violation {
        field: format!("{field}.parameters[{}]", error.name()),
        description: error.to_string(),
    })
}

fn document(
    catalog: &Catalog,
    config: &config::Commit,
    namespace: &str,
    call: &DocumentCall,
    template: Option<&Template>,
) -> commit::Operation {
    let (version, exists) = match call.precondition {
        None => (None, None),
        Some(Precondition::Version(version)) => (Some(version.to_string()), None),
        Some(Precondition::Exists(exists)) => (None, Some(exists.to_string())),
    };
    let mut arguments =
        vec![Some(namespace.to_owned()), Some(call.collection.clone()), Some(call.id.clone()), version, exists];
    if let Some(json) = call.verb.json() {
        arguments.extend([Some(json.to_owned()), Some(config.document_bytes_max.to_string())]);
    }
    let depth_max = if matches!(call.verb, Verb::Merge(_)) { PATCH_DEPTH_MAX } else { value::JSON_DEPTH_MAX };
    let linked = template.map(|template| Linked {
        position: JSON_POSITION,
        field: document_field(&call.verb).to_owned(),
        ty: SqlType::Jsonb,
        source: Source::Document(template.clone(), depth_max),
    });
    let linked = linked.into_iter().collect();
    commit::Operation { command: Arc::clone(catalog.document(&call.verb)), arguments, linked }
}
