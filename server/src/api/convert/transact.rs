//! The steps of an interactive transaction, and what they come to.

use outbox_proto::v1::{self, transact_request::Step as Message, transact_response::Step as Reply};
use uuid::Uuid;

use super::{document, query, request, request::consume, result};
use crate::{
    api::call,
    commit::{Violation, transact::Done},
    model::{
        transact::{Begin, Isolation, Step},
        value::ValueError,
    },
};

const PAGE_ROWS_DEFAULT: u32 = 100;

/// The first message.
///
/// # Errors
/// Every field that has no meaning in its form.
pub(in crate::api) fn begin(message: Message) -> Result<Begin, Vec<Violation>> {
    let Message::Begin(begin) = message else { return Err(vec![violation("step", "must be `begin` first")]) };
    let isolation = match v1::Isolation::try_from(begin.isolation) {
        Ok(v1::Isolation::Unspecified | v1::Isolation::ReadCommitted) => Isolation::ReadCommitted,
        Ok(v1::Isolation::RepeatableRead) => Isolation::RepeatableRead,
        Ok(v1::Isolation::Serializable) => Isolation::Serializable,
        Err(_) => return Err(vec![violation("begin.isolation", "is none that this server knows")]),
    };
    if begin.read_only && !begin.request_id.is_empty() {
        return Err(vec![violation("begin.request_id", "must be empty: what only reads is not remembered")]);
    }
    if begin.read_only && begin.consume.is_some() {
        return Err(vec![violation("begin.consume", "must be absent: what only reads is not remembered")]);
    }
    let request_id = (!begin.read_only).then_some(begin.request_id);
    let consume = begin.consume.map(consume).transpose()?;
    Ok(Begin { namespace: call::namespace(begin.namespace), request_id, isolation, consume })
}

/// A message after the first.
///
/// # Errors
/// As [`begin`].
pub(in crate::api) fn step(message: Message, rows_max: u64) -> Result<Step, Vec<Violation>> {
    Ok(match message {
        Message::Begin(_) => return Err(vec![violation("step", "is a second `begin`")]),
        Message::Run(run) => Step::Run(content(run)?),
        Message::Commit(run) => Step::Commit(content(run)?),
        Message::Read(read) => {
            let page_rows = if read.page_rows == 0 { PAGE_ROWS_DEFAULT } else { read.page_rows };
            if u64::from(page_rows) > rows_max {
                let fault = format!("is {page_rows}; expected 1 to {rows_max}, or 0 for {PAGE_ROWS_DEFAULT}");
                return Err(vec![violation("page_rows", fault)]);
            }
            Step::Read { call: query(read.command)?, page_rows }
        }
        Message::NextPage(_) => Step::NextPage,
        Message::ReadDocument(read) => Step::ReadDocument { collection: read.collection, id: read.id },
        Message::Rollback(_) => Step::Rollback,
    })
}

fn content(run: v1::Run) -> Result<crate::model::commit::Request, Vec<Violation>> {
    let v1::Run { operations, events } = run;
    request(v1::CommitRequest { operations, events, ..v1::CommitRequest::default() }, None)
}

/// What a message without a step is blamed for.
pub(in crate::api) fn empty_step() -> Violation {
    violation("step", "is empty")
}

/// The response to a step.
///
/// # Errors
/// When a value does not fit its type.
pub(in crate::api) fn done(done: Done) -> Result<Reply, ValueError> {
    Ok(match done {
        Done::Ran { results, event_ids } => Reply::Ran(v1::Ran {
            results: results.into_iter().map(result).collect::<Result<_, _>>()?,
            event_ids: event_ids.iter().map(Uuid::to_string).collect(),
        }),
        Done::Page { result: page, more } => Reply::Page(v1::Page { result: Some(result(page)?), more }),
        Done::Document(found) => Reply::Found(v1::Found { document: found.map(document) }),
    })
}

fn violation(field: &str, description: impl Into<String>) -> Violation {
    Violation { field: field.into(), description: description.into() }
}
