//! `/audit/record`: everything that the log says about one request, in order of time, and how to check it without makegate.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use http::{HeaderMap, header};
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::super::cells;
use super::super::operators::Operator;
use super::super::query::encode;
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageFormat, PageView};
use super::super::state::OperatorState;
use super::super::table::{PageTable, json_cell};
use super::audit::records_csv;
use super::links;
use super::story;
use crate::audit::{self, Filter};
use crate::door::PeerConnection;
use crate::hash;
use crate::ids::escape_invisible;

/// The most records that one story has: a caller can use a request id again once its request is over.
const RECORDS_MAX: usize = 200;

#[derive(Debug, Serialize)]
struct StoryPage {
    /// The oldest first.
    records: Vec<Box<RawValue>>,
    /// Where the page was asked for, for what people paste into a shell.
    #[serde(skip)]
    host: String,
    #[serde(skip)]
    dir: String,
}

/// `?request=ID`: all records of the request. `?seq=N`: the record N, and the others of its write.
///
/// # Errors
/// Neither parameter is given, or both are; the query finds no end; there is no such record.
pub(crate) async fn record(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    Extension(operator): Extension<Arc<Operator>>,
    headers: HeaderMap,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    let query = &view.query;
    query.allow_only(&["request", "seq"])?;
    let story = match (query.get("request"), query.get("seq")) {
        (Some(request), None) => Story::Request(request.to_owned()),
        (None, Some(seq)) => Story::Record(seq.to_owned()),
        (None, None) | (Some(_), Some(_)) => {
            let why =
                "write request=ID for all records of a request, or seq=N for the record N and the others of its write";
            return Err(OperatorRefusal::BadParameter { why: why.to_owned() });
        }
    };
    state.gateway.log.flush().await;
    let records = story.records(&state, &operator).await?;
    if view.format == PageFormat::Csv {
        state.note_export(&operator, &peer, query.suffix().trim_start_matches('?'), true);
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    Ok(view.show(&StoryPage { records, host, dir: state.gateway.log.dir().display().to_string() }))
}

enum Story {
    Request(String),
    Record(String),
}

impl Story {
    /// Its records, the oldest first.
    async fn records(&self, state: &OperatorState, operator: &Operator) -> Result<Vec<Box<RawValue>>, OperatorRefusal> {
        match self {
            Self::Request(request) => find(state, operator, "request", request).await,
            Self::Record(seq) => {
                let mut records = find(state, operator, "seq", seq).await?;
                let one: Map<String, Value> =
                    records.first().and_then(|line| serde_json::from_str(line.get()).ok()).unwrap_or_default();
                let is_intent = one.get("kind").is_some_and(|kind| kind == "intent");
                let Some(intent) = (if is_intent { one.get("seq") } else { one.get("intent") }) else {
                    return Ok(records);
                };
                if !is_intent {
                    records = find(state, operator, "seq", &intent.to_string()).await?;
                }
                records.extend(find(state, operator, "intent", &intent.to_string()).await?);
                Ok(records)
            }
        }
    }
}

async fn find(
    state: &OperatorState,
    operator: &Operator,
    name: &str,
    value: &str,
) -> Result<Vec<Box<RawValue>>, OperatorRefusal> {
    let limit = RECORDS_MAX.to_string();
    let filter = Filter::parse([(name, value), ("limit", &limit)], state.gateway.clock.wall())?;
    let mut records = state.gateway.log.query(operator.name(), filter).await?.records;
    records.reverse();
    Ok(records)
}

impl Page for StoryPage {
    const TITLE: &str = "One request";

    fn table(&self) -> PageTable {
        PageTable { columns: &[], rows: Vec::new() }
    }

    fn csv(&self) -> String {
        records_csv(&self.records)
    }

    fn html(&self, now: Timestamp) -> Markup {
        html! {
            @if self.records.is_empty() {
                p.empty { "The log has no such record: retention may have deleted it, or the id is another's. " a href="/audit" { "Search the log." } }
            }
            @for line in &self.records { (self.chapter(line, now)) }
        }
    }
}

impl StoryPage {
    fn chapter(&self, line: &RawValue, now: Timestamp) -> Markup {
        let record: Map<String, Value> = serde_json::from_str(line.get()).unwrap_or_default();
        let get = |name: &str| json_cell(record.get(name));
        let seq = get("seq");
        html! {
            section.record id={ "seq-" (seq) } {
                h2 { (escape_invisible(&story::title(&record))) ", " (get("time").replace('T', " ").replace('Z', " UTC")) }
                p { (escape_invisible(&story::sentences(&record).join(" "))) }
                dl.fields {
                    @for (name, value) in &record {
                        dt { (name) }
                        dd { (field(&record, name, &json_cell(Some(value)), now)) }
                    }
                }
                p {
                    a href={ "/audit/proof?seq=" (seq) } { "Proof that it is in the log" }
                    @if let Some(explain) = links::explain(&record) { " · " a href=(explain) { "Explain" } }
                }
                details {
                    summary { "How to check this without makegate" }
                    (self.check(&seq, line.get()))
                }
            }
        }
    }

    /// The steps of `docs/auditing.md` for this record.
    fn check(&self, seq: &str, line: &str) -> Markup {
        let leaf = audit::leaf(line.as_bytes());
        let (hash, in_base64) = (hash::hex(&leaf), STANDARD.encode(leaf));
        let dir = links::shell_word(&format!("{}/", self.dir.trim_end_matches('/')));
        let (host, key) = (&self.host, "me:$MAKEGATE_OPERATOR_KEY");
        html! {
            ol {
                li {
                    "The record as it is stored, and the SHA-256 of a zero byte and that line: its hash in the tree (RFC 9162)."
                    pre { "(printf '\\0'; grep -h '^{\"seq\":" (seq) ",' " (dir) "*.jsonl | tr -d '\\n') | sha256sum" }
                    "It must print " code { (hash) } ", which the proof has in base64: " code { (in_base64) } "."
                }
                li {
                    "The path of hashes from there to the root, and the signed head with that root. Join the hash with each of "
                    code { "audit_path" } " as RFC 9162, section 2.1.3.2, says; the result must be the head's root hash."
                    pre { "curl --user \"" (key) "\" '" (host) "/audit/proof.json?seq=" (seq) "'" }
                }
                li {
                    "The head's signature (Ed25519), with the log's public key that you have kept: see docs/auditing.md, whose "
                    code { "check.py" } " does all of this for the whole log with nothing but python3 and openssl."
                    pre { "python3 check.py " (dir) " \"$(cat head.pub)\" today.head" }
                }
            }
        }
    }
}

/// A field, which leads to what it names.
fn field(record: &Map<String, Value>, name: &str, value: &str, now: Timestamp) -> Markup {
    let to = match name {
        "request" | "filled_by" => return cells::request(value),
        "intent" => Some(format!("/audit/record?seq={}", encode(value))),
        "caller" => Some(format!("/callers?name={}", encode(value))),
        "refusal" => links::explain(record),
        "operation" | "organization" | "key" | "peer" | "operator" | "event" => {
            Some(format!("/audit?{name}={}", encode(value)))
        }
        _ => None,
    };
    let value = match name.strip_suffix("_us").and_then(|_| value.parse().ok()) {
        Some(us) => html! { (cells::duration(us)) },
        None => cells::text(value, now),
    };
    html! { @if let Some(to) = to { a href=(to) { (value) } } @else { (value) } }
}
