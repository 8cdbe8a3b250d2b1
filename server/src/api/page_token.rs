//! Page tokens: where the next page of a list starts, and of which list.
//!
//! Opaque to callers, and bound to the request they came from by a digest, so that a token used with another filter
//! is an error and not a wrong page. It is no secret and grants nothing.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outbox_proto::v1::{ListCommandsRequest, ListDocumentsRequest, ListEventsRequest, ListHeldRequest};
use prost::Message;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::commit::Violation;

const VERSION: u8 = 1;
/// Version and digest.
const HEAD: usize = 1 + 8;

pub(super) const SIZE_DEFAULT: i32 = 100;
const SIZE_MAX: i32 = 1_000;

/// What a list is recognised by.
pub(super) type Digest = [u8; 8];

/// A request for a page of a list.
pub(super) trait Paged: Message + Clone {
    /// The list's name, and its request without the token and the page's size.
    fn list(&self) -> (&'static str, Self);
    /// The token it carries, or nothing.
    fn token(&self) -> &str;
    /// The size it asks for; 0 for the default.
    fn size(&self) -> i32;
}

macro_rules! paged {
    ($request:ident) => {
        impl Paged for $request {
            fn list(&self) -> (&'static str, Self) {
                let mut list = self.clone();
                list.page_token.clear();
                list.page_size = 0;
                (stringify!($request), list)
            }

            fn token(&self) -> &str {
                &self.page_token
            }

            fn size(&self) -> i32 {
                self.page_size
            }
        }
    };
}

paged!(ListCommandsRequest);
paged!(ListDocumentsRequest);
paged!(ListEventsRequest);
paged!(ListHeldRequest);

/// The digest of a request's list.
pub(super) fn digest(request: &impl Paged) -> Digest {
    let (name, list) = request.list();
    let hash = Sha256::new().chain_update(name).chain_update(list.encode_to_vec()).finalize();
    let mut digest = [0; 8];
    digest.copy_from_slice(&hash[..8]);
    digest
}

/// The size of a page, if it is one that may be asked for.
pub(super) fn size(request: &impl Paged) -> Result<usize, Violation> {
    let size = if request.size() == 0 { SIZE_DEFAULT } else { request.size() };
    match usize::try_from(size) {
        Ok(count @ 1..) if size <= SIZE_MAX => Ok(count),
        _ => {
            let description = format!("is {size}; expected 1 to {SIZE_MAX}, or 0 for {SIZE_DEFAULT}");
            Err(Violation { field: "page_size".into(), description })
        }
    }
}

/// A token for the page that starts at this place of the list.
pub(super) fn encode(place: &[u8], digest: Digest) -> String {
    URL_SAFE_NO_PAD.encode([&[VERSION], digest.as_slice(), place].concat())
}

/// The place at which a request's page starts; `None` for the first page.
pub(super) fn place(request: &impl Paged, digest: Digest) -> Result<Option<Vec<u8>>, Violation> {
    if request.token().is_empty() {
        return Ok(None);
    }
    let bytes = URL_SAFE_NO_PAD.decode(request.token()).ok();
    match bytes.filter(|bytes| bytes.len() >= HEAD && bytes[0] == VERSION) {
        Some(bytes) if bytes[1..HEAD] == digest => Ok(Some(bytes[HEAD..].to_vec())),
        Some(_) => Err(wrong("belongs to a list with other fields; only `page_size` may change between pages")),
        None => Err(foreign()),
    }
}

/// The place of a list that is ordered by text.
pub(super) fn text(request: &impl Paged, digest: Digest) -> Result<String, Violation> {
    let place = place(request, digest)?.unwrap_or_default();
    String::from_utf8(place).map_err(|_| foreign())
}

/// The place of a list that is ordered by id; the smallest one for the first page.
pub(super) fn id(request: &impl Paged, digest: Digest) -> Result<Uuid, Violation> {
    let Some(place) = place(request, digest)? else { return Ok(Uuid::nil()) };
    Uuid::from_slice(&place).map_err(|_| foreign())
}

/// The place of a list of events: the id it starts at, and the one before which the list ends.
pub(super) fn range(request: &ListEventsRequest, digest: Digest) -> Result<Option<(Uuid, Uuid)>, Violation> {
    let Some(place) = place(request, digest)? else { return Ok(None) };
    let (next, before) = place.split_at_checked(16).ok_or_else(foreign)?;
    match (Uuid::from_slice(next), Uuid::from_slice(before)) {
        (Ok(next), Ok(before)) => Ok(Some((next, before))),
        _ => Err(foreign()),
    }
}

fn foreign() -> Violation {
    wrong("is not a page token of this server; take it from `next_page_token` as it is")
}

fn wrong(description: &str) -> Violation {
    Violation { field: "page_token".into(), description: description.into() }
}

#[cfg(test)]
mod tests {
    use outbox_proto::v1::ListEventsRequest;

    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_list_only() {
        let list = ListEventsRequest { topic: "a".into(), ..ListEventsRequest::default() };
        let (next, before) = (Uuid::now_v7(), Uuid::now_v7());
        let token = encode(&[next.into_bytes(), before.into_bytes()].concat(), digest(&list));

        let page = ListEventsRequest { page_size: 7, page_token: token.clone(), ..list.clone() };
        assert_eq!(range(&page, digest(&page)), Ok(Some((next, before))));

        let other = ListEventsRequest { topic: "b".into(), page_token: token.clone(), ..list.clone() };
        assert!(range(&other, digest(&other)).is_err());
        for junk in ["junk", &token[1..], "AQ"] {
            let page = ListEventsRequest { page_token: junk.into(), ..list.clone() };
            assert!(range(&page, digest(&page)).is_err(), "{junk}");
        }
    }

    #[test]
    fn a_list_of_another_kind_has_other_tokens() {
        let (commands, documents) = (ListCommandsRequest::default(), ListDocumentsRequest::default());
        assert_ne!(digest(&commands), digest(&documents));
        let page = ListDocumentsRequest { page_token: encode(b"x", digest(&commands)), ..documents };
        assert!(text(&page, digest(&page)).is_err());
    }
}
