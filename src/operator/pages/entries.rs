//! `/cache/entries`: the answers in memory one by one, without their bodies.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::Method;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::cells;
use super::super::query::{PageQuery, encode};
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageView};
use super::super::rich::{self, RichCell};
use super::super::state::OperatorState;
use super::super::table::PageTable;
use crate::cache::Entry;
use crate::gateway::admit::policy::Policy;
use crate::gateway::recorded;
use crate::hash;
use crate::ids::{RequestId, escape_invisible};

/// Entries of one page.
const ENTRIES_MAX: usize = 100;
/// Hex digits of an entry's id, which is the beginning of its key's SHA-256.
const ID_DIGITS: usize = 16;
const PARAMETERS: [&str; 5] = ["operation", "tag", "id", "page", "purge"];

#[derive(Debug, Serialize)]
struct EntriesPage {
    /// How many there are like that.
    total: usize,
    entries: Vec<EntryRow>,
    /// The number of the next page, if there is one.
    next: Option<usize>,
    #[serde(skip)]
    query: PageQuery,
}

/// One answer in memory.
#[derive(Debug, Serialize)]
struct EntryRow {
    id: String,
    operation: Option<Arc<str>>,
    path: String,
    /// The parameters that its key has. What records may not hold is left out.
    query: String,
    status: u16,
    age_s: u64,
    /// How much longer it is fresh; negative: since when it is stale.
    ttl_s: i64,
    /// How much longer it may answer at all, if Make fails.
    left_s: u64,
    bytes: u32,
    tags: Vec<Arc<str>>,
    filled_by: RequestId,
}

/// The entries that the query asks for, in the order of their targets.
///
/// # Errors
/// A parameter is unknown or invalid.
pub(crate) async fn entries(
    State(state): State<Arc<OperatorState>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    view.query.allow_only(&PARAMETERS)?;
    let page = match view.query.get("page").map(str::parse::<usize>) {
        None => 1,
        Some(Ok(page)) if page > 0 => page,
        Some(_) => return Err(OperatorRefusal::BadParameter { why: "page: write a number from 1 on".to_owned() }),
    };
    state.walk(move |state| view.show(&EntriesPage::of(state, view.query.clone(), page))).await
}

/// The entry of this id with its key. Goes through all entries.
pub(crate) fn cached_entry(state: &OperatorState, id: &str) -> Option<(Arc<str>, Arc<Entry>)> {
    state.gateway.cache.usable_entries().into_iter().find(|(key, _)| id_of(key) == id)
}

fn id_of(key: &str) -> String {
    hash::hex(&hash::sha256(key.as_bytes())).chars().take(ID_DIGITS).collect()
}

impl EntriesPage {
    fn of(state: &OperatorState, query: PageQuery, page: usize) -> Self {
        let policy = state.gateway.policy();
        let wanted = |name: &str| query.get(name);
        let mut found = state.gateway.cache.usable_entries();
        found.retain(|(key, entry)| {
            wanted("id").is_none_or(|id| id_of(key) == id)
                && wanted("tag").is_none_or(|tag| entry.tags().any(|known| **known == *tag))
                && wanted("operation").is_none_or(|id| operation_of(&policy, entry).as_deref() == Some(id))
        });
        found.sort_unstable_by(|(key, _), (other, _)| key.cmp(other));
        let total = found.len();
        let from = (page - 1).saturating_mul(ENTRIES_MAX).min(total);
        let shown = found.into_iter().skip(from).take(ENTRIES_MAX);
        let entries: Vec<_> = shown.map(|(key, entry)| EntryRow::of(state, &policy, &key, &entry)).collect();
        let next = (from + entries.len() < total).then_some(page + 1);
        Self { total, entries, next, query }
    }
}

fn operation_of(policy: &Policy, entry: &Entry) -> Option<Arc<str>> {
    policy.catalogue().classify(&Method::GET, &entry.path).ok().map(|matched| matched.operation.id.clone())
}

impl EntryRow {
    fn of(state: &OperatorState, policy: &Policy, key: &str, entry: &Entry) -> Self {
        let now = state.gateway.clock.now();
        let matched = policy.catalogue().classify(&Method::GET, &entry.path).ok();
        let row = matched.as_ref().map(|matched| matched.operation);
        let parameters = key.split_once('?').map_or("", |(_, query)| query).split('&').filter(|pair| !pair.is_empty());
        let shown = parameters.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let may_show =
                row.is_some_and(|row| row.recorded_kind(&decoded(name)).is_some()) && !decoded(value).contains('@');
            if may_show { pair.to_owned() } else { format!("{name}=…") }
        });
        Self {
            id: id_of(key),
            operation: row.map(|row| row.id.clone()),
            path: recorded::path(&state.gateway.log, &entry.path).to_string(),
            query: shown.collect::<Vec<_>>().join("&"),
            status: entry.status.as_u16(),
            age_s: entry.age(now).as_secs(),
            ttl_s: entry.ttl(now),
            left_s: entry.left(now).unwrap_or_default().as_secs(),
            bytes: entry.weight(),
            tags: entry.tags().cloned().collect(),
            filled_by: entry.filled_by,
        }
    }

    fn target(&self) -> String {
        if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) }
    }

    fn cells(&self) -> Vec<RichCell> {
        let us = |seconds: u64| seconds.saturating_mul(1_000_000);
        let fresh = match u64::try_from(self.ttl_s) {
            Ok(left) => RichCell::Duration(us(left)),
            Err(_) => RichCell::text(format!("stale for {}", cells::duration(us(self.ttl_s.unsigned_abs())))),
        };
        vec![
            RichCell::link(self.target(), format!("/cache/entries?id={}", self.id)),
            RichCell::text(self.operation.as_deref().unwrap_or_default()),
            RichCell::text(self.status),
            RichCell::Duration(us(self.age_s)),
            fresh,
            RichCell::Duration(us(self.left_s)),
            RichCell::Bytes(u64::from(self.bytes)),
            RichCell::text(self.tags.iter().map(|tag| &**tag).collect::<Vec<_>>().join(" ")),
        ]
    }

    /// Everything about it, on a page of its own.
    fn whole(&self, asks_to_purge: bool, now: Timestamp) -> Markup {
        let answered = format!("/audit?filled_by={}", encode(self.filled_by.as_str()));
        let tags: Vec<_> = self
            .tags
            .iter()
            .map(|tag| {
                let (entries, purge) =
                    (format!("/cache/entries?tag={}", encode(tag)), format!("/cache?purge={}", encode(tag)));
                vec![RichCell::text(tag), RichCell::link("its entries", entries), RichCell::link("purge …", purge)]
            })
            .collect();
        html! {
            h2 { "Filled by" }
            p { (cells::request(self.filled_by.as_str())) " · " a href=(answered) { "Answers from it" } }
            h2 { "Tags" }
            (rich::table(&["tag", "entries", "purge"], &tags, "It has no tag.", now))
            @if asks_to_purge {
                section.confirm {
                    h2 { "Purge this entry?" }
                    p { "It is dropped, and fetched again, at the cost of quota, when somebody asks for it." }
                    form method="post" action="/cache/purge" {
                        input type="hidden" name="entry" value=(self.id);
                        button type="submit" { "Purge" }
                        a href={ "/cache/entries?id=" (self.id) } { "Leave it" }
                    }
                }
            } @else {
                p { a href={ "/cache/entries?id=" (self.id) "&purge=1" } { "Purge this entry" } }
            }
        }
    }
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl Page for EntriesPage {
    const TITLE: &str = "Entries in memory";

    fn table(&self) -> PageTable {
        PageTable::of(
            &["id", "operation", "path", "query", "status", "age_s", "ttl_s", "left_s", "bytes", "tags", "filled_by"],
            &self.entries,
        )
    }

    fn html(&self, now: Timestamp) -> Markup {
        let rows: Vec<_> = self.entries.iter().map(EntryRow::cells).collect();
        let columns = ["target", "operation", "status", "age", "fresh for", "of use for", "size", "tags"];
        let only = ["operation", "tag", "id"].into_iter().filter_map(|name| Some((name, self.query.get(name)?)));
        html! {
            p { a href="/cache" { "Cache" } " · " (self.total) " entries" @for (name, value) in only { " · " (name) " " code { (escape_invisible(value)) } } }
            (rich::table(&columns, &rows, "No such entry is in memory: it may have been purged, or its life is over.", now))
            @if let Some(next) = self.next {
                p { a href={ "/cache/entries" (self.query.with("page", &next.to_string())) } { "More entries" } }
            }
            @if self.query.get("id").is_some() {
                @for entry in &self.entries { (entry.whole(self.query.has("purge"), now)) }
            }
        }
    }
}
