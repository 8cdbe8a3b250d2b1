//! Values of every protobuf type on their way into the database and back.

use serde_json::{Value, json};
use tonic::Code;
use uuid::Uuid;

use crate::support::{
    server::{Server, fault, fields},
    typed::{self, Caller},
};

const PROTO: &str = r#"
    syntax = "proto3";
    package test.v1;
    import "google/protobuf/duration.proto";
    import "google/protobuf/struct.proto";
    import "google/protobuf/timestamp.proto";
    import "google/protobuf/wrappers.proto";
    import "outbox/v1/options.proto";

    service Values {
      rpc Echo(All) returns (All) { option (outbox.v1.rpc) = { operations { command: "echo" } }; }
      rpc Give(Given) returns (Taken) { option (outbox.v1.rpc) = { operations { command: "give" } }; }
    }
    message All {
      optional bool flag = 1;
      optional int32 small = 2;
      optional sint64 big = 3;
      optional uint64 huge = 4;
      optional float narrow = 5;
      optional double wide = 6;
      optional string words = 7;
      optional bytes raw = 8;
      optional string id = 9;
      optional string amount = 10;
      optional string day = 11;
      Mood mood = 12;
      Level level = 13;
      google.protobuf.Timestamp moment = 14;
      google.protobuf.Duration span = 15;
      google.protobuf.StringValue note = 16;
      google.protobuf.Int64Value maybe = 17;
      google.protobuf.Struct facts = 18;
      google.protobuf.Value any = 19;
      Inner inner = 20;
      repeated int64 numbers = 21;
      repeated string texts = 22;
      repeated google.protobuf.Timestamp moments = 23;
      repeated Mood moods = 24;
    }
    enum Mood { MOOD_UNSPECIFIED = 0; MOOD_GLAD = 1; MOOD_SO_SO = 2; }
    enum Level { low = 0; high = 5; }
    message Inner { string name = 1; map<string, int64> counts = 2; }
    message Given { string span = 1; string moment = 2; string mood = 3; string json = 4; int64 number = 5; }
    message Taken {
      google.protobuf.Duration span = 1;
      google.protobuf.Timestamp moment = 2;
      Mood mood = 3;
      google.protobuf.Struct json = 4;
      uint32 number = 5;
    }
"#;

const COMMANDS: &str = "
-- name: echo
-- expect: one
select :flag::bool as flag, :small::int4 as small, :big::int8 as big, :huge::numeric as huge,
       :narrow::float4 as narrow, :wide::float8 as wide, :words::text as words, :raw::bytea as raw, :id::uuid as id,
       :amount::numeric as amount, :day::date as day, :mood::feeling as mood, :level::int2 as level,
       :moment::timestamptz as moment, :span::interval as span, :note::text as note, :maybe::int8 as maybe,
       :facts::jsonb as facts, :any::json as any, :inner::jsonb as inner, :numbers::int8[] as numbers,
       :texts::text[] as texts, :moments::timestamptz[] as moments, :moods::text[] as moods

-- name: give
-- expect: one
select :span::interval as span, :moment::timestamptz as moment, :mood::text as mood, :json::jsonb as json,
       :number::int8 as number
";

async fn values() -> (Server, Caller) {
    let descriptors = typed::compile("values.proto", PROTO);
    let first = Server::start().await;
    let feeling = "create type feeling as enum ('glad', 'so_so')";
    sqlx::raw_sql(feeling).execute(&first.pool).await.expect("a type can be made");
    let server = first
        .beside(|config| {
            typed::add(config, "values.binpb", &descriptors);
            typed::add(config, "values.sql", COMMANDS.as_bytes());
        })
        .await;
    let caller = Caller::new(&descriptors, server.channel.clone());
    (server, caller)
}

async fn echo(caller: &Caller, json: Value) -> Result<Value, tonic::Status> {
    let request_id = Uuid::now_v7().to_string();
    let answer = caller.call("test.v1.Values/Echo", &request_id, json.clone()).await?.into_inner();
    let again = caller.call("test.v1.Values/Echo", &request_id, json).await.expect("a retry is answered").into_inner();
    assert_eq!(again, answer);
    Ok(answer)
}

#[tokio::test]
async fn every_type_goes_both_ways_without_loss() {
    let (_server, caller) = values().await;
    let ends = json!({
        "flag": true, "small": i32::MIN, "big": i64::MIN.to_string(), "huge": u64::MAX.to_string(),
        "narrow": 0.1f32, "wide": -1.5e300, "words": "a'b\"\\ é 🦀", "raw": "AAH/",
        "id": "0190163d-8694-739b-aea5-966c26f8ad91", "amount": "12345678901234567890.0123456789", "day": "2026-02-28",
        "mood": "MOOD_SO_SO", "level": "high", "moment": "2026-11-24T19:00:00.000001Z", "span": "-90061.500001s",
        "note": "x", "maybe": "-7", "facts": {"n": 1.5, "list": [null, true, "x"], "deep": {"a": {}}},
        "any": ["anything", 1.0], "inner": {"name": "n", "counts": {"a": "1", "b": "9007199254740993"}},
        "numbers": [i64::MAX.to_string(), "0"], "texts": ["", "NULL", "a,b\"\\"],
        "moments": ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"], "moods": ["MOOD_GLAD", "MOOD_SO_SO"],
    });
    assert_eq!(echo(&caller, ends.clone()).await.expect("it is applied"), ends);
}

#[tokio::test]
async fn what_is_absent_is_null_and_comes_back_absent() {
    let (_server, caller) = values().await;
    assert_eq!(echo(&caller, json!({})).await.expect("it is applied"), json!({}));
    // What is there at its default is a value.
    let zeros =
        json!({"flag": false, "small": 0, "words": "", "raw": "", "note": "", "maybe": "0", "facts": {}, "span": "0s"});
    assert_eq!(echo(&caller, zeros.clone()).await.expect("it is applied"), zeros);
    let special = json!({"narrow": "NaN", "wide": "-Infinity"});
    assert_eq!(echo(&caller, special.clone()).await.expect("it is applied"), special);
}

/// Found by fuzzing: a quick reader of JSON takes these numbers for their neighbours.
#[tokio::test]
async fn a_number_in_json_comes_back_as_it_was() {
    let (_server, caller) = values().await;
    let exact = json!({"any": 0.101_556_396_484_371_45, "facts": {"n": 0.100_595_092_773_387_77}});
    assert_eq!(echo(&caller, exact.clone()).await.expect("it is applied"), exact);
}

#[tokio::test]
async fn a_value_that_its_parameter_cannot_take_is_refused_by_its_field() {
    let (server, caller) = values().await;
    for (field, json) in [
        ("id", json!({"id": "no uuid"})),
        ("amount", json!({"amount": "1,5"})),
        ("day", json!({"day": "2026-02-30"})),
        ("words", json!({"words": "a\u{0}b"})),
        ("moment", json!({"moment": "2026-11-24T19:00:00.000000001Z"})),
        ("span", json!({"span": "0.000000001s"})),
        ("mood", json!({"mood": 9})),
        ("facts", json!({"facts": {"a\u{0}": 1}})),
        ("moods", json!({"moods": ["MOOD_UNSPECIFIED", 7]})),
        ("inner", json!({"inner": {"name": "\u{0}"}})),
    ] {
        let refused = echo(&caller, json).await.expect_err(field);
        assert_eq!((fault(&refused).0, fault(&refused).1.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
        assert_eq!(fields(&refused), [field], "{refused:?}");
    }
    assert_eq!(server.written().await, (0, 0));
}

#[tokio::test]
async fn a_result_that_the_response_cannot_hold_is_told_as_done() {
    let (server, caller) = values().await;
    let fits = json!({"span": "PT1H2M3.5S", "moment": "2026-11-24 19:00:00+00", "mood": "MOOD_GLAD", "json": "{}", "number": "7"});
    let call = |json: Value| {
        let caller = caller.clone();
        async move { caller.call("test.v1.Values/Give", &Uuid::now_v7().to_string(), json).await }
    };
    let held = call(fits.clone()).await.expect("it is applied").into_inner();
    let expected =
        json!({"span": "3723.500s", "moment": "2026-11-24T19:00:00Z", "mood": "MOOD_GLAD", "json": {}, "number": 7});
    assert_eq!(held, expected);
    let mut applied = server.written().await.0;
    for (column, text) in [
        ("span", "P1M"),
        ("span", "P1DT1S"),
        ("moment", "infinity"),
        ("moment", "0001-01-01 00:00:00+00 BC"),
        ("mood", "furious"),
        ("json", "[1]"),
        ("number", "-1"),
    ] {
        let mut json = fits.clone();
        json[column] = text.into();
        let refused = call(json).await.expect_err("the response cannot hold it");
        assert_eq!((fault(&refused).0, fault(&refused).1.as_str()), (Code::Internal, "RESULT_UNREPRESENTABLE"));
        assert!(
            refused.message().contains(&format!("column {column:?}")) && !refused.message().contains(text),
            "{refused:?}"
        );
        applied += 1;
        assert_eq!(server.written().await.0, applied, "it was applied all the same");
    }
}
