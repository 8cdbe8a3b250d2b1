//! Entry points for fuzzing: page tokens.

use outbox_proto::v1::{ListDocumentsRequest, ListEventsRequest};

use super::page_token;

/// Reads a token as each kind of list does. Returns whether one took it.
///
/// # Panics
/// When a token that was taken is not the one that its place would get.
pub fn page_token(token: &str) -> bool {
    let events = ListEventsRequest { page_token: token.to_owned(), ..ListEventsRequest::default() };
    let documents = ListDocumentsRequest { page_token: token.to_owned(), ..ListDocumentsRequest::default() };
    let digest = page_token::digest(&documents);
    let range = page_token::range(&events, page_token::digest(&events));
    match page_token::text(&documents, digest) {
        Ok(text) if !token.is_empty() => {
            assert_eq!(page_token::encode(text.as_bytes(), digest), token);
            true
        }
        _ => range.is_ok_and(|range| range.is_some()),
    }
}

/// Tokens of both kinds that are good.
pub fn page_tokens() -> [String; 2] {
    let place = [uuid::Uuid::nil().into_bytes(), uuid::Uuid::max().into_bytes()].concat();
    [
        page_token::encode(b"id", page_token::digest(&ListDocumentsRequest::default())),
        page_token::encode(&place, page_token::digest(&ListEventsRequest::default())),
    ]
}
