//! Quotas that are closed or spent.

use std::time::Duration;

use super::super::query::encode;
use super::super::state::OperatorState;
use super::problem::{Check, LINES_MAX, Problem, Severity};
use crate::quota::{BucketId, BucketView, QuotaOutlook, QuotaRefused, SpenderView};

/// A quota of which less than this part is free is as good as spent.
const FREE_DIVISOR: u32 = 20;
/// How far ahead a caller's next slot is looked for.
const FORESEEN: Duration = Duration::from_secs(120);

pub(super) fn quota(state: &OperatorState, buckets: &[BucketView]) -> Vec<Problem> {
    let (closed, open): (Vec<_>, Vec<_>) = buckets.iter().partition(|bucket| bucket.closed_because.is_some());
    let closed = closed.into_iter().map(quota_closed);
    let spent = open.into_iter().filter_map(|bucket| quota_spent(state, bucket));
    closed.take(LINES_MAX).chain(spent.take(LINES_MAX)).collect()
}

fn quota_name(bucket: &BucketView) -> String {
    bucket.organization.map_or_else(|| "The account's quota".to_owned(), |id| format!("The quota of organization {id}"))
}

fn quota_closed(bucket: &BucketView) -> Problem {
    let because = bucket.closed_because.as_deref().unwrap_or_default();
    let named = quota_name(bucket);
    match bucket.closed_for {
        Some(left) => {
            let what = format!("{named} is closed for {} s more: {because}.", left.as_millis().div_ceil(1000));
            let todo = "Find out who else spends it with Make's API beside this gateway; if you know better, reopen it \
                        (POST /quota/reopen).";
            let why = "a quota is closed, and its requests are refused or answered from memory; see /quota";
            Problem::spoiling((Check::Quota, why), Severity::Degraded, "quota-closed", what).todo(todo, "/quota")
        }
        None => {
            let what = format!("{named} is being reopened little by little: {because}.");
            let todo = "Nothing: it is whole again once a few attempts have ended well.";
            Problem::warning("quota-reopening", what).todo(todo, "/quota")
        }
    }
}

/// A bucket with nothing left for whoever has had most of it.
fn quota_spent(state: &OperatorState, bucket: &BucketView) -> Option<Problem> {
    if bucket.remaining > bucket.kept.max(bucket.limit / FREE_DIVISOR) {
        return None;
    }
    // Who has no share is makegate itself: its looks take what nobody wants.
    let callers = bucket.callers.iter().filter(|caller| caller.share.is_some());
    let most = callers.max_by_key(|caller| caller.spent).filter(|caller| caller.spent > 0)?;
    let SpenderView { name, spent, share, waiting, .. } = most;
    let named = quota_name(bucket);
    let share = share.unwrap_or(bucket.limit);
    let waits = if bucket.waiting > 0 {
        format!(" {waiting} of {} waiting requests are its own.", bucket.waiting)
    } else {
        String::new()
    };
    let next = next_slot(state, bucket, most);
    let left = if bucket.remaining == 0 { "nothing is left" } else { "what is left is kept for other callers" };
    let what = format!(
        "{named}: {} of {} a minute are used, most by {name} ({spent}; its share: {share}), and {left}. Its next request can go in \
         {next} s.{waits}",
        bucket.used, bucket.limit
    );
    let todo = format!(
        "See what {name} asks for and how often, and lower its rate (caller.{name}.rate); others keep their shares. Longer lifetimes in \
         [cache.lifetime] save quota."
    );
    let of_organization = bucket.organization.map_or_else(String::new, |id| format!("&organization={id}"));
    let page = format!("/audit?caller={}{of_organization}&since=10m", encode(name));
    Some(Problem::warning("quota-spent", what).todo(todo, page))
}

/// In how many seconds this caller's next request can go.
fn next_slot(state: &OperatorState, bucket: &BucketView, caller: &SpenderView) -> u64 {
    let gateway = &state.gateway;
    let id = bucket.organization.map_or(BucketId::Account, BucketId::Organization);
    let latest = gateway.clock.now() + FORESEEN;
    let foreseen = gateway.quota.foresee(id, &caller.name, gateway.policy().eligible(id), latest);
    let after = match foreseen {
        Ok(QuotaOutlook { after, .. })
        | Err(
            QuotaRefused::QueueFull(QuotaOutlook { after, .. }) | QuotaRefused::TooLong(QuotaOutlook { after, .. }),
        ) => after,
        Err(QuotaRefused::EngineUnreachable) => QuotaOutlook::UNKNOWN.after,
    };
    u64::try_from(after.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)
}
