//! One request to the receiver, and what its answer means. Whatever the receiver says is bounded, and none of it is shown.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use prost::Message as _;
use tokio::time::timeout;

use super::messages::ExportAnswer;
use super::settings::OtelSettings;
use super::{Otel, Signal};
use crate::http_client::cause;
use crate::process_log::STATE;

/// Size limit of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("makegate/", env!("CARGO_PKG_VERSION")));

/// What became of a request to the receiver.
pub(super) enum Delivery {
    /// The receiver took it, but for so many spans or samples.
    Taken { rejected: u64 },
    /// It may be taken later: after this time, if the receiver says so.
    Later { why: String, after: Option<Duration> },
    /// The receiver will not take it.
    Refused { why: String },
}

impl Otel {
    /// Sends once.
    pub(super) async fn send(&self, signal: Signal, body: Bytes) -> Delivery {
        let settings = self.settings.load_full();
        match timeout(settings.timeout, exchange(&settings, signal, body)).await {
            Ok(delivery) => delivery,
            Err(_) => Delivery::Later { why: "no answer in time".to_owned(), after: None },
        }
    }

    /// Counts what became of it, and tells the process log when that changes.
    pub(super) fn note(&self, signal: Signal, delivery: &Delivery) {
        let (why, place) = match delivery {
            Delivery::Taken { .. } => (None, 0),
            Delivery::Later { why, .. } | Delivery::Refused { why } => (Some(why), 1),
        };
        if let Some(count) = self.exports.get(signal as usize).and_then(|counts| counts.get(place)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let Some(fault) = self.faults.get(signal as usize) else { return };
        if signal == Signal::Traces && why.is_none() {
            self.is_dropping.store(false, Ordering::Relaxed);
            self.dropping.end(self.clock.now());
        }
        let (now, signal) = (self.clock.now(), signal.as_str());
        match why {
            None => {
                if fault.end(now).is_some() {
                    tracing::info!(target: STATE, signal, "the receiver of telemetry takes it again");
                }
            }
            Some(why) if fault.begin(now) => {
                tracing::warn!(target: STATE, signal, why, "the receiver of telemetry does not take it");
            }
            Some(_) => {}
        }
    }
}

async fn exchange(settings: &OtelSettings, signal: Signal, body: Bytes) -> Delivery {
    let url = match signal {
        Signal::Traces => &settings.traces,
        Signal::Metrics => &settings.metrics,
    };
    let Some(url) = url else { return Delivery::Refused { why: "a reload has turned it off".to_owned() } };
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = url.clone();
    *request.headers_mut() = settings.headers.clone();
    request.headers_mut().insert(header::CONTENT_TYPE, PROTOBUF);
    request.headers_mut().entry(header::USER_AGENT).or_insert(USER_AGENT);
    let answer = match settings.client.request(request).await {
        Ok(answer) => answer,
        Err(error) => return Delivery::Later { why: cause(&error), after: None },
    };
    let (head, body) = answer.into_parts();
    match head.status {
        status if status.is_success() => {}
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            return Delivery::Later { why: answers(head.status), after: retry_after(&head.headers) };
        }
        status => return Delivery::Refused { why: answers(status) },
    }
    // It said that it took the request: what it says besides only matters if it can be read.
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let partial = ExportAnswer::decode(body).ok().and_then(|answer| answer.partial_success);
    Delivery::Taken { rejected: partial.and_then(|partial| u64::try_from(partial.rejected).ok()).unwrap_or(0) }
}

fn answers(status: StatusCode) -> String {
    format!("it answers {}", status.as_u16())
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}
