//! What is fuzzed: each target takes bytes, panics on a finding, and says whether it accepted them.

use std::{path::Path, sync::LazyLock};

use outbox_proto::record::Attributes;
use outbox_server::{
    api::{self, typed::Rpcs},
    catalog::{self, Catalog},
    model::value::{SqlType, Value},
};
use prost::Message as _;
use prost_reflect::DescriptorPool;

/// A target.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&[u8]) -> bool,
    /// What its inputs are made of.
    pub(crate) samples: fn() -> Vec<Vec<u8>>,
    pub(crate) words: &'static [&'static str],
}

/// All of them.
pub(crate) const TARGETS: [Target; 7] = [
    Target {
        name: "value",
        run: value,
        samples: values,
        words: &["\\", "\"", "{", "}", "NULL", ",", "e", ".", "-", "T", "Z"],
    },
    Target {
        name: "command",
        run: |bytes| text(bytes).is_some_and(|text| catalog::fuzz::take_apart(text) > 0),
        samples: || vec![include_bytes!("../../catalog/shop.sql").to_vec(), COMMANDS.into()],
        words: &[
            "-- name: ",
            "-- expect: ",
            "-- access: ",
            "select ",
            "with ",
            " as (",
            ")",
            ":",
            "$$",
            "'",
            "\"",
            "/*",
            "*/",
            "--",
            ";",
            "\n",
        ],
    },
    Target {
        name: "descriptor_set",
        run: |bytes| Rpcs::read(bytes, &ECHO).is_some(),
        samples: || vec![SET.clone(), include_bytes!("../../catalog/shop.binpb").to_vec()],
        words: &["fuzz.v1", "echo", "text", ".fuzz.v1.All"],
    },
    Target {
        name: "option",
        run: option,
        samples: || vec![OPTION.clone()],
        words: &["\n\u{4}echo", "\u{12}\u{5}\n\u{1}t\u{12}", "text", "big", "inner.name", "\u{1a}", "\"\u{2}"],
    },
    Target {
        name: "message",
        run: |bytes| RPCS.echo(bytes, &ECHO),
        samples: messages,
        words: &["\u{8}\u{1}", "\n", "\u{12}", "2026-11-24", "0190163d-8694-739b-aea5-966c26f8ad91", "1.5", "\u{0}"],
    },
    Target {
        name: "record_headers",
        run: record,
        samples: || vec![RECORD.into()],
        words: &[
            "ce_id",
            "ce_time",
            "ce_specversion",
            "1.0",
            "traceparent",
            "\n",
            "content-type",
            "2026-11-24T00:00:00Z",
        ],
    },
    Target {
        name: "page_token",
        run: |bytes| text(bytes).is_some_and(api::fuzz::page_token),
        samples: || api::fuzz::page_tokens().map(String::into_bytes).to_vec(),
        words: &["AQ", "_", "-", "=", "A"],
    },
];

const COMMANDS: &str = "-- name: a\n-- expect: 3\n-- access: read_only\nwith recursive t as (select 1 as n), \"u\" (a, b) as \
    materialized (values (:x::int, 'it''s :not'), (2, $q$ :not $q$)) select t.n, u.*, e'\\':' from t /* :no /* :no */ */, u \
    where a = any(:y) and b[1:2] is not null\n-- name: b\nmerge into t using s on t.id = s.id when matched then update set \
    x = :x returning t.id;\n";

const RECORD: &str = "ce_specversion\n1.0\nce_id\n0190163d-8694-739b-aea5-966c26f8ad91\nce_source\nurn:x\nce_type\na.b\n\
    ce_time\n2026-11-24T19:00:00.000001Z\nce_subject\ns\ncontent-type\napplication/json\ntraceparent\n\
    00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\ntenant\nblue";

/// The columns of the command that gives its parameters back, of every kind.
const COLUMNS: [(&str, &str); 24] = [
    ("flag", "bool"),
    ("small", "int4"),
    ("big", "int8"),
    ("huge", "numeric"),
    ("narrow", "float4"),
    ("wide", "float8"),
    ("words", "text"),
    ("raw", "bytea"),
    ("id", "uuid"),
    ("amount", "numeric"),
    ("day", "date"),
    ("mood", "public.mood"),
    ("level", "int4"),
    ("moment", "timestamptz"),
    ("span", "interval"),
    ("note", "text"),
    ("maybe", "int8"),
    ("facts", "jsonb"),
    ("any", "json"),
    ("inner", "jsonb"),
    ("numbers", "int8[]"),
    ("texts", "text[]"),
    ("moments", "timestamptz[]"),
    ("moods", "text[]"),
];

static ECHO: LazyLock<Catalog> = LazyLock::new(|| catalog::fuzz::echo(&COLUMNS));
static SET: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler =
        protox::Compiler::new([&root.join("src"), &root.join("../../proto")]).expect("the folders are there");
    compiler.include_imports(true).open_file("echo.proto").expect("it compiles").encode_file_descriptor_set()
});
static RPCS: LazyLock<Rpcs> = LazyLock::new(|| Rpcs::read(&SET, &ECHO).expect("the declaration holds"));
/// The bytes of the method's option, which the set holds once.
static OPTION: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(SET.as_slice()).expect("a descriptor set");
    let method = pool.services().next().and_then(|service| service.methods().next()).expect("a method");
    let extension =
        pool.all_extensions().find(|extension| extension.full_name() == "outbox.v1.rpc").expect("our option");
    method.options().get_extension(&extension).as_message().expect("a message").encode_to_vec()
});

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// A text as a value of the type that the first byte chooses: whatever is taken can be read, and again.
fn value(bytes: &[u8]) -> bool {
    let Some((choice, rest)) = bytes.split_first() else { return false };
    let types: Vec<SqlType> = SqlType::named().collect();
    let ty = types[usize::from(choice & 0x3f) % types.len()].clone();
    let (ty, other) = match choice & 0x40 {
        0 => (ty, Value::Bytes(rest.to_vec())),
        _ => (SqlType::Array(Box::new(ty)), Value::Array(vec![Value::Bytes(rest.to_vec()), Value::Null])),
    };
    if let Ok(Some(text)) = other.to_sql_text(&ty) {
        assert_eq!(Value::from_sql_text(Some(&text), &ty), Ok(other));
    }
    let number = Value::Int(rest.iter().take(8).fold(0, |number, byte| number << 8 | i64::from(*byte)));
    if let (Ok(Some(text)), SqlType::Int2 | SqlType::Int4 | SqlType::Int8) = (number.to_sql_text(&ty), &ty) {
        assert_eq!(Value::from_sql_text(Some(&text), &ty), Ok(number));
    }
    let Some(text) = text(rest) else { return false };
    let _any_text_of_a_database = Value::from_sql_text(Some(text), &ty);
    let Ok(Some(taken)) = Value::Text(text.to_owned()).to_sql_text(&ty) else { return false };
    if let Ok(read) = Value::from_sql_text(Some(&taken), &ty) {
        let again = read.to_sql_text(&ty).expect("what was read can be written").expect("it is no NULL");
        let twice = Value::from_sql_text(Some(&again), &ty).expect("what was written can be read");
        assert_eq!(format!("{twice:?}"), format!("{read:?}"));
    }
    true
}

fn values() -> Vec<Vec<u8>> {
    let texts = [
        "true",
        "-32768",
        "1e300",
        "-1.5",
        "NaN",
        "Infinity",
        "a'b",
        "\\x00ff",
        "0190163d-8694-739b-aea5-966c26f8ad91",
        "2026-02-28",
        "23:59:59.999999+01:30",
        "2026-11-24 19:00:00.000001+00",
        "P1Y2M3DT4H5M6.7S",
        "{\"a\": [1, \"\\u00e9\"]}",
        "{1,NULL,\"a \\\"b\\\"\",{}}",
        "[0:1]={1,2}",
        "{{1,2},{3,4}}",
    ];
    let named = SqlType::named().count();
    let choices = (0..named).flat_map(|choice| [choice, choice | 0x40]);
    let with = |choice: usize| texts.map(|text| [&[choice as u8], text.as_bytes()].concat());
    choices.flat_map(with).collect()
}

/// Bytes as the option of the method: its length, and those of all that is around it, have to follow.
fn option(bytes: &[u8]) -> bool {
    let mut set = RawSet::decode(SET.as_slice()).expect("a descriptor set");
    for file in &mut set.file {
        for method in file.service.iter_mut().flat_map(|service| &mut service.method) {
            if let Some(options) = &mut method.options {
                options.rpc = vec![bytes.to_vec()];
            }
        }
    }
    Rpcs::read(&set.encode_to_vec(), &ECHO).is_some()
}

fn messages() -> Vec<Vec<u8>> {
    let pool = DescriptorPool::decode(SET.as_slice()).expect("a descriptor set");
    let all = pool.get_message_by_name("fuzz.v1.All").expect("the message is there");
    let json = serde_json::json!({
        "flag": true, "small": -1, "big": "-9223372036854775808", "huge": "18446744073709551615", "narrow": 0.1,
        "wide": 1e300, "words": "é\"'", "raw": "AAH/", "id": "0190163d-8694-739b-aea5-966c26f8ad91", "amount": "1.50",
        "day": "2026-02-28", "mood": "MOOD_GLAD", "level": "high", "moment": "2026-11-24T19:00:00.000001Z",
        "span": "-1.500001s", "note": "", "maybe": "7", "facts": {"a": [1.5, null, {"b": true}]}, "any": ["x", 0.1],
        "inner": {"name": "n", "counts": {"a": "1"}}, "numbers": ["1", "-1"], "texts": ["", "NULL"],
        "moments": ["0001-01-01T00:00:00Z"], "moods": ["MOOD_SO_SO"],
    });
    let members = json.as_object().expect("an object").iter();
    let singles = members.map(|(name, value)| serde_json::json!({name: value}));
    let message =
        |json| prost_reflect::DynamicMessage::deserialize(all.clone(), json).expect("a message").encode_to_vec();
    singles.chain([json.clone()]).map(message).collect()
}

/// Lines as names and values in turn; what can be read is written and read again.
fn record(bytes: &[u8]) -> bool {
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let headers = lines.chunks(2).filter_map(|pair| Some((text(pair[0])?, pair.get(1).copied())));
    let Ok(attributes) = Attributes::decode(headers) else { return false };
    let mut written: Vec<(String, Vec<u8>)> = Vec::new();
    attributes.encode(|name, value| written.push((name.to_owned(), value.to_vec())));
    let again = Attributes::decode(written.iter().map(|(name, value)| (name.as_str(), Some(value.as_slice()))));
    let mut again = again.expect("what was written can be read");
    // Written to the microsecond, as the outbox keeps it.
    let micros = |attributes: &Attributes| attributes.time.map(|time| time.timestamp_micros());
    assert_eq!(micros(&again), micros(&attributes));
    again.time = attributes.time;
    assert_eq!(again, attributes);
    true
}

/// A descriptor set of which only the way to the option is told; the rest stays as it is.
#[derive(Clone, PartialEq, prost::Message)]
struct RawSet {
    #[prost(message, repeated, tag = "1")]
    file: Vec<RawFile>,
}

/// `google.protobuf.FileDescriptorProto`.
#[derive(Clone, PartialEq, prost::Message)]
struct RawFile {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(string, repeated, tag = "3")]
    dependency: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    message_type: Vec<prost_reflect::prost_types::DescriptorProto>,
    #[prost(message, repeated, tag = "5")]
    enum_type: Vec<prost_reflect::prost_types::EnumDescriptorProto>,
    #[prost(message, repeated, tag = "6")]
    service: Vec<RawService>,
    #[prost(message, repeated, tag = "7")]
    extension: Vec<prost_reflect::prost_types::FieldDescriptorProto>,
    #[prost(string, tag = "12")]
    syntax: String,
}

/// `google.protobuf.ServiceDescriptorProto`.
#[derive(Clone, PartialEq, prost::Message)]
struct RawService {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<RawMethod>,
}

/// `google.protobuf.MethodDescriptorProto`.
#[derive(Clone, PartialEq, prost::Message)]
struct RawMethod {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    input_type: String,
    #[prost(string, tag = "3")]
    output_type: String,
    #[prost(message, optional, tag = "4")]
    options: Option<RawOptions>,
}

/// `google.protobuf.MethodOptions`.
#[derive(Clone, PartialEq, prost::Message)]
struct RawOptions {
    #[prost(bytes = "vec", repeated, tag = "57411")]
    rpc: Vec<Vec<u8>>,
}
