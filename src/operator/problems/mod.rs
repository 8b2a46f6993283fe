//! What is wrong now, the worst first, and what to do about it. The overview shows all of it; `/readyz?verbose` what is worse than a
//! warning, and `/readyz` what probes need to know.

mod ends;
mod log;
mod problem;
mod process;
mod quota;
mod replicas;
mod runbooks;
mod telemetry;
mod upstream;

use super::state::OperatorState;
use crate::quota::BucketView;

pub(super) use problem::{Check, Problem, Severity};

/// Everything that is wrong, the worst first. `buckets`: those of the quota that matter.
pub(super) fn problems(state: &OperatorState, buckets: &[BucketView]) -> Vec<Problem> {
    let mut problems = readiness_problems(state);
    problems.extend(upstream::warnings(state));
    problems.extend(log::open_doubts(state));
    problems.extend(log::disk(state));
    problems.extend(log::shipping(state));
    problems.extend(replicas::others(state));
    problems.extend(quota::quota(state, buckets));
    problems.extend(ends::certificates(state));
    problems.extend(ends::keys(state));
    problems.extend(process::process(state));
    problems.sort_by_key(|problem| problem.severity);
    problems
}

/// What `/readyz` says without `?verbose`: what costs no walk over quotas and keys.
pub(super) fn readiness_problems(state: &OperatorState) -> Vec<Problem> {
    [
        process::config(state),
        log::log(state),
        process::draining(state),
        upstream::upstream(state),
        upstream::token(state),
        log::doubts_room(state),
        replicas::engine(state),
        telemetry::telemetry(state),
    ]
    .into_iter()
    .flatten()
    .collect()
}
