//! `/quota`: the upstream's quota: who spent it, saved it, and waited for it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageFormat, PageView};
use super::super::state::OperatorState;
use super::super::table::{PageTable, members};
use super::super::{cells, html, rich};
use super::charts::HistoryCharts;
use crate::quota::{BucketView, SpenderView};

#[derive(Debug, Serialize)]
struct QuotaPage {
    buckets: Vec<BucketView>,
    /// For people alone: scripts find it at `/history.json`.
    #[serde(skip)]
    charts: Option<HistoryCharts>,
}

/// Every bucket, and who spent of it.
///
/// # Errors
/// A fault of makegate's own.
pub(crate) async fn quota(
    State(state): State<Arc<OperatorState>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    state
        .walk(move |state| {
            let charts = (view.format == PageFormat::Html).then(|| HistoryCharts::of(&state.history));
            view.show(&QuotaPage { buckets: state.gateway.quota.buckets(), charts })
        })
        .await
}

/// How full a bucket is, with its name, and who took it.
pub(crate) fn gauge(bucket: &BucketView) -> Markup {
    let spent = bucket.callers.iter().filter(|one| one.spent > 0).map(|one| format!("{} {}", one.name, one.spent));
    let waiting = (bucket.waiting > 0).then(|| format!("{} waiting", bucket.waiting));
    let lasts = bucket
        .closed_for
        .map_or_else(|| "reopening".to_owned(), |time| format!("closed for {} s", time.as_millis().div_ceil(1000)));
    let closed = bucket.closed_because.as_ref().map(|why| format!("{lasts}: {why}"));
    let by: Vec<_> = spent.chain(waiting).chain(closed).collect();
    let name = cells::quota_name(bucket.organization);
    html::gauge(&name, [bucket.used, bucket.limit].map(u64::from), |slots| slots.to_string(), &by.join(", "))
}

/// One row for each caller: the bucket's cells, then the caller's.
fn rows(bucket: &BucketView) -> Vec<Vec<String>> {
    let whose = bucket.organization.map_or_else(|| "account".to_owned(), |id| id.to_string());
    let own = [
        vec![whose],
        members(bucket, &["limit", "limit_from", "used", "waiting", "kept", "closed_for_ms", "closed_because"]),
    ]
    .concat();
    let row = |spender: Option<&SpenderView>| {
        let names = ["name", "share", "spent", "waiting", "refused", "sent", "saved", "waited_us"];
        [own.clone(), members(&spender, &names)].concat()
    };
    if bucket.callers.is_empty() { vec![row(None)] } else { bucket.callers.iter().map(Some).map(row).collect() }
}

impl Page for QuotaPage {
    const TITLE: &str = "Quota";

    fn table(&self) -> PageTable {
        let columns = &[
            "organization", "limit", "limit_from", "used", "waiting", "kept", "closed_for_ms", "closed_because",
            "caller", "share", "spent", "caller_waiting", "refused", "sent", "saved", "waited_us",
        ];
        PageTable { columns, rows: self.buckets.iter().flat_map(rows).collect() }
    }

    fn html(&self, now: Timestamp) -> Markup {
        html! {
            p { a href="/quota/ledger" { "The ledger" } ": who spent how much in each hour of the last 30 days." }
            @for bucket in &self.buckets { (gauge(bucket)) }
            h2 { "The last hour" }
            @if let Some(charts) = &self.charts { (charts.quotas_html()) }
            h2 { "Who spends it" }
            p.quiet {
                "Share: what a caller gets however much others ask for; it can use what they leave, too. Kept: free slots that whoever "
                "has had most does not get now. Spent: slots in the window now. Refused, sent, saved and waited: since the start."
            }
            (rich::table_of(&self.table(), "No quota was spent yet: nothing has gone upstream.", now))
        }
    }
}
