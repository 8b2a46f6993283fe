//! `/doubts`: writes that may or may not have taken effect, and how to settle them.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use http::{HeaderMap, header};
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;
use serde_json::{Map, Value};

use super::super::cells;
use super::super::operators::Operator;
use super::super::query::encode;
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageFormat, PageView};
use super::super::rich::{self, RichCell};
use super::super::state::OperatorState;
use super::super::table::{PageTable, json_cell};
use super::links;
use crate::audit::Doubt;
use crate::catalogue::{EffectCheck, Proves};
use crate::config::Role;
use crate::gateway::admit::policy::Policy;
use crate::ids::escape_invisible;
use crate::reconcile::elsewhere::doubts_elsewhere;
use crate::reconcile::{DoubtProgress, DoubtReason};

/// The most doubts with a form on one page.
const FORMS_MAX: usize = 50;
/// The most settlements that the page looks back to.
const SETTLED_MAX: &str = "10";

#[derive(Debug, Serialize)]
struct DoubtsPage {
    doubts: Vec<DoubtRow>,
    /// The rest is for people alone: scripts find settlements at `/audit?kind=settlement`.
    #[serde(skip)]
    view: DoubtsView,
}

#[derive(Debug, Default)]
struct DoubtsView {
    /// Only doubts whose intent has a greater number are shown.
    after: u64,
    /// The request that was settled just now.
    settled: Option<String>,
    /// The last settlements, the newest first.
    settlements: Vec<Map<String, Value>>,
    may_settle: bool,
    /// How the command line reaches this gateway.
    source: String,
    /// What other replicas have in doubt cannot be told now.
    is_part: bool,
}

#[derive(Debug, Serialize)]
struct DoubtRow {
    /// Only of a write that this replica looks after.
    intent: Option<u64>,
    request: String,
    /// With microseconds, as in records.
    time: String,
    caller: Arc<str>,
    operation: Arc<str>,
    organization: Option<u64>,
    path: Arc<str>,
    looks: u32,
    why: &'static str,
    /// What a look would prove.
    proof: String,
    /// The replica that looks after it, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<Arc<str>>,
}

/// All writes in doubt, the oldest first.
///
/// # Errors
/// A parameter is unknown.
pub(crate) async fn doubts(
    State(state): State<Arc<OperatorState>>,
    Extension(operator): Extension<Arc<Operator>>,
    headers: HeaderMap,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    let mut people = DoubtsView::default();
    if view.format == PageFormat::Html {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        people = DoubtsView {
            after: view.query.get("after").and_then(|after| after.parse().ok()).unwrap_or(0),
            settled: view.query.get("settled").map(str::to_owned),
            settlements: state.newest_records(&operator, &[&[("kind", "settlement"), ("limit", SETTLED_MAX)]]).await,
            may_settle: operator.role() >= Role::Operate,
            source: source(&state, host),
            is_part: false,
        };
    }
    let elsewhere = doubts_elsewhere(&state.gateway).await;
    people.is_part = elsewhere.is_err();
    state
        .walk(move |state| {
            let policy = state.gateway.policy();
            let own = state.gateway.replicas.as_ref().map(|replicas| replicas.name());
            let rows = state.gateway.log.doubts().list().into_iter();
            let rows = rows.map(|doubt| DoubtRow { replica: own.cloned(), ..doubt_row(state, &policy, doubt) });
            let rows = rows.chain(elsewhere.into_iter().flatten().map(|doubt| DoubtRow {
                intent: None,
                replica: doubt.adopted.as_ref().map(|adopted| adopted.replica.clone()),
                why: DoubtReason::Elsewhere.as_str(),
                ..doubt_row(state, &policy, doubt)
            }));
            let rows = rows.collect();
            view.show(&DoubtsPage { doubts: rows, view: people })
        })
        .await
}

/// The options that make the command line ask this gateway. A file is better than an address: it has the key and the certificate.
fn source(state: &OperatorState, host: &str) -> String {
    match &state.file {
        Some(file) => format!("--config {}", links::shell_word(&file.display().to_string())),
        None => format!("--url {}", links::shell_word(&format!("http://{host}"))),
    }
}

fn doubt_row(state: &OperatorState, policy: &Policy, doubt: Doubt) -> DoubtRow {
    let DoubtProgress { looks, why } = state.reconciler.progress(policy, &doubt);
    DoubtRow {
        intent: Some(doubt.intent),
        replica: None,
        request: doubt.request.to_string(),
        time: format!("{:.6}", doubt.time),
        proof: proof(policy, &doubt),
        caller: doubt.caller,
        operation: doubt.operation,
        organization: doubt.organization,
        path: doubt.path,
        looks,
        why: why.as_str(),
    }
}

/// What the look of the doubt's row proves, in words.
fn proof(policy: &Policy, doubt: &Doubt) -> String {
    let row = policy.catalogue().row(&doubt.operation);
    let Some(EffectCheck { read, proves, .. }) = row.and_then(|row| row.look.as_ref()) else {
        return "no read of Make's proves what became of it: look there yourself".to_owned();
    };
    match proves {
        Proves::Fields if doubt.marks.is_none() => {
            format!("{read} would prove it, but the log cannot know its body again: look in Make yourself")
        }
        Proves::Fields => format!(
            "{read}: if everything that the write set is there and equal, it was done; a different value proves nothing"
        ),
        Proves::Gone => {
            format!(
                "{read}: a 404 proves that it was done; if it is still there after the doubt window, it was not done"
            )
        }
        Proves::Absent => format!("{read}: if the list lacks it, it was done; that it is there proves nothing"),
    }
}

impl Page for DoubtsPage {
    const TITLE: &str = "Writes in doubt";

    fn table(&self) -> PageTable {
        let columns: &'static [&'static str] =
            &["request", "time", "caller", "operation", "organization", "path", "looks", "why", "proof", "replica"];
        // Where there is one replica alone, nobody asks which.
        let several = self.doubts.iter().any(|doubt| doubt.replica.is_some());
        let columns = columns.split_last().filter(|_| !several).map_or(columns, |(_, columns)| columns);
        PageTable::of(columns, &self.doubts)
    }

    fn html(&self, now: Timestamp) -> Markup {
        let later: Vec<_> =
            self.doubts.iter().filter(|doubt| doubt.intent.is_none_or(|intent| intent > self.view.after)).collect();
        let shown = later.get(..FORMS_MAX).unwrap_or(&later);
        html! {
            @if let Some(settled) = &self.view.settled { (self.told(settled)) }
            @if self.view.is_part {
                p.bad role="status" { "The other replicas' writes in doubt are missing here: the database that they share does not answer." }
            }
            @if self.doubts.is_empty() {
                p.empty { "No write is in doubt: of every write it is known whether it took effect." }
            } @else {
                p { "Nobody knows whether Make carried out these writes, and equal writes of their callers are held. Look in Make what became of each, then settle it. makegate settles by itself what a look proves." }
            }
            @for doubt in shown { (self.item(doubt, now)) }
            @if let Some(last) = shown.iter().rev().find_map(|doubt| doubt.intent).filter(|_| later.len() > shown.len()) {
                p { a href={ "/doubts?after=" (last) } { (later.len() - shown.len()) " more" } }
                p.quiet { "Many of one caller at once: " code { "makegate doubts settle --all-of CALLER --as done|not-done " (escape_invisible(&self.view.source)) } }
            }
            h2 { "Lately settled" }
            (self.settlement_table(now))
        }
    }
}

impl DoubtsPage {
    fn item(&self, doubt: &DoubtRow, now: Timestamp) -> Markup {
        let evidence = match doubt.looks {
            0 => format!("no look yet; {}", doubt.why),
            1 => format!("1 look; {}", doubt.why),
            looks => format!("{looks} looks; {}", doubt.why),
        };
        html! {
            section.doubt id={ "doubt-" (doubt.request) } {
                h2 { (doubt.operation) " by " (escape_invisible(&doubt.caller)) }
                dl.fields {
                    dt { "What" } dd { (escape_invisible(&doubt.path)) }
                    dt { "When" } dd { (cells::text(&doubt.time, now)) }
                    dt { "Request" } dd { (cells::request(&doubt.request)) }
                    @if let Some(replica) = &doubt.replica { dt { "Replica" } dd { (replica) } }
                    @if let Some(organization) = doubt.organization { dt { "Organization" } dd { (organization) } }
                    dt { "Evidence so far" } dd { (evidence) }
                    dt { "What a look would prove" } dd { (doubt.proof) }
                }
                @if self.view.may_settle {
                    form method="post" action={ "/doubts/" (encode(&doubt.request)) } {
                        label { "How you know" input name="note" size="40" maxlength="1000" placeholder="the invoice is there"; }
                        button type="submit" name="as" value="done" { "It was done" }
                        button type="submit" name="as" value="not-done" { "It was not done" }
                    }
                } @else {
                    p.quiet { "Your role is read. Somebody with the role operate can settle it." }
                }
                p.quiet {
                    "Or, with the operator's key in MAKEGATE_OPERATOR_KEY where no file names it: "
                    code { "makegate doubts settle " (links::shell_word(&doubt.request)) " --as done " (escape_invisible(&self.view.source)) }
                    " (or " code { "--as not-done" } ")"
                }
            }
        }
    }

    fn told(&self, settled: &str) -> Markup {
        let record = self.view.settlements.iter().find(|record| record.get("request").is_some_and(|id| id == settled));
        html! {
            p.good role="status" {
                @if let Some(record) = record {
                    "Settled as " (settled_as(record)) " by " (by(record)) ": "
                } @else {
                    "Settled: "
                }
                (cells::request(settled))
            }
        }
    }

    fn settlement_table(&self, now: Timestamp) -> Markup {
        let row = |record: &Map<String, Value>| {
            let get = |name: &str| json_cell(record.get(name));
            vec![
                RichCell::request(get("request")),
                RichCell::text(get("time")),
                RichCell::text(get("caller")),
                RichCell::text(get("operation")),
                RichCell::text(settled_as(record)),
                RichCell::text(by(record)),
                RichCell::text(get("detail")),
            ]
        };
        let rows: Vec<_> = self.view.settlements.iter().map(row).collect();
        rich::table(
            &["request", "time", "caller", "operation", "as", "by", "how they know"],
            &rows,
            "No write in doubt has been settled, or the log cannot be read now.",
            now,
        )
    }
}

fn settled_as(record: &Map<String, Value>) -> &'static str {
    if record.get("outcome").is_some_and(|outcome| outcome == "done") { "done" } else { "not done" }
}

fn by(record: &Map<String, Value>) -> String {
    let operator = json_cell(record.get("operator"));
    if operator.is_empty() { "a look".to_owned() } else { escape_invisible(&operator) }
}
