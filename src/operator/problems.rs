//! What is wrong now, the worst first, and what to do about it. The overview shows all of it; `/readyz` what requests may notice.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::query::encode;
use super::state::OperatorState;
use crate::config::KeyConfig;
use crate::gateway::key_expiry::KeyExpiry;
use crate::gateway::refusal::capital;
use crate::ids::KeyId;
use crate::process_log;
use crate::quota::{BucketId, BucketView, QuotaOutlook, QuotaRefused, SpenderView};
use crate::upstream::BreakerStatus;

/// So many 5xx in a row are more than a hiccup.
const ERROR_RUN_MIN: u64 = 5;
/// The most problems of one kind that have a line each; the others are counted.
const LINES_MAX: usize = 10;
/// The most operations that a line names.
const NAMED_MAX: usize = 5;
/// A quota of which less than this part is free is as good as spent.
const FREE_DIVISOR: u32 = 20;
/// How far ahead a caller's next slot is looked for.
const FORESEEN: Duration = Duration::from_secs(120);

/// How bad a problem is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// No reason to send requests here; see [`Gateway::is_ready`](crate::gateway::Gateway::is_ready).
    Failed,
    /// Some requests are refused or delayed, or what they rely on is about to end.
    Degraded,
    /// Worth a look; all requests are answered.
    Warning,
}

impl Severity {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Degraded => "degraded",
            Self::Warning => "warning",
        }
    }
}

/// What `/readyz` checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Config,
    Log,
    Draining,
    Upstream,
    Token,
    /// The room for writes in doubt.
    Doubts,
}

impl Check {
    /// In the order of `/readyz`.
    pub(super) const ALL: [Self; 6] =
        [Self::Config, Self::Log, Self::Draining, Self::Upstream, Self::Token, Self::Doubts];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Log => "log",
            Self::Draining => "draining",
            Self::Upstream => "upstream",
            Self::Token => "token",
            Self::Doubts => "doubts",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Problem {
    /// Its kind, in words that do not change: `token-refused`.
    pub(super) name: &'static str,
    pub(super) severity: Severity,
    /// What is wrong, in a sentence.
    pub(super) what: String,
    pub(super) since: Option<Timestamp>,
    /// What to do about it, in a sentence.
    pub(super) todo: String,
    /// The page that shows more of it.
    pub(super) page: String,
    /// The check of `/readyz` that it spoils, and what that says: it names nobody, because it needs no key.
    #[serde(skip)]
    pub(super) readiness: Option<(Check, &'static str)>,
}

impl Problem {
    fn new(name: &'static str, severity: Severity, what: impl Into<String>) -> Self {
        let (what, todo, page) = (what.into(), String::new(), "/".to_owned());
        Self { name, severity, what, since: None, todo, page, readiness: None }
    }

    fn since(self, since: Option<Timestamp>) -> Self {
        Self { since, ..self }
    }

    fn todo(self, todo: impl Into<String>, page: impl Into<String>) -> Self {
        Self { todo: todo.into(), page: page.into(), ..self }
    }

    fn spoils(self, check: Check, why: &'static str) -> Self {
        Self { readiness: Some((check, why)), ..self }
    }
}

/// Everything that is wrong, the worst first. `buckets`: those of the quota that matter.
pub(super) fn problems(state: &OperatorState, buckets: &[BucketView]) -> Vec<Problem> {
    let mut problems = readiness_problems(state);
    problems.extend(upstream_warnings(state));
    problems.extend(open_doubts(state));
    problems.extend(disk(state));
    problems.extend(quota(state, buckets));
    problems.extend(certificates(state));
    problems.extend(keys(state));
    problems.extend(process(state));
    problems.sort_by_key(|problem| problem.severity);
    problems
}

/// What spoils a check of `/readyz`.
pub(super) fn readiness_problems(state: &OperatorState) -> Vec<Problem> {
    [config(state), log(state), draining(state), upstream(state), token(state), doubts_room(state)]
        .into_iter()
        .flatten()
        .collect()
}

fn config(state: &OperatorState) -> Option<Problem> {
    let in_force = state.in_force();
    let error = in_force.error.as_ref()?;
    let what = format!("The last reload failed, and the configuration before it is in force: {error}");
    let check = match &state.file {
        Some(file) => format!("`makegate check --config {}` lists every mistake", file.display()),
        None => "`makegate check` lists every mistake".to_owned(),
    };
    let todo = format!(
        "Correct what it says; {check}. makegate looks at the files again within 5 s, and at once after SIGHUP."
    );
    let why = "the last reload failed and the configuration before it is in force; see /config";
    let problem = Problem::new("reload-failed", Severity::Degraded, what).since(Some(in_force.loaded));
    Some(problem.todo(todo, "/config").spoils(Check::Config, why))
}

fn log(state: &OperatorState) -> Option<Problem> {
    let log = &state.gateway.log;
    let dir = log.dir().display();
    let outage = log.outage();
    let since = outage.as_ref().map(|outage| state.wall_at(outage.since));
    let cause = outage.as_ref().map_or("the disk does not answer", |outage| &outage.cause);
    let todo = if outage.as_ref().is_some_and(|outage| outage.is_disk_full) {
        format!(
            "Free space on the disk of {dir}, or lower audit.retention or audit.retention_bytes. makegate tries again every second, and \
             writes go on by themselves."
        )
    } else {
        format!(
            "See what is wrong with the disk of {dir} (the process log, dmesg, df). makegate tries again every second, and writes go on \
             by themselves."
        )
    };
    match (log.writable(), log.has_room()) {
        (true, true) if log.has_lost() => {
            let what = "A segment of the log was damaged while it was written to, and the log goes on in a new one.";
            let todo = format!("Run `makegate audit verify {dir}` to see what was lost, and check the disk.");
            let why = "a segment was damaged while it was written to; see the process log";
            let problem = Problem::new("log-damaged", Severity::Degraded, what);
            Some(problem.todo(todo, "/audit?kind=event").spoils(Check::Log, why))
        }
        (true, true) => None,
        (false, true) => {
            let what = format!("The log cannot be written, and writes are refused: {cause}.");
            let why = "it cannot be written, and writes are refused; see the process log";
            let problem = Problem::new("log-outage", Severity::Degraded, what).since(since);
            Some(problem.todo(todo, "/audit?kind=event&event=outage").spoils(Check::Log, why))
        }
        (_, false) => {
            let what =
                format!("The log cannot be written and its buffer is full, so every request is refused: {cause}.");
            let why = "it cannot be written, and its buffer is full; see the process log";
            let problem = Problem::new("log-outage", Severity::Failed, what).since(since);
            Some(problem.todo(todo, "/audit?kind=event&event=outage").spoils(Check::Log, why))
        }
    }
}

fn draining(state: &OperatorState) -> Option<Problem> {
    let what = "makegate is shutting down: it finishes what is under way.";
    let problem = Problem::new("draining", Severity::Failed, what).spoils(Check::Draining, "it is shutting down");
    state
        .gateway
        .is_draining()
        .then(|| problem.todo("Nothing, if somebody stopped it; else see who sent the signal.", "/"))
}

fn upstream(state: &OperatorState) -> Option<Problem> {
    let upstream = state.gateway.upstream();
    let (status, silent) = (upstream.breaker().status(), upstream.breaker().silent_operations());
    match status {
        BreakerStatus::Open | BreakerStatus::Probing => {
            let what = "Make cannot be reached: nothing is sent for a while (the breaker is open). Reads are answered from memory where they \
                        may be, and everything else is refused.";
            let problem = Problem::new("upstream-down", Severity::Degraded, what);
            let problem = problem.since(upstream.unreachable_since().map(|since| state.wall_at(since)));
            Some(
                problem
                    .todo(upstream_todo(state), "/config")
                    .spoils(Check::Upstream, "Make could not be reached lately"),
            )
        }
        BreakerStatus::Closed if silent > 0 => {
            let parts: Vec<_> =
                upstream.breaker().some_silent_operations(NAMED_MAX).iter().map(ToString::to_string).collect();
            let more = if silent > parts.len() { format!(" and {} more", silent - parts.len()) } else { String::new() };
            let what = format!(
                "Make has not answered these lately, and they are not sent for a while: {}{more}.",
                parts.join(", ")
            );
            let why = "Make has not answered some operations lately; see the process log";
            let todo =
                "Look at Make's status page. makegate asks again by itself; what the requests got is in the log.";
            let problem = Problem::new("operations-silent", Severity::Degraded, what);
            Some(problem.todo(todo, "/audit?refusal=MG209").spoils(Check::Upstream, why))
        }
        BreakerStatus::Closed => None,
    }
}

fn upstream_todo(state: &OperatorState) -> String {
    format!(
        "Look at Make's status page, then at this machine's way to {} (DNS, network, firewall). makegate tries again by itself.",
        state.gateway.policy().config.upstream.url.authority
    )
}

fn token(state: &OperatorState) -> Option<Problem> {
    let upstream = state.gateway.upstream();
    let since = upstream.token_refused_since()?;
    let what = "Make refuses the gateway's token with 401: reads are answered from memory where they may be, and everything else gets 502 \
                (MG204). The callers' keys are fine.";
    let todo = "Make a new API token in Make and put it where upstream.token_file or upstream.token_env says; a changed file is read again \
                within 5 s.";
    let problem = Problem::new("token-refused", Severity::Degraded, what).since(Some(state.wall_at(since)));
    let problem = problem.todo(todo, "/audit?refusal=MG204");
    Some(problem.spoils(Check::Token, "Make refuses the gateway's token: replace it"))
}

fn doubts_room(state: &OperatorState) -> Option<Problem> {
    let room = state.gateway.log.doubts().room();
    let (taken, limit) = room.load();
    let what = format!(
        "Writes in doubt use up most of their room ({taken} of {limit}), and callers beyond their share are refused writes (MG184)."
    );
    let why = "writes in doubt use up most of limits.doubts, and callers beyond their share are refused writes: settle some; see /doubts";
    let problem = Problem::new("doubts-nearly-full", Severity::Degraded, what).spoils(Check::Doubts, why);
    room.is_nearly_full().then(|| problem.todo("Settle some: look in Make what became of them.", "/doubts"))
}

/// What the breaker has not noticed.
fn upstream_warnings(state: &OperatorState) -> Option<Problem> {
    let upstream = state.gateway.upstream();
    if upstream.breaker().status() != BreakerStatus::Closed {
        return None;
    }
    if let Some(run) = state.gateway.metrics.error_run().filter(|run| run.attempts >= ERROR_RUN_MIN) {
        let what = format!(
            "Make answers with errors: the last {} answers were 5xx, the last one {}.",
            run.attempts,
            run.status.as_u16()
        );
        let todo = "Look at Make's status page. Reads are answered from memory where they may be; writes that got a 5xx may be in doubt.";
        let problem = Problem::new("upstream-errors", Severity::Degraded, what).since(Some(state.wall_at(run.since)));
        return Some(problem.todo(todo, "/audit?upstream_status=5xx"));
    }
    let since = upstream.unreachable_since()?;
    let what = "No connection to Make could be opened when it was tried last.";
    let problem = Problem::new("upstream-unreachable", Severity::Warning, what).since(Some(state.wall_at(since)));
    Some(problem.todo(upstream_todo(state), "/config"))
}

fn open_doubts(state: &OperatorState) -> Option<Problem> {
    let doubts = state.gateway.log.doubts();
    let oldest = doubts.oldest()?;
    let what = format!(
        "{}: nobody knows whether Make carried them out, and equal writes of their callers are held.",
        counted(doubts.count(), "write is in doubt", "writes are in doubt")
    );
    let problem = Problem::new("doubts", Severity::Warning, what).since(Some(oldest));
    Some(problem.todo("Look in Make what became of each, and settle it.", "/doubts"))
}

fn disk(state: &OperatorState) -> Option<Problem> {
    let log = &state.gateway.log;
    let usage = log.disk_usage().filter(|usage| usage.is_nearly_full() && log.writable())?;
    let mib = |bytes: u64| bytes >> 20;
    let what = format!(
        "The log's disk is nearly full: {} MiB of {} MiB are free, and the log takes {} MiB. Once it is full, writes are refused.",
        mib(usage.free_bytes),
        mib(usage.size_bytes),
        mib(usage.used_bytes)
    );
    let todo = format!(
        "Free space on the disk of {}, or lower audit.retention or audit.retention_bytes.",
        log.dir().display()
    );
    Some(Problem::new("disk-nearly-full", Severity::Degraded, what).todo(todo, "/config"))
}

fn quota(state: &OperatorState, buckets: &[BucketView]) -> Vec<Problem> {
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
            Problem::new("quota-closed", Severity::Degraded, what).todo(todo, "/quota")
        }
        None => {
            let what = format!("{named} is being reopened little by little: {because}.");
            let todo = "Nothing: it is whole again once a few attempts have ended well.";
            Problem::new("quota-reopening", Severity::Warning, what).todo(todo, "/quota")
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
    let what = if *spent * 2 > u64::from(bucket.used) {
        format!(
            "{named} is spent, most of it by {name}: {spent} of {} a minute (its share: {share}). Its next request can go in {next} s.{waits}",
            bucket.limit
        )
    } else {
        format!(
            "{named} is spent by several callers: {} of {} a minute, most by {name} ({spent}, its share: {share}), whose next request can go \
             in {next} s.{waits}",
            bucket.used, bucket.limit
        )
    };
    let todo = format!(
        "See what {name} asks for and how often, and lower its rate (caller.{name}.rate); others keep their shares. Longer lifetimes in \
         [cache.lifetime] save quota."
    );
    let of_organization = bucket.organization.map_or_else(String::new, |id| format!("&organization={id}"));
    let page = format!("/audit?caller={}{of_organization}&since=10m", encode(name));
    Some(Problem::new("quota-spent", Severity::Warning, what).todo(todo, page))
}

/// In how many seconds this caller's next request can go.
fn next_slot(state: &OperatorState, bucket: &BucketView, caller: &SpenderView) -> u64 {
    let gateway = &state.gateway;
    let id = bucket.organization.map_or(BucketId::Account, BucketId::Organization);
    let latest = gateway.clock.now() + FORESEEN;
    let foreseen = gateway.quota.foresee(id, &caller.name, gateway.policy().eligible(id), latest);
    let (Ok(QuotaOutlook { after, .. })
    | Err(QuotaRefused::QueueFull(QuotaOutlook { after, .. }) | QuotaRefused::TooLong(QuotaOutlook { after, .. }))) =
        foreseen;
    u64::try_from(after.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)
}

fn certificates(state: &OperatorState) -> Vec<Problem> {
    let now = state.gateway.clock.wall();
    let ending =
        state.certificate_ends().into_iter().filter_map(|(door, end)| Some((door, end, KeyExpiry::at(end, now)?)));
    let problem = |(door, end, ends): (&str, Timestamp, KeyExpiry)| {
        let (severity, what) = match ends {
            KeyExpiry::Past => (
                Severity::Degraded,
                format!(
                    "The certificate of the {door} door expired at {end:.0}: clients that check it cannot connect."
                ),
            ),
            KeyExpiry::Soon => (
                Severity::Warning,
                format!(
                    "The certificate of the {door} door expires at {end:.0}; after that, clients that check it cannot connect."
                ),
            ),
        };
        let todo = format!(
            "Put a new certificate and its key into the files that {door}.tls names (`makegate cert new` makes them for localhost); they are \
             read again within 5 s."
        );
        Problem::new("certificate-ends", severity, what).todo(todo, "/config")
    };
    ending.map(problem).collect()
}

fn keys(state: &OperatorState) -> Vec<Problem> {
    let (now, policy) = (state.gateway.clock.wall(), state.gateway.policy());
    let keys =
        policy.callers.iter().flat_map(|caller| caller.config.keys.iter().map(move |key| (&*caller.config.name, key)));
    let mut ending: Vec<_> = keys.filter_map(|(caller, key)| Some((KeyExpiry::of(key, now)?, caller, key))).collect();
    ending.sort_by_key(|(_, _, key)| key.expires.as_ref().map(|expiry| expiry.at));
    let problem = |(ends, caller, key): &(KeyExpiry, &str, &KeyConfig)| {
        let (id, written) = (KeyId::of(&key.hash), key.expires.as_ref().map_or("", |expiry| &expiry.written));
        let (severity, verb) = match ends {
            KeyExpiry::Past => (Severity::Degraded, "has expired"),
            KeyExpiry::Soon => (Severity::Warning, "expires soon"),
        };
        let what = format!("The key {id} of {caller} {verb} ({written}).");
        let todo = format!(
            "Give {caller} a new key (`makegate key new --caller {caller}`), add its hash beside the old one, and take the old one out once \
             nobody uses it."
        );
        Problem::new("key-ends", severity, what).todo(todo, format!("/callers?name={}", encode(caller)))
    };
    let mut problems: Vec<_> = ending.iter().take(LINES_MAX).map(problem).collect();
    if let Some(more) = ending.len().checked_sub(LINES_MAX).filter(|more| *more > 0) {
        let what = format!(
            "{} of callers.",
            counted(more, "more key has expired or expires soon", "more keys have expired or expire soon")
        );
        problems.push(Problem::new("key-ends", Severity::Warning, what).todo("Replace them likewise.", "/callers"));
    }
    problems
}

/// What is wrong with the process itself and its configuration.
fn process(state: &OperatorState) -> Vec<Problem> {
    let mut problems = Vec::new();
    let dropped = process_log::dropped();
    if dropped > 0 {
        let what = format!(
            "{} since the start, because nobody took them in time.",
            counted(dropped, "line of the process log was dropped", "lines of the process log were dropped")
        );
        let todo = "See why whatever reads makegate's stderr is slow or has stopped.";
        problems.push(Problem::new("log-lines-dropped", Severity::Warning, what).todo(todo, "/"));
    }
    if rustix::process::geteuid().is_root() {
        let todo = "Run it as a user of its own: whoever takes it over then has no more than that user.";
        problems.push(Problem::new("runs-as-root", Severity::Warning, "makegate runs as root.").todo(todo, "/config"));
    }
    let warnings = &state.in_force().origins.warnings;
    problems.extend(warnings.iter().take(LINES_MAX).map(|warning| {
        let what = format!("The configuration is valid, but: {}.", warning.message);
        let todo = warning
            .help
            .clone()
            .map_or_else(|| "See the configuration's warnings.".to_owned(), |help| format!("{}.", capital(&help)));
        Problem::new("configuration-warning", Severity::Warning, what).todo(todo, "/config")
    }));
    problems
}

fn counted(count: impl TryInto<u64>, one: &str, many: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    }
}
