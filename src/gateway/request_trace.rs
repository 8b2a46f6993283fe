//! A request's spans: its own, one for each step that waits, and one for each attempt. They say what the request's record says, and no more;
//! the rules for what a record may contain are in [`recorded`](super::recorded).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderName, HeaderValue, Method, Version};

use super::state::Gateway;
use crate::audit::{Peer, Record, Text};
use crate::catalogue::Operation;
use crate::config::BaseUrl;
use crate::otel::{EndedSpan, IncomingContext, Otel, SpanContext, SpanKind, SpanValue, nanoseconds};
use crate::upstream::{Ending, Outgoing};
use crate::vocabulary::Outcome;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Why a span has no result: whoever wanted it is gone.
const CANCELLED: SpanValue = SpanValue::Word("cancelled");

/// The most attributes of a request's span.
const ATTRIBUTES_MAX: usize = 16;

/// A step that may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WaitStep {
    /// The body arrives.
    Body,
    /// Another request's fetch goes on.
    SharedFetch,
    /// The organization's quota is spent, or others are first.
    Quota,
    /// All connections to Make are in use.
    Connection,
    /// An earlier write to the same resource goes on.
    Turn,
    /// The intent goes to the disk.
    Intent,
    /// The outcome goes to the disk.
    Outcome,
}

impl WaitStep {
    /// The name of its span.
    const fn name(self) -> &'static str {
        match self {
            Self::Body => "read the body",
            Self::SharedFetch => "wait for a shared fetch",
            Self::Quota => "wait for quota",
            Self::Connection => "wait for a connection",
            Self::Turn => "wait for the resource's turn",
            Self::Intent => "write the intent",
            Self::Outcome => "write the outcome",
        }
    }
}

/// A request whose trace is sent.
pub(crate) struct RequestTrace {
    otel: Arc<Otel>,
    context: SpanContext,
    /// The caller's span.
    parent: Option<SpanContext>,
    began: Instant,
    began_ns: u64,
    scheme: &'static str,
    version: Version,
}

impl RequestTrace {
    /// The trace of a request that begins now; `traceparent` is the caller's. `None` if this trace is not sent.
    pub(crate) fn begin(
        gateway: &Gateway,
        otel: &Arc<Otel>,
        traceparent: Option<&str>,
        version: Version,
    ) -> Option<Arc<Self>> {
        let incoming = traceparent.and_then(IncomingContext::parse);
        let context = otel.begin(incoming.as_ref())?;
        Some(Arc::new(Self {
            otel: otel.clone(),
            context,
            parent: incoming.map(|incoming| incoming.context()),
            began: gateway.clock.now(),
            began_ns: nanoseconds(gateway.clock.wall()),
            scheme: if gateway.policy().config.gateway.tls.is_some() { "https" } else { "http" },
            version,
        }))
    }

    /// What names this request as the parent of others' spans.
    pub(crate) fn traceparent(&self) -> String {
        self.context.traceparent()
    }

    /// Times a step until the returned value is dropped.
    pub(crate) fn step(&self, step: WaitStep) -> StepSpan<'_> {
        StepSpan { trace: self, step, began: self.otel.clock().now() }
    }

    /// Times an attempt to send `outgoing`, whose path is recorded as `path`. `earlier`: how many there were before it.
    pub(crate) fn attempt<'t>(
        &'t self,
        url: &BaseUrl,
        row: &Operation,
        (outgoing, path): (&Outgoing, &str),
        earlier: u32,
    ) -> Option<AttemptSpan<'t>> {
        let context = self.context.child()?;
        let scheme = if url.tls { "https" } else { "http" };
        let mut attributes = vec![
            ("http.request.method", method(&outgoing.method)),
            ("url.full", SpanValue::text(&format!("{scheme}://{}{}", url.authority, path))),
            ("url.template", SpanValue::text(row.path.as_str())),
            ("server.address", SpanValue::text(&url.host)),
            ("server.port", url.port.into()),
            ("network.protocol.name", SpanValue::Word("http")),
            ("network.protocol.version", SpanValue::Word("1.1")),
            ("makegate.operation", SpanValue::Shared(row.id.clone())),
        ];
        if earlier > 0 {
            attributes.push(("http.request.resend_count", earlier.into()));
        }
        Some(AttemptSpan {
            trace: self,
            context,
            began: self.otel.clock().now(),
            method: outgoing.method.clone(),
            attributes,
        })
    }

    /// The request has ended as its record says; `row` is its operation's.
    pub(crate) fn end(&self, record: &Record<'_>, outcome: Option<Outcome>, row: Option<&Operation>) {
        let mut attributes = Vec::with_capacity(ATTRIBUTES_MAX);
        attributes.push(("url.scheme", SpanValue::Word(self.scheme)));
        attributes.push(("network.protocol.version", SpanValue::Word(version(self.version))));
        attributes.extend(row.map(|row| ("http.route", SpanValue::text(row.path.as_str()))));
        attributes.extend(outcome.map(|outcome| ("makegate.outcome", SpanValue::Word(outcome.as_str()))));
        attributes.extend(attributes_of(record));
        let has_failed = record.status.is_some_and(|status| status >= 500);
        let error = match (record.status, &record.refusal) {
            (None, _) => Some(CANCELLED),
            (Some(_), Some(code)) => Some(SpanValue::text(code)).filter(|_| has_failed),
            (Some(status), None) => has_failed.then(|| SpanValue::text(&status.to_string())),
        };
        attributes.extend(error.map(|error| ("error.type", error)));
        let verb = record.method.as_ref().map_or("HTTP", method_word);
        let name = row.map_or(Cow::Borrowed(verb), |row| Cow::Owned(format!("{verb} {}", row.path)));
        self.otel.end(EndedSpan {
            context: self.context,
            parent: self.parent,
            is_parent_remote: self.parent.is_some(),
            kind: SpanKind::Server,
            name,
            began_ns: self.began_ns,
            ended_ns: self.ns(self.otel.clock().now()),
            has_failed,
            attributes,
        });
    }

    /// The wall time of a moment since the request began, however the machine's clock was set meanwhile.
    fn ns(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.began).as_nanos();
        self.began_ns.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }

    /// Ends a span within the request's.
    fn end_child(&self, context: SpanContext, began: Instant, child: ChildSpan) {
        self.otel.end(EndedSpan {
            context,
            parent: Some(self.context),
            is_parent_remote: false,
            kind: child.kind,
            name: child.name,
            began_ns: self.ns(began),
            ended_ns: self.ns(self.otel.clock().now()),
            has_failed: child.has_failed,
            attributes: child.attributes,
        });
    }
}

/// What a request's span has of its record.
fn attributes_of(record: &Record<'_>) -> impl Iterator<Item = (&'static str, SpanValue)> {
    let text = |text: &Text<'_>| text.as_shared().map_or_else(|| SpanValue::text(text), SpanValue::shared);
    let address = match &record.peer {
        Some(Peer::Ip(address)) => Some(SpanValue::text(&address.to_string())),
        Some(Peer::Unix(_) | Peer::Several(_)) | None => None,
    };
    let organization = record.organization.and_then(|id| i64::try_from(id).ok());
    let attributes = [
        ("http.request.method", record.method.as_ref().map(method)),
        ("http.response.status_code", record.status.map(SpanValue::from)),
        ("url.path", record.path.as_ref().map(text)),
        ("client.address", address),
        ("makegate.request", record.request.map(|id| SpanValue::text(id.as_str()))),
        ("makegate.caller", record.caller.as_ref().map(text)),
        ("makegate.operation", record.operation.as_ref().map(text)),
        ("makegate.organization", organization.map(SpanValue::Number)),
        ("makegate.answer", record.answer.map(|answer| SpanValue::Word(answer.as_str()))),
        ("makegate.code", record.refusal.as_ref().map(text)),
        ("makegate.filled_by", record.filled_by.map(|id| SpanValue::text(id.as_str()))),
    ];
    attributes.into_iter().filter_map(|(key, value)| Some((key, value?)))
}

/// What is particular to a span within the request's.
struct ChildSpan {
    kind: SpanKind,
    name: Cow<'static, str>,
    has_failed: bool,
    attributes: Vec<(&'static str, SpanValue)>,
}

/// A step that is under way. Dropped, it has ended, whether it got what it waited for or not.
#[must_use = "it times the step until it is dropped"]
pub(crate) struct StepSpan<'t> {
    trace: &'t RequestTrace,
    step: WaitStep,
    began: Instant,
}

impl Drop for StepSpan<'_> {
    fn drop(&mut self) {
        let Some(context) = self.trace.context.child() else { return };
        let name = Cow::Borrowed(self.step.name());
        let child = ChildSpan { kind: SpanKind::Internal, name, has_failed: false, attributes: Vec::new() };
        self.trace.end_child(context, self.began, child);
    }
}

/// An attempt that is under way. Dropped without an end, it was cancelled.
#[must_use = "it times the attempt until its end"]
pub(crate) struct AttemptSpan<'t> {
    trace: &'t RequestTrace,
    context: SpanContext,
    began: Instant,
    method: Method,
    /// Empty once it has ended.
    attributes: Vec<(&'static str, SpanValue)>,
}

impl AttemptSpan<'_> {
    /// What goes upstream: it names this attempt as its parent.
    pub(crate) fn outgoing(&self, outgoing: &Outgoing) -> Outgoing {
        let mut outgoing = outgoing.clone();
        if let Ok(value) = HeaderValue::try_from(self.context.traceparent()) {
            outgoing.headers.insert(TRACEPARENT, value);
        }
        if self.trace.parent.is_none() {
            outgoing.headers.remove(TRACESTATE); // of a trace that this one does not continue
        }
        outgoing
    }

    /// It was none: nothing was sent, and it does not count.
    pub(crate) fn forget(mut self) {
        self.attributes.clear();
    }

    pub(crate) fn end(mut self, ending: &Ending) {
        let status = ending.status().map(|status| status.as_u16());
        self.attributes.extend(status.map(|status| ("http.response.status_code", status.into())));
        self.attributes.push(("makegate.ending", SpanValue::Word(ending.kind().as_str())));
        let error = match (ending.error(), status) {
            (Some(why), _) => Some(SpanValue::Word(why.error.as_str())),
            (None, Some(status)) if status >= 400 => Some(SpanValue::text(&status.to_string())),
            (None, _) if !matches!(ending, Ending::Answered(_)) => Some(SpanValue::Word(ending.kind().as_str())),
            (None, _) => None,
        };
        self.finish(error);
    }

    fn finish(&mut self, error: Option<SpanValue>) {
        let mut attributes = std::mem::take(&mut self.attributes);
        let has_failed = error.is_some();
        attributes.extend(error.map(|error| ("error.type", error)));
        let name = Cow::Borrowed(method_word(&self.method));
        let child = ChildSpan { kind: SpanKind::Client, name, has_failed, attributes };
        self.trace.end_child(self.context, self.began, child);
    }
}

impl Drop for AttemptSpan<'_> {
    fn drop(&mut self) {
        if !self.attributes.is_empty() {
            self.finish(Some(CANCELLED));
        }
    }
}

/// The methods that are known; a caller may send any other word.
fn method_word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "HTTP",
    }
}

fn method(method: &Method) -> SpanValue {
    SpanValue::Word(match method_word(method) {
        "HTTP" => "_OTHER",
        known => known,
    })
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}
