//! Telemetry in the form of OpenTelemetry: spans and metrics, sent over OTLP/HTTP. Requests put their spans in a queue that never makes them
//! wait; tasks of their own send what is in it. Whatever the receiver does, a request notices nothing.
//!
//! Only the messages are a library's (prost): OpenTelemetry's SDK would bring its own runtime, clock, HTTP client and randomness, and a second
//! registry of metrics beside the one that `/metrics` has. What a span says comes from the request's record, which has the rules for that.

mod delivery;
mod export;
mod messages;
mod metrics;
mod settings;
mod span;
mod trace_context;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::hash;
use crate::process_log::FaultState;
use crate::vocabulary::word_enum;

use settings::OtelSettings as Settings;

pub use metrics::{MetricFamily, MetricSamples, SampleLabels, SampleNumber};
pub use settings::{OtelError, OtelSettings, ReadSettings};
pub use span::{EndedSpan, SpanKind, SpanValue};
pub use trace_context::{IncomingContext, Sampler, SpanContext};

word_enum! {
    /// What became of a span.
    SpanFate {
        /// The receiver took it.
        Sent = "sent",
        /// There was no room for it in the queue.
        Dropped = "dropped",
        /// The receiver did not take it.
        Failed = "failed",
    }
}

word_enum! {
    /// What is sent.
    Signal {
        /// Spans.
        Traces = "traces",
        /// Metrics.
        Metrics = "metrics",
    }
}

/// Sends telemetry.
pub struct Otel {
    settings: ArcSwap<Settings>,
    queue: mpsc::Sender<EndedSpan>,
    /// Spans in the queue or on their way.
    pending: AtomicU64,
    /// By [`SpanFate`].
    fates: [AtomicU64; SpanFate::ALL.len()],
    /// By [`Signal`]: exports that the receiver took, and that it did not.
    exports: [[AtomicU64; 2]; Signal::ALL.len()],
    /// By [`Signal`].
    faults: [FaultState; Signal::ALL.len()],
    /// Set from the first span that is dropped until spans are delivered again.
    is_dropping: AtomicBool,
    /// The same with its beginning: a span that is dropped looks at the flag alone.
    dropping: FaultState,
    /// Tells this process from others of the same service.
    instance: String,
    started_ns: u64,
    clock: Clock,
}

/// What a receiver does not take.
#[derive(Clone, Debug)]
pub struct OtelTrouble {
    /// Since when.
    pub since: Instant,
    /// What the last attempt to send failed of.
    pub signals: Vec<Signal>,
    /// Whether spans find no room in the queue.
    pub is_dropping: bool,
}

/// The spans that wait to be sent.
pub struct SpanQueue(mpsc::Receiver<EndedSpan>);

impl Otel {
    /// Sends nothing until [`Otel::send_spans`] and [`Otel::send_metrics`] run.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new(settings: OtelSettings, clock: Clock) -> std::io::Result<(Arc<Self>, SpanQueue)> {
        let (queue, receiver) = mpsc::channel(settings.queue);
        let instance = uuid::Builder::from_random_bytes(hash::random()?).into_uuid().to_string();
        let otel = Self {
            settings: ArcSwap::from_pointee(settings),
            queue,
            pending: AtomicU64::new(0),
            fates: Default::default(),
            exports: Default::default(),
            faults: Default::default(),
            is_dropping: AtomicBool::new(false),
            dropping: FaultState::default(),
            instance,
            started_ns: nanoseconds(clock.wall()),
            clock,
        };
        Ok((Arc::new(otel), SpanQueue(receiver)))
    }

    /// Sends as these settings say from now on. The size of the queue stays.
    pub fn set_settings(&self, settings: OtelSettings) {
        self.settings.store(Arc::new(settings));
    }

    /// The place of a request's span in a trace, which is `parent`'s if there is one. `None`: this trace is not sent.
    #[must_use]
    pub fn begin(&self, parent: Option<&IncomingContext>) -> Option<SpanContext> {
        let settings = self.settings.load();
        settings.traces.as_ref()?;
        let context = SpanContext::new(parent.map(|parent| parent.context.trace))?;
        settings.sampler.includes(context.trace, parent).then_some(context)
    }

    /// Puts a span in the queue, or drops it if the queue is full.
    pub fn end(&self, span: EndedSpan) {
        self.pending.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(span).is_ok() {
            return;
        }
        self.count(SpanFate::Dropped, 1);
        if !self.is_dropping.swap(true, Ordering::Relaxed) {
            self.dropping.begin(self.clock.now());
            tracing::warn!("spans are dropped: the receiver of telemetry takes them more slowly than they come");
        }
    }

    /// The source of time.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Spans, by what became of them.
    pub fn fates(&self) -> impl Iterator<Item = (SpanFate, u64)> {
        let counts = self.fates.iter().map(|count| count.load(Ordering::Relaxed));
        SpanFate::ALL.iter().copied().zip(counts)
    }

    /// How often something was sent, by whether the receiver took it.
    pub fn exports(&self) -> impl Iterator<Item = (Signal, bool, u64)> {
        let signals = Signal::ALL.iter().copied().zip(&self.exports);
        signals.flat_map(|(signal, counts)| {
            [true, false].into_iter().zip(counts).map(move |(ok, count)| (signal, ok, count.load(Ordering::Relaxed)))
        })
    }

    /// What the receiver does not take now, if there is such a thing.
    #[must_use]
    pub fn trouble(&self) -> Option<OtelTrouble> {
        let failing =
            Signal::ALL.iter().zip(&self.faults).filter_map(|(signal, fault)| Some((*signal, fault.since()?)));
        let failing: Vec<_> = failing.collect();
        let dropping = self.dropping.since();
        let since = failing.iter().map(|(_, since)| *since).chain(dropping).min()?;
        let signals = failing.into_iter().map(|(signal, _)| signal).collect();
        Some(OtelTrouble { since, signals, is_dropping: dropping.is_some() })
    }

    /// Spans that were neither delivered nor given up.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    fn count(&self, fate: SpanFate, spans: u64) {
        if let Some(count) = self.fates.get(fate as usize) {
            count.fetch_add(spans, Ordering::Relaxed);
        }
        self.pending.fetch_sub(spans, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Otel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Otel").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl SpanContext {
    /// Another span of the same trace. `None` if the system has no randomness.
    #[must_use]
    pub fn child(&self) -> Option<Self> {
        Self::new(Some(self.trace))
    }
}

/// Nanoseconds since 1970.
#[must_use]
pub fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or_default()
}
