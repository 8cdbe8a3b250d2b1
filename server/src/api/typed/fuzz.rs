//! Entry points for fuzzing: declarations, and messages on their way through a plan and back.

use std::path::Path;

use prost_reflect::DynamicMessage;

use super::{Loading, Rpcs};
use crate::{
    catalog::Catalog,
    config,
    model::commit::{Operation, OperationResult},
};

/// Why a response may not be equal to its request although nothing is wrong: an enum's zero value in a list is NULL.
const NULL_IN_LIST: &str = "NULL in its array";

impl Rpcs {
    /// Reads a descriptor set as the server does at its start; none if it is refused.
    pub fn read(bytes: &[u8], catalog: &Catalog) -> Option<Self> {
        let config = config::Commit::default();
        let mut loading = Loading::new(catalog, &config);
        loading.file(Path::new("fuzz.binpb"), bytes);
        loading.problems.is_empty().then_some(loading.rpcs)
    }

    /// Sends a message through its first RPC, whose command gives its parameters back and whose response has the
    /// request's fields. Returns whether it was accepted.
    ///
    /// # Panics
    /// When an accepted message does not come back as it was.
    pub fn echo(&self, bytes: &[u8], catalog: &Catalog) -> bool {
        let Some(rpc) = self.rpcs.first() else { return false };
        let Ok(message) = DynamicMessage::decode(rpc.request.clone(), bytes) else { return false };
        let Ok(request) = rpc.request(&message) else { return false };
        let Some(Operation::Command(call)) = request.operations.first() else { return false };
        let command = catalog.get(&call.name).expect("the command was there when the plan was made");
        let Ok(texts) = command.bind("default", &call.parameters) else { return false };
        let columns = command.columns.iter().map(|column| (column.name.clone(), column.ty.to_string())).collect();
        let result = OperationResult { rows_affected: 1, columns, rows: vec![texts], skipped: false };
        match rpc.response(&message, &[result]) {
            Ok(response) => {
                let json = |message| serde_json::to_string(message).expect("it was a payload already");
                assert_eq!(json(&response), json(&message));
                true
            }
            Err(error) if error.description.contains(NULL_IN_LIST) => true,
            Err(error) => panic!("{error:?}"),
        }
    }
}
