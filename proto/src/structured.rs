//! An event in CloudEvents' structured mode: one JSON object that holds attributes and payload.
//!
//! Source: CloudEvents "JSON Event Format" 1.0.2, section 3. A JSON payload stands in it byte for byte, so that numbers keep
//! every digit; any other one is Base64. It deliberately holds no trace context: that is in the record's headers, where it
//! is in every mode.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chrono::SecondsFormat;
use serde_json::value::RawValue;

use crate::record::{AttributesRef, SPEC_VERSION};

/// The content type of a record in structured mode.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";

/// The event as a record's value.
pub fn encode(attributes: &AttributesRef<'_>, data: &[u8]) -> Vec<u8> {
    let id = attributes.id.to_string();
    let time = attributes.time.map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true));
    let members = [
        ("specversion", Some(SPEC_VERSION)),
        ("id", Some(id.as_str())),
        ("source", Some(attributes.source)),
        ("type", Some(attributes.event_type)),
        ("time", time.as_deref()),
        ("subject", attributes.subject),
        ("datacontenttype", attributes.content_type),
    ];
    let mut json = String::with_capacity(256 + data.len());
    for (name, value) in members {
        if let Some(value) = value {
            json.push(if json.is_empty() { '{' } else { ',' });
            json += &format!("\"{name}\":{}", serde_json::Value::from(value));
        }
    }
    let own = if is_json(attributes.content_type) { serde_json::from_slice::<&RawValue>(data).ok() } else { None };
    match own {
        Some(own) => json += &format!(",\"data\":{}}}", own.get()),
        None => json += &format!(",\"data_base64\":\"{}\"}}", BASE64_STANDARD.encode(data)),
    }
    json.into_bytes()
}

/// Section 3.1.1: without a content type the data is JSON.
fn is_json(content_type: Option<&str>) -> bool {
    let Some(content_type) = content_type else { return true };
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type.ends_with("/json") || media_type.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(content_type: Option<&str>, data: &[u8]) -> String {
        let attributes = AttributesRef {
            id: uuid::Uuid::nil(),
            source: "/sh\"op",
            event_type: "t",
            subject: None,
            time: chrono::DateTime::from_timestamp_micros(1_700_000_000_123_456),
            content_type,
            traceparent: Some("00-1"),
            tracestate: None,
        };
        String::from_utf8(encode(&attributes, data)).expect("JSON is text")
    }

    #[test]
    fn a_json_payload_stands_as_it_is_and_any_other_as_base64() {
        let head = r#"{"specversion":"1.0","id":"00000000-0000-0000-0000-000000000000","source":"/sh\"op","type":"t","time":"2023-11-14T22:13:20.123456Z""#;
        for (content_type, data, tail) in [
            (
                Some("application/json"),
                r#"{"n": 1.00}"#,
                r#","datacontenttype":"application/json","data":{"n": 1.00}}"#,
            ),
            (Some("a/b+json; x=y"), "7", r#","datacontenttype":"a/b+json; x=y","data":7}"#),
            (Some("text/plain"), "7", r#","datacontenttype":"text/plain","data_base64":"Nw=="}"#),
            (Some("application/json"), "{", r#","datacontenttype":"application/json","data_base64":"ew=="}"#),
            (None, "[1 ]", r#","data":[1 ]}"#),
        ] {
            let encoded = encoded(content_type, data.as_bytes());
            assert_eq!(encoded, format!("{head}{tail}"));
            serde_json::from_str::<serde_json::Value>(&encoded).expect("it is JSON");
        }
    }
}
