//! `/cache`: what is in memory, by the tags that it can be purged by.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use serde::Serialize;

use super::super::render::{Page, PageView};
use super::super::state::OperatorState;
use super::super::table::PageTable;
use super::super::{cells, html};
use crate::cache::CacheSize;

#[derive(Debug, Serialize)]
struct CachePage {
    #[serde(flatten)]
    size: CacheSize,
    tags: Vec<TagRow>,
}

#[derive(Debug, Serialize)]
struct TagRow {
    tag: Arc<str>,
    entries: usize,
}

/// What is in memory now.
pub(crate) async fn cache(State(state): State<Arc<OperatorState>>, view: PageView) -> Response {
    let (size, tags) = state.gateway.cache.count_by_tag();
    view.show(&CachePage { size, tags: tags.into_iter().map(|(tag, entries)| TagRow { tag, entries }).collect() })
}

impl Page for CachePage {
    const TITLE: &str = "Cache";

    fn table(&self) -> PageTable {
        PageTable::of(&["tag", "entries"], &self.tags)
    }

    fn html(&self) -> Markup {
        let CacheSize { entries, bytes, capacity_bytes, hits, misses, evictions } = self.size;
        let figures = [
            ("Entries", entries.to_string()),
            ("Hits", hits.to_string()),
            ("Misses", misses.to_string()),
            ("Evicted", evictions.to_string()),
        ];
        html! {
            (html::figures(&figures))
            (html::gauge("Memory", [bytes, capacity_bytes], cells::bytes, ""))
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
