//! What is wrong with every request of a shape, whatever its values: found once, before any is taken.

use std::sync::Arc;

use chrono::Utc;

use super::{Violation, limits, links, operation, records::Records};
use crate::{
    catalog::Catalog,
    config,
    model::commit::{Operation, Request},
    store::commit,
};

/// Every fault of a request besides its identity and its parameters' values: limits, commands, references, conditions.
pub fn faults(catalog: &Catalog, config: &config::Commit, request: &Request) -> Vec<Violation> {
    let mut faults = limits::step(request, config, &Records::unbounded(), Utc::now()).found;
    let mut operations = Vec::new();
    for (index, operation) in request.operations.iter().enumerate() {
        let Operation::Command(call) = operation else { continue };
        let Some(command) = catalog.get(&call.name).map(Arc::clone) else {
            let field = format!("operations[{index}].command");
            faults.push(Violation { field, description: format!("there is no command {:?}", call.name) });
            return faults;
        };
        let sources = request.links.operations.get(&index).map(operation::sources).unwrap_or_default();
        let linked = operation::linked(&command, &sources);
        operations.push(commit::Operation { command, arguments: Vec::new(), linked });
    }
    faults.extend(links::check(&request.links, &operations));
    faults
}
