//! Arrays, written and read.

use super::{Value, ValueError, error, text, ty};

#[test]
fn an_array_is_rectangular() {
    let list = |items: &[Value]| Value::Array(items.to_vec());
    let (one, two) = (list(&[Value::Int(1)]), list(&[Value::Int(1), Value::Int(2)]));
    assert_eq!(list(&[]).to_sql_text(&ty("int4[]")), Ok(Some("{}".to_owned())));
    assert_eq!(
        list(&[two.clone(), two.clone()]).to_sql_text(&ty("int4[]")),
        Ok(Some(r#"{{"1","2"},{"1","2"}}"#.into()))
    );
    let deep = (0..5).fold(one.clone(), |inner, _| list(&[inner]));
    assert!(deep.to_sql_text(&ty("int4[]")).is_ok());
    for wrong in [
        list(&[one.clone(), two]),
        list(&[one.clone(), Value::Int(1)]),
        list(&[Value::Null, one]),
        list(&[list(&[])]),
        list(&[deep]),
    ] {
        let mut found = error(&wrong, "int4[]");
        while let ValueError::Element { source, .. } = found {
            found = *source;
        }
        assert!(matches!(found, ValueError::Shape { .. }), "{wrong:?}");
    }
    assert!(matches!(error(&text("{{1},{1,2}}"), "int4[]"), ValueError::Shape { .. }));
}

#[test]
fn an_array_takes_elements_of_its_type() {
    let found = error(&Value::Array(vec![Value::Int(1), Value::Int(70_000)]), "int2[]");
    assert_eq!(found.to_string(), "has a wrong element, number 2, which is out of the range of int2");
    let found = error(&text("{1,x}"), "int2[]");
    assert!(found.to_string().starts_with("has a wrong element, number 2, which is not a valid int2"), "{found}");
}

#[test]
fn array_notation_is_read_as_postgres_writes_it() {
    for (literal, name, elements) in [
        ("{t,f,NULL}", "bool[]", vec![Value::Bool(true), Value::Bool(false), Value::Null]),
        (r#"{"NULL",null,nulls,\null}"#, "text[]", vec![text("NULL"), Value::Null, text("nulls"), text("null")]),
        (r#"{ a b , " c", "\"\\" ,d\  }"#, "text[]", vec![text("a b"), text(" c"), text("\"\\"), text("d ")]),
        ("[1:2]={1,2}", "int4[]", vec![Value::Int(1), Value::Int(2)]),
        ("[2]={1,2}", "int4[]", vec![Value::Int(1), Value::Int(2)]),
        ("{(1,1),(0,0);(2,2),(1,1)}", "box[]", vec![text("(1,1),(0,0)"), text("(2,2),(1,1)")]),
        (r#"{"[1,2)",empty}"#, "int4range[]", vec![text("[1,2)"), text("empty")]),
        (r#"{"\\x00ff"}"#, "bytea[]", vec![Value::Bytes(vec![0, 255])]),
    ] {
        assert_eq!(Value::from_sql_text(Some(literal), &ty(name)), Ok(Value::Array(elements)), "{literal}");
    }
}

#[test]
fn subscripts_are_kept() {
    let ints = |items: &[i64]| Value::Array(items.iter().copied().map(Value::Int).collect());
    let from =
        |lower_bounds: &[i32], elements: Vec<Value>| Value::ArrayFrom { lower_bounds: lower_bounds.to_vec(), elements };
    for (written, as_postgres, value) in [
        (r#"[-1:0]={"1","2"}"#, "[-1:0]={1,2}", from(&[-1], vec![Value::Int(1), Value::Int(2)])),
        (r#"[1:1][0:1]={{"1","2"}}"#, "[1:1][0:1]={{1,2}}", from(&[1, 0], vec![ints(&[1, 2])])),
    ] {
        assert_eq!(Value::from_sql_text(Some(as_postgres), &ty("int4[]")), Ok(value.clone()));
        assert_eq!(value.to_sql_text(&ty("int4[]")), Ok(Some(written.to_owned())));
    }
    for wrong in [
        from(&[0], Vec::new()),
        from(&[0], vec![ints(&[1])]),
        from(&[0, 0], vec![Value::Int(1)]),
        from(&[i32::MAX], vec![Value::Int(1)]),
        Value::Array(vec![from(&[0], vec![Value::Int(1)])]),
    ] {
        let found = match error(&wrong, "int4[]") {
            ValueError::Element { source, .. } => *source,
            found => found,
        };
        assert!(matches!(found, ValueError::Shape { .. }), "{wrong:?}");
    }
    for wrong in ["[0:x]={1}", "[x:1]={1}", "[0:1]={1}", "[0:0][0:0]={1}", "[0:0]={{1}}", "[]={1}", "[0:0={1}"] {
        assert!(matches!(error(&text(wrong), "int4[]"), ValueError::Syntax { .. }), "{wrong}");
    }
}
