//! Which handler answers which path, and what every request passes on its way there.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::handler::Handler;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{self, MethodRouter};
use axum::{Extension, Router};
use http::{HeaderName, HeaderValue, header};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::response::SetMultipleResponseHeadersLayer;

use super::events::{self, AdmittedPages};
use super::html::Menu;
use super::refusal::{BODY_BYTES_MAX, OperatorRefusal};
use super::render::{render_refusal, typed};
use super::state::OperatorState;
use super::{actions, assets, auth, guarded_body, health, metrics, openapi, pages};
use crate::ids::RequestId;

type OperatorRoute = MethodRouter<Arc<OperatorState>>;

/// Every page: its path, its name in the menu if it is there, and its handler. The same with `.json` and `.csv` after the path.
fn pages() -> [(&'static str, Option<&'static str>, OperatorRoute); 16] {
    [
        ("/", Some("Overview"), get(pages::overview)),
        ("/audit", Some("Audit"), get(pages::audit)),
        ("/audit/follow", None, get(pages::follow)),
        ("/audit/head", None, get(pages::head)),
        ("/audit/proof", None, get(pages::proof)),
        ("/audit/record", None, get(pages::record)),
        ("/callers", Some("Callers"), get(pages::callers)),
        ("/quota", Some("Quota"), get(pages::quota)),
        ("/quota/ledger", None, get(pages::ledger)),
        ("/cache", Some("Cache"), get(pages::cache)),
        ("/cache/entries", None, get(pages::entries)),
        ("/doubts", Some("In doubt"), get_or_post(pages::doubts, actions::settle_all)),
        ("/history", None, get(pages::history)),
        ("/replicas", Some("Replicas"), get(pages::replicas)),
        ("/explain", Some("Explain"), get(pages::explain)),
        ("/config", Some("Configuration"), get(pages::config)),
    ]
}

/// The whole door.
pub(super) fn router(state: Arc<OperatorState>) -> Router {
    let key = middleware::from_fn_with_state(state.clone(), auth::check_key);
    let host = middleware::from_fn_with_state(state.clone(), auth::check_host);
    let pages = pages_alone().with_state(state.clone());
    let events = Router::new().route("/events", get(events::events)).layer(Extension(AdmittedPages(pages)));
    let menu = menu(state.gateway.replicas.is_some());
    within_layers(with_key().merge(events).layer(key).layer(host).merge(open()), menu, state)
}

/// What the door for scrapers has.
pub(super) fn router_for_scrapers(state: Arc<OperatorState>) -> Router {
    within_layers(for_scrapers().fallback(async || OperatorRefusal::NotForScrapers), Menu::from([]), state)
}

/// A makegate that is alone does not offer the page of the others.
fn menu(has_replicas: bool) -> Menu {
    let named = pages().into_iter().filter_map(|(path, name, _)| Some((path, name?)));
    named.filter(|(path, _)| has_replicas || *path != "/replicas").collect()
}

/// What every request passes, from the outside in.
pub(super) fn within_layers(routes: Router<Arc<OperatorState>>, menu: Menu, state: Arc<OperatorState>) -> Router {
    let layers = ServiceBuilder::new()
        .layer(middleware::from_fn_with_state(state.clone(), set_request_id))
        .layer(response_headers())
        .layer(middleware::from_fn_with_state(menu.clone(), render_refusal))
        .layer(middleware::from_fn_with_state(state.clone(), guarded_body::guard_body))
        .layer(CatchPanicLayer::custom(|_| OperatorRefusal::Internal.into_response()))
        .layer(middleware::from_fn_with_state(state.clone(), auth::check_head))
        .layer(middleware::from_fn(auth::check_origin))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(Extension(menu));
    routes.layer(layers).with_state(state)
}

/// The paths for probes and scrapers, which are open without a key and under any host: they know the door by its address.
fn open() -> Router<Arc<OperatorState>> {
    for_scrapers().route("/healthz", get(health::livez))
}

fn for_scrapers() -> Router<Arc<OperatorState>> {
    Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
}

/// All other paths, also those that lead nowhere: without the key nobody learns which do.
fn with_key() -> Router<Arc<OperatorState>> {
    let others = Router::new()
        .route("/style.css", get(async || typed("text/css; charset=utf-8", assets::STYLE)))
        .route("/page.js", get(async || typed("text/javascript; charset=utf-8", assets::SCRIPT)))
        .route("/favicon.svg", get(async || typed("image/svg+xml", assets::ICON)))
        .route("/openapi.json", get(gateway_document))
        .route("/operator/openapi.json", get(operator_document))
        .route("/audit/rotate", admin_post(actions::rotate_key))
        .route("/cache/purge", post(actions::purge))
        .route("/quota/reopen", post(actions::reopen))
        .route("/doubts/{request}", post(actions::settle))
        .fallback(async || OperatorRefusal::NoPage);
    others.merge(pages_alone())
}

fn pages_alone() -> Router<Arc<OperatorState>> {
    let named = pages()
        .into_iter()
        .flat_map(|(path, _, page)| ["", ".json", ".csv"].map(|suffix| (format!("{path}{suffix}"), page.clone())));
    named.fold(Router::new(), |router, (path, page)| router.route(&path, page))
}

fn get<H: Handler<T, Arc<OperatorState>>, T: 'static>(handler: H) -> OperatorRoute {
    method_not_allowed("GET, HEAD").get(handler)
}

/// A page, and an action on what it shows.
fn get_or_post<P, T: 'static, A, U: 'static>(page: P, action: A) -> OperatorRoute
where
    P: Handler<T, Arc<OperatorState>>,
    A: Handler<U, Arc<OperatorState>>,
{
    let action = action.layer(middleware::from_fn(auth::require_operate));
    method_not_allowed("GET, HEAD, POST").get(page).post(action)
}

/// An action, which takes the role `operate`.
fn post<H: Handler<T, Arc<OperatorState>>, T: 'static>(handler: H) -> OperatorRoute {
    method_not_allowed("POST").post(handler.layer(middleware::from_fn(auth::require_operate)))
}

/// An action, which takes the role `admin`.
fn admin_post<H: Handler<T, Arc<OperatorState>>, T: 'static>(handler: H) -> OperatorRoute {
    method_not_allowed("POST").post(handler.layer(middleware::from_fn(auth::require_admin)))
}

/// Refuses all methods that are not added to it. axum's own `Allow` would tell whoever has no key that a path is there.
fn method_not_allowed(allowed: &'static str) -> OperatorRoute {
    routing::any(async move || OperatorRefusal::NoMethod { allowed })
}

/// The paths of the pages, without suffix.
pub(super) fn page_paths() -> Vec<&'static str> {
    pages().iter().map(|(path, _, _)| *path).collect()
}

async fn gateway_document(State(state): State<Arc<OperatorState>>) -> Response {
    typed("application/json", state.gateway.policy().openapi(|| state.gateway_urls()))
}

async fn operator_document(State(state): State<Arc<OperatorState>>) -> Response {
    typed("application/json", openapi::document(&page_paths(), &state.operator_urls()).to_string())
}

/// Names the answer by the request's own `X-Request-Id` if that is short and plain, else by a new one.
async fn set_request_id(State(state): State<Arc<OperatorState>>, request: Request, next: Next) -> Response {
    const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    let own = request.headers().get(REQUEST_ID).and_then(|id| RequestId::parse(id.as_bytes()));
    let id = own.unwrap_or_else(|| RequestId::new(&state.gateway.clock));
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// What every answer carries. `same-origin`, because a browser that sends no referrer sends `Origin: null`.
fn response_headers() -> SetMultipleResponseHeadersLayer<Response> {
    let headers = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::VARY, "accept, authorization"),
    ];
    let fixed = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
    let all = fixed.into_iter().chain([(header::CONTENT_SECURITY_POLICY, assets::policy())]);
    SetMultipleResponseHeadersLayer::overriding(all.map(Into::into).collect())
}
