//! The mark of an HTTP/2 request: a field that the door adds behind its own ones, because h2 and hyper pass on nothing else.
//!
//! It is named `expect`, and every request with a field of that name gets one. So the last `expect` is always the door's.

use http::uri::PathAndQuery;
use http::{HeaderMap, Uri, header};

use super::request_line::FRAGMENT;

/// A literal field that stays out of the tables, and whose name is `expect` in the static one (RFC 7541 section 6.2.2).
const EXPECT_FIELD: [u8; 2] = [0x0f, 35 - 15];
/// Stands behind the number of a stream whose target has a `#`.
const WITH_FRAGMENT: char = '#';

/// What the door tells the service about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamMark {
    pub(super) stream: u32,
    /// Its target had a `#`; the library has cut that off, with what follows.
    pub(super) has_fragment: bool,
}

impl StreamMark {
    /// Its bytes in a field block.
    pub(super) fn field(self) -> Vec<u8> {
        let value =
            format!("{}{}", self.stream, if self.has_fragment { WITH_FRAGMENT.to_string() } else { String::new() });
        let length = u8::try_from(value.len()).unwrap_or_default(); // at most 11
        [&EXPECT_FIELD[..], &[length], value.as_bytes()].concat()
    }

    /// Takes the mark from a request's fields. What the client expects stays.
    pub(super) fn take(fields: &mut HeaderMap) -> Option<Self> {
        let mut expectations: Vec<_> = fields.get_all(header::EXPECT).iter().cloned().collect();
        let mark = expectations.pop()?;
        fields.remove(header::EXPECT);
        for one in expectations {
            fields.append(header::EXPECT, one);
        }
        let text = mark.to_str().ok()?;
        let number = text.strip_suffix(WITH_FRAGMENT);
        Some(Self { stream: number.unwrap_or(text).parse().ok()?, has_fragment: number.is_some() })
    }
}

/// The target with what stands for its `#`.
pub(super) fn with_fragment(target: Uri) -> Uri {
    let mut parts = target.into_parts();
    let marked = |path: &str| PathAndQuery::try_from(format!("{path}{}", char::from(FRAGMENT))).ok();
    let path = parts.path_and_query.take().and_then(|path| marked(path.as_str())).or_else(|| marked("/"));
    parts.path_and_query = path.clone();
    Uri::from_parts(parts).ok().or_else(|| Some(Uri::from(path?))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_a_fragment_is_in_every_target() {
        for (target, expected) in [
            ("/a", "/a^"),
            ("/", "/^"),
            ("/a?", "/a?^"),
            ("/a?b=c", "/a?b=c^"),
            ("https://a:1/b?c", "https://a:1/b?c^"),
            ("https://a", "https://a/^"),
            ("*", "/^"),
            ("a:1", "/^"),
        ] {
            assert_eq!(with_fragment(target.parse().unwrap()).to_string(), expected, "{target}");
        }
    }
}
