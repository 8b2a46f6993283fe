//! `/quota`: the upstream's quota: who spent it, saved it, and waited for it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use serde::Serialize;

use super::super::html;
use super::super::render::{Page, PageView};
use super::super::state::OperatorState;
use super::super::table::{PageTable, cell};

#[derive(Debug, Serialize)]
struct QuotaPage {
    buckets: Vec<BucketRow>,
}

/// One organization's quota, or the account's.
#[derive(Debug, Serialize)]
pub(crate) struct BucketRow {
    /// `None`: the account's.
    organization: Option<u64>,
    limit: u32,
    used: u32,
    pub(crate) remaining: u32,
    pub(crate) waiting: u64,
    /// Free slots that the caller who has had most does not get now.
    kept: u32,
    /// The upstream's own 429 closed it for so long.
    pub(crate) closed_for_ms: Option<u64>,
    pub(crate) callers: Vec<SpenderRow>,
}

#[derive(Debug, Serialize)]
pub(crate) struct SpenderRow {
    pub(crate) name: Arc<str>,
    /// What it gets of the window however much others ask for.
    share: Option<u32>,
    /// Its slots in the window now.
    spent: u64,
    /// Its requests that wait now.
    waiting: u64,
    /// How many of its requests got no slot since the start.
    pub(crate) refused: u64,
    /// Its attempts since the start.
    pub(crate) sent: u64,
    /// Its answers since the start that came from memory instead.
    pub(crate) saved: u64,
    /// How long its attempts waited for their turns since the start.
    waited_us: u64,
}

/// All buckets now, also for other pages and metrics.
pub(crate) fn buckets(quota: &crate::quota::Quota) -> Vec<BucketRow> {
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let spender = |view: crate::quota::SpenderView| SpenderRow {
        name: view.name,
        share: view.share,
        spent: view.spent,
        waiting: view.waiting as u64,
        refused: view.refused,
        sent: view.sent,
        saved: view.saved,
        waited_us: view.waited_us,
    };
    let bucket = |view: crate::quota::BucketView| BucketRow {
        organization: view.organization,
        limit: view.limit,
        used: view.used,
        remaining: view.limit.saturating_sub(view.used),
        waiting: view.waiting as u64,
        kept: view.kept,
        closed_for_ms: view.closed_for.map(millis),
        callers: view.callers.into_iter().map(spender).collect(),
    };
    quota.buckets().into_iter().map(bucket).collect()
}

/// Every bucket, and who spent of it.
pub(crate) async fn quota(State(state): State<Arc<OperatorState>>, view: PageView) -> Response {
    view.show(&QuotaPage { buckets: buckets(&state.gateway.quota) })
}

impl BucketRow {
    /// How full it is, with its name, and who took it.
    pub(crate) fn gauge(&self) -> Markup {
        let spent = self.callers.iter().filter(|one| one.spent > 0).map(|one| format!("{} {}", one.name, one.spent));
        let waiting = (self.waiting > 0).then(|| format!("{} waiting", self.waiting));
        let closed = self.closed_for_ms.map(|ms| format!("closed by Make for {} s", ms.div_ceil(1000)));
        let by: Vec<_> = spent.chain(waiting).chain(closed).collect();
        let name = self.organization.map_or_else(|| "the account".to_owned(), |id| format!("organization {id}"));
        html::gauge(&name, self.used.into(), self.limit.into(), &by.join(", "))
    }

    /// The bucket's columns, then a caller's.
    fn rows(&self) -> Vec<Vec<String>> {
        let whose = self.organization.map_or_else(|| "account".to_owned(), |id| id.to_string());
        let own = [
            whose,
            self.limit.to_string(),
            self.used.to_string(),
            self.waiting.to_string(),
            self.kept.to_string(),
            cell(self.closed_for_ms),
        ];
        let row = |spender: Option<&SpenderRow>| {
            let spent = [
                cell(spender.map(|one| &one.name)),
                cell(spender.and_then(|one| one.share)),
                cell(spender.map(|one| one.spent)),
                cell(spender.map(|one| one.waiting)),
                cell(spender.map(|one| one.refused)),
                cell(spender.map(|one| one.sent)),
                cell(spender.map(|one| one.saved)),
                cell(spender.map(|one| one.waited_us)),
            ];
            own.iter().cloned().chain(spent).collect()
        };
        if self.callers.is_empty() { vec![row(None)] } else { self.callers.iter().map(Some).map(row).collect() }
    }
}

impl Page for QuotaPage {
    const TITLE: &str = "Quota";

    fn table(&self) -> PageTable {
        let columns = &[
            "organization",
            "limit",
            "used",
            "waiting",
            "kept",
            "closed_for_ms",
            "caller",
            "share",
            "spent",
            "caller_waiting",
            "refused",
            "sent",
            "saved",
            "waited_us",
        ];
        PageTable { columns, rows: self.buckets.iter().flat_map(BucketRow::rows).collect() }
    }

    fn html(&self) -> Markup {
        html! {
            @for bucket in &self.buckets { (bucket.gauge()) }
            h2 { "Who spends it" }
            p.quiet {
                "Share: what a caller gets however much others ask for; it can use what they leave, too. Kept: free slots that whoever "
                "has had most does not get now. Spent: slots in the window now. Refused, sent, saved and waited: since the start."
            }
            (html::table(&self.table(), "No quota was spent yet: nothing has gone upstream."))
        }
    }
}
