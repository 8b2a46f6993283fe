//! Who and what stands out: what was refused, what Make answered, who spent, saved and waited, what was slow.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::cells;
use super::super::query::encode;
use super::super::rich::{self, RichCell};
use super::super::state::OperatorState;
use super::callers::{CallerRow, CountsByWord};
use super::titles::title_of;
use crate::counters::DurationCounts;
use crate::quota::BucketView;

/// The most rows of a table on the overview.
const ROWS_MAX: usize = 8;

/// Percentiles, as the upper bounds of their buckets. `None`: no sample, or more than a minute.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Latency {
    pub(super) samples: u64,
    pub(super) p50_us: Option<u64>,
    pub(super) p95_us: Option<u64>,
    pub(super) p99_us: Option<u64>,
}

impl Latency {
    pub(super) fn of(counts: &DurationCounts) -> Self {
        let [p50_us, p95_us, p99_us] = [50, 95, 99].map(|percent| counts.percentile_us(percent));
        Self { samples: counts.samples(), p50_us, p95_us, p99_us }
    }
}

/// What stands out since the start.
#[derive(Debug, Serialize)]
pub(super) struct Rankings {
    /// Refusals by code, also of those whom nobody knows.
    refusals: CountsByWord,
    /// The upstream's answers by status.
    upstream_answers: BTreeMap<u16, u64>,
    /// Callers by what they spent of all quotas.
    spenders: Vec<Spender>,
    /// Operations by the 95th percentile of their attempts, the slowest first.
    slowest: Vec<OperationLatency>,
}

/// What a caller did at all quotas together.
#[derive(Clone, Debug, Default, Serialize)]
struct Spender {
    name: Arc<str>,
    /// Slots taken now.
    spent: u64,
    /// Since the start: attempts, answers that cost none, waiting, and requests that got none.
    sent: u64,
    saved: u64,
    waited_us: u64,
    refused: u64,
}

#[derive(Debug, Serialize)]
struct OperationLatency {
    operation: Arc<str>,
    #[serde(flatten)]
    latency: Latency,
}

impl Rankings {
    pub(super) fn of(state: &OperatorState, callers: &[CallerRow], buckets: &[BucketView]) -> Self {
        let metrics = &state.gateway.metrics;
        let mut refusals = CountsByWord::new();
        let known = callers.iter().flat_map(|caller| &caller.refusals).map(|(code, count)| (*code, *count));
        let unknown = metrics.unidentified.read().into_iter().filter_map(|one| Some((one.kind.code?, one.count)));
        known.chain(unknown).for_each(|(code, count)| *refusals.entry(code).or_default() += count);
        let mut upstream_answers = BTreeMap::new();
        for (status, count) in metrics.upstream.iter().flat_map(|one| one.statuses().collect::<Vec<_>>()) {
            *upstream_answers.entry(status).or_default() += count;
        }
        let latency = |counts: &DurationCounts| Latency::of(counts);
        let mut slowest: Vec<_> = metrics
            .upstream
            .iter()
            .map(|one| OperationLatency { operation: one.operation.clone(), latency: latency(&one.durations.read()) })
            .collect();
        // More than a minute is the slowest of all.
        slowest.sort_by_key(|one| std::cmp::Reverse(one.latency.p95_us.unwrap_or(u64::MAX)));
        Self { refusals, upstream_answers, spenders: spenders(buckets), slowest }
    }

    pub(super) fn html(&self, now: Timestamp) -> Markup {
        let by_code = self.refusals.iter().map(|(code, count)| (*code, *count));
        let mut by_code: Vec<_> = by_code.collect();
        by_code.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let refused: Vec<_> = by_code
            .into_iter()
            .take(ROWS_MAX)
            .map(|(code, count)| {
                let link = RichCell::link(code, format!("/audit?refusal={code}"));
                vec![link, RichCell::text(title_of(code)), RichCell::text(count)]
            })
            .collect();
        let answered: Vec<_> = self
            .upstream_answers
            .iter()
            .map(|(status, count)| {
                vec![RichCell::link(status, format!("/audit?upstream_status={status}")), RichCell::text(count)]
            })
            .collect();
        let slow: Vec<_> = self.slowest.iter().take(ROWS_MAX).map(OperationLatency::row).collect();
        html! {
            h2 { "Refusals by code" }
            (rich::table(&["code", "what", "count"], &refused, "Nothing was refused since the start.", now))
            h2 { "Make's answers by status" }
            (rich::table(&["status", "count"], &answered, "Make was asked nothing since the start.", now))
            h2 { "Who spent the quota" }
            (self.ranked(|one| one.sent, &["caller", "now", "sent", "refused"], |one| {
                vec![one.link(), RichCell::text(one.spent), RichCell::text(one.sent), RichCell::text(one.refused)]
            }, "Nobody has spent any quota since the start.", now))
            h2 { "Who saved it" }
            (self.ranked(|one| one.saved, &["caller", "answers from memory"], |one| {
                vec![one.link(), RichCell::text(one.saved)]
            }, "No answer came from memory since the start.", now))
            h2 { "Who waited for it" }
            (self.ranked(|one| one.waited_us, &["caller", "waited"], |one| {
                vec![one.link(), RichCell::Duration(one.waited_us)]
            }, "Nobody has waited for quota since the start.", now))
            h2 { "Slowest operations" }
            p.quiet { "By the time that Make takes, refusals apart: each figure is the upper bound of what the histogram tells." }
            (rich::table(&["operation", "attempts", "p50", "p95", "p99"], &slow, "Make was asked nothing since the start.", now))
        }
    }

    fn ranked(
        &self,
        by: impl Fn(&Spender) -> u64,
        columns: &[&str],
        row: impl Fn(&Spender) -> Vec<RichCell>,
        hint: &str,
        now: Timestamp,
    ) -> Markup {
        let mut ranked: Vec<_> = self.spenders.iter().filter(|one| by(one) > 0).collect();
        ranked.sort_by_key(|one| std::cmp::Reverse(by(one)));
        let rows: Vec<_> = ranked.into_iter().take(ROWS_MAX).map(row).collect();
        rich::table(columns, &rows, hint, now)
    }
}

impl Spender {
    fn link(&self) -> RichCell {
        RichCell::caller(&self.name)
    }
}

impl OperationLatency {
    fn row(&self) -> Vec<RichCell> {
        let Latency { samples, p50_us, p95_us, p99_us } = self.latency;
        let link = RichCell::link(&self.operation, format!("/audit?operation={}", encode(&self.operation)));
        let bounds = [p50_us, p95_us, p99_us].map(|us| RichCell::Quantity(cells::bound(us)));
        [link, RichCell::text(samples)].into_iter().chain(bounds).collect()
    }
}

/// Each caller's sums over all quotas, the one that sent most first.
fn spenders(buckets: &[BucketView]) -> Vec<Spender> {
    let mut by_name = BTreeMap::<&str, Spender>::new();
    for one in buckets.iter().flat_map(|bucket| &bucket.callers) {
        let sum = by_name.entry(&one.name).or_default();
        sum.name = one.name.clone();
        sum.spent += one.spent;
        sum.sent += one.sent;
        sum.saved += one.saved;
        sum.waited_us += one.waited_us;
        sum.refused += one.refused;
    }
    let mut spenders: Vec<_> = by_name.into_values().collect();
    spenders.sort_by_key(|one| std::cmp::Reverse(one.sent));
    spenders
}
