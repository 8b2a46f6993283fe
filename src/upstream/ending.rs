//! How an attempt ended and what that proves about its effect (`docs/decisions/retries.md`).

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value};

use super::body::UpstreamBody;
use super::breaker::BreakerReport;
use crate::shares::Shortage;
use crate::vocabulary::word_enum;

/// How an attempt ended.
#[derive(Debug)]
pub enum Ending {
    /// A complete response with any status, including redirects, which are never followed.
    Answered(UpstreamAnswer),
    /// Provably not processed: no byte of the request left this process (DNS, TCP, TLS, no free connection, handed back
    /// unsent).
    NotSent(AttemptError),
    /// The head arrived but the body was cut short. With a 2xx the effect is done and the answer lost.
    Cut {
        /// Status of the response.
        status: StatusCode,
        /// What cut it short.
        why: AttemptError,
    },
    /// The connection closed without a response after the request was handed over: its effect is unknown.
    Lost(AttemptError),
    /// The attempt timed out after the request was handed over: its effect is unknown.
    TimedOut(AttemptError),
    /// The response contains the token: none of its bytes may be passed on.
    Leaked {
        /// Status of the response.
        status: StatusCode,
    },
    /// A response that cannot be passed on: its head or body is too large, or it is encoded although nobody asked for
    /// that.
    Unusable {
        /// Status of the response; `None` if the head could not be read.
        status: Option<StatusCode>,
        /// What is wrong with it.
        why: AttemptError,
    },
    /// No memory for the response: its caller has used up its share, or the others have taken everything
    /// (`limits.answers_bytes`).
    NoRoom {
        /// Status of the response that was dropped; `None` if this was noticed before anything was sent.
        status: Option<StatusCode>,
        /// The share that is used up.
        short: Shortage,
    },
}

impl Ending {
    /// The upstream's status, if its response head arrived.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Answered(answered) => Some(answered.status),
            Self::Cut { status, .. } | Self::Leaked { status } => Some(*status),
            Self::Unusable { status, .. } | Self::NoRoom { status, .. } => *status,
            Self::NotSent(_) | Self::Lost(_) | Self::TimedOut(_) => None,
        }
    }

    /// What went wrong, if there is more to say than the variant does.
    #[must_use]
    pub fn error(&self) -> Option<&AttemptError> {
        match self {
            Self::NotSent(why) | Self::Lost(why) | Self::TimedOut(why) => Some(why),
            Self::Cut { why, .. } | Self::Unusable { why, .. } => Some(why),
            Self::Answered(_) | Self::Leaked { .. } | Self::NoRoom { .. } => None,
        }
    }

    /// What the ending reports to the breaker.
    #[must_use]
    pub fn breaker_report(&self) -> BreakerReport {
        match self {
            Self::NotSent(why) => why.breaker_report(),
            Self::NoRoom { status: None, .. } => BreakerReport::Nothing,
            Self::TimedOut(_) => BreakerReport::Silent,
            Self::Cut { why, .. } if why.error == ProxyError::HttpResponseTimeout => BreakerReport::Silent,
            Self::Answered(_) | Self::Cut { .. } | Self::Lost(_) => BreakerReport::Reached,
            Self::Leaked { .. } | Self::Unusable { .. } | Self::NoRoom { status: Some(_), .. } => {
                BreakerReport::Reached
            }
        }
    }

    /// Its kind, as metrics count it.
    #[must_use]
    pub const fn kind(&self) -> EndingKind {
        match self {
            Self::Answered(_) => EndingKind::Answered,
            Self::NotSent(_) => EndingKind::NotSent,
            Self::Cut { .. } => EndingKind::Cut,
            Self::Lost(_) => EndingKind::Lost,
            Self::TimedOut(_) => EndingKind::TimedOut,
            Self::Leaked { .. } => EndingKind::Leaked,
            Self::Unusable { .. } => EndingKind::Unusable,
            Self::NoRoom { .. } => EndingKind::NoRoom,
        }
    }
}

word_enum! {
    /// The kinds of [`Ending`].
    EndingKind {
        /// With a whole answer.
        Answered = "answered",
        /// Provably before the request was sent.
        NotSent = "not-sent",
        /// In the middle of the answer.
        Cut = "cut",
        /// Before any answer.
        Lost = "lost",
        /// With a time-out.
        TimedOut = "timed-out",
        /// With an answer that held the token.
        Leaked = "leaked",
        /// With an answer that cannot be passed on.
        Unusable = "unusable",
        /// Without memory for the answer.
        NoRoom = "no-room",
    }
}

/// A complete response from the upstream, unmodified, with hop-by-hop fields.
#[derive(Debug)]
pub struct UpstreamAnswer {
    /// Status.
    pub status: StatusCode,
    /// Header fields.
    pub headers: HeaderMap,
    /// Body.
    pub body: UpstreamBody,
    /// Time from sending the request to the response head: the `response_delay` of RFC 9111, section 4.2.3.
    pub delay: Duration,
    /// Whether the body's end was marked (`Content-Length`, chunked, no body). If not, the end of the connection marks
    /// it (RFC 9112, section 8); such a response may be passed on but not stored.
    pub framed: bool,
}

impl UpstreamAnswer {
    /// Whether it is Make's own word, if it is an error; see [`is_from_make`].
    #[must_use]
    pub fn is_from_make(&self) -> bool {
        is_from_make(self.status, &self.headers, self.body.bytes())
    }
}

/// Whether an error with this status, these headers and this body is Make's own, which is a JSON object. Others come from something in
/// front of Make. Such things refuse in JSON, too: a 403 is Make's only with a `code` that is text, such as `SC403`.
#[must_use]
pub fn is_from_make(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> bool {
    const BYTES_MAX: usize = 64 << 10; // Make's errors are far smaller, and a larger body would take long to read
    let is_make =
        |error: Map<String, Value>| status != StatusCode::FORBIDDEN || error.get("code").is_some_and(Value::is_string);
    is_json(headers) && body.len() <= BYTES_MAX && serde_json::from_slice(body).is_ok_and(is_make)
}

/// Whether a body is said to be JSON.
#[must_use]
pub fn is_json(headers: &HeaderMap) -> bool {
    let is_json = |value: &[u8]| memchr::memmem::find(&value.to_ascii_lowercase(), b"json").is_some();
    headers.get(header::CONTENT_TYPE).is_some_and(|value| is_json(value.as_bytes()))
}

/// What went wrong; contains neither token nor URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {text}", .error.as_str())]
pub struct AttemptError {
    /// Error type for `Proxy-Status`.
    pub error: ProxyError,
    /// A short message for people.
    pub text: Cow<'static, str>,
}

/// Size limit of the text, in bytes: a certificate with a thousand names must not fill a record.
const TEXT_BYTES_MAX: usize = 200;

impl AttemptError {
    pub(super) fn new(error: ProxyError, text: &'static str) -> Self {
        Self { error, text: Cow::Borrowed(text) }
    }

    pub(super) fn with_cause(error: ProxyError, cause: &dyn fmt::Display) -> Self {
        let mut text = cause.to_string();
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        Self { error, text: Cow::Owned(text) }
    }

    /// What the error reports to the breaker when it is the reason why nothing was sent.
    #[must_use]
    pub fn breaker_report(&self) -> BreakerReport {
        if self.is_local() { BreakerReport::Nothing } else { BreakerReport::Unreachable }
    }

    /// Whether makegate's own limits caused the error, not the upstream.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.error, ProxyError::ConnectionLimitReached | ProxyError::ProxyInternalError)
    }
}

/// The error types of RFC 9209, section 2.3, that an attempt can end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyError {
    /// Name resolution failed.
    DnsError,
    /// No route to the address.
    DestinationIpUnroutable,
    /// The address is unreachable for another reason.
    DestinationUnavailable,
    /// The connection was refused.
    ConnectionRefused,
    /// Connecting and the handshake took too long.
    ConnectionTimeout,
    /// The connection closed before a complete response.
    ConnectionTerminated,
    /// No connection became free in time.
    ConnectionLimitReached,
    /// The upstream's certificate was rejected.
    TlsCertificateError,
    /// The upstream ended the handshake with an alert.
    TlsAlertReceived,
    /// The handshake failed in another way.
    TlsProtocolError,
    /// The response body was cut short.
    HttpResponseIncomplete,
    /// The response head is too large.
    HttpResponseHeaderSectionSize,
    /// The response body is too large.
    HttpResponseBodySize,
    /// The response has a transfer coding other than chunked.
    HttpResponseTransferCoding,
    /// The response is encoded although identity was requested.
    HttpResponseContentCoding,
    /// The response took too long.
    HttpResponseTimeout,
    /// The response is not valid HTTP/1.1.
    HttpProtocolError,
    /// The request that the gateway rendered is not valid.
    ProxyInternalError,
}

impl ProxyError {
    /// The `Proxy-Status` error value (`error=connection_refused`).
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DnsError => "dns_error",
            Self::DestinationIpUnroutable => "destination_ip_unroutable",
            Self::DestinationUnavailable => "destination_unavailable",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionTimeout => "connection_timeout",
            Self::ConnectionTerminated => "connection_terminated",
            Self::ConnectionLimitReached => "connection_limit_reached",
            Self::TlsCertificateError => "tls_certificate_error",
            Self::TlsAlertReceived => "tls_alert_received",
            Self::TlsProtocolError => "tls_protocol_error",
            Self::HttpResponseIncomplete => "http_response_incomplete",
            Self::HttpResponseHeaderSectionSize => "http_response_header_section_size",
            Self::HttpResponseBodySize => "http_response_body_size",
            Self::HttpResponseTransferCoding => "http_response_transfer_coding",
            Self::HttpResponseContentCoding => "http_response_content_coding",
            Self::HttpResponseTimeout => "http_response_timeout",
            Self::HttpProtocolError => "http_protocol_error",
            Self::ProxyInternalError => "proxy_internal_error",
        }
    }
}
