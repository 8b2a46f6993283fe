//! `/replicas`: who shares quota, writes and fences with this replica, and how well.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageView};
use super::super::rich::{self, RichCell};
use super::super::state::OperatorState;
use super::super::table::PageTable;
use super::super::{cells, html};
use super::rankings::Latency;
use crate::replicas::engine::Line;
use crate::replicas::{ListedReplica, Replicas, Roster, TakesPart};

/// So much of a configuration's hash tells it from another.
const HASH_CHARS: usize = 8;

#[derive(Debug, Serialize)]
struct ReplicasView {
    /// Whether there is `[replicas]`.
    configured: bool,
    /// The replica that answers.
    this: Option<Arc<str>>,
    replicas: Vec<ReplicaRow>,
    /// When the rows were read.
    read: Option<Timestamp>,
    epoch: Option<String>,
    epoch_began: Option<Timestamp>,
    engine: Option<EngineRow>,
}

#[derive(Debug, Serialize)]
struct ReplicaRow {
    name: String,
    state: TakesPart,
    version: Option<String>,
    config_sha256: Option<String>,
    joined: Option<Timestamp>,
    /// What is left of the lease. Of the replica that answers alone: each counts its own.
    lease_ms: Option<u64>,
    fences_behind: Option<u64>,
    records_behind: Option<u64>,
}

/// The engine, as this replica sees it.
#[derive(Debug, Serialize)]
struct EngineRow {
    address: String,
    /// Whether it can be used.
    up: bool,
    /// Why it cannot.
    why: Option<String>,
    /// Since when it cannot.
    since: Option<Timestamp>,
    /// Whether announcements are heard; behind a pooler they are not.
    announcements: bool,
    /// Of statements on soft state.
    latency: Latency,
}

/// The replicas as the engine knows them. It waits for no engine: what it shows may be older then.
///
/// # Errors
/// A fault of makegate's own.
pub(crate) async fn replicas(
    State(state): State<Arc<OperatorState>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    let page = match &state.gateway.replicas {
        Some(replicas) => ReplicasView::of(&state, replicas, replicas.fresh_roster().await.as_deref()),
        None => ReplicasView {
            configured: false,
            this: None,
            replicas: Vec::new(),
            read: None,
            epoch: None,
            epoch_began: None,
            engine: None,
        },
    };
    Ok(view.show(&page))
}

impl ReplicasView {
    fn of(state: &OperatorState, replicas: &Replicas, roster: Option<&Roster>) -> Self {
        let lease_ms = u64::try_from(replicas.lease().left().as_millis()).unwrap_or(u64::MAX);
        let row = |listed: &ListedReplica| ReplicaRow {
            name: listed.name.clone(),
            state: listed.state,
            version: listed.version.clone(),
            config_sha256: listed.config_sha256.clone(),
            joined: listed.joined,
            lease_ms: (listed.name == **replicas.name()).then_some(lease_ms),
            fences_behind: listed.fences_behind,
            records_behind: listed.records_behind,
        };
        let mut rows: Vec<_> = roster.map(|roster| roster.replicas.iter().map(row).collect()).unwrap_or_default();
        if !rows.iter().any(|row| row.name == **replicas.name()) {
            rows.push(Self::own_row(replicas, lease_ms));
        }
        let (epoch, epoch_began) = roster.and_then(|roster| roster.epoch).unzip();
        let lost = replicas.engine_lost();
        Self {
            configured: true,
            this: Some(replicas.name().clone()),
            replicas: rows,
            read: roster.map(|roster| roster.read),
            epoch: epoch.map(|id| id.to_string()),
            epoch_began: epoch_began.flatten(),
            engine: Some(EngineRow {
                address: replicas.engine().address().to_owned(),
                up: replicas.is_engine_up(),
                since: lost.as_ref().map(|lost| state.wall_at(lost.since)),
                why: replicas.trouble(),
                announcements: replicas.engine().hears(),
                latency: Latency::of(&replicas.engine().counters().durations(Line::Quick).read()),
            }),
        }
    }

    /// What this replica knows of itself, before the engine has answered once.
    fn own_row(replicas: &Replicas, lease_ms: u64) -> ReplicaRow {
        let (version, config_sha256) = replicas.described();
        ReplicaRow {
            name: replicas.name().to_string(),
            state: if lease_ms > 0 { TakesPart::Live } else { TakesPart::Gone },
            version: Some(version),
            config_sha256: Some(config_sha256).filter(|hash| !hash.is_empty()),
            joined: None,
            lease_ms: Some(lease_ms),
            fences_behind: None,
            records_behind: None,
        }
    }

    fn rows_html(&self) -> Vec<Vec<RichCell>> {
        let this = self.this.as_deref();
        let row = |row: &ReplicaRow| {
            let name = if this == Some(&*row.name) { format!("{} (this one)", row.name) } else { row.name.clone() };
            let text = |value: &Option<String>| RichCell::text(value.as_deref().unwrap_or_default());
            let number = |value: Option<u64>| value.map_or_else(|| RichCell::text(""), RichCell::text);
            let hash = row.config_sha256.as_deref().map(|hash| hash.get(..HASH_CHARS).unwrap_or(hash));
            vec![
                RichCell::text(name),
                RichCell::text(row.state.as_str()),
                text(&row.version),
                RichCell::text(hash.unwrap_or_default()),
                RichCell::text(row.joined.map(|joined| joined.to_string()).unwrap_or_default()),
                row.lease_ms.map_or_else(|| RichCell::text(""), |ms| RichCell::Duration(ms.saturating_mul(1_000))),
                number(row.fences_behind),
                number(row.records_behind),
            ]
        };
        self.replicas.iter().map(row).collect()
    }

    fn engine_html(engine: &EngineRow, now: Timestamp) -> Markup {
        let latency = cells::bound(engine.latency.p99_us);
        html! {
            p {
                "The database at " code { (engine.address) }
                @if engine.up {
                    " answers: 99 % of short statements in " (latency) "."
                } @else {
                    " cannot be used"
                    @if let Some(why) = &engine.why { ": " (cells::sentence(why)) }
                    "."
                    @if let Some(since) = engine.since { " It began " (cells::time(since, now)) "." }
                }
                @if engine.up && !engine.announcements {
                    " Its announcements are not heard (a pooler is in front of it?), so each replica asks for new fences."
                }
            }
        }
    }
}

impl Page for ReplicasView {
    const TITLE: &str = "Replicas";

    fn table(&self) -> PageTable {
        let columns =
            &["name", "state", "version", "config_sha256", "joined", "lease_ms", "fences_behind", "records_behind"];
        PageTable::of(columns, &self.replicas)
    }

    fn html(&self, now: Timestamp) -> Markup {
        let Some(engine) = &self.engine else {
            return html! {
                p.empty {
                    "This makegate is alone: its configuration has no section " code { "[replicas]" } ". docs/replicas.md says how "
                    "several of them share quota, writes and what they forget."
                }
            };
        };
        let count = |state| self.replicas.iter().filter(|row| row.state == state).count().to_string();
        let figures =
            [("Live", count(TakesPart::Live)), ("Gone", count(TakesPart::Gone)), ("Left", count(TakesPart::Left))];
        let columns =
            &["name", "state", "version", "configuration", "joined", "lease", "fences behind", "records behind"];
        html! {
            (html::figures(&figures))
            (rich::table(columns, &self.rows_html(), "", now))
            p.quiet {
                @match self.read {
                    Some(read) => { "Read " (cells::time(read, now)) ". " }
                    None => { "The database has not been read yet. " }
                }
                "Lease: what is left of the right to answer from memory; each replica counts its own. Configuration: the beginning of the "
                "file's hash."
            }
            h2 { "The database that they share" }
            (Self::engine_html(engine, now))
            @if let Some(epoch) = &self.epoch {
                p.quiet {
                    "Its soft state is of the epoch " code { (epoch) }
                    @if let Some(began) = self.epoch_began { ", which began " (cells::time(began, now)) }
                    "."
                }
            }
        }
    }
}
