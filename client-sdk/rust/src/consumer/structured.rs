//! CloudEvents in structured mode: the record's value holds the whole event as JSON.
//!
//! Source: CloudEvents "Kafka Protocol Binding" 1.0.2, section 3.3, and "JSON Event Format" 1.0.2, section 3.1.
//! Invariant: the payload comes out as it stands in the value, byte for byte, so that numbers keep every digit.
//!
//! It deliberately does not read batches: events of one record could not be settled one by one.

use std::collections::HashMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use outbox_proto::record::{ATTRIBUTE_PREFIX, CONTENT_TYPE, DecodeError, TRACEPARENT, TRACESTATE};
use serde_json::value::RawValue;

const MEDIA_TYPE: &str = "application/cloudevents+json";

/// An event out of a record's value: its attributes as they would be headers in binary mode, and its payload.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Structured {
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) payload: Option<Vec<u8>>,
}

/// Whether a record of this content type holds an event in structured mode.
pub(super) fn is_structured(content_type: &[u8]) -> bool {
    let media_type = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(MEDIA_TYPE.as_bytes())
}

pub(super) fn read(value: &[u8]) -> Result<Structured, DecodeError> {
    let wrong = |what: &str| DecodeError::Structured(what.to_owned());
    let members: HashMap<String, &RawValue> =
        serde_json::from_slice(value).map_err(|error| DecodeError::Structured(error.to_string()))?;
    let text = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).ok();
    let (mut headers, mut payload) = (Vec::new(), None);
    let content_type = members.get("datacontenttype").and_then(|raw| text(raw));
    for (name, raw) in &members {
        let header = match name.as_str() {
            "data" if raw.get() == "null" => continue,
            "data" if members.contains_key("data_base64") => return Err(wrong("both `data` and `data_base64`")),
            "data" => {
                payload = Some(match text(raw) {
                    Some(text) if !is_json(content_type.as_deref()) => text.into_bytes(),
                    _ => raw.get().as_bytes().to_vec(),
                });
                continue;
            }
            "data_base64" => {
                let data = text(raw).and_then(|text| BASE64_STANDARD.decode(text).ok());
                payload = Some(data.ok_or_else(|| wrong("`data_base64` is not Base64"))?);
                continue;
            }
            "datacontenttype" => CONTENT_TYPE.to_owned(),
            TRACEPARENT | TRACESTATE => name.clone(),
            _ => format!("{ATTRIBUTE_PREFIX}{name}"),
        };
        if raw.get() != "null" {
            headers.push((header, text(raw).unwrap_or_else(|| raw.get().to_owned()).into_bytes()));
        }
    }
    Ok(Structured { headers, payload })
}

/// JSON Event Format, section 3.1.1: without a content type the data is JSON.
fn is_json(content_type: Option<&str>) -> bool {
    let Some(content_type) = content_type else { return true };
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type.ends_with("/json") || media_type.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(members: &str) -> Result<Option<Vec<u8>>, DecodeError> {
        let event = format!(r#"{{"specversion":"1.0","id":"7","source":"/shop","type":"t"{members}}}"#);
        read(event.as_bytes()).map(|event| event.payload)
    }

    #[test]
    fn the_payload_keeps_its_bytes() {
        let cases: [(&str, Option<&[u8]>); 6] = [
            ("", None),
            (r#","data":null"#, None),
            (r#","data":{"n": 12345678901234567890.10}"#, Some(br#"{"n": 12345678901234567890.10}"#)),
            (r#","data":"a\n""#, Some(br#""a\n""#)),
            (r#","datacontenttype":"text/plain","data":"a\n""#, Some(b"a\n")),
            (r#","datacontenttype":"application/x","data_base64":"/wA=""#, Some(b"\xff\x00")),
        ];
        for (members, expected) in cases {
            assert_eq!(payload(members), Ok(expected.map(<[u8]>::to_vec)), "{members}");
        }
    }

    #[test]
    fn what_is_no_event_is_said_to_be_none() {
        for members in [r#","data":1,"data_base64":"/wA=""#, r#","data_base64":"!""#, r#","data":"#] {
            assert!(matches!(payload(members), Err(DecodeError::Structured(_))), "{members}");
        }
        assert!(matches!(read(b"[]"), Err(DecodeError::Structured(_))));
    }

    #[test]
    fn attributes_become_the_headers_of_binary_mode() {
        let event = br#"{"id":"7","time":null,"partitionkey":5,"datacontenttype":"a/b","traceparent":"00-1"}"#;
        let mut headers = read(event).expect("it is one").headers;
        headers.sort();
        let expected = [("ce_id", "7"), ("ce_partitionkey", "5"), ("content-type", "a/b"), ("traceparent", "00-1")];
        assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())));
    }

    #[test]
    fn the_content_type_tells_the_mode() {
        assert!(
            is_structured(b"application/cloudevents+json; charset=UTF-8")
                && is_structured(b"Application/CloudEvents+JSON")
        );
        assert!(!is_structured(b"application/json") && !is_structured(b"application/cloudevents-batch+json"));
    }
}
