//! The process itself and its configuration.

use super::super::state::OperatorState;
use super::problem::{Check, LINES_MAX, Problem, Severity, counted};
use crate::gateway::refusal::capital;
use crate::process_log;

pub(super) fn config(state: &OperatorState) -> Option<Problem> {
    let in_force = state.in_force();
    let error = in_force.error.as_ref()?;
    let stop = if error.ends_with(['.', '!', '?']) { "" } else { "." };
    let what = format!("The last reload failed, and the configuration before it is in force: {error}{stop}");
    let check = match &state.file {
        Some(file) => format!("`makegate check --config {}` lists every mistake", file.display()),
        None => "`makegate check` lists every mistake".to_owned(),
    };
    let todo = format!(
        "Correct what it says; {check}. makegate looks at the files again within 5 s, and at once after SIGHUP."
    );
    let why = "the last reload failed and the configuration before it is in force; see /config";
    let problem = Problem::spoiling((Check::Config, why), Severity::Degraded, "reload-failed", what);
    Some(problem.since(Some(in_force.loaded)).todo(todo, "/config"))
}

pub(super) fn draining(state: &OperatorState) -> Option<Problem> {
    let what = "makegate is shutting down: it finishes what is under way.";
    let problem = Problem::spoiling((Check::Draining, "it is shutting down"), Severity::Failed, "draining", what);
    state
        .gateway
        .is_draining()
        .then(|| problem.todo("Nothing, if somebody stopped it; else see who sent the signal.", "/"))
}

/// What is wrong with the process itself and its configuration.
pub(super) fn process(state: &OperatorState) -> Vec<Problem> {
    let mut problems = Vec::new();
    let dropped = process_log::dropped();
    if dropped > 0 {
        let what = format!(
            "{} since the start, because nobody took them in time.",
            counted(dropped, "line of the process log was dropped", "lines of the process log were dropped")
        );
        let todo = "See why whatever reads makegate's stderr is slow or has stopped.";
        problems.push(Problem::warning("log-lines-dropped", what).todo(todo, "/"));
    }
    if rustix::process::geteuid().is_root() {
        let todo = "Run it as a user of its own: whoever takes it over then has no more than that user.";
        problems.push(Problem::warning("runs-as-root", "makegate runs as root.").todo(todo, "/"));
    }
    let warnings = &state.in_force().origins.warnings;
    problems.extend(warnings.iter().take(LINES_MAX).map(|warning| {
        let what = format!("The configuration is valid, but: {}.", warning.message);
        let todo = warning
            .help
            .clone()
            .map_or_else(|| "See the configuration's warnings.".to_owned(), |help| format!("{}.", capital(&help)));
        Problem::warning("configuration-warning", what).todo(todo, "/config")
    }));
    problems
}
