//! Handles one request: log, fault, token, quota, operation, answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode};
use tokio::sync::watch;

use super::SandboxSettings;
use super::answer::{MakeError, SandboxAnswer};
use super::faults::{ECHO, FaultKind, Faults};
use super::operations::{self, OperationCall};
use super::query::ListQuery;
use super::quota::{SandboxBucket, SandboxQuota};
use super::received::{Received, ReceivedLog, TokenSeen};
use super::state::MakeState;
use crate::clock::Clock;
use crate::hash;
use crate::tasks::Tasks;

/// A request that was read completely.
#[derive(Debug)]
pub(super) struct ReceivedRequest {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    /// `None` if longer than Make accepts.
    pub(super) body: Option<Bytes>,
    pub(super) connection: u64,
}

/// What is sent, and how.
#[derive(Debug)]
pub(super) enum Delivery {
    Whole(SandboxAnswer),
    /// In pieces of this size, with this pause before each.
    Drip(SandboxAnswer, usize, Duration),
    /// The head and this many bytes of the body.
    Cut(SandboxAnswer, usize),
    /// Close (FIN) without an answer.
    Close,
    /// Reset (RST) without an answer.
    Reset,
    /// No answer until the receiver's value changes.
    Hang(watch::Receiver<()>),
}

/// State shared by the sandbox's connections and its handle.
#[derive(Debug)]
pub(super) struct SandboxCore {
    pub(super) settings: SandboxSettings,
    pub(super) clock: Clock,
    pub(super) tasks: Tasks,
    /// Changes when hanging requests should end.
    pub(super) released: watch::Sender<()>,
    inner: Mutex<CoreState>,
}

/// State behind the one lock, which is held only briefly.
#[derive(Debug)]
pub(super) struct CoreState {
    pub(super) token: String,
    pub(super) account_limit: u32,
    pub(super) state: MakeState,
    pub(super) quota: SandboxQuota,
    pub(super) faults: Faults,
    pub(super) log: ReceivedLog,
}

impl CoreState {
    fn new(settings: &SandboxSettings, clock: &Clock) -> Self {
        Self {
            token: settings.token.clone(),
            account_limit: settings.account_limit,
            state: MakeState::new(&settings.seed_organizations, settings.lag),
            quota: SandboxQuota::new(settings.window, clock.now()),
            faults: Faults::default(),
            log: ReceivedLog::default(),
        }
    }
}

impl SandboxCore {
    pub(super) fn new(settings: SandboxSettings, clock: Clock) -> Arc<Self> {
        let inner = Mutex::new(CoreState::new(&settings, &clock));
        Arc::new(Self { settings, clock, tasks: Tasks::new(), released: watch::Sender::new(()), inner })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, CoreState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resets state, token, quota, faults and request log to the seed.
    pub(super) fn reset(&self) {
        *self.lock() = CoreState::new(&self.settings, &self.clock);
        self.released.send_replace(());
    }

    pub(super) fn clear_faults(&self) {
        self.lock().faults.clear();
        self.released.send_replace(());
    }

    /// Handles a request. Runs to completion whether or not the client stays, as behind Make's own edge.
    pub(super) async fn exchange(self: Arc<Self>, request: ReceivedRequest) -> Delivery {
        let mut released = self.released.subscribe();
        let (number, fault) = self.arrive(&request);
        match fault {
            None => Delivery::Whole(self.handle(&request, number, None)),
            Some(FaultKind::Latency { ms }) => {
                // A closed channel ends the wait just like the timeout.
                let _over = tokio::time::timeout(Duration::from_millis(ms), released.changed()).await;
                Delivery::Whole(self.handle(&request, number, None))
            }
            Some(FaultKind::Drip { bytes, every_ms }) => {
                let answer = self.handle(&request, number, None);
                Delivery::Drip(answer, bytes.max(1), Duration::from_millis(every_ms))
            }
            Some(FaultKind::Cut { after_bytes }) => Delivery::Cut(self.handle(&request, number, None), after_bytes),
            Some(FaultKind::Reset { effect }) => self.stay_silent(&request, number, effect, Delivery::Reset),
            Some(FaultKind::Close { effect }) => self.stay_silent(&request, number, effect, Delivery::Close),
            Some(FaultKind::Hang { effect }) => self.stay_silent(&request, number, effect, Delivery::Hang(released)),
            Some(FaultKind::Answer { status, body, content_type, headers, effect }) => {
                let answer = scripted(status, body, content_type, headers, &request.headers);
                Delivery::Whole(self.handle(&request, number, Some((answer, effect))))
            }
        }
    }

    fn arrive(&self, request: &ReceivedRequest) -> (u64, Option<FaultKind>) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let body = request.body.as_deref().unwrap_or_default();
        let received = Received {
            number: 0,
            time_ms: self.clock.wall_ms(),
            connection: request.connection,
            method: request.method.to_string(),
            path: request.path.clone(),
            query: request.query.clone(),
            headers: shown_headers(&request.headers),
            token: token_seen(&request.headers, &inner.token),
            body: String::from_utf8_lossy(body).into_owned(),
            status: None,
            bucket: None,
            effect: false,
        };
        let number = inner.log.add(received.without(&inner.token));
        (number, inner.faults.strike(request.method.as_str(), &request.path))
    }

    /// Answers the request, or gives a fault's answer `instead`, after the effect if so told. Token and quota are checked
    /// first in either case, because the fault is in Make's application, not its edge.
    fn handle(&self, request: &ReceivedRequest, number: u64, instead: Option<(SandboxAnswer, bool)>) -> SandboxAnswer {
        let mut inner = self.lock();
        let (answer, effect) = match (self.admit(&mut inner, request, number), instead) {
            (Err(refusal), _) => (refusal, false),
            (Ok(()), None) => self.operate(&mut inner, request),
            (Ok(()), Some((answer, effect))) => (answer, effect && self.operate(&mut inner, request).1),
        };
        if let Some(entry) = inner.log.entry(number) {
            (entry.status, entry.effect) = (Some(answer.status.as_u16()), effect);
        }
        answer
    }

    /// Handles the request if it should have an effect, and discards the answer.
    fn stay_silent(&self, request: &ReceivedRequest, number: u64, effect: bool, silence: Delivery) -> Delivery {
        if effect {
            self.handle(request, number, None);
            if let Some(entry) = self.lock().log.entry(number) {
                entry.status = None;
            }
        }
        silence
    }

    /// Checks size, token and quota before any operation.
    fn admit(&self, inner: &mut CoreState, request: &ReceivedRequest, number: u64) -> Result<(), SandboxAnswer> {
        if request.body.is_none() {
            return Err(SandboxAnswer::too_large());
        }
        if token_seen(&request.headers, &inner.token) != TokenSeen::Right {
            return Err(MakeError::NotLoggedIn.answer());
        }
        let (bucket, limit) = match operations::organization_of(&request.path) {
            None => (SandboxBucket::Account, inner.account_limit),
            Some(id) => (SandboxBucket::Organization(id), inner.state.api_limit(id, self.settings.api_limit)),
        };
        if let Some(entry) = inner.log.entry(number) {
            entry.bucket = Some(bucket);
        }
        let admitted = inner.quota.take(bucket, limit, self.clock.now());
        admitted.then_some(()).ok_or_else(|| SandboxAnswer::over_quota(self.settings.json_429))
    }

    /// Runs the operation; also returns whether it was a write that took effect.
    fn operate(&self, inner: &mut CoreState, request: &ReceivedRequest) -> (SandboxAnswer, bool) {
        let content_type = request.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let call = OperationCall {
            query: ListQuery::parse(&request.query),
            body: operations::object(
                request.body.as_deref().unwrap_or_default(),
                content_type.to_ascii_lowercase().contains("json"),
            ),
            now: self.clock.now(),
            wall: self.clock.wall(),
            api_limit: self.settings.api_limit,
        };
        let method = if request.method == Method::HEAD { "GET" } else { request.method.as_str() };
        match operations::run(&mut inner.state, method, &request.path, &call) {
            Ok(body) => (SandboxAnswer::json(StatusCode::OK, &body), method != "GET"),
            Err(refused) => (refused.answer(), false),
        }
    }
}

fn shown_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .filter(|(name, _)| **name != AUTHORIZATION)
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

fn token_seen(headers: &HeaderMap, token: &str) -> TokenSeen {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return TokenSeen::Missing };
    let given = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("token") || scheme.eq_ignore_ascii_case("bearer"));
    match given {
        Some((_, given)) if values.next().is_none() && hash::constant_time_eq(given.as_bytes(), token.as_bytes()) => {
            TokenSeen::Right
        }
        Some(_) | None => TokenSeen::Wrong,
    }
}

/// The answer that a fault defines, or one in Make's error shape if it defines none.
fn scripted(
    status: u16,
    body: Option<String>,
    content_type: Option<String>,
    headers: BTreeMap<String, String>,
    request: &HeaderMap,
) -> SandboxAnswer {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let sent = request.get(AUTHORIZATION).map(|value| String::from_utf8_lossy(value.as_bytes())).unwrap_or_default();
    let mut answer = SandboxAnswer::shaped(status);
    if let Some(body) = body {
        answer.body = Bytes::from(body.replace(ECHO, &sent));
    }
    if let Some(content_type) = content_type {
        answer.headers = vec![(CONTENT_TYPE.to_string(), content_type)];
    }
    answer.headers.extend(headers.into_iter().map(|(name, value)| (name, value.replace(ECHO, &sent))));
    answer
}
