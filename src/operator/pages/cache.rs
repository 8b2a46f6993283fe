//! `/cache`: what is in memory, by the tags that it can be purged by.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use serde::Serialize;

use super::super::html;
use super::super::render::{Page, PageView};
use super::super::state::OperatorState;
use super::super::table::PageTable;

#[derive(Debug, Serialize)]
struct CachePage {
    entries: u64,
    bytes: u64,
    capacity_bytes: u64,
    hits: u64,
    misses: u64,
    tags: Vec<TagRow>,
}

#[derive(Debug, Serialize)]
struct TagRow {
    tag: Arc<str>,
    entries: usize,
}

/// What is in memory now.
pub(crate) async fn cache(State(state): State<Arc<OperatorState>>, view: PageView) -> Response {
    let (size, tags) = state.gateway.cache.census();
    view.show(&CachePage {
        entries: size.entries,
        bytes: size.bytes,
        capacity_bytes: size.capacity_bytes,
        hits: size.hits,
        misses: size.misses,
        tags: tags.into_iter().map(|(tag, entries)| TagRow { tag, entries }).collect(),
    })
}

impl Page for CachePage {
    const TITLE: &str = "Cache";

    fn table(&self) -> PageTable {
        let row = |tag: &TagRow| vec![tag.tag.to_string(), tag.entries.to_string()];
        PageTable { columns: &["tag", "entries"], rows: self.tags.iter().map(row).collect() }
    }

    fn html(&self) -> Markup {
        let figures = [
            ("Entries", self.entries.to_string()),
            ("Hits", self.hits.to_string()),
            ("Misses", self.misses.to_string()),
        ];
        html! {
            (html::figures(&figures))
            (html::gauge("Bytes", self.bytes, self.capacity_bytes, ""))
            h2 { "Tags" }
            form method="post" action="/cache/purge" {
                label { "tag" input name="tag" placeholder="org:11" required; }
                button type="submit" { "Purge the tag" }
            }
            form method="post" action="/cache/purge" {
                input type="hidden" name="all" value="true";
                button type="submit" { "Purge everything" }
            }
            (html::table(&self.table(), "Nothing is in memory: reads of a class with a lifetime fill it."))
        }
    }
}
