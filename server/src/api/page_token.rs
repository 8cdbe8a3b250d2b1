//! Page tokens: where the next page starts and where the list ends, and of which list.
//!
//! Opaque to callers, and bound to the request they came from by a digest, so that a token used with another filter
//! is an error and not a wrong page. It is no secret and grants nothing.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

const VERSION: u8 = 1;
const LENGTH: usize = 1 + 8 + 16 + 16;

/// What a list is recognised by: its request without token and page size.
pub(super) fn digest(list: &impl Message) -> [u8; 8] {
    let mut digest = [0; 8];
    digest.copy_from_slice(&Sha256::digest(list.encode_to_vec())[..8]);
    digest
}

pub(super) fn encode(next: Uuid, before: Uuid, digest: [u8; 8]) -> String {
    let mut token = Vec::with_capacity(LENGTH);
    token.push(VERSION);
    token.extend(digest);
    token.extend(next.as_bytes());
    token.extend(before.as_bytes());
    URL_SAFE_NO_PAD.encode(token)
}

/// Where the page starts and where the list ends.
pub(super) fn decode(token: &str, digest: [u8; 8]) -> Result<(Uuid, Uuid), String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok().filter(|bytes| bytes.len() == LENGTH && bytes[0] == VERSION);
    let bytes = bytes.ok_or("is not a page token of this server; take it from `next_page_token` as it is")?;
    if bytes[1..9] != digest {
        return Err("belongs to a list with other fields; only `page_size` may change between pages".into());
    }
    let uuid = |range| Uuid::from_slice(&bytes[range]).map_err(|error| error.to_string());
    Ok((uuid(9..25)?, uuid(25..41)?))
}

#[cfg(test)]
mod tests {
    use outbox_proto::v1::ListEventsRequest;

    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_list_only() {
        let list = ListEventsRequest { topic: "a".into(), ..ListEventsRequest::default() };
        let (next, before) = (Uuid::now_v7(), Uuid::now_v7());
        let token = encode(next, before, digest(&list));

        assert_eq!(decode(&token, digest(&list)), Ok((next, before)));

        let other = ListEventsRequest { topic: "b".into(), ..list.clone() };
        assert!(decode(&token, digest(&other)).is_err());
        assert!(decode("junk", digest(&list)).is_err());
        assert!(decode(&token[1..], digest(&list)).is_err());
    }
}
