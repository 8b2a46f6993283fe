//! Refusals for want of what callers share.

use http::StatusCode;

use super::RefusalRow;
use crate::callers::Kind;
use crate::shares::Short;

pub(super) const fn row(of: Kind) -> RefusalRow {
    let (code, title) = match of {
        Kind::Requests => ("MG144", "The caller's share of requests under way is used up"),
        Kind::Joined => ("MG148", "The caller's share of waiting requests is used up"),
        Kind::Connections => ("MG145", "The caller's share of connections is used up"),
        Kind::Bodies => ("MG158", "No memory for the body"),
        Kind::Answers => ("MG208", "No memory for further answers"),
    };
    RefusalRow { status: StatusCode::SERVICE_UNAVAILABLE, code, title }
}

/// Whose share of what is used up, and what frees it.
pub(super) const fn detail(of: Kind, short: Short) -> &'static str {
    match (of, short) {
        (Kind::Requests, Short::Most | Short::Share) => {
            "This caller has its share of `limits.in_flight` under way, and what is free is kept for others: wait for some of its requests to end."
        }
        (Kind::Requests, Short::All) => "Other callers have all of `limits.in_flight` under way: try again shortly.",
        (Kind::Joined, Short::Most | Short::Share) => {
            "This caller has its share of `limits.joined` waiting for what other requests fetch, and what is free is kept for others: wait for some of its requests to end."
        }
        (Kind::Joined, Short::All) => "Other callers have all of `limits.joined` waiting: try again shortly.",
        (Kind::Connections, Short::Most | Short::Share) => {
            "This caller has its share of `limits.connections`, all with requests under way, and what is free is kept for others: send more requests over each, or wait for some to end. This connection is closed."
        }
        (Kind::Connections, Short::All) => {
            "Other callers have all of `limits.connections`: try again shortly. This connection is closed."
        }
        (Kind::Bodies, Short::Most | Short::Share) => {
            "This caller's bodies take its share of `limits.bodies_bytes`, and what is free is kept for others: wait for some of its requests to end. Nothing was forwarded."
        }
        (Kind::Bodies, Short::All) => {
            "Other callers' bodies take all of `limits.bodies_bytes`: try again shortly. Nothing was forwarded."
        }
        (Kind::Answers, Short::Most | Short::Share) => {
            "This caller's answers take its share of `limits.answers_bytes`, and what is free is kept for others: take those that are under way, or wait for some of its requests to end."
        }
        (Kind::Answers, Short::All) => "Other callers' answers take all of `limits.answers_bytes`: try again shortly.",
    }
}
