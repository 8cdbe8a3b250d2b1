//! Checks a JSON document that Postgres will store, without touching it.
//!
//! The text goes on unchanged: a parsed and rewritten document would lose long numbers. Depth is bounded because
//! Postgres parses by recursion.
//!
//! Not here: what `jsonb` does by design, which is to drop the order and repeats of keys.

use serde::de::IgnoredAny;

/// How deep objects and arrays may nest.
pub const DEPTH_MAX: usize = 512;

/// What [`check`] accepts.
pub(super) const JSON: &str = "a JSON document, nested at most 512 deep";
/// What [`check_text`] accepts.
pub(super) const JSONB: &str = "a JSON document that jsonb can hold: no \\u0000, no half of a surrogate pair";

/// Is it one JSON document, not nested too deep?
pub(super) fn check(text: &str) -> bool {
    depth_fits(text, DEPTH_MAX) && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Does `jsonb` take its strings? `text` must have passed [`check`].
pub(super) fn check_text(text: &str) -> bool {
    let mut rest = text;
    let mut high = false;
    while let Some(at) = rest.find('\\') {
        if high && at > 0 {
            return false;
        }
        let escaped = &rest[at + 1..];
        let Some(digits) = escaped.strip_prefix('u').and_then(|digits| digits.get(..4)) else {
            if high {
                return false;
            }
            // A checked document has a one-byte escape character here.
            rest = escaped.get(1..).unwrap_or_default();
            continue;
        };
        let unit = u16::from_str_radix(digits, 16).unwrap_or(0);
        match unit {
            0 => return false,
            0xd800..=0xdbff if !high => high = true,
            0xdc00..=0xdfff if high => high = false,
            0xd800..=0xdfff => return false,
            _ if high => return false,
            _ => {}
        }
        rest = &escaped[5..];
    }
    !high
}

/// Are objects and arrays nested no deeper than this?
pub(super) fn depth_fits(text: &str, depth_max: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > depth_max {
            return false;
        }
    }
    true
}
