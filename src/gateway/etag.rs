//! Entity tags (RFC 9110 section 8.8.3): those that the gateway gives, and the lists of them that callers send.

use http::header::{self, HeaderMap, HeaderValue};

use super::header_value;
use crate::hash;

/// The upstream's own strong entity tag, because the body is unchanged, or else one computed from the body (RFC 9110 section 8.8.3).
pub(crate) fn strong_etag(headers: &HeaderMap, body: &[u8]) -> HeaderValue {
    let own = headers.get(header::ETAG).filter(|tag| {
        let text = tag.as_bytes();
        text.len() >= 2 && text.starts_with(b"\"") && text.ends_with(b"\"")
    });
    own.cloned().unwrap_or_else(|| etag_of(body))
}

/// The entity tag of a body.
pub(crate) fn etag_of(body: &[u8]) -> HeaderValue {
    let digest = hash::sha256(body);
    let made = header_value::value(|writer| writer.text("\"").hex(digest.get(..16).unwrap_or_default()).text("\""));
    made.unwrap_or(HeaderValue::from_static("\"\""))
}

/// Does this list (`If-None-Match`) contain the entity tag, or `*`, by weak comparison (RFC 9110 section 13.1.2)?
pub(crate) fn lists_weakly(list: &HeaderValue, etag: &HeaderValue) -> bool {
    lists(list, etag, |one, etag| one.trim_start_matches("W/") == etag.trim_start_matches("W/"))
}

/// Does this list (`If-Match`) contain the entity tag, or `*`, by strong comparison (RFC 9110 section 13.1.1)?
pub(crate) fn lists_strongly(list: &HeaderValue, etag: &HeaderValue) -> bool {
    lists(list, etag, |one, etag| one == etag)
}

fn lists(list: &HeaderValue, etag: &HeaderValue, is_same: fn(&str, &str) -> bool) -> bool {
    let (Ok(list), Ok(etag)) = (list.to_str(), etag.to_str()) else { return false };
    list.trim() == "*" || list.split(',').any(|one| is_same(one.trim(), etag.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_are_compared_strongly_or_weakly() {
        let tag = HeaderValue::from_static("\"a\"");
        let strongly = |list: &str| lists_strongly(&HeaderValue::from_str(list).unwrap(), &tag);
        assert!(strongly("\"a\"") && strongly("*") && strongly("\"b\", \"a\"") && strongly(" \"a\" "));
        assert!(!strongly("W/\"a\"") && !strongly("\"b\"") && !strongly("a") && !strongly(""));
        let weakly = |list: &str| lists_weakly(&HeaderValue::from_str(list).unwrap(), &tag);
        assert!(weakly("W/\"a\"") && weakly("\"b\", W/\"a\"") && weakly("*") && !weakly("W/\"b\""));
    }
}
