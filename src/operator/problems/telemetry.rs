//! Telemetry that its receiver does not take.

use super::super::state::OperatorState;
use super::problem::{Check, Problem, Severity};
use crate::otel::OtelTrouble;

pub(super) fn telemetry(state: &OperatorState) -> Option<Problem> {
    let OtelTrouble { since, signals, is_dropping } = state.gateway.otel.as_ref()?.trouble()?;
    let named: Vec<_> = signals.iter().map(|signal| signal.as_str()).collect();
    let (what, why) = if named.is_empty() {
        (
            "Spans are dropped, because the receiver of telemetry takes them more slowly than they come. Requests notice nothing.".to_owned(),
            "spans are dropped, because the receiver takes them more slowly than they come; see the process log",
        )
    } else {
        let dropped = if is_dropping { " Spans are dropped, because their queue is full." } else { "" };
        (
            format!(
                "The receiver of telemetry does not take {}.{dropped} Requests notice nothing.",
                named.join(" and ")
            ),
            "the receiver does not take it; see the process log",
        )
    };
    let todo = "See in the process log what the receiver answers, then look at the receiver that `otel.endpoint` (or \
                `OTEL_EXPORTER_OTLP_ENDPOINT`) names. makegate goes on sending by itself; spans that it gave up are lost.";
    let problem = Problem::spoiling((Check::Telemetry, why), Severity::Warning, "telemetry-failing", what);
    Some(problem.since(Some(state.wall_at(since))).todo(todo, "/config"))
}
