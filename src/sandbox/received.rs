//! The requests the sandbox received, in order: for tests that count attempts and for people who want to see them.

use std::collections::VecDeque;

use serde::Serialize;

use super::faults::Pattern;
use super::quota::SandboxBucket;

/// Maximum number and total size of the requests kept; the oldest are dropped.
const REQUESTS_MAX: usize = 100_000;
const BYTES_MAX: usize = 64 << 20;
/// How much of a body is kept, in bytes.
const BODY_BYTES_MAX: usize = 16 << 10;
/// Replaces the token in what is kept.
const TOKEN_SHOWN: &str = "[token]";

/// What a request sent as `Authorization`; the value itself is never kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenSeen {
    /// The sandbox's token with scheme `Token` or `Bearer`.
    Right,
    /// Anything else, or more than one.
    Wrong,
    /// Nothing.
    Missing,
}

/// A request that arrived completely.
#[derive(Clone, Debug, Serialize)]
pub struct Received {
    /// Number in order of arrival, from 0; a reset starts over.
    pub number: u64,
    /// Wall time of arrival in milliseconds since 1970.
    pub time_ms: i64,
    /// Number of its connection, from 1.
    pub connection: u64,
    /// As sent.
    pub method: String,
    /// As sent, without the query.
    pub path: String,
    /// As sent, without the question mark; empty if there is none.
    pub query: String,
    /// All but `authorization`, names in lower case, in the order sent.
    pub headers: Vec<(String, String)>,
    /// Whether the token was right.
    pub token: TokenSeen,
    /// The first 16 KiB of the body.
    pub body: String,
    /// Status of the answer; `None` if there is none (yet).
    pub status: Option<u16>,
    /// The bucket it counted against; `None` if not counted (wrong token, or a fault came first).
    pub bucket: Option<SandboxBucket>,
    /// Whether it was a write that took effect.
    pub effect: bool,
}

impl Received {
    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Removes the token from everything that is kept, wherever it was sent, and truncates the body.
    pub(super) fn without(mut self, token: &str) -> Self {
        let hide = |text: &mut String| {
            if !token.is_empty() && text.contains(token) {
                *text = text.replace(token, TOKEN_SHOWN);
            }
        };
        hide(&mut self.path);
        hide(&mut self.query);
        hide(&mut self.body);
        self.headers.iter_mut().for_each(|(_, value)| hide(value));
        if self.body.len() > BODY_BYTES_MAX {
            self.body.truncate(self.body.floor_char_boundary(BODY_BYTES_MAX));
        }
        self
    }

    fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
        size_of::<Self>() + self.path.len() + self.query.len() + self.body.len() + headers
    }
}

/// The newest requests, bounded by number and bytes.
#[derive(Debug, Default)]
pub(super) struct ReceivedLog {
    entries: VecDeque<Received>,
    next: u64,
    bytes: usize,
}

impl ReceivedLog {
    /// Adds a request and returns its number.
    pub(super) fn add(&mut self, received: Received) -> u64 {
        let number = self.next;
        self.next += 1;
        self.bytes += received.bytes();
        self.entries.push_back(Received { number, ..received });
        while self.entries.len() > REQUESTS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.bytes();
        }
        number
    }

    /// The entry with this number, if it is still kept.
    pub(super) fn entry(&mut self, number: u64) -> Option<&mut Received> {
        let first = self.entries.front()?.number;
        self.entries.get_mut(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    /// Up to `limit` entries after number `after`, oldest first.
    pub(super) fn after(&self, after: Option<u64>, limit: usize) -> Vec<Received> {
        let wanted = |entry: &&Received| after.is_none_or(|after| entry.number > after);
        self.entries.iter().filter(wanted).take(limit).cloned().collect()
    }

    pub(super) fn of(&self, pattern: &Pattern) -> impl Iterator<Item = &Received> {
        self.entries.iter().filter(move |entry| pattern.matches(&entry.method, &entry.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: &str) -> Received {
        Received {
            number: 0,
            time_ms: 0,
            connection: 1,
            method: "GET".to_owned(),
            path: "/a".to_owned(),
            query: "key=secret".to_owned(),
            headers: vec![("x-copy".to_owned(), "Token secret".to_owned())],
            token: TokenSeen::Right,
            body: body.to_owned(),
            status: None,
            bucket: None,
            effect: false,
        }
    }

    #[test]
    fn the_token_is_hidden_wherever_it_was_sent() {
        let shown = request("{\"key\":\"secret\"}").without("secret");
        let text = serde_json::to_string(&shown).unwrap();
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(shown.header("X-Copy"), Some("Token [token]"));
    }

    #[test]
    fn the_log_is_bounded_and_numbers_stay_true() {
        let mut log = ReceivedLog::default();
        for _ in 0..REQUESTS_MAX + 5 {
            log.add(request(""));
        }
        assert_eq!(log.after(None, usize::MAX).len(), REQUESTS_MAX);
        assert!(log.entry(4).is_none());
        assert_eq!(log.entry(5).unwrap().number, 5);
        assert_eq!(log.after(Some(100_002), 10).len(), 2);
    }
}
