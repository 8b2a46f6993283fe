//! `/quota`: the ledger of the upstream's quota: who spent it, saved it, and waited for it.

use std::sync::Arc;

use maud::{Markup, html};
use serde::Serialize;

use super::super::desk::Desk;
use super::super::html;
use super::super::render::{Page, Table, cell};

/// The page.
#[derive(Debug, Serialize)]
pub(crate) struct Ledger {
    buckets: Vec<Bucket>,
}

/// One organization's quota, or the account's.
#[derive(Debug, Serialize)]
pub(crate) struct Bucket {
    /// `None`: the account's.
    organization: Option<u64>,
    limit: u32,
    used: u32,
    pub(crate) remaining: u32,
    pub(crate) waiting: u64,
    /// The upstream's own 429 closed it for so long.
    pub(crate) closed_for_ms: Option<u64>,
    callers: Vec<Spender>,
}

#[derive(Debug, Serialize)]
struct Spender {
    name: Arc<str>,
    /// Requests sent upstream.
    spent: u64,
    /// Answers from memory that would have been requests.
    saved: u64,
    waited_us: u64,
}

/// All buckets now. The one place that knows how the quota shows itself.
pub(crate) fn buckets(quota: &crate::quota::Quota) -> Vec<Bucket> {
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let bucket = |view: crate::quota::BucketView| Bucket {
        organization: view.organization,
        limit: view.limit,
        used: view.used,
        remaining: view.limit.saturating_sub(view.used),
        waiting: view.waiting as u64,
        closed_for_ms: view.closed_for.map(millis),
        callers: view
            .callers
            .into_iter()
            .map(|one| Spender { name: one.name, spent: one.spent, saved: one.saved, waited_us: one.waited_us })
            .collect(),
    };
    quota.buckets().into_iter().map(bucket).collect()
}

/// The ledger.
pub(crate) fn quota(desk: &Desk) -> Ledger {
    Ledger { buckets: buckets(&desk.gate.quota) }
}

impl Bucket {
    /// How full it is, with its name.
    pub(crate) fn gauge(&self) -> Markup {
        let name = self.organization.map_or_else(|| "the account".to_owned(), |id| format!("organization {id}"));
        html::gauge(&name, self.used.into(), self.limit.into())
    }

    /// The bucket's columns, then a caller's.
    fn rows(&self) -> Vec<Vec<String>> {
        let whose = self.organization.map_or_else(|| "account".to_owned(), |id| id.to_string());
        let own =
            [whose, self.limit.to_string(), self.used.to_string(), self.waiting.to_string(), cell(self.closed_for_ms)];
        let row = |spender: Option<&Spender>| {
            let spent = [
                cell(spender.map(|one| &one.name)),
                cell(spender.map(|one| one.spent)),
                cell(spender.map(|one| one.saved)),
                cell(spender.map(|one| one.waited_us)),
            ];
            own.iter().cloned().chain(spent).collect()
        };
        if self.callers.is_empty() { vec![row(None)] } else { self.callers.iter().map(Some).map(row).collect() }
    }
}

impl Page for Ledger {
    const TITLE: &str = "Quota";
    const PATH: &str = "/quota";

    fn table(&self) -> Table {
        let columns =
            &["organization", "limit", "used", "waiting", "closed_for_ms", "caller", "spent", "saved", "waited_us"];
        Table { columns, rows: self.buckets.iter().flat_map(Bucket::rows).collect() }
    }

    fn html(&self) -> Markup {
        html! {
            @for bucket in &self.buckets { (bucket.gauge()) }
            h2 { "Who spends it" }
            (html::table(&self.table(), "No quota was spent yet: nothing has gone upstream."))
        }
    }
}
