//! The commands that change documents: the server's own, in the form of the operator's, so that whatever runs commands
//! runs them.
//!
//! No caller can name one: their names are none that a catalog's file can give.

use super::{Column, Command, RowExpectation};
use crate::model::{document::Verb, value::SqlType};

/// The commands, in the order of [`index`].
pub(super) fn commands() -> [Command; 4] {
    let parameters = "$1::text, $2::text, $3::text, $4::text::bigint, $5::text::boolean";
    let with_value = format!("{parameters}, $6::text::jsonb, $7::text::integer");
    [
        command("put document", format!("select version from outbox.put_document({with_value})"), 7, false),
        command("merge document", format!("select version, value from outbox.merge_document({with_value})"), 7, true),
        command("delete document", format!("select version from outbox.delete_document({parameters})"), 5, false),
        command("check document", format!("select version, value from outbox.check_document({parameters})"), 5, true),
    ]
}

/// Which of the commands does this.
pub(super) fn index(verb: &Verb) -> usize {
    match verb {
        Verb::Put(_) => 0,
        Verb::Merge(_) => 1,
        Verb::Delete => 2,
        Verb::Check => 3,
    }
}

fn command(name: &str, main: String, parameter_count: usize, with_value: bool) -> Command {
    let version = Column { name: "version".into(), ty: SqlType::Int8 };
    let value = with_value.then(|| Column { name: "value".into(), ty: SqlType::Jsonb });
    Command {
        name: name.into(),
        description: String::new(),
        parameters: Vec::new(),
        namespace_position: Some(1),
        columns: [version].into_iter().chain(value).collect(),
        expect: RowExpectation::ANY,
        read_only: false,
        with_list: None,
        recursive: false,
        main,
        parameter_count,
        wrappable: true,
    }
}
