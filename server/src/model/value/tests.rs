//! What passes, what is refused, and seeded random values through text and back.

mod arrays;
mod random;

use super::{SqlType, Value, ValueError};

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn ty(name: &str) -> SqlType {
    SqlType::from_name(name)
}

fn error(value: &Value, name: &str) -> ValueError {
    match value.to_sql_text(&ty(name)) {
        Err(error) => error,
        Ok(text) => panic!("{value:?} passes as {name}: {text:?}"),
    }
}

#[test]
fn a_type_is_its_name() {
    for name in ["int8", "text", "timestamptz", "uuid[]", "shop.status", "\"char\"", "shop.\"Odd[]\"", "box[]"] {
        let ty = ty(name);
        assert_eq!(ty.to_string(), name);
        let json = serde_json::to_string(&ty).expect("a name serializes");
        assert_eq!(serde_json::from_str::<SqlType>(&json).expect("and parses"), ty);
    }
    assert_eq!(ty("int4[]"), SqlType::Array(Box::new(SqlType::Int4)));
    assert_eq!(ty("shop.status"), SqlType::Other("shop.status".to_owned()));
}

#[test]
fn each_kind_goes_with_its_types_only() {
    let kinds = [
        (Value::Bool(true), vec!["bool"]),
        (Value::Int(1), vec!["int2", "int4", "int8", "float4", "float8", "numeric"]),
        (Value::Double(1.5), vec!["float4", "float8"]),
        (Value::Bytes(vec![1]), vec!["bytea"]),
        (Value::Numeric("1.5".to_owned()), vec!["numeric"]),
        (Value::Uuid("0190163d-8694-739b-aea5-966c26f8ad91".to_owned()), vec!["uuid"]),
        (Value::Date("2024-02-29".to_owned()), vec!["date"]),
        (Value::Time("12:00:00".to_owned()), vec!["time"]),
        (Value::Time("12:00:00+00".to_owned()), vec!["timetz"]),
        (Value::Timestamp("2024-02-29 12:00:00".to_owned()), vec!["timestamp"]),
        (Value::Timestamptz("2024-02-29 12:00:00+00".to_owned()), vec!["timestamptz"]),
        (Value::Interval("P1D".to_owned()), vec!["interval"]),
        (Value::Json("[1]".to_owned()), vec!["json", "jsonb"]),
        (Value::Array(vec![Value::Null]), vec!["int4[]", "shop.status[]"]),
    ];
    let types = [
        "bool",
        "int2",
        "int4",
        "int8",
        "float4",
        "float8",
        "numeric",
        "text",
        "varchar",
        "bpchar",
        "bytea",
        "uuid",
        "date",
        "time",
        "timetz",
        "timestamp",
        "timestamptz",
        "interval",
        "json",
        "jsonb",
        "int4[]",
        "shop.status[]",
        "shop.status",
        "money",
    ];
    for (value, fits) in kinds {
        for name in types {
            let passes = value.to_sql_text(&ty(name)).is_ok();
            assert_eq!(passes, fits.contains(&name), "{value:?} as {name}");
        }
    }
    for name in types {
        assert_eq!(Value::Null.to_sql_text(&ty(name)), Ok(None));
    }
}

#[test]
fn integers_are_held_to_their_range() {
    for (name, min, max) in [
        ("int2", i64::from(i16::MIN), i64::from(i16::MAX)),
        ("int4", i64::from(i32::MIN), i64::from(i32::MAX)),
        ("int8", i64::MIN, i64::MAX),
    ] {
        for value in [min, 0, max] {
            assert_eq!(Value::Int(value).to_sql_text(&ty(name)), Ok(Some(value.to_string())));
            assert_eq!(text(&value.to_string()).to_sql_text(&ty(name)), Ok(Some(value.to_string())));
        }
        for outside in [i128::from(min) - 1, i128::from(max) + 1] {
            assert_eq!(error(&text(&outside.to_string()), name), ValueError::OutOfRange { ty: ty(name) });
            if let Ok(outside) = i64::try_from(outside) {
                assert_eq!(error(&Value::Int(outside), name), ValueError::OutOfRange { ty: ty(name) });
            }
        }
        for malformed in ["", "1.0", "1e3", "0x1", " 1", "1_000", "+", "--1", "one"] {
            assert!(matches!(error(&text(malformed), name), ValueError::Syntax { .. }), "{malformed}");
        }
    }
}

#[test]
fn nothing_is_rounded_silently() {
    let exact = [
        (Value::Int(1 << 53), "float8"),
        (Value::Int(i64::MIN), "float8"),
        (Value::Int(1 << 24), "float4"),
        (Value::Double(0.5), "float4"),
        (Value::Double(f64::NAN), "float4"),
        (Value::Double(f64::NEG_INFINITY), "float4"),
        (Value::Double(f64::from(f32::MAX)), "float4"),
        (Value::Double(f64::from(f32::from_bits(1))), "float4"),
        (text("0.1"), "float4"),
        (text("1e-45"), "float4"),
        (text("0e-999"), "float8"),
    ];
    for (value, name) in exact {
        assert!(value.to_sql_text(&ty(name)).is_ok(), "{value:?} as {name}");
    }
    for (value, name) in [
        (Value::Int((1 << 53) + 1), "float8"),
        (Value::Int(i64::MAX), "float8"),
        (Value::Int((1 << 24) + 1), "float4"),
        (Value::Double(0.1), "float4"),
        (Value::Double(1e-60), "float4"),
    ] {
        assert_eq!(error(&value, name), ValueError::Inexact { ty: ty(name) });
    }
    for (value, name) in [
        (Value::Double(1e39), "float4"),
        (text("1e39"), "float4"),
        (text("1e-60"), "float4"),
        (text("1e309"), "float8"),
        (text("-1e-400"), "float8"),
    ] {
        assert_eq!(error(&value, name), ValueError::OutOfRange { ty: ty(name) }, "{value:?}");
    }
}

#[test]
fn a_numeric_has_the_size_that_postgres_takes() {
    let fits = ["0", "-0.0", "+1.", ".5", "1e131071", "1e-16383", "NaN", "Infinity", "-Infinity", "-inf"];
    let long = format!("{}.{}", "9".repeat(131_072), "9".repeat(16_383));
    for value in fits.into_iter().chain([long.as_str()]) {
        assert_eq!(Value::Numeric(value.to_owned()).to_sql_text(&ty("numeric")), Ok(Some(value.to_owned())));
    }
    for value in ["1e131072", "1e-16384", "0.1e-16383", "1e99999999999999999999", &"9".repeat(131_073)] {
        assert_eq!(error(&text(value), "numeric"), ValueError::OutOfRange { ty: ty("numeric") }, "{value}");
    }
    for value in ["", ".", "-", "1e", "e1", "1.2.3", "0x1", "1_0", "--1", "1 ", "-NaN", "٣"] {
        assert!(matches!(error(&text(value), "numeric"), ValueError::Syntax { .. }), "{value}");
    }
}

#[test]
fn texts_are_held_to_the_notation_of_their_type() {
    for (name, valid, malformed) in [
        ("bool", vec!["true", "f", "1", "off"], vec!["", "True ", "2", "y"]),
        (
            "uuid",
            vec!["0190163D-8694-739b-aea5-966c26f8ad91", "0190163d8694739baea5966c26f8ad91"],
            vec![
                "",
                "0190163d-8694-739b-aea5-966c26f8ad9",
                "0190163d-8694-739b-aea5-966c26f8ad9g",
                "urn:uuid:0190163d-8694-739b-aea5-966c26f8ad91",
            ],
        ),
        ("bytea", vec!["\\x", "\\x00fF"], vec!["", "abc", "\\x0", "\\xgg"]),
        (
            "date",
            vec!["2024-02-29", "0001-01-01", "4713-12-01 BC", "5874897-12-31", "infinity", "0005-02-29 BC"],
            vec![
                "",
                "now",
                "2023-02-29",
                "2024-13-01",
                "2024-00-01",
                "2024-01-00",
                "24-01-01",
                "0000-01-01",
                "2024-1-1",
                "5874898-01-01",
                "4714-01-01 BC",
                "2024-01-01 ",
                "2024-01-01T00:00:00",
                "0004-02-29 BC",
            ],
        ),
        (
            "time",
            vec!["00:00:00", "23:59:59.999999", "24:00:00"],
            vec![
                "",
                "12:00",
                "24:00:01",
                "24:00:00.1",
                "12:60:00",
                "12:00:60",
                "12:00:00.1234567",
                "12:00:00.",
                "12:00:00+00",
            ],
        ),
        ("timetz", vec!["12:00:00Z", "12:00:00+05:30", "12:00:00.5-15:59:59"], vec!["12:00:00", "12:00:00+16"]),
        (
            "timestamp",
            vec!["2024-02-29 12:00:00", "2024-02-29T12:00:00.123456", "-infinity"],
            vec![
                "2024-02-29",
                "2024-02-29 12:00:00Z",
                "2024-02-29 12:00:00+00",
                "294277-01-01 00:00:00",
                "2024-02-29 24:00:00",
            ],
        ),
        (
            "timestamptz",
            vec!["2024-02-29T12:00:00Z", "2024-02-29 12:00:00.5+05:30", "0044-03-15 12:00:00+00 BC"],
            vec![
                "2024-02-29 12:00:00",
                "2024-02-29T12:00:00z",
                "2024-02-29 12:00:00.1234567Z",
                "2024-02-29 12:00:00 UTC",
            ],
        ),
        (
            "interval",
            vec!["P1Y2M3W4DT5H6M7.8S", "PT-0.5S", "P-1D", "PT1M", "PT0S"],
            vec!["", "P", "PT", "P1DT", "1 day", "P1.5D", "P1D2M", "PT1.1234567S", "P1S", "PTS", "P1", "P1Y1Y"],
        ),
        ("json", vec!["null", "{\"a\":1e999999}", "\"\\u0000\"", "\"\\ud800\""], vec!["", "{a:1}", "[1,]", "1 2"]),
        (
            "jsonb",
            vec!["\"\\ud83d\\ude00\"", "\"\\\\u0000\"", "\"\\n\\u00e4\""],
            vec![
                "{",
                "\"\\u0000\"",
                "\"\\ud800\"",
                "\"\\ud800x\"",
                "\"\\ud800\\n\"",
                "\"\\ud800\\u0041\"",
                "\"\\ud800\\ud800\\udc00\"",
                "\"\\udc00\"",
            ],
        ),
        (
            "int4[]",
            vec!["{}", "{1,NULL, 2 }", "{{1},{2}}", "[0:1]={1,2}", "{\"1\"}"],
            vec!["", "1", "{1", "{1}}", "{1,}", "{,1}", "{1 2\"}", "{\"1}", "{{1},2", "[0:1]"],
        ),
    ] {
        for value in valid {
            assert_eq!(text(value).to_sql_text(&ty(name)), Ok(Some(value.to_owned())), "{value} as {name}");
        }
        for value in malformed {
            assert!(matches!(error(&text(value), name), ValueError::Syntax { .. }), "{value} as {name}");
        }
    }
}

#[test]
fn json_is_bounded_in_depth() {
    let nested = |depth: usize| text(&format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
    assert!(nested(512).to_sql_text(&ty("json")).is_ok());
    assert!(matches!(error(&nested(513), "jsonb"), ValueError::Syntax { .. }));
    let in_string = text(&format!("\"{}\\\"{}\"", "[".repeat(600), "{".repeat(600)));
    assert!(in_string.to_sql_text(&ty("json")).is_ok());
}

#[test]
fn nul_is_refused_wherever_text_goes() {
    for name in ["text", "varchar", "bpchar", "json", "uuid", "shop.status", "int4[]"] {
        assert_eq!(error(&text("a\0b"), name), ValueError::Nul, "as {name}");
    }
    let nested = Value::Array(vec![text("a"), text("\0")]);
    assert_eq!(error(&nested, "text[]"), ValueError::Element { number: 2, source: Box::new(ValueError::Nul) });
}

#[test]
fn what_two_types_would_cut_is_refused() {
    for (name, longest, too_long) in [("name", "a".repeat(63), "ä".repeat(32)), ("\"char\"", "a".into(), "ab".into())]
    {
        assert!(text(&longest).to_sql_text(&ty(name)).is_ok());
        assert_eq!(error(&text(&too_long), name), ValueError::OutOfRange { ty: ty(name) });
    }
}

#[test]
fn an_unexpected_notation_is_an_error() {
    for (literal, name) in
        [("yes", "bool"), ("1.5", "int4"), ("abc", "bytea"), ("\\x0", "bytea"), ("x", "float8"), ("{1,2", "int4[]")]
    {
        assert_eq!(Value::from_sql_text(Some(literal), &ty(name)), Err(ValueError::Unreadable { ty: ty(name) }));
    }
    assert_eq!(Value::from_sql_text(None, &SqlType::Int4), Ok(Value::Null));
}
