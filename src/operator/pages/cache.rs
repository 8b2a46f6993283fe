//! `/cache`: what is in memory, by the tags that it can be purged by.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::query::encode;
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageView};
use super::super::rich::{self, RichCell};
use super::super::state::OperatorState;
use super::super::table::PageTable;
use super::super::{cells, html};
use crate::cache::CacheSize;
use crate::ids::escape_invisible;

/// The most tags that the page for people shows.
const ROWS_MAX: usize = 200;

#[derive(Debug, Serialize)]
struct CachePage {
    #[serde(flatten)]
    size: CacheSize,
    /// Of the reads that looked in memory.
    hit_ratio: Option<f64>,
    tags: Vec<TagRow>,
    /// The tag that somebody is about to purge; `*`: all of them.
    #[serde(skip)]
    purge: Option<String>,
}

#[derive(Debug, Serialize)]
struct TagRow {
    tag: Arc<str>,
    entries: usize,
}

/// What is in memory now.
///
/// # Errors
/// A fault of makegate's own.
pub(crate) async fn cache(
    State(state): State<Arc<OperatorState>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    state
        .walk(move |state| {
            let (size, tags) = state.gateway.cache.count_by_tag();
            let tags: Vec<_> = tags.into_iter().map(|(tag, entries)| TagRow { tag, entries }).collect();
            let hit_ratio = cells::ratio(size.hits, size.hits + size.misses);
            let purge = view.query.get("purge").map(str::to_owned);
            view.show(&CachePage { size, hit_ratio, tags, purge })
        })
        .await
}

impl Page for CachePage {
    const TITLE: &str = "Cache";

    fn table(&self) -> PageTable {
        PageTable::of(&["tag", "entries"], &self.tags)
    }

    fn html(&self, now: Timestamp) -> Markup {
        let CacheSize { entries, bytes, capacity_bytes, hits, misses, evictions } = self.size;
        let figures = [
            ("Entries", entries.to_string()),
            ("From memory", cells::percent(self.hit_ratio)),
            ("Hits", hits.to_string()),
            ("Misses", misses.to_string()),
            ("Evicted", evictions.to_string()),
        ];
        html! {
            (html::figures(&figures))
            (html::gauge("Memory", [bytes, capacity_bytes], cells::bytes, ""))
            @if let Some(tag) = &self.purge { (self.confirmation(tag)) }
            p { a href="/cache/entries" { "Entries one by one" } ": by operation, with their age, what is left of their life, and who filled them." }
            h2 { "Tags" }
            (rich::table(&["tag", "entries", "purge"], &self.tag_rows(), "Nothing is in memory: reads of a class with a lifetime fill it.", now))
            @if self.tags.len() > ROWS_MAX { p.quiet { (self.tags.len() - ROWS_MAX) " more tags: see the JSON or CSV." } }
            p { a href="/cache?purge=*" { "Purge everything" } }
        }
    }
}

impl CachePage {
    /// The tags with the most entries.
    fn tag_rows(&self) -> Vec<Vec<RichCell>> {
        let mut tags: Vec<_> = self.tags.iter().collect();
        tags.sort_by_key(|row| std::cmp::Reverse(row.entries));
        let row = |row: &&TagRow| {
            let purge = RichCell::link("purge …", format!("/cache?purge={}", encode(&row.tag)));
            let entries = RichCell::link(row.entries, format!("/cache/entries?tag={}", encode(&row.tag)));
            vec![RichCell::text(&row.tag), entries, purge]
        };
        tags.iter().take(ROWS_MAX).map(row).collect()
    }

    /// Asks before anything is dropped.
    fn confirmation(&self, tag: &str) -> Markup {
        let is_all = tag == "*";
        let entries = match is_all {
            true => self.size.entries,
            false => self.tags.iter().find(|row| *row.tag == *tag).map_or(0, |row| row.entries as u64),
        };
        html! {
            section.confirm {
                h2 { "Purge " @if is_all { "everything" } @else { "the tag " code { (escape_invisible(tag)) } } "?" }
                p { (entries) " entries are dropped, and each is fetched again, at the cost of quota, when somebody asks for it." }
                form method="post" action="/cache/purge" {
                    @if is_all { input type="hidden" name="all" value="true"; } @else { input type="hidden" name="tag" value=(tag); }
                    button type="submit" { "Purge" }
                    a href="/cache" { "Leave it" }
                }
            }
        }
    }
}
