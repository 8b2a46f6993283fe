//! The process itself and its configuration.

use super::super::state::OperatorState;
use super::problem::{Check, LINES_MAX, Problem, Severity, counted};
use crate::gateway::refusal::capital;
use crate::process_log;

pub(super) fn config(state: &OperatorState) -> Option<Problem> {
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

pub(super) fn draining(state: &OperatorState) -> Option<Problem> {
    let what = "makegate is shutting down: it finishes what is under way.";
    let problem = Problem::new("draining", Severity::Failed, what).spoils(Check::Draining, "it is shutting down");
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
