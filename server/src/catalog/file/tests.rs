//! Headers, good and bad.

use std::path::PathBuf;

use super::{Declared, Source};
use crate::catalog::RowExpectation;

fn read(text: &str) -> (Vec<Declared>, Vec<String>) {
    let source = Source::new(PathBuf::from("shop.sql"), text.to_owned());
    let mut problems = Vec::new();
    let commands = source.commands(&mut problems);
    (commands, problems.iter().map(ToString::to_string).collect())
}

#[test]
fn a_command_has_a_name_an_expectation_a_description_and_a_body() {
    let text = "-- The shop.\n\n-- name: shop.find_user\n-- Finds one user\n-- expect: at_most_one\n--by id: the key\n\nselect 1 -- inside\n";
    let (commands, problems) = read(text);
    assert_eq!(problems, Vec::<String>::new());
    let [command] = &commands[..] else { panic!("one command, not {commands:?}") };
    assert_eq!(command.name, "shop.find_user");
    assert_eq!(command.description, "Finds one user\nby id: the key");
    assert_eq!(command.expect, RowExpectation { min: 0, max: 1 });
    assert_eq!(&text[command.body.clone()], "select 1 -- inside\n");
    assert_eq!(command.offset, text.find("-- name").expect("the header is there"));
}

#[test]
fn every_expectation_is_read() {
    for (text, min, max) in [
        ("-- expect: one", 1, 1),
        ("-- expect: at_most_one", 0, 1),
        ("-- expect: at_least_one", 1, i64::MAX),
        ("--Expect : any", 0, i64::MAX),
        ("-- expect: 0", 0, 0),
        ("-- expect: 17", 17, 17),
        ("-- no key", 0, i64::MAX),
    ] {
        let (commands, problems) = read(&format!("-- name: a\n{text}\nselect 1"));
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(commands[0].expect, RowExpectation { min, max }, "for {text}");
    }
}

#[test]
fn an_expectation_is_met_within_its_bounds_only() {
    let one_or_two = RowExpectation { min: 1, max: 2 };
    assert_eq!([0, 1, 2, 3].map(|rows| one_or_two.met_by(rows)), [false, true, true, false]);
}

#[test]
fn a_wrong_expectation_is_refused_at_its_line() {
    for value in ["two", "-1", "1.5", "", "One", "99999999999999999999"] {
        let (_, problems) = read(&format!("-- name: a\n  -- expect: {value}\nselect 1"));
        let [problem] = &problems[..] else { panic!("one problem for {value}, not {problems:?}") };
        assert!(problem.starts_with(&format!("shop.sql:2:3: bad expectation `{value}`; write one,")), "{problem}");
    }
}

#[test]
fn an_expectation_stands_once_and_in_the_header() {
    let (_, problems) = read("-- name: a\n-- expect: one\n-- expect: any\nselect 1\n-- expect: one\n");
    assert_eq!(
        problems,
        [
            "shop.sql:3:1: a second `expect`; keep one",
            "shop.sql:5:1: `expect` inside a statement; move it up, below `-- name:`",
        ]
    );
}

#[test]
fn a_wrong_name_is_refused_and_the_next_command_is_read() {
    let long = "a".repeat(129);
    for name in ["", "Upper", "1st", "a-b", "a b", "a..b", ".a", "a.", "ä", "_a", &long] {
        let (commands, problems) = read(&format!("-- name: {name}\nselect 1\n-- name: b\nselect 2"));
        assert_eq!(commands.iter().map(|command| command.name.as_str()).collect::<Vec<_>>(), ["b"]);
        let [problem] = &problems[..] else { panic!("one problem for {name}, not {problems:?}") };
        assert!(problem.starts_with("shop.sql:1:1: "), "{problem}");
    }
    let longest = "a".repeat(128);
    assert_eq!(read(&format!("-- name: {longest}\nselect 1")).1, Vec::<String>::new());
}

#[test]
fn sql_before_the_first_header_is_refused_once() {
    let (commands, problems) = read("-- fine\nselect 1,\n2;\n-- name: a\nselect 1");
    assert_eq!(commands.len(), 1);
    assert_eq!(problems, ["shop.sql:2:1: SQL before the first command; begin the command with `-- name: its_name`"]);
}

#[test]
fn a_header_without_a_statement_is_refused() {
    let (commands, problems) = read("-- name: a\n-- expect: one\n\n-- name: b\nselect 1\n-- name: c");
    assert_eq!(commands.iter().map(|command| command.name.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(
        problems,
        [
            "shop.sql:1:1: command `a` has no statement; write it below the header",
            "shop.sql:6:1: command `c` has no statement; write it below the header",
        ]
    );
}

#[test]
fn places_count_characters_and_lines_of_either_ending() {
    let source = Source::new(PathBuf::from("a.sql"), "\u{feff}äö\r\nü:x".to_owned());
    let offset = source.text.find(':').expect("the colon is there");
    assert_eq!(source.place(offset).to_string(), "a.sql:2:2");
    assert_eq!(source.place(0).to_string(), "a.sql:1:1");
}
