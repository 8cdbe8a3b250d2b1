//! Entry points for fuzzing: the parts of a catalog that need no database.

use std::sync::Arc;

use super::{Catalog, Column, Command, Parameter, RowExpectation, file::Source, statement};
use crate::model::value::SqlType;

/// Cuts a catalog file into commands and takes each apart. Returns how many passed.
///
/// # Panics
/// When a place or a part is not one of the text.
pub fn take_apart(text: &str) -> usize {
    let source = Source::new("fuzz.sql".into(), text.to_owned());
    let mut problems = Vec::new();
    let mut passed = 0;
    for declared in source.commands(&mut problems) {
        let body = &source.text[declared.body.clone()];
        match statement::parse(body) {
            Ok(statement) => {
                assert!(!body[statement.main.clone()].is_empty(), "there is a main statement");
                assert!(statement.with_list.is_none_or(|list| list.end <= statement.main.start), "CTEs come first");
                for reference in &statement.references {
                    assert_eq!(body[reference.range.clone()], format!(":{}", reference.name));
                }
                passed += 1;
            }
            Err(fault) => drop(source.place(declared.body.start + fault.offset)),
        }
    }
    for problem in problems {
        assert!(problem.place.line <= text.lines().count().max(1) && problem.place.column >= 1, "{problem}");
    }
    passed
}

/// A catalog whose one command, `echo`, has a parameter and a column for each name and type.
pub fn echo(columns: &[(&str, &str)]) -> Catalog {
    let columns = columns.iter().map(|(name, ty)| ((*name).to_owned(), SqlType::from_name(ty)));
    let columns: Vec<(String, SqlType)> = columns.collect();
    let parameter = |(name, ty): &(String, SqlType)| Parameter { name: name.clone(), ty: ty.clone() };
    let column = |(name, ty): &(String, SqlType)| Column { name: name.clone(), ty: ty.clone() };
    let command = Command {
        name: "echo".into(),
        description: String::new(),
        parameters: columns.iter().map(parameter).collect(),
        namespace_position: None,
        columns: columns.iter().map(column).collect(),
        expect: RowExpectation { min: 1, max: 1 },
        read_only: false,
        with_list: None,
        recursive: false,
        main: String::new(),
        parameter_count: columns.len(),
        wrappable: true,
    };
    Catalog::of([(command.name.clone(), Arc::new(command))].into())
}
