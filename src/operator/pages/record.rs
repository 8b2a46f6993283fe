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
    let records = story.records(&state).await?;
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
    async fn records(&self, state: &OperatorState) -> Result<Vec<Box<RawValue>>, OperatorRefusal> {
        match self {
            Self::Request(request) => find(state, "request", request).await,
            Self::Record(seq) => {
                let mut records = find(state, "seq", seq).await?;
                let one: Map<String, Value> =
                    records.first().and_then(|line| serde_json::from_str(line.get()).ok()).unwrap_or_default();
                let is_intent = one.get("kind").is_some_and(|kind| kind == "intent");
                let Some(intent) = (if is_intent { one.get("seq") } else { one.get("intent") }) else {
                    return Ok(records);
                };
                if !is_intent {
                    records = find(state, "seq", &intent.to_string()).await?;
                }
                records.extend(find(state, "intent", &intent.to_string()).await?);
                Ok(records)
            }
        }
    }
}

async fn find(state: &OperatorState, name: &str, value: &str) -> Result<Vec<Box<RawValue>>, OperatorRefusal> {
    let limit = RECORDS_MAX.to_string();
    let filter = Filter::parse([(name, value), ("limit", &limit)], state.gateway.clock.wall())?;
    let mut records = state.gateway.log.query(filter).await?.records;
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
                h2 { (escape_invisible(&heading(&record))) }
                p { (escape_invisible(&sentence(&record))) }
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

/// `Intent, number 42, 2026-07-01 12:00:00 UTC`.
fn heading(record: &Map<String, Value>) -> String {
    let get = |name: &str| json_cell(record.get(name));
    let kind = get("kind");
    let time = get("time").replace('T', " ").replace('Z', " UTC");
    format!(
        "{}{}, number {}, {time}",
        kind.get(..1).unwrap_or_default().to_uppercase(),
        kind.get(1..).unwrap_or_default(),
        get("seq")
    )
}

/// What happened, in a sentence.
fn sentence(record: &Map<String, Value>) -> String {
    let get = |name: &str| Some(json_cell(record.get(name))).filter(|text| !text.is_empty());
    let who = get("caller").or_else(|| get("peer")).unwrap_or_else(|| "Somebody".to_owned());
    let asked = match (get("method"), get("path")) {
        (Some(method), Some(path)) => format!("{method} {path}"),
        (None, Some(path)) => path,
        (_, None) => "nothing that could be read".to_owned(),
    };
    let status = get("status").map_or_else(String::new, |status| format!(" with {status}"));
    let note = get("detail").map_or_else(String::new, |detail| format!(": {detail}"));
    match get("kind").as_deref() {
        Some("request") if get("refusal").is_some() => {
            let code = get("refusal").unwrap_or_default();
            format!("{who} asked for {asked} and was refused{status}: {code}.")
        }
        Some("request") => {
            let from = match get("answer").as_deref() {
                Some("hit") => "from memory",
                Some("stale") => "from memory, past its time",
                Some("replayed") => "as the same key was before",
                Some("miss") => "by Make, and the answer was stored",
                _ => "by Make",
            };
            format!("{who} asked for {asked} and was answered{status}, {from}.")
        }
        Some("intent") => format!("{who} asked for {asked}. This was on disk before anything went to Make."),
        Some("outcome") => match get("outcome").as_deref() {
            Some("done") => format!("It was done, and {who} was answered{status}."),
            Some("rejected") => format!("Make rejected it, and {who} was answered{status}."),
            Some("not-sent") => format!("It was not sent, and {who} was answered{status}."),
            Some("in-doubt") => {
                format!("Nobody knows whether it took effect: it is in doubt, and {who} was answered{status}.")
            }
            _ => format!("It ended, and {who} was answered{status}."),
        },
        Some("settlement") => {
            let by = get("operator").unwrap_or_else(|| "A look at Make".to_owned());
            let done = if get("outcome").as_deref() == Some("done") { "done" } else { "not done" };
            format!("{by} settled it as {done}{note}.")
        }
        Some("refusals") => {
            format!("{} refusals of {who} were counted, and have no record each.", get("count").unwrap_or_default())
        }
        _ => format!("{}{note}.", get("event").unwrap_or_else(|| "Something happened".to_owned())),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn told(record: Value) -> String {
        let Value::Object(record) = record else { panic!() };
        sentence(&record)
    }

    #[test]
    fn each_kind_of_record_is_told_in_a_sentence() {
        use serde_json::json;
        let asked =
            json!({"kind": "request", "caller": "a", "method": "GET", "path": "/x", "status": 200, "answer": "hit"});
        assert_eq!(told(asked), "a asked for GET /x and was answered with 200, from memory.");
        let refused = json!({"kind": "request", "peer": "10.0.0.7", "method": "GET", "path": "/x", "status": 401, "refusal": "MG111"});
        assert_eq!(told(refused), "10.0.0.7 asked for GET /x and was refused with 401: MG111.");
        let settled = json!({"kind": "settlement", "caller": "a", "operator": "anna", "outcome": "rejected", "detail": "no such invoice"});
        assert_eq!(told(settled), "anna settled it as not done: no such invoice.");
        let event = json!({"kind": "event", "event": "purge", "detail": "anna purged everything"});
        assert_eq!(told(event), "purge: anna purged everything.");
    }
}
