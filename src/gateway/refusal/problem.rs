//! The problem document that is a refusal's body.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Refusal, RefusalRow};
use crate::ids::RequestId;
use crate::vocabulary::Outcome;

impl Refusal {
    /// The problem document (RFC 9457). `message` and `detail` are strings, because Make's clients read those. `outcome`: of a write with an
    /// intent.
    #[must_use]
    #[expect(clippy::wildcard_enum_match_arm, reason = "most refusals have no suberrors")]
    pub fn problem(&self, request: &RequestId, outcome: Option<Outcome>) -> Vec<u8> {
        #[derive(Serialize)]
        struct ProblemDocument<'a> {
            r#type: String,
            title: &'a str,
            status: u16,
            detail: &'a str,
            message: &'a str,
            code: &'a str,
            instance: &'a str,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            suberrors: Vec<Suberror<'a>>,
        }
        #[derive(Serialize)]
        struct Suberror<'a> {
            message: &'a str,
        }
        let RefusalRow { status, code, title, .. } = self.row();
        let mut detail = self.detail();
        if outcome == Some(Outcome::InDoubt) {
            // Many clients show only this text.
            let says_so = matches!(self, Self::DoubtTimedOut { .. } | Self::DoubtCut { .. });
            let write = if says_so { "It" } else { "The write may or may not have taken effect. It" };
            let _infallible = write!(detail, " {write} is listed at /doubts as {}.", request.as_str());
        }
        let suberrors = match self {
            Self::NotAnObject { why } => vec![Suberror { message: why }],
            Self::Repeated { .. } => vec![Suberror { message: &detail }],
            _ => Vec::new(),
        };
        let problem = ProblemDocument {
            r#type: format!("urn:makegate:refusal:{code}"),
            title,
            status: status.as_u16(),
            detail: &detail,
            message: title,
            code,
            instance: request.as_str(),
            suberrors,
        };
        serde_json::to_vec(&problem).unwrap_or_default()
    }
}
