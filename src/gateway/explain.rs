//! Explains step by step what the gateway would do with a request and why, without spending anything. The steps are those of
//! [`super::life`].

mod credentials;

use http::{HeaderMap, Method, Uri};
use serde::Serialize;

use super::admit::policy::{Caller, Policy, bucket};
use super::admit::steps;
use super::admit::target::Ambiguity;
use super::fences::MemoryUse;
use super::forward::{breaker_refusal, quota_refusal};
use super::read::list_scope;
use super::read::lookup::{ReadRequest, entry_for, key_and_target};
use super::refusal::{Refusal, seconds};
use super::request::{fence_time, patience};
use super::state::Gateway;
use crate::cache::{Lookup, RequestDirectives};
use crate::catalogue::{BodyKind, MatchedOperation, RetryClass};
use crate::clock::Clock;
use crate::quota::{BucketId, QuotaOutlook};
use crate::upstream::BreakerKey;

/// The result of one step.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedStep {
    /// The step's name.
    pub step: &'static str,
    /// `allow`, `refuse`, or what the step would do.
    pub verdict: &'static str,
    /// The reason, in a sentence.
    pub why: String,
}

/// The decision and its reasons.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// `allow` or `refuse`.
    pub verdict: &'static str,
    /// The refusal's status; `None` for an allowed request, because the upstream decides.
    pub status: Option<u16>,
    /// The refusal's code.
    pub code: Option<&'static str>,
    /// The steps up to the deciding one.
    pub steps: Vec<ExplainedStep>,
}

/// The running gateway, if any; without one, only the configuration is consulted.
pub type RunningGateway<'a> = Option<&'a Gateway>;

/// Explains `METHOD target` for the caller named `caller_name`.
#[must_use]
pub fn explain(
    policy: &Policy,
    running: RunningGateway<'_>,
    caller_name: &str,
    method: &str,
    target: &str,
) -> Explanation {
    let mut steps = Vec::new();
    let refusal = decide(policy, running, caller_name, method, target, &mut steps).err();
    let row = refusal.as_ref().map(Refusal::row);
    Explanation {
        verdict: if row.is_some() { "refuse" } else { "allow" },
        status: row.map(|row| row.status.as_u16()),
        code: row.map(|row| row.code),
        steps,
    }
}

fn decide(
    policy: &Policy,
    running: RunningGateway<'_>,
    caller_name: &str,
    method: &str,
    target: &str,
    out: &mut Vec<ExplainedStep>,
) -> Result<(), Refusal> {
    let mut step_list = StepList(out);
    let uri: Uri = step_list.check("target", parse_uri(target), |_| "it is a path".to_owned())?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Refusal::NotHttp)?;
    let target = step_list.check("target", steps::target(&method, &uri, policy.limits()), |target| {
        format!("its canonical path is {}", target.path)
    })?;
    let now = running.map_or_else(|| Clock::system().wall(), |gateway| gateway.clock.wall());
    let caller = policy.caller(caller_name).ok_or(Refusal::UnknownKey);
    let caller = caller.and_then(|caller| credentials::known_by(policy, caller, now).map(|by| (caller, by)));
    let (caller, _) = step_list.check("identify", caller, |(_, by)| format!("{caller_name} is known by {by}"))?;
    let matched = steps::classify(policy, &method, &target);
    let matched = step_list.check("classify", matched, |m| {
        format!("it is {} ({} {})", m.operation.id, m.operation.method, m.operation.path)
    })?;
    let row = matched.operation;
    let plan = step_list.check("target", steps::plan(&target, row, &matched), |plan| {
        format!("upstream it is {}", redacted(row, &plan.target))
    })?;
    step_list.check("authorize", steps::authorize(caller, &matched), |()| {
        format!("the caller has the grant {} and its organizations cover the request", row.grant)
    })?;
    step_list.add("admit", "allow", rate(caller));
    step_list.add(
        "body",
        "allow",
        match row.body {
            BodyKind::None => "it takes no body".to_owned(),
            BodyKind::Object => "it takes a JSON object".to_owned(),
            BodyKind::Any => "it takes any body, or none".to_owned(),
        },
    );
    let headers = HeaderMap::new();
    let read_request =
        ReadRequest { policy, caller, matched: &matched, target: &target, plan: &plan, headers: &headers };
    let memory = if row.is_write() {
        step_list.add("check", "allow", "held only while an identical write of this caller is in doubt".to_owned());
        MemoryAnswer::Nothing
    } else {
        lookup(running, &read_request, &mut step_list)
    };
    if memory == MemoryAnswer::Fresh {
        return Ok(()); // a fresh answer needs no quota
    }
    for (step, answer) in [("quota", quota(running, &read_request)), ("forward", forward(running, &read_request))] {
        match answer {
            Err(refusal) if memory == MemoryAnswer::Stale && refusal.row().stale_may_answer => {
                step_list.add(step, "stale", format!("{} A stale answer would be sent instead.", refusal.detail()));
                return Ok(());
            }
            answer => drop(step_list.check(step, answer, Clone::clone)?),
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MemoryAnswer {
    Fresh,
    Stale,
    Nothing,
}

struct StepList<'o>(&'o mut Vec<ExplainedStep>);

impl StepList<'_> {
    fn add(&mut self, step: &'static str, verdict: &'static str, why: String) {
        self.0.push(ExplainedStep { step, verdict, why });
    }

    fn check<T>(
        &mut self,
        step: &'static str,
        result: Result<T, Refusal>,
        why: impl FnOnce(&T) -> String,
    ) -> Result<T, Refusal> {
        match &result {
            Ok(value) => self.add(step, "allow", why(value)),
            Err(refusal) => self.add(
                step,
                "refuse",
                format!("{} ({}): {}", refusal.row().title, refusal.row().code, refusal.detail()),
            ),
        }
        result
    }
}

fn parse_uri(target: &str) -> Result<Uri, Refusal> {
    let path = target.starts_with('/');
    path.then(|| target.parse().ok()).flatten().ok_or(Refusal::Ambiguous { why: Ambiguity::NotAPath })
}

/// Query values that may not be logged are not shown either.
fn redacted(row: &crate::catalogue::Operation, target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let shown = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if row.recorded_kind(name).is_none() => format!("{name}=…"),
        _ => pair.to_owned(),
    });
    format!("{path}?{}", shown.collect::<Vec<_>>().join("&"))
}

fn rate(caller: &Caller) -> String {
    let rate = caller.config.rate;
    let under_way = caller.state.under_way();
    format!(
        "{} in {} s, {} at once; {under_way} of its requests under way",
        rate.requests,
        rate.per.as_secs(),
        caller.config.burst
    )
}

fn lookup(running: RunningGateway<'_>, read_request: &ReadRequest<'_>, step_list: &mut StepList<'_>) -> MemoryAnswer {
    let mut fetch = |why: String| {
        step_list.add("look up", "fetch", why);
        MemoryAnswer::Nothing
    };
    let Some(storing) = read_request.policy.store_policy(read_request.matched.index) else {
        return fetch("answers of this operation are not stored".to_owned());
    };
    let narrows = read_request.matched.operation.narrow.is_some() && !read_request.caller.config.organizations.is_all();
    if !read_request.plan.keyed && !narrows {
        return fetch("it bypasses the cache: one of its parameters is not part of the cache key".to_owned());
    }
    if read_request.plan.refresh {
        return fetch("a parameter asks for the upstream's current state".to_owned());
    }
    let kept = format!("answers are kept for {} s", storing.lifetime.as_secs());
    let Some(gateway) = running else { return fetch(kept) };
    let page = narrows.then(|| list_scope::ListPage::of(read_request.target));
    let (key, _) = key_and_target(read_request, page.as_ref());
    let now = gateway.clock.now();
    let memory = gateway.memory_use();
    if let Some((verdict, why)) = lease(gateway, memory) {
        step_list.add("lease", verdict, why);
    }
    let mut fetch = |why: String| {
        step_list.add("look up", "fetch", why);
        MemoryAnswer::Nothing
    };
    match entry_for(gateway, (read_request, memory), &key, &RequestDirectives::default(), now) {
        Lookup::Hit(entry) => {
            let (age, ttl) = (entry.age(now).as_secs(), entry.ttl(now));
            step_list.add(
                "look up",
                "hit",
                format!("in memory, {age} s old, fresh for {ttl} s more; it costs no quota"),
            );
            MemoryAnswer::Fresh
        }
        Lookup::Fetch { fallback: Some(_), .. } => {
            step_list.add("look up", "fetch", format!("not in memory, but a stale answer is available; {kept}"));
            MemoryAnswer::Stale
        }
        Lookup::Fetch { .. } if memory == MemoryUse::Forbidden => fetch(kept),
        Lookup::Fetch { fallback: None, .. } => fetch(format!("not in memory; {kept}")),
        Lookup::Bypass | Lookup::NotHeld => fetch(kept),
    }
}

/// What this replica's lease means for memory, if there are other replicas.
fn lease(gateway: &Gateway, memory: MemoryUse) -> Option<(&'static str, String)> {
    let left = gateway.replicas.as_ref()?.lease().left();
    Some(match memory {
        MemoryUse::Allowed => {
            ("allow", format!("memory may answer: this replica's lease lasts {} ms more", left.as_millis()))
        }
        MemoryUse::Unfenced => (
            "allow",
            "memory answers though this replica has no lease, because replicas.without is \"memory\"".to_owned(),
        ),
        MemoryUse::Forbidden => (
            "fetch",
            "memory may not answer: this replica has no lease, so it may have missed another's write".to_owned(),
        ),
    })
}

/// What the quota would answer now.
fn quota(running: RunningGateway<'_>, read_request: &ReadRequest<'_>) -> Result<String, Refusal> {
    let ReadRequest { policy, caller, matched, .. } = read_request;
    let bucket = bucket(matched);
    let whose = match bucket {
        BucketId::Account => "the account's".to_owned(),
        BucketId::Organization(id) => format!("organization {id}'s"),
    };
    let eligible = policy.eligible(bucket);
    let spends = format!("it spends {whose} quota, shared by {eligible} caller(s)");
    let Some(gateway) = running else { return Ok(spends) };
    let upstream = &policy.config.upstream;
    let (deadline, attempt) = match matched.operation.is_write() {
        true => (upstream.write_deadline, upstream.write_attempt),
        false => (upstream.deadline, upstream.attempt),
    };
    let deadline = deadline.saturating_sub(fence_time(policy, matched.operation));
    let latest = gateway.clock.now() + upstream.quota_wait.min(patience(deadline, attempt.min(deadline)));
    let outlook = gateway.quota.foresee(bucket, &caller.config.name, eligible, latest).map_err(quota_refusal)?;
    let QuotaOutlook { after, limit, free, spent, share, .. } = outlook;
    let turn = if after.is_zero() { "it goes at once".to_owned() } else { format!("it waits {} s", seconds(after)) };
    Ok(format!(
        "{spends}: {free} of {limit} attempts a minute are free, this caller has used {spent}, and its share is {share}; {turn}"
    ))
}

/// What the breaker would answer now, and whether a failed attempt would be retried.
fn forward(running: RunningGateway<'_>, read_request: &ReadRequest<'_>) -> Result<String, Refusal> {
    let MatchedOperation { operation, organization, .. } = *read_request.matched;
    let part = BreakerKey { operation: operation.id.clone(), organization };
    running
        .map_or(Ok(()), |gateway| gateway.upstream().breaker().would_permit(operation.retry, &part))
        .map_err(breaker_refusal)?;
    Ok(match operation.retry {
        RetryClass::Safe => "a read: retried after any failure, within its deadline",
        RetryClass::Idempotent => "retried even if its effect is unknown: repeating it changes nothing",
        RetryClass::Once => "retried only if it provably was not processed",
    }
    .to_owned())
}
