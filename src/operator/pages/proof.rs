//! `/audit/head` and `/audit/proof`: what an auditor keeps, so that nobody can change the log unnoticed.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use http::{HeaderMap, header};
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::operators::Operator;
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageFormat, PageView, typed};
use super::super::rich;
use super::super::state::OperatorState;
use super::super::table::{PageTable, json_cell};
use super::replica_records::AskedReplica;
use crate::audit::{ConsistencyProof, Head, InclusionProof, QueryError};
use crate::replicas::heads;

/// The newest signed head.
#[derive(Debug, Serialize)]
struct HeadPage {
    /// Whose log it is of, if there are several replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<Arc<str>>,
    /// The signed note (C2SP `tlog-checkpoint`).
    head: String,
    origin: String,
    size: u64,
    /// The key that signs; of another replica's head its own log says which.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// A head over everything that was recorded before; with `replica` the newest one that the database has of that replica. Without a suffix
/// or an `Accept` for another form it is the bare note, which other tools read.
///
/// # Errors
/// There is no such replica, or the database does not answer.
pub(crate) async fn head(
    State(state): State<Arc<OperatorState>>,
    view: PageView,
    headers: HeaderMap,
) -> Result<Response, OperatorRefusal> {
    let log = &state.gateway.log;
    let asked = AskedReplica::of(&state, &view.query)?;
    let mut whose = asked.own_name();
    let (head, key) = match asked {
        AskedReplica::Shared(replicas, Some(replica)) => {
            let found = heads::newest(replicas.engine(), &replica).await.map_err(QueryError::from)?;
            let head = found
                .and_then(|found| Head::parse(&found.note))
                .ok_or_else(|| OperatorRefusal::NoHead { replica: replica.clone() })?;
            whose = Some(replica);
            (head, None)
        }
        AskedReplica::Only | AskedReplica::Own(_) | AskedReplica::OwnForAll(_) | AskedReplica::Shared(_, None) => {
            (log.head().await, Some(log.head_key().to_string()))
        }
    };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if view.format == PageFormat::Json && !view.has_suffix() && !accept.contains("json") {
        return Ok(typed("text/plain; charset=utf-8", head.to_string()));
    }
    Ok(view.show(&HeadPage {
        replica: whose,
        head: head.to_string(),
        origin: head.origin().to_owned(),
        size: head.size,
        key,
    }))
}

impl Page for HeadPage {
    const TITLE: &str = "Signed head";

    fn table(&self) -> PageTable {
        PageTable::of(&["size", "origin", "key", "head"], std::slice::from_ref(self))
    }

    fn html(&self, _: Timestamp) -> Markup {
        html! {
            p { "This covers the first " (self.size) " records. Kept elsewhere, it shows later that none of them was altered or taken away:" }
            pre { (self.head) }
            p { "makegate audit verify DIR --head FILE" }
            @if let Some(key) = &self.key {
                h2 { "Key" }
                pre { (key) }
            }
        }
    }
}

/// A proof, of one record or of growth.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ProofPage {
    Inclusion(Box<InclusionProof>),
    Growth(ConsistencyProof),
}

/// `?seq=N`: proves that record N is in the log. `?from=N`: proves that the log of N records grew into the present one.
///
/// # Errors
/// There is no such record; neither parameter is given, or both are.
pub(crate) async fn proof(
    State(state): State<Arc<OperatorState>>,
    Extension(operator): Extension<Arc<Operator>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    let query = &view.query;
    query.allow_only(&["seq", "from"])?;
    let number = |name: &str, text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let wrong = || OperatorRefusal::BadParameter { why: format!("{name} is a number: {name}=1, say") };
        text.parse::<u64>().ok().filter(|_| digits).ok_or_else(wrong)
    };
    let (log, asker) = (&state.gateway.log, operator.name());
    let page = match (query.get("seq"), query.get("from")) {
        (Some(seq), None) => ProofPage::Inclusion(Box::new(log.prove(asker, number("seq", seq)?).await?)),
        (None, Some(from)) => ProofPage::Growth(log.prove_consistency(asker, number("from", from)?).await?),
        (None, None) | (Some(_), Some(_)) => {
            let why = "write seq=N for the record N, or from=N for the growth from N records to now".to_owned();
            return Err(OperatorRefusal::BadParameter { why });
        }
    };
    Ok(view.show(&page))
}

impl Page for ProofPage {
    const TITLE: &str = "Proof";

    fn table(&self) -> PageTable {
        let proof = serde_json::to_value(self).unwrap_or_default();
        let members = proof.as_object().into_iter().flatten();
        let rows = members.map(|(name, value)| vec![name.clone(), json_cell(Some(value))]).collect();
        PageTable { columns: &["name", "value"], rows }
    }

    fn html(&self, now: Timestamp) -> Markup {
        rich::table_of(&self.table(), "There is nothing to prove.", now)
    }
}
