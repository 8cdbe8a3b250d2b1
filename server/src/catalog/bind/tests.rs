//! Parameters bound, missing, unknown and wrong.

use std::collections::BTreeMap;

use super::{Command, ParameterError, nearest};
use crate::catalog::{Parameter, RowExpectation};
use crate::model::value::{SqlType, Value};

/// A command with `:namespace`, `:user_id` and `:age`.
fn command() -> Command {
    let parameter = |name: &str, ty| Parameter { name: name.to_owned(), ty };
    Command {
        name: "a".to_owned(),
        description: String::new(),
        parameters: vec![parameter("user_id", SqlType::Text), parameter("age", SqlType::Int2)],
        namespace_position: Some(1),
        columns: Vec::new(),
        expect: RowExpectation::ANY,
        read_only: true,
        with_list: None,
        recursive: false,
        main: "select $1::text, $2::text, $3::text".to_owned(),
        parameter_count: 3,
        wrappable: true,
    }
}

fn bind(parameters: &[(&str, Value)]) -> Result<Vec<Option<String>>, Vec<ParameterError>> {
    let parameters: BTreeMap<_, _> =
        parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    command().bind("tenant", &parameters)
}

#[test]
fn texts_come_in_the_order_of_their_numbers() {
    let texts = bind(&[("age", Value::Int(7)), ("user_id", Value::Text("u".to_owned()))]);
    assert_eq!(texts, Ok(vec![Some("tenant".to_owned()), Some("u".to_owned()), Some("7".to_owned())]));
    let texts = bind(&[("age", Value::Null), ("user_id", Value::Null)]);
    assert_eq!(texts, Ok(vec![Some("tenant".to_owned()), None, None]));
}

#[test]
fn everything_wrong_is_told_by_name() {
    let errors = bind(&[("age", Value::Int(70_000)), ("userid", Value::Int(1)), ("namespace", Value::Null)]);
    let messages: Vec<_> = errors.expect_err("four are wrong").iter().map(ToString::to_string).collect();
    assert_eq!(
        messages,
        [
            "parameter `user_id` is missing; send `null` for SQL NULL",
            "parameter `age` is out of the range of int2",
            "parameter `namespace` is bound by the server and cannot be sent",
            "the command has no parameter `userid`; did you mean `user_id`?",
        ]
    );
}

#[test]
fn a_wrong_kind_is_told_with_the_kinds_that_fit() {
    let errors = bind(&[("age", Value::Bool(true)), ("user_id", Value::Int(1)), ("zzz", Value::Null)]);
    let errors = errors.expect_err("three are wrong");
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "parameter `user_id` is of kind `int`, but the SQL type text takes `text`",
            "parameter `age` is of kind `bool`, but the SQL type int2 takes `int` or `text`",
            "the command has no parameter `zzz`",
        ]
    );
    assert_eq!(errors.iter().map(ParameterError::name).collect::<Vec<_>>(), ["user_id", "age", "zzz"]);
}

#[test]
fn only_a_like_name_is_suggested() {
    let known = ["activate_user", "create_user", "place_order"];
    assert_eq!(nearest("activate_usr", known.into_iter()), Some("activate_user"));
    assert_eq!(nearest("order_place", known.into_iter()), None);
}
