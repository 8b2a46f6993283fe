//! Refusals for shared resources that are used up.

use http::StatusCode;

use super::RefusalRow;
use crate::callers::SharedKind;
use crate::shares::Shortage;

pub(super) const fn row(of: SharedKind) -> RefusalRow {
    let (code, title) = match of {
        SharedKind::Requests => ("MG144", "The caller's share of requests under way is used up"),
        SharedKind::Joined => ("MG148", "The caller's share of waiting requests is used up"),
        SharedKind::Connections => ("MG145", "The caller's share of connections is used up"),
        SharedKind::Bodies => ("MG158", "No memory for the body"),
        SharedKind::Answers => ("MG208", "No memory for more answers"),
        SharedKind::Records => ("MG183", "The caller's share of the log's buffer is used up"),
        SharedKind::Doubts => ("MG184", "The caller's share of writes in doubt is used up"),
    };
    let row = super::row(StatusCode::SERVICE_UNAVAILABLE, code, title).own();
    // Doubts give no room back until somebody settles some of them.
    let row = if matches!(of, SharedKind::Doubts) { row } else { row.soon() };
    if matches!(of, SharedKind::Answers) { row.stale() } else { row }
}

pub(super) const fn detail(of: SharedKind, short: Shortage) -> &'static str {
    let (by_itself, by_others) = match of {
        SharedKind::Requests => (
            "This caller has used its share of `limits.in_flight`, and the rest is reserved for others: wait for some of its requests to finish.",
            "Other callers are using all of `limits.in_flight`: try again shortly.",
        ),
        SharedKind::Joined => (
            "This caller has used its share of `limits.joined`, with requests that wait for what others fetch, and the rest is reserved for others: wait for some of its requests to finish.",
            "Other callers are using all of `limits.joined`: try again shortly.",
        ),
        SharedKind::Connections => (
            "This caller has used its share of `limits.connections`, each with a request under way, and the rest is reserved for others: send more requests over each connection, or wait for some to finish. This connection is closed.",
            "Other callers are using all of `limits.connections`: try again shortly. This connection is closed.",
        ),
        SharedKind::Bodies => (
            "The bodies of this caller's requests use up its share of `limits.bodies_bytes`, and the rest is reserved for others: wait for some of its requests to finish. Nothing was forwarded.",
            "The bodies of other callers' requests use all of `limits.bodies_bytes`: try again shortly. Nothing was forwarded.",
        ),
        SharedKind::Answers => (
            "The answers to this caller use up its share of `limits.answers_bytes`, and the rest is reserved for others: read the answers that are under way, or wait for some of its requests to finish.",
            "The answers to other callers use all of `limits.answers_bytes`: try again shortly.",
        ),
        SharedKind::Records => (
            "Records of this caller's requests use up its share of `audit.buffer_bytes`, and the rest is reserved for others: wait until some of them are on disk.",
            "Records of other callers' requests use all of `audit.buffer_bytes`: try again shortly.",
        ),
        SharedKind::Doubts => (
            "Writes of this caller that are in doubt use up its share of `limits.doubts`, and the rest is reserved for others. Nothing was forwarded. Check what became of them; an operator settles them at /doubts, many at once with `makegate doubts settle --all-of CALLER`.",
            "Writes of other callers that are in doubt use up `limits.doubts`. Nothing was forwarded. An operator settles them at /doubts, many at once with `makegate doubts settle --all-of CALLER`.",
        ),
    };
    match short {
        Shortage::HolderMax | Shortage::Share => by_itself,
        Shortage::All => by_others,
    }
}
