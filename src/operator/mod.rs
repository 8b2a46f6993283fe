//! The operator door: what the gateway does and did, for people, scripts and scrapers.
//!
//! [`router`] has the table of its pages and the layers that every request passes. Most paths are pages: one value, which
//! [`render`] shows as JSON, CSV or HTML.

mod actions;
mod assets;
mod auth;
mod cells;
mod chart;
mod events;
mod guarded_body;
mod health;
mod history;
mod html;
mod metrics;
mod openapi;
mod operators;
mod pages;
mod problems;
mod process;
mod query;
mod refusal;
mod render;
mod rich;
mod router;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod wrong_keys;

use std::sync::Arc;

use axum::{Extension, Router};
use tower::ServiceBuilder;

use crate::door::{Door, OpenDoor};
use crate::ids::RequestId;

/// Serves probes and scrapers at a bound door from now on: they need no key there, and see nothing else.
pub fn open_to_scrapers(door: Door, state: Arc<OperatorState>) -> OpenDoor {
    serve(door, "metrics", router::router_for_scrapers(state.clone()), &state)
}

fn serve(door: Door, name: &'static str, router: Router, state: &OperatorState) -> OpenDoor {
    let clock = state.gateway.clock.clone();
    let unread = Box::new(move |why| refusal::answer_unread(why, &RequestId::new(&clock)));
    let open = door.open(move |peer| ServiceBuilder::new().layer(Extension(peer)).service(router.clone()), unread);
    state.register_door(name, open.clone());
    open
}

pub(crate) use metrics::metric_families;
pub(crate) use pages::story;
pub use state::OperatorState;
pub(crate) use table::json_cell;

/// Looks at the counters every 10 s, for the charts of the last hour. Ends with the task that it runs in.
pub async fn keep_history(state: Arc<OperatorState>) {
    let clock = state.gateway.clock.clone();
    let mut due = clock.now();
    loop {
        // What goes wrong with one look leaves a gap.
        let _looked = state.walk(|state| state.history.sample(&state.gateway)).await;
        due = history::next_look(due, &clock);
        clock.sleep_until(due).await;
    }
}

/// Serves `state` at a bound door from now on.
pub fn open(door: Door, state: Arc<OperatorState>) -> OpenDoor {
    serve(door, "operator", router::router(state.clone()), &state)
}
