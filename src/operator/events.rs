//! `/events?page=…`: a page, again whenever it has changed, as server-sent events: so a page in a browser is never reloaded. The same
//! handler makes it that makes the page, with the rights of the operator who asks.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Request, State};
use axum::response::Response;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde_json::json;
use tower::ServiceExt as _;

use super::html::{LIVE_PAGES, Menu};
use super::operators::Operator;
use super::query::PageQuery;
use super::refusal::OperatorRefusal;
use super::render::{ToldFrom, typed};
use super::state::OperatorState;
use crate::audit::{Filter, Follower};
use crate::door::PeerConnection;
use crate::fair_semaphore::FairPermit;
use crate::hash;

/// The least time between two looks at a page.
const PAUSE: Duration = Duration::from_secs(2);
/// A page that takes long to make is looked at less often: at most a tenth of the time goes into it.
const PAUSE_FACTOR: u32 = 10;
/// How long nothing is said at most.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The largest page that is sent again and again.
const BYTES_MAX: usize = 1 << 20;
/// After how many milliseconds a browser asks again.
const RETRY: &str = "retry: 3000\n\n";
const HEARTBEAT: &str = ": still here\n\n";

/// The pages, behind the checks of who asks.
#[derive(Clone)]
pub(super) struct AdmittedPages(pub(super) Router);

/// Sends a page now, and whenever it has changed, until the client leaves, the operator's key is taken away or shutdown begins.
///
/// # Errors
/// The page is not a live one; too many are followed.
pub(super) async fn events(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    Extension(operator): Extension<Arc<Operator>>,
    Extension(menu): Extension<Menu>,
    Extension(pages): Extension<AdmittedPages>,
    headers: HeaderMap,
    query: PageQuery,
) -> Result<Response, OperatorRefusal> {
    query.allow_only(&["page"])?;
    let target = target(query.get("page").unwrap_or_default())?;
    if target.path() == "/history" && target.query().is_some() {
        let why = "page: hours of the log are not a live page".to_owned();
        return Err(OperatorRefusal::BadParameter { why });
    }
    let follower = match target.path() {
        "/audit" => Some(state.gateway.log.follow(filter(&target, &state).await?)),
        _ => None,
    };
    let place = state.live_pages.try_acquire(operator.name()).ok_or(OperatorRefusal::TooManyLivePages)?;
    peer.busy().mark_endless();
    let ends = [state.gateway.tasks.stop_token(), operator.revoked.clone()];
    let host = headers.get(header::HOST).cloned();
    let (sent, looked, began) = (None, state.gateway.clock.now(), ToldFrom(state.gateway.clock.wall()));
    let page = LivePage {
        state,
        peer,
        operator,
        menu,
        pages,
        host,
        target,
        follower,
        began,
        sent,
        looked,
        pause: PAUSE,
        _place: place,
    };
    let events = stream::unfold((page, ends, true), |(mut page, ends, is_first)| async move {
        let [stopping, revoked] = &ends;
        let next = tokio::select! {
            next = page.next(), if !is_first => Some(next),
            () = stopping.cancelled() => None,
            () = revoked.cancelled() => None,
            () = std::future::ready(()), if is_first => Some(RETRY.to_owned()),
        };
        Some((Ok::<_, Infallible>(next?), (page, ends, false)))
    });
    Ok(typed("text/event-stream", Body::from_stream(events)))
}

/// The address of a live page.
fn target(page: &str) -> Result<Uri, OperatorRefusal> {
    let target = page.parse::<Uri>().ok().filter(|target| target.scheme().is_none());
    target.filter(|target| LIVE_PAGES.contains(&target.path())).ok_or_else(|| {
        let why = format!("page: none of {} with a query of its own", LIVE_PAGES.join(", "));
        OperatorRefusal::BadParameter { why }
    })
}

/// The filter of the audit page's own query.
async fn filter(target: &Uri, state: &OperatorState) -> Result<Filter, OperatorRefusal> {
    let query = PageQuery::of(target)?;
    if query.has("export") {
        return Err(OperatorRefusal::BadParameter { why: "page: an export is not a live page".to_owned() });
    }
    Ok(Filter::parse(query.iter(), state.gateway.clock.wall())?)
}

/// A page, and who looks at it.
struct LivePage {
    state: Arc<OperatorState>,
    peer: PeerConnection,
    operator: Arc<Operator>,
    menu: Menu,
    pages: AdmittedPages,
    host: Option<HeaderValue>,
    target: Uri,
    /// Of a page of records: it is looked at again when there is a new one that it shows.
    follower: Option<Follower>,
    /// What times are told from: a page has not changed because time passed. The script in it counts on.
    began: ToldFrom,
    /// The hash of the page as it was sent last.
    sent: Option<[u8; 32]>,
    /// When the last look ended.
    looked: Instant,
    pause: Duration,
    _place: FairPermit,
}

/// What a look at a page found.
enum Look {
    Page(Vec<u8>),
    TooLarge,
    /// It was refused, because too much else is under way: the next look may find it.
    Nothing,
}

impl LivePage {
    /// The next event, or a comment that tells that the stream lives.
    async fn next(&mut self) -> String {
        let clock = self.state.gateway.clock.clone();
        let silent_until = clock.now() + SILENCE_MAX;
        loop {
            if self.sent.is_some() {
                if !self.may_have_changed(silent_until).await {
                    return HEARTBEAT.to_owned();
                }
                clock.sleep_until(self.looked + self.pause).await;
            }
            let began = clock.now();
            let look = self.look().await;
            self.looked = clock.now();
            self.pause = PAUSE.max(self.looked.saturating_duration_since(began) * PAUSE_FACTOR);
            let event = match look {
                Look::Page(html) => self.changed(&html),
                Look::TooLarge => self.told_once("This page is too large to be live."),
                Look::Nothing => {
                    self.sent = None;
                    None
                }
            };
            if let Some(event) = event {
                return event;
            }
            if self.sent.is_none() {
                clock.sleep_until(self.looked + self.pause).await;
            }
            if clock.now() >= silent_until {
                return HEARTBEAT.to_owned();
            }
        }
    }

    /// Waits for a new record that the page shows; other pages may change at any time. `false`: there was none until then.
    async fn may_have_changed(&mut self, until: Instant) -> bool {
        let Some(follower) = &mut self.follower else { return true };
        // Of a log that has ended nothing comes.
        let next =
            self.state.gateway.clock.timeout(until.saturating_duration_since(self.state.gateway.clock.now()), async {
                if follower.next().await.is_none() {
                    std::future::pending::<()>().await;
                }
            });
        next.await.is_some()
    }

    async fn look(&self) -> Look {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = self.target.clone();
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("text/html"));
        self.host.iter().for_each(|host| drop(request.headers_mut().insert(header::HOST, host.clone())));
        request.extensions_mut().insert(self.peer.clone());
        request.extensions_mut().insert(self.operator.clone());
        request.extensions_mut().insert(self.menu.clone());
        request.extensions_mut().insert(self.began);
        let Ok(answer) = self.pages.0.clone().oneshot(request).await;
        if answer.status() != StatusCode::OK {
            return Look::Nothing;
        }
        match to_bytes(answer.into_body(), BYTES_MAX).await {
            Ok(html) => Look::Page(html.into()),
            Err(_too_large) => Look::TooLarge,
        }
    }

    fn changed(&mut self, html: &[u8]) -> Option<String> {
        let hash = hash::sha256(html);
        let has_changed = self.sent.replace(hash) != Some(hash);
        has_changed.then(|| event("page", &String::from_utf8_lossy(html)))
    }

    fn told_once(&mut self, what: &str) -> Option<String> {
        let hash = hash::sha256(what.as_bytes());
        let is_new = self.sent.replace(hash) != Some(hash);
        is_new.then(|| event("still", what))
    }
}

/// An event, whose data is JSON, because that has no line ends.
fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {}\n\n", json!(data))
}
