//! `/callers`: who may do what, and what they did.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::query::encode;
use super::super::render::{Page, PageView};
use super::super::rich::{self, RichCell};
use super::super::state::OperatorState;
use super::super::table::{PageTable, cell};
use super::super::{cells, html};
use super::titles::title_of;
use crate::callers::RecentRequests;
use crate::config::{Grants, IdentityConfig, KeyConfig, Rate, Scope};
use crate::counters::AnswerCount;
use crate::gateway::admit::policy::Caller;
use crate::gateway::key_expiry::KeyExpiry;
use crate::ids::{KeyId, escape_invisible};
use crate::vocabulary::Answer;

#[derive(Debug, Serialize)]
struct CallersPage {
    callers: Vec<CallerRow>,
    /// Somebody asked for one.
    #[serde(skip)]
    is_one: bool,
}

/// One caller.
#[derive(Debug, Serialize)]
pub(crate) struct CallerRow {
    pub(crate) name: Arc<str>,
    grants: Vec<Arc<str>>,
    /// `None`: all.
    organizations: Option<Vec<u64>>,
    pub(crate) rate: String,
    #[serde(skip)]
    limit: Rate,
    burst: u32,
    may_refresh: bool,
    pub(crate) keys: Vec<CallerKeyRow>,
    /// The tokens that identify it.
    identities: Vec<CallerIdentity>,
    /// The names in certificates that identify it, besides its own.
    certificates: Vec<String>,
    uids: Vec<u32>,
    pub(crate) requests: u64,
    pub(crate) refused: u64,
    under_way: u64,
    /// What it asked for in the last minute.
    last_minute: RecentRequests,
    /// How much of its rate that is: 1 is all of it.
    rate_used: f64,
    /// Answers by where they came from.
    pub(crate) answers: CountsByWord,
    /// Refusals by code.
    pub(crate) refusals: CountsByWord,
    /// The same by operation (`""`: not classified).
    operations: BTreeMap<Arc<str>, CountsByWord>,
}

/// Counts by words (those of [`Answer`], or codes of refusals), without those that are 0.
pub(crate) type CountsByWord = BTreeMap<&'static str, u64>;

/// Whom a platform's token must be about.
#[derive(Debug, Serialize)]
struct CallerIdentity {
    issuer: Arc<str>,
    subject: Arc<str>,
}

impl CallerIdentity {
    fn of(config: &IdentityConfig) -> Self {
        Self { issuer: config.issuer.clone(), subject: config.subject.clone() }
    }
}

/// One of a caller's keys.
#[derive(Debug, Serialize)]
pub(crate) struct CallerKeyRow {
    key: String,
    /// The last day or moment, as configured.
    expires: Option<Arc<str>>,
    /// Where it may be used from; empty: from anywhere.
    from: Vec<String>,
    note: Option<Arc<str>>,
    /// `expires soon` (within 14 days) or `expired`.
    pub(crate) warning: Option<&'static str>,
    last_used: Option<Timestamp>,
}

/// All callers of the configuration in force; `?name=`: one of them, with everything about it.
pub(crate) async fn callers(State(state): State<Arc<OperatorState>>, view: PageView) -> Response {
    let mut callers = caller_rows(&state);
    let name = view.query.get("name").map(str::to_owned);
    callers.retain(|caller| name.as_ref().is_none_or(|name| *caller.name == **name));
    view.show(&CallersPage { callers, is_one: name.is_some() })
}

/// The same, for other pages.
pub(crate) fn caller_rows(state: &OperatorState) -> Vec<CallerRow> {
    let now = state.gateway.clock.wall();
    let moment = state.gateway.clock.now();
    state.gateway.policy().callers.iter().map(|caller| caller_row(caller.as_ref(), (moment, now))).collect()
}

fn caller_row(caller: &Caller, (moment, now): (Instant, Timestamp)) -> CallerRow {
    let config = &caller.config;
    let last_minute = caller.state.last_minute(moment);
    let (mut answers, mut refusals) = (CountsByWord::new(), CountsByWord::new());
    let mut operations = BTreeMap::<Arc<str>, CountsByWord>::new();
    for AnswerCount { operation, kind, count } in caller.state.answers.read() {
        let (id, answer) = (operation.unwrap_or_else(|| Arc::from("")), kind.answer.as_str());
        *answers.entry(answer).or_default() += count;
        *operations.entry(id).or_default().entry(answer).or_default() += count;
        kind.code.into_iter().for_each(|code| *refusals.entry(code).or_default() += count);
    }
    CallerRow {
        name: config.name.clone(),
        grants: match &config.grants {
            Grants::All => vec!["*".into()],
            Grants::Some(grants) => grants.clone(),
        },
        organizations: match &config.organizations {
            Scope::All => None,
            Scope::Only(ids) => Some(ids.clone()),
        },
        rate: config.rate.to_string(),
        limit: config.rate,
        burst: config.burst,
        may_refresh: config.may_refresh,
        keys: config.keys.iter().map(|key| key_row(caller, key, now)).collect(),
        identities: config.identities.iter().map(CallerIdentity::of).collect(),
        certificates: config.certificates.iter().map(ToString::to_string).collect(),
        uids: config.uids.clone(),
        requests: answers.values().sum(),
        refused: answers.get(Answer::Refused.as_str()).copied().unwrap_or(0),
        under_way: caller.state.under_way(),
        last_minute,
        rate_used: rate_used(config.rate, last_minute),
        answers,
        refusals,
        operations,
    }
}

/// How much of a rate the requests of a minute are that it let through.
fn rate_used(rate: Rate, last_minute: RecentRequests) -> f64 {
    let in_a_minute = f64::from(rate.requests) * 60.0 / rate.per.as_secs_f64().max(f64::MIN_POSITIVE);
    let used = (last_minute.requests - last_minute.over_rate) as f64 / in_a_minute.max(f64::MIN_POSITIVE);
    (used * 1000.0).round() / 1000.0
}

fn key_row(caller: &Caller, config: &KeyConfig, now: Timestamp) -> CallerKeyRow {
    let key = KeyId::of(&config.hash);
    let used_ms = caller.state.last_used(key).load(Ordering::Relaxed);
    CallerKeyRow {
        key: key.to_string(),
        expires: config.expires.as_ref().map(|expiry| expiry.written.clone()),
        from: config.from.iter().map(ToString::to_string).collect(),
        note: config.note.clone(),
        warning: KeyExpiry::of(config, now).map(KeyExpiry::as_str),
        last_used: Timestamp::from_millisecond(used_ms).ok().filter(|_| used_ms > 0),
    }
}

impl CallerKeyRow {
    fn text(&self) -> String {
        let note = self.note.iter().map(|note| note.to_string());
        let end = self.expires.iter().map(|at| format!("{} {at}", self.warning.unwrap_or("expires")));
        let about: Vec<String> = note.chain(end).collect();
        if about.is_empty() { self.key.clone() } else { format!("{} ({})", self.key, about.join("; ")) }
    }
}

impl Page for CallersPage {
    const TITLE: &str = "Callers";

    fn table(&self) -> PageTable {
        let columns = &[
            "name", "grants", "organizations", "rate", "last_minute", "rate_used", "burst", "keys", "last_used",
            "requests", "refused", "under_way",
        ];
        let row = |caller: &CallerRow| {
            let ids = |ids: &Vec<u64>| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
            let keys: Vec<String> = caller.keys.iter().map(CallerKeyRow::text).collect();
            vec![
                caller.name.to_string(),
                caller.grants.join(" "),
                caller.organizations.as_ref().map_or_else(|| "all".to_owned(), ids),
                caller.rate.clone(),
                caller.last_minute.requests.to_string(),
                cells::percent(Some(caller.rate_used)),
                caller.burst.to_string(),
                keys.join(", "),
                cell(caller.keys.iter().filter_map(|key| key.last_used).max()),
                caller.requests.to_string(),
                caller.refused.to_string(),
                caller.under_way.to_string(),
            ]
        };
        PageTable { columns, rows: self.callers.iter().map(row).collect() }
    }

    fn html(&self, now: Timestamp) -> Markup {
        let hint = "There is no caller: make a key with `makegate key new --caller NAME` and add what it prints to the configuration.";
        if !self.is_one {
            let names = self.callers.iter().map(|caller| &*caller.name);
            return html! {
                (rich::table_of(&self.table(), hint, now))
                p.quiet { "One caller with its keys, refusals and operations:" }
                ul { @for name in names { li { a href={ "/callers?name=" (encode(name)) } { (escape_invisible(name)) } } } }
            };
        }
        html! {
            p { a href="/callers" { "All callers" } }
            @if self.callers.is_empty() { p.empty { "No caller has this name in the configuration in force." } }
            (rich::table_of(&self.table(), "", now))
            @for caller in &self.callers { (caller.details(now)) }
        }
    }
}

impl CallerRow {
    fn let_through(&self) -> u64 {
        self.last_minute.requests - self.last_minute.over_rate
    }

    fn rate_in_a_minute(&self) -> u64 {
        let Rate { requests, per } = self.limit;
        let in_a_minute = u128::from(requests) * 60_000 / per.as_millis().max(1);
        u64::try_from(in_a_minute).unwrap_or(u64::MAX).max(1)
    }

    fn over_rate(&self) -> String {
        match self.last_minute.over_rate {
            0 => String::new(),
            count => format!("{count} refused (MG141)"),
        }
    }

    fn details(&self, now: Timestamp) -> Markup {
        let name = encode(&self.name);
        let keys: Vec<_> = self.keys.iter().map(|key| key.cells(&name)).collect();
        let identities: Vec<_> =
            self.identities.iter().map(|one| vec![RichCell::text(&one.issuer), RichCell::text(&one.subject)]).collect();
        let refusals: Vec<_> = self
            .refusals
            .iter()
            .map(|(code, count)| {
                let link = RichCell::link(code, format!("/audit?caller={name}&refusal={code}"));
                vec![link, RichCell::text(title_of(code)), RichCell::text(count)]
            })
            .collect();
        let operations: Vec<_> = self
            .operations
            .iter()
            .flat_map(|(id, answers)| answers.iter().map(move |(answer, count)| (id, answer, count)))
            .map(|(id, answer, count)| {
                let shown = if id.is_empty() { "(not classified)" } else { id };
                let link = format!("/audit?caller={name}&operation={}&answer={answer}", encode(id));
                vec![RichCell::text(shown), RichCell::text(answer), RichCell::link(count, link)]
            })
            .collect();
        html! {
            p {
                a href={ "/audit?caller=" (name) } { "Its records" } " · "
                a href={ "/explain?caller=" (name) } { "Explain a request of it" } " · "
                a href={ "/quota/ledger?caller=" (name) } { "What it spent" } " · "
                a href="/quota" { "Quota" }
            }
            (html::gauge("Rate used in the last minute", [self.let_through(), self.rate_in_a_minute()], |n| n.to_string(), &self.over_rate()))
            h2 { "Keys" }
            (rich::table(&["key", "note", "from", "expires", "warning", "last used"], &keys, "It has no key.", now))
            h2 { "Identities" }
            (rich::table(&["issuer", "subject"], &identities, "No platform's token identifies it.", now))
            h2 { "Refusals by code" }
            (rich::table(&["code", "what", "count"], &refusals, "Nothing was refused since the start.", now))
            h2 { "Requests by operation" }
            (rich::table(&["operation", "answer", "count"], &operations, "It has asked nothing since the start.", now))
        }
    }
}

impl CallerKeyRow {
    fn cells(&self, caller: &str) -> Vec<RichCell> {
        let text = |text: &Option<Arc<str>>| RichCell::text(text.as_deref().unwrap_or_default());
        vec![
            RichCell::link(&self.key, format!("/audit?caller={caller}&key={}", self.key)),
            text(&self.note),
            RichCell::text(self.from.join(" ")),
            text(&self.expires),
            RichCell::text(self.warning.unwrap_or_default()),
            RichCell::text(self.last_used.map_or_else(|| "never".to_owned(), |at| at.to_string())),
        ]
    }
}
