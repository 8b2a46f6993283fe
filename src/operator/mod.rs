//! The operators' door: what the gateway does and did, for people, scripts and scrapers.
//!
//! Every request passes [`guard`] first. Most places are pages: one value, rendered as JSON, CSV or HTML in [`render`].

mod audit;
mod body;
mod guard;
mod health;
mod html;
mod metrics;
mod pages;
mod process;
mod purge;
mod query;
mod refusal;
mod render;
mod rotate_key;
mod routes;
mod settle;
mod state;
#[cfg(test)]
mod tests;
mod wrong_keys;

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Body;
use hyper::body::Incoming;

use crate::door::{Door, OpenDoor};
use query::PageQuery;
use refusal::OperatorRefusal;
use render::{GuardedBody, PageBody, text};
use routes::{Destination, FoundRoute, PageFormat};

pub use state::OperatorState;

/// What every answer of this door carries. `same-origin`, because a browser that sends no referrer sends `Origin: null`.
const HEADERS: [(&str, &str); 6] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("cache-control", "no-store"),
    ("referrer-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// Serves `state` at a bound door from now on.
pub fn open(door: Door, state: Arc<OperatorState>) -> OpenDoor {
    let serving = state.clone();
    let open = door.open(move |peer| {
        let state = serving.clone();
        tower::service_fn(move |request: Request<Incoming>| {
            let (state, peer) = (state.clone(), peer.clone());
            async move {
                let busy = peer.busy();
                if routes::find(request.uri().path()).is_some_and(|route| route.destination == Destination::Follow) {
                    busy.is_endless();
                }
                let form = routes::form(routes::find(request.uri().path()), request.headers());
                let response = answer(&state, peer.address, request).await;
                // An answer without an exact size is made as it is taken.
                let response = match state.room(response.body().size_hint().exact().unwrap_or(0)) {
                    Ok(room) => response.map(|body| GuardedBody::new(body, busy, room)),
                    Err(problem) => {
                        let mut response = problem.response(form);
                        add_headers(response.headers_mut());
                        response.map(|body| GuardedBody::new(body, busy, None))
                    }
                };
                Ok::<_, std::convert::Infallible>(response)
            }
        })
    });
    state.show_door("operator", open.clone());
    open
}

/// Answers one request of `peer`: whatever happens inside, there is one answer.
async fn answer<B>(state: &Arc<OperatorState>, peer: Option<IpAddr>, request: Request<B>) -> Response<PageBody>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let (head, body) = request.into_parts();
    let route = routes::find(head.uri.path());
    let form = routes::form(route, &head.headers);
    let answered = AssertUnwindSafe(guard_and_serve(state, peer, &head, route, form, body)).catch_unwind().await;
    let answered = answered.unwrap_or(Err(OperatorRefusal::Internal));
    let mut response = answered.unwrap_or_else(|problem| problem.response(form));
    add_headers(response.headers_mut());
    response
}

/// The guards, then the place.
async fn guard_and_serve<B>(
    state: &Arc<OperatorState>,
    peer: Option<IpAddr>,
    head: &Parts,
    route: Option<FoundRoute>,
    form: PageFormat,
    body: B,
) -> Result<Response<PageBody>, OperatorRefusal>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let authority = guard::host(head, &state.gateway.policy().config.operator)?;
    guard::origin(head, &authority)?;
    if !route.is_some_and(|route| route.destination.is_open()) {
        guard::key(state, peer, &head.headers)?;
    }
    let destination = route.ok_or(OperatorRefusal::NoPage)?.destination;
    destination.takes(&head.method)?;
    let query = PageQuery::parse(head.uri.query())?;
    serve_destination(state, peer, destination, (form, &query), head, body).await
}

async fn serve_destination<B>(
    state: &Arc<OperatorState>,
    peer: Option<IpAddr>,
    destination: Destination,
    (form, query): (PageFormat, &PageQuery),
    head: &Parts,
    body: B,
) -> Result<Response<PageBody>, OperatorRefusal>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    Ok(match destination {
        Destination::Livez => text("text/plain; charset=utf-8", "ok\n"),
        Destination::Readyz => health::readyz(state, query),
        Destination::Metrics => metrics::metrics(state),
        Destination::Style => text("text/css; charset=utf-8", include_str!("style.css")),
        Destination::OpenApi => render::bytes("application/json", state.gateway.policy().openapi()),
        Destination::Overview => render::page(&pages::overview(state), form, query),
        Destination::Audit => audit::page(state, form, query).await?,
        Destination::Follow => audit::follow(state, query)?,
        Destination::Head => {
            let page = pages::head(state).await;
            match page.note(form, head.uri.path(), &head.headers) {
                Some(note) => text("text/plain; charset=utf-8", note),
                None => render::page(&page, form, query),
            }
        }
        Destination::Proof => render::page(&pages::proof(state, query).await?, form, query),
        Destination::Rotate => rotate_key::rotate(state).await?,
        Destination::Callers => render::page(&pages::callers(state), form, query),
        Destination::Quota => render::page(&pages::quota(state), form, query),
        Destination::Cache => render::page(&pages::cache(state), form, query),
        Destination::Purge => purge::purge(state, peer, head, body).await?,
        Destination::Settle => settle::settle(state, peer, head, body).await?,
        Destination::Config => render::page(&pages::config(state), form, query),
        Destination::Doubts => render::page(&pages::doubts(state), form, query),
        Destination::Explain => render::page(&pages::explain(state, form, query)?, form, query),
    })
}

fn add_headers(headers: &mut HeaderMap) {
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::VARY, HeaderValue::from_static("accept, authorization"));
}
