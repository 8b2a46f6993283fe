//! Refusals for want of what callers share.

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
        SharedKind::Answers => ("MG208", "No memory for further answers"),
        SharedKind::Records => ("MG183", "The caller's share of the log's buffer is used up"),
    };
    let row = RefusalRow::new(StatusCode::SERVICE_UNAVAILABLE, code, title).own().soon();
    if matches!(of, SharedKind::Answers) { row.stale() } else { row }
}

/// Whose share of what is used up, and what frees it.
pub(super) const fn detail(of: SharedKind, short: Shortage) -> &'static str {
    match (of, short) {
        (SharedKind::Requests, Shortage::Most | Shortage::Share) => {
            "This caller has its share of `limits.in_flight` under way, and what is free is kept for others: wait for some of its requests to end."
        }
        (SharedKind::Requests, Shortage::All) => {
            "Other callers have all of `limits.in_flight` under way: try again shortly."
        }
        (SharedKind::Joined, Shortage::Most | Shortage::Share) => {
            "This caller has its share of `limits.joined` waiting for what other requests fetch, and what is free is kept for others: wait for some of its requests to end."
        }
        (SharedKind::Joined, Shortage::All) => "Other callers have all of `limits.joined` waiting: try again shortly.",
        (SharedKind::Connections, Shortage::Most | Shortage::Share) => {
            "This caller has its share of `limits.connections`, all with requests under way, and what is free is kept for others: send more requests over each, or wait for some to end. This connection is closed."
        }
        (SharedKind::Connections, Shortage::All) => {
            "Other callers have all of `limits.connections`: try again shortly. This connection is closed."
        }
        (SharedKind::Bodies, Shortage::Most | Shortage::Share) => {
            "This caller's bodies take its share of `limits.bodies_bytes`, and what is free is kept for others: wait for some of its requests to end. Nothing was forwarded."
        }
        (SharedKind::Bodies, Shortage::All) => {
            "Other callers' bodies take all of `limits.bodies_bytes`: try again shortly. Nothing was forwarded."
        }
        (SharedKind::Answers, Shortage::Most | Shortage::Share) => {
            "This caller's answers take its share of `limits.answers_bytes`, and what is free is kept for others: take those that are under way, or wait for some of its requests to end."
        }
        (SharedKind::Answers, Shortage::All) => {
            "Other callers' answers take all of `limits.answers_bytes`: try again shortly."
        }
        (SharedKind::Records, Shortage::Most | Shortage::Share) => {
            "Records of this caller's requests take its share of `audit.buffer_bytes`, and what is free is kept for others: wait until the log's disk has taken some of them."
        }
        (SharedKind::Records, Shortage::All) => {
            "Records of other callers' requests take all of `audit.buffer_bytes`: try again shortly."
        }
    }
}
