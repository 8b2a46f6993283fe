//! The operator door: what the gateway does and did, for people, scripts and scrapers.
//!
//! [`router`] has the table of its pages and the layers that every request passes. Most paths are pages: one value, which
//! [`render`] shows as JSON, CSV or HTML.

mod actions;
mod auth;
mod guarded_body;
mod health;
mod html;
mod metrics;
mod pages;
mod process;
mod query;
mod refusal;
mod render;
mod router;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod wrong_keys;

use std::sync::Arc;

use axum::Extension;
use tower::ServiceBuilder;

use crate::door::{Door, OpenDoor};

pub use state::OperatorState;
pub(crate) use table::json_cell;

/// Serves `state` at a bound door from now on.
pub fn open(door: Door, state: Arc<OperatorState>) -> OpenDoor {
    let router = router::router(state.clone());
    let open = door.open(move |peer| ServiceBuilder::new().layer(Extension(peer)).service(router.clone()));
    state.register_door("operator", open.clone());
    open
}
