//! The tasks that send: one for spans, in batches, and one for metrics, at an interval.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use super::delivery::Delivery;
use super::messages::{
    InstrumentationScope, MetricsRequest, OtlpResource, ResourceMetrics, ResourceSpans, ScopeMetrics, ScopeSpans,
    TraceRequest,
};
use super::metrics::{MetricFamily, SamplePeriod, metric};
use super::span::{EndedSpan, text_attribute};
use super::{Otel, Signal, SpanFate, SpanQueue, nanoseconds};

/// Most spans of one batch.
const BATCH_SPANS_MAX: usize = 512;
/// How long a span waits for others.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// How often a batch is sent before it is given up.
const ATTEMPTS_MAX: u32 = 4;
/// The pause before a batch is sent again, doubling...
const PAUSE: Duration = Duration::from_secs(1);
/// ...and the longest one that a receiver may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Whose attribute names are used.
const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.30.0";

impl Otel {
    /// Sends spans until `stop`, and then those that are still in the queue.
    pub async fn send_spans(&self, SpanQueue(mut queue): SpanQueue, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_SPANS_MAX);
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = queue.recv_many(&mut batch, BATCH_SPANS_MAX) => {}
            }
            let due = tokio::time::sleep(BATCH_DELAY);
            tokio::pin!(due);
            while batch.len() < BATCH_SPANS_MAX {
                let room = BATCH_SPANS_MAX - batch.len();
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = &mut due => break,
                    _ = queue.recv_many(&mut batch, room) => {}
                }
            }
            self.deliver_spans(&mut batch, &stop).await;
        }
        loop {
            while batch.len() < BATCH_SPANS_MAX
                && let Ok(span) = queue.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            self.deliver_spans(&mut batch, &stop).await;
        }
    }

    /// Sends what `read` says at each interval until `stop`, and then once more.
    pub async fn send_metrics(&self, read: impl Fn() -> Vec<MetricFamily>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let interval = self.settings.load().interval;
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(interval) => {}
            }
            // What cannot be sent now is sent with the next: all of it counts from the start.
            if self.settings.load().metrics.is_some() {
                let body = Bytes::from(self.metrics_request(read()).encode_to_vec());
                let sent = self.send(Signal::Metrics, body).await;
                self.note(Signal::Metrics, &sent);
            }
        }
    }

    /// Sends a batch, and again where that may help.
    async fn deliver_spans(&self, batch: &mut Vec<EndedSpan>, stop: &CancellationToken) {
        let spans = batch.len() as u64;
        let body = Bytes::from(self.trace_request(batch.drain(..)).encode_to_vec());
        let mut pause = PAUSE;
        for attempt in 1..=ATTEMPTS_MAX {
            let sent = self.send(Signal::Traces, body.clone()).await;
            self.note(Signal::Traces, &sent);
            match sent {
                Delivery::Taken { rejected } => {
                    let rejected = rejected.min(spans);
                    self.count(SpanFate::Sent, spans - rejected);
                    self.count(SpanFate::Failed, rejected);
                    return;
                }
                Delivery::Later { after, .. } if attempt < ATTEMPTS_MAX && !stop.is_cancelled() => {
                    let pause_now = after.unwrap_or(pause).min(PAUSE_MAX);
                    tokio::select! {
                        () = stop.cancelled() => {} // one last time
                        () = tokio::time::sleep(pause_now) => {}
                    }
                    pause = pause.saturating_mul(2);
                }
                Delivery::Later { .. } | Delivery::Refused { .. } => break,
            }
        }
        self.count(SpanFate::Failed, spans);
    }

    fn trace_request(&self, spans: impl Iterator<Item = EndedSpan>) -> TraceRequest {
        let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans: spans.map(Into::into).collect() }];
        let resource = Some(self.resource());
        TraceRequest {
            resource_spans: vec![ResourceSpans { resource, scope_spans, schema_url: SCHEMA_URL.to_owned() }],
        }
    }

    fn metrics_request(&self, families: Vec<MetricFamily>) -> MetricsRequest {
        let period = SamplePeriod { began_ns: self.started_ns, now_ns: nanoseconds(self.clock.wall()) };
        let metrics = families.into_iter().filter(|family| !family.is_empty());
        let metrics = metrics.map(|family| metric(family, period)).collect();
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics }];
        let of_process =
            ResourceMetrics { resource: Some(self.resource()), scope_metrics, schema_url: SCHEMA_URL.to_owned() };
        MetricsRequest { resource_metrics: vec![of_process] }
    }

    fn resource(&self) -> OtlpResource {
        let settings = self.settings.load();
        let mut attributes: Vec<_> = settings.resource.iter().map(|(key, value)| text_attribute(key, value)).collect();
        for (key, value) in [("service.version", env!("CARGO_PKG_VERSION")), ("service.instance.id", &self.instance)] {
            if !settings.resource.iter().any(|(own, _)| own == key) {
                attributes.push(text_attribute(key, value));
            }
        }
        OtlpResource { attributes }
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "makegate".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
}
