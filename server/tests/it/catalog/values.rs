//! Values of every type, from the caller's form to Postgres and back.

use outbox_server::model::value::{SqlType, Value};
use sqlx::AssertSqlSafe;

use super::{loaded, run, shop, text};

#[tokio::test]
async fn every_type_goes_both_ways_with_its_extremes() {
    let (_database, mut conn) = shop().await;
    let numeric = |digits: &str| Value::Numeric(digits.to_owned());
    let long = format!("-{}.{}", "9".repeat(2_000), "7".repeat(2_000));
    let longest = format!("1{}", "0".repeat(131_071));
    let finest = format!("0.{}1", "0".repeat(16_382));
    let cases: Vec<(&str, Vec<Value>)> = vec![
        ("bool", vec![Value::Bool(true), Value::Bool(false)]),
        ("int2", vec![Value::Int(i16::MIN.into()), Value::Int(0), Value::Int(i16::MAX.into())]),
        ("int4", vec![Value::Int(i32::MIN.into()), Value::Int(i32::MAX.into())]),
        ("int8", vec![Value::Int(i64::MIN), Value::Int(-1), Value::Int(i64::MAX)]),
        (
            "float4",
            [f32::MIN, f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), 0.1, -0.0, f32::INFINITY]
                .map(|value| Value::Double(value.into()))
                .to_vec(),
        ),
        (
            "float8",
            [f64::MIN, f64::MAX, f64::MIN_POSITIVE, f64::from_bits(1), 0.1, 1.0 / 3.0, -0.0, f64::NEG_INFINITY]
                .map(Value::Double)
                .to_vec(),
        ),
        ("numeric", ["0", "-1.50", "NaN", "Infinity", "-Infinity", &long, &longest, &finest].map(numeric).to_vec()),
        ("text", ["", " a ", "NULL", "{}", "\"\\'", "\u{1}\t\r\n\u{7f}", "äß😀\u{10ffff}"].map(text).to_vec()),
        ("varchar", vec![text("a  ")]),
        ("bpchar", vec![text("a  ")]),
        ("bytea", vec![Value::Bytes(vec![]), Value::Bytes((0..=255).collect())]),
        ("uuid", vec![Value::Uuid("ffffffff-ffff-ffff-ffff-ffffffffffff".to_owned())]),
        (
            "date",
            ["4713-11-24 BC", "0001-01-01", "2024-02-29", "5874897-12-31", "infinity", "-infinity"]
                .map(|date| Value::Date(date.to_owned()))
                .to_vec(),
        ),
        ("time", ["00:00:00", "23:59:59.999999", "24:00:00"].map(|time| Value::Time(time.to_owned())).to_vec()),
        (
            "timetz",
            ["00:00:00+00", "23:59:59.999999-15:59:59", "12:00:00+05:30"]
                .map(|time| Value::Time(time.to_owned()))
                .to_vec(),
        ),
        (
            "timestamp",
            ["4713-11-24 00:00:00 BC", "2024-02-29 23:59:59.000001", "294276-12-31 23:59:59.999999", "infinity"]
                .map(|time| Value::Timestamp(time.to_owned()))
                .to_vec(),
        ),
        (
            "timestamptz",
            ["4713-11-24 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00", "infinity", "-infinity"]
                .map(|time| Value::Timestamptz(time.to_owned()))
                .to_vec(),
        ),
        (
            "interval",
            ["PT0S", "P1Y2M3DT4H5M6.7S", "P-1Y-2M3DT-4H-5M-6.000001S", "P178000000Y", "PT-0.000001S"]
                .map(|interval| Value::Interval(interval.to_owned()))
                .to_vec(),
        ),
        (
            "json",
            ["{\"b\": 1e999,\"a\":  1.10, \"a\":2}", "\"\\u0000\\ud800\"", "123456789012345678901234567890"]
                .map(|json| Value::Json(json.to_owned()))
                .to_vec(),
        ),
        (
            "jsonb",
            ["{\"a\": 1.10, \"b\": [null, \"😀\"]}", "12345678901234567890.123456789012345678901"]
                .map(|json| Value::Json(json.to_owned()))
                .to_vec(),
        ),
        ("shop.status", vec![text("active"), text("it's \"odd\"")]),
        ("box", vec![text("(1,1),(0,0)")]),
        ("int4range", vec![text("[1,5)"), text("empty")]),
        ("inet", vec![text("10.0.0.1"), text("10.0.0.0/8")]),
        ("\"char\"", vec![text("x"), text("")]),
        ("name", vec![text("a name")]),
        ("money", vec![text("$1.50")]),
        ("xml", vec![text("<a>&amp;</a>")]),
        ("bit", vec![text("1")]),
        ("varbit", vec![text("101010")]),
        ("macaddr", vec![text("08:00:2b:01:02:03")]),
        ("int2vector", vec![text("1 2 3")]),
        ("tsvector", vec![text("'a':1 'b':2")]),
        ("oid", vec![text("4294967295")]),
        ("shop.tree", vec![text("(1,)")]),
    ];
    let mut sql = String::new();
    for (index, (name, _)) in cases.iter().enumerate() {
        sql += &format!("-- name: one_{index}\nselect :v::{name} as v, :v::{name} is null as n\n");
        sql += &format!("-- name: many_{index}\nselect :v::{name}[] as v\n");
    }
    let catalog = loaded(&sql, &mut conn).await;
    for (index, (name, values)) in cases.into_iter().enumerate() {
        let one = catalog.get(&format!("one_{index}")).expect("it is declared");
        let many = catalog.get(&format!("many_{index}")).expect("it is declared");
        assert_eq!(one.columns[0].ty.to_string(), name);
        assert_eq!(many.columns[0].ty.to_string(), format!("{name}[]"));
        for value in values.iter().chain([&Value::Null]) {
            let (_, rows) = run(one, &[("v", value.clone())], &mut conn).await;
            assert_same(&rows[0][0], value, name);
            assert_eq!(rows[0][1], Value::Bool(*value == Value::Null));
            // The same as text, where it has one.
            if let Some(written) = value.to_sql_text(&one.columns[0].ty).expect("it fits") {
                let (_, rows) = run(one, &[("v", Value::Text(written))], &mut conn).await;
                assert_same(&rows[0][0], value, name);
            }
        }
        let mut flat = values.clone();
        flat.push(Value::Null);
        let nested = Value::Array(vec![Value::Array(flat.clone()), Value::Array(flat.clone())]);
        let from_zero = Value::ArrayFrom { lower_bounds: vec![0], elements: flat.clone() };
        for array in [Value::Array(flat), nested, Value::Array(Vec::new()), from_zero] {
            let (_, rows) = run(many, &[("v", array.clone())], &mut conn).await;
            assert_same(&rows[0][0], &array, name);
        }
    }
}

#[tokio::test]
async fn nan_comes_back_from_the_database() {
    let (_database, mut conn) = shop().await;
    let catalog = loaded("-- name: a\nselect :f::float4 as f, :d::float8 as d, :a::float8[] as a", &mut conn).await;
    let parameters =
        [("f", Value::Double(f64::NAN)), ("d", text("nan")), ("a", Value::Array(vec![Value::Double(f64::NAN)]))];
    let (_, rows) = run(catalog.get("a").expect("it is declared"), &parameters, &mut conn).await;
    let [Value::Double(f), Value::Double(d), Value::Array(a)] = &rows[0][..] else { panic!("not doubles: {rows:?}") };
    assert!(f.is_nan() && d.is_nan() && matches!(a[..], [Value::Double(a)] if a.is_nan()));
}

#[tokio::test]
async fn what_the_checks_refuse_postgres_would_refuse_or_change() {
    let (_database, mut conn) = shop().await;
    // Range limits of ours that must not be wider than Postgres's.
    for (ty, refused) in [
        (SqlType::Numeric, vec!["1e131072", "1e-16384", "0.1e-16383"]),
        (SqlType::Float8, vec!["1e309", "1e-400"]),
        (SqlType::Float4, vec!["1e39", "1e-60"]),
        (SqlType::Date, vec!["5874898-01-01", "4714-01-01 BC"]),
        (SqlType::Timestamp, vec!["294277-01-01 00:00:00"]),
        (SqlType::Jsonb, vec!["\"\\u0000\"", "\"\\ud800\"", "\"\\udc00\""]),
    ] {
        for value in refused {
            assert!(text(value).to_sql_text(&ty).is_err(), "{value} passes as {ty}");
            let cast = sqlx::query(AssertSqlSafe(format!("select ($1::text::{ty})::text"))).bind(value);
            assert!(cast.execute(&mut conn).await.is_err(), "Postgres takes {value} as {ty}");
        }
    }
}

/// Debug forms tell the two zeros apart.
fn assert_same(one: &Value, other: &Value, name: &str) {
    assert_eq!(format!("{one:?}"), format!("{other:?}"), "as {name}");
}
