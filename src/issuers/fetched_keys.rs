//! An issuer's keys at a URL, fetched in the background. A request waits for them at most a moment, and only if its token names a key that
//! is not known yet.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use rustls::RootCertStore;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::jwks::KeySet;
use crate::clock::Clock;
use crate::http_client::{HttpClient, cause, http_client};
use crate::process_log::{FaultState, STATE};
use crate::tasks::Tasks;

/// How often the keys are fetched again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(15 * 60);
/// The same after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// Shortest time between two fetches, whatever keys tokens name.
const FETCH_PAUSE: Duration = Duration::from_secs(60);
/// Time limit for one fetch, from connecting to the end of the body.
const FETCH_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a request waits for a fetch.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(2);
/// Requests that wait for a fetch; any further one is refused at once.
const WAITING_MAX: usize = 64;
const BODY_BYTES_MAX: usize = 1 << 20;

/// The keys at a URL. They are fetched until this is dropped.
pub(super) struct FetchedKeys {
    fetcher: Arc<KeyFetcher>,
    is_followed: AtomicBool,
    stop: CancellationToken,
    _stops_when_dropped: DropGuard,
}

struct KeyFetcher {
    issuer: Arc<str>,
    url: Uri,
    client: HttpClient<Empty<Bytes>>,
    current: ArcSwapOption<KeySet>,
    times: Mutex<FetchTimes>,
    /// A token named a key that is not known.
    wanted: Notify,
    /// Counts the fetches that have ended.
    ended: watch::Sender<u64>,
    waiting: Semaphore,
    failures: AtomicU64,
    fault: FaultState,
}

#[derive(Debug, Default)]
struct FetchTimes {
    begun: Option<Instant>,
    is_under_way: bool,
}

impl FetchedKeys {
    /// `roots` are whom an https server is verified with.
    pub(super) fn new(issuer: Arc<str>, url: Uri, roots: RootCertStore) -> io::Result<Self> {
        let fetcher = KeyFetcher {
            issuer,
            url,
            client: http_client(roots)?,
            current: ArcSwapOption::empty(),
            times: Mutex::default(),
            wanted: Notify::new(),
            ended: watch::Sender::new(0),
            waiting: Semaphore::new(WAITING_MAX),
            failures: AtomicU64::new(0),
            fault: FaultState::default(),
        };
        let (stop, is_followed) = (CancellationToken::new(), AtomicBool::new(false));
        let _stops_when_dropped = stop.clone().drop_guard();
        Ok(Self { fetcher: Arc::new(fetcher), is_followed, stop, _stops_when_dropped })
    }

    /// The keys fetched last, if any ever were.
    pub(super) fn current(&self) -> Option<Arc<KeySet>> {
        self.fetcher.current.load_full()
    }

    pub(super) fn failures(&self) -> u64 {
        self.fetcher.failures.load(Ordering::Relaxed)
    }

    /// Fetches the keys from now on, if that has not begun yet.
    pub(super) fn follow(&self, tasks: &Tasks, clock: &Clock) {
        if self.is_followed.swap(true, Ordering::Relaxed) {
            return;
        }
        let (fetcher, clock, stop) = (self.fetcher.clone(), clock.clone(), self.stop.clone());
        tasks.spawn_until_stop(async move {
            tokio::select! { () = stop.cancelled() => {}, () = fetcher.run(&clock) => {} }
        });
    }

    /// Fetches the keys once, to see whether that works.
    pub(super) async fn check(&self) -> Result<(), String> {
        self.fetcher.fetch_in_time().await.map(drop)
    }

    /// Asks for a fetch because a token names a key that is not known, and waits a moment for it. `false`: none has ended meanwhile.
    pub(super) async fn refreshed(&self, clock: &Clock) -> bool {
        let fetcher = &self.fetcher;
        let Ok(_place) = fetcher.waiting.try_acquire() else { return false };
        let mut ended = fetcher.ended.subscribe();
        fetcher.wanted.notify_one();
        if !fetcher.fetches_soon(clock.now()) {
            return false;
        }
        timeout(REQUEST_WAIT_MAX, ended.changed()).await.is_ok_and(|ended| ended.is_ok())
    }
}

impl KeyFetcher {
    async fn run(&self, clock: &Clock) {
        loop {
            let begun = clock.now();
            let next = self.fetch(clock).await;
            let is_wanted = tokio::select! {
                () = self.wanted.notified() => true,
                () = clock.sleep_until(next) => false,
            };
            if is_wanted {
                clock.sleep_until(begun + FETCH_PAUSE).await;
            }
        }
    }

    /// Whether a fetch is under way, or begins now that it is wanted.
    fn fetches_soon(&self, now: Instant) -> bool {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = times.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= FETCH_PAUSE);
        times.is_under_way || is_due
    }

    /// Fetches the keys once, and returns when to do so again.
    async fn fetch(&self, clock: &Clock) -> Instant {
        let begun = clock.now();
        *self.times.lock().unwrap_or_else(PoisonError::into_inner) =
            FetchTimes { begun: Some(begun), is_under_way: true };
        let fetched = self.fetch_in_time().await;
        let next = match &fetched {
            Ok(_) => REFRESH_INTERVAL,
            Err(_) => RETRY_INTERVAL,
        };
        self.note(fetched, clock.now());
        self.times.lock().unwrap_or_else(PoisonError::into_inner).is_under_way = false;
        self.ended.send_modify(|count| *count += 1);
        begun + next
    }

    async fn fetch_in_time(&self) -> Result<KeySet, String> {
        let fetched = timeout(FETCH_TIME_MAX, self.fetch_keys()).await;
        fetched.unwrap_or_else(|_late| Err(format!("no answer within {} s", FETCH_TIME_MAX.as_secs())))
    }

    async fn fetch_keys(&self) -> Result<KeySet, String> {
        let request = Request::get(self.url.clone())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("makegate/", env!("CARGO_PKG_VERSION")));
        let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        let answer = self.client.request(request).await.map_err(|error| cause(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("it answers {}", answer.status().as_u16()));
        }
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await.map_err(|error| cause(&*error))?;
        KeySet::parse(&body.to_bytes()).map_err(|error| error.to_string())
    }

    fn note(&self, fetched: Result<KeySet, String>, now: Instant) {
        let (issuer, url) = (&self.issuer, &self.url);
        match fetched {
            Ok(keys) => {
                self.current.store(Some(Arc::new(keys)));
                if self.fault.end(now).is_some() {
                    tracing::info!(target: STATE, %issuer, %url, "the keys of an issuer can be fetched again");
                }
            }
            Err(why) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                if self.fault.begin(now) {
                    let what = "the keys of an issuer cannot be fetched: those fetched last, if any, stay in use";
                    tracing::error!(target: STATE, %issuer, %url, why, "{what}");
                }
            }
        }
    }
}
