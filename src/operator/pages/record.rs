//! `/audit/record`: everything that the log says about one request, in order of time, and how to check it without makegate.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use http::{HeaderMap, header};
use jiff::{SignedDuration, Timestamp};
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
use super::audit::{named, records_csv};
use super::links;
use super::replica_records::{AskedReplica, REPLICA, remarks};
use super::story;
use crate::audit::{self, Filter, ReplicasQuery};
use crate::door::PeerConnection;
use crate::hash;
use crate::ids::escape_invisible;

/// The most records that one story has: a caller can use a request id again once its request is over.
const RECORDS_MAX: usize = 200;

#[derive(Debug, Serialize)]
struct StoryPage {
    /// The oldest first.
    records: Vec<Box<RawValue>>,
    /// Why some may be missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// This replica's name, if it is one of several.
    #[serde(skip)]
    own_replica: Option<Arc<str>>,
    /// Where the page was asked for, for what people paste into a shell.
    #[serde(skip)]
    host: String,
    #[serde(skip)]
    dir: String,
}

/// `?request=ID`: all records of the request. `?seq=N`: the record N, and the others of its write; of another replica with `replica`, where
/// the record's `time` makes it fast to find.
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
    query.allow_only(if state.gateway.replicas.is_some() {
        &["request", "seq", REPLICA, "time"]
    } else {
        &["request", "seq"]
    })?;
    let mut asked = AskedReplica::of_records(&state, query)?;
    let story = match (query.get("request"), query.get("seq")) {
        (Some(request), None) => Story::Request(request.to_owned()),
        (None, Some(seq)) => {
            // Each log has its own numbers.
            asked = match asked {
                AskedReplica::Shared(replicas, None) | AskedReplica::OwnForAll(replicas) => AskedReplica::Own(replicas),
                one @ (AskedReplica::Only | AskedReplica::Own(_) | AskedReplica::Shared(_, Some(_))) => one,
            };
            Story::Record(seq.to_owned())
        }
        (None, None) | (Some(_), Some(_)) => {
            let why =
                "write request=ID for all records of a request, or seq=N for the record N and the others of its write";
            return Err(OperatorRefusal::BadParameter { why: why.to_owned() });
        }
    };
    state.gateway.log.flush().await;
    let own_replica = asked.own_name();
    let note = asked.note();
    let mut search = StorySearch { state: &state, operator: &operator, asked, time: query.get("time"), note };
    let records = search.records(&story).await?;
    let note = search.note;
    if view.format == PageFormat::Csv {
        state.note_export(&operator, &peer, query.suffix().trim_start_matches('?'), true);
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let dir = state.gateway.log.dir().display().to_string();
    Ok(view.show(&StoryPage { records, note, own_replica, host, dir }))
}

enum Story {
    Request(String),
    Record(String),
}

struct StorySearch<'s> {
    state: &'s OperatorState,
    operator: &'s Operator,
    asked: AskedReplica,
    time: Option<&'s str>,
    note: Option<String>,
}

impl StorySearch<'_> {
    /// The story's records, the oldest first.
    async fn records(&mut self, story: &Story) -> Result<Vec<Box<RawValue>>, OperatorRefusal> {
        let seq = match story {
            Story::Request(request) => return self.find(&[("request", request)], None).await,
            Story::Record(seq) => seq,
        };
        let time = self.time.map(|time| time.parse::<Timestamp>().map_err(|_| bad_time())).transpose()?;
        let mut records = self.find(&[("seq", seq)], time).await?;
        let one: Map<String, Value> =
            records.first().and_then(|line| serde_json::from_str(line.get()).ok()).unwrap_or_default();
        let is_intent = one.get("kind").is_some_and(|kind| kind == "intent");
        let Some(intent) = (if is_intent { one.get("seq") } else { one.get("intent") }) else {
            return Ok(records);
        };
        let intent = intent.to_string();
        if let (AskedReplica::Shared(..), Some(request)) = (&self.asked, one.get("request").and_then(Value::as_str)) {
            let all = self.find(&[("request", request)], None).await?;
            return Ok(all.into_iter().filter(|line| is_of_write(line, &intent)).collect());
        }
        if !is_intent {
            records = self.find(&[("seq", &intent)], None).await?;
        }
        records.extend(self.find(&[("intent", &intent)], None).await?);
        Ok(records)
    }

    async fn find(
        &mut self,
        filters: &[(&str, &str)],
        time: Option<Timestamp>,
    ) -> Result<Vec<Box<RawValue>>, OperatorRefusal> {
        let mut filter = Filter::parse(filters.iter().copied(), self.state.gateway.clock.wall())?;
        filter.limit = RECORDS_MAX;
        let log = &self.state.gateway.log;
        if let AskedReplica::Shared(replicas, replica) = &self.asked {
            let mut filter = filter.clone();
            (filter.since, filter.until) = (time, time.map(|time| time + SignedDuration::from_micros(1)));
            let query = ReplicasQuery { filter, replica: replica.clone(), after: None };
            match log.query_replicas(replicas, self.operator.name(), query, |page| page.records).await {
                Ok(mut records) => {
                    records.reverse();
                    return Ok(records);
                }
                Err(error) => self.note = Some(self.asked.note_on_own(error)?),
            }
        }
        let mut records = log.query(self.operator.name(), filter).await?.records;
        records.reverse();
        Ok(named(records, self.asked.own_name().as_deref()))
    }
}

fn bad_time() -> OperatorRefusal {
    OperatorRefusal::BadParameter {
        why: "time: write the record's time, such as 2026-07-01T12:00:00.123456Z".to_owned(),
    }
}

/// Whether this is a record of the write whose intent has this number.
fn is_of_write(line: &RawValue, intent: &str) -> bool {
    let record: Map<String, Value> = serde_json::from_str(line.get()).unwrap_or_default();
    let is = |name: &str| record.get(name).and_then(Value::as_u64).is_some_and(|number| Ok(number) == intent.parse());
    is("intent") || (is("seq") && record.get("kind").is_some_and(|kind| kind == "intent"))
}

impl Page for StoryPage {
    const TITLE: &str = "One request";

    fn table(&self) -> PageTable {
        PageTable { columns: &[], rows: Vec::new() }
    }

    fn csv(&self) -> String {
        records_csv(&self.records, self.own_replica.is_some())
    }

    fn html(&self, now: Timestamp) -> Markup {
        html! {
            (remarks(None, self.note.as_deref()))
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
                @if let Some(stored) = self.stored(&record, line) {
                    p {
                        a href={ "/audit/proof?seq=" (seq) } { "Proof that it is in the log" }
                        @if let Some(explain) = links::explain(&record) { " · " a href=(explain) { "Explain" } }
                    }
                    details {
                        summary { "How to check this without makegate" }
                        (self.check(&seq, &stored))
                    }
                } @else {
                    p.quiet { "This is in the log of " (get(REPLICA)) ", which has the proof." }
                }
            }
        }
    }

    /// The line as it is in this replica's log; `None`: it is in another's.
    fn stored(&self, record: &Map<String, Value>, line: &RawValue) -> Option<String> {
        let Some(replica) = record.get(REPLICA).and_then(Value::as_str) else { return Some(line.get().to_owned()) };
        let own = self.own_replica.as_deref().filter(|own| *own == replica)?;
        line.get().strip_suffix(&format!(",\"{REPLICA}\":\"{own}\"}}")).map(|members| format!("{members}}}"))
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
        "intent" => {
            let replica =
                record.get(REPLICA).map(|replica| format!("&{REPLICA}={}", encode(&json_cell(Some(replica)))));
            Some(format!("/audit/record?seq={}{}", encode(value), replica.unwrap_or_default()))
        }
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
