//! How an attempt ended, and what that proves about its effect (`docs/decisions/retries.md`).

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::body::UpstreamBody;
use super::breaker::BreakerReport;
use crate::shares::Shortage;

/// How one attempt ended.
#[derive(Debug)]
pub enum Ending {
    /// A whole answer, whatever its status (redirects too: none is followed).
    Answered(UpstreamAnswer),
    /// Provably not processed: no byte of the request left this process (DNS, TCP, TLS, no free connection, handed back).
    NotSent(AttemptError),
    /// The head came, the body did not come whole. A 2xx: the effect is done, the answer lost.
    Cut {
        /// Its status.
        status: StatusCode,
        /// What cut it.
        why: AttemptError,
    },
    /// The connection ended without an answer after the request was handed over: its effect is unknown.
    Lost(AttemptError),
    /// The time was up after the request was handed over: its effect is unknown.
    TimedOut(AttemptError),
    /// The answer holds the token: none of its bytes may go on.
    Leaked {
        /// Its status.
        status: StatusCode,
    },
    /// An answer that cannot be passed on: head or body beyond the limits, or encoded though nobody asked for it.
    Unusable {
        /// Its status; `None`: the head itself could not be read.
        status: Option<StatusCode>,
        /// What is wrong with it.
        why: AttemptError,
    },
    /// No memory for the answer: its caller has its share of it, or the others have all (`limits.answers_bytes`).
    NoRoom {
        /// The status of the answer that was given up; `None`: noticed before anything was sent.
        status: Option<StatusCode>,
        /// Whose share is used up.
        short: Shortage,
    },
}

impl Ending {
    /// The status that the upstream answered with, if its head came.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Answered(answered) => Some(answered.status),
            Self::Cut { status, .. } | Self::Leaked { status } => Some(*status),
            Self::Unusable { status, .. } | Self::NoRoom { status, .. } => *status,
            Self::NotSent(_) | Self::Lost(_) | Self::TimedOut(_) => None,
        }
    }

    /// What went wrong, where there is more to say than the variant does.
    #[must_use]
    pub fn error(&self) -> Option<&AttemptError> {
        match self {
            Self::NotSent(why) | Self::Lost(why) | Self::TimedOut(why) => Some(why),
            Self::Cut { why, .. } | Self::Unusable { why, .. } => Some(why),
            Self::Answered(_) | Self::Leaked { .. } | Self::NoRoom { .. } => None,
        }
    }

    /// What it tells the breaker.
    #[must_use]
    pub fn breaker_report(&self) -> BreakerReport {
        match self {
            Self::NotSent(why) => why.told(),
            Self::NoRoom { status: None, .. } => BreakerReport::Nothing,
            Self::TimedOut(_) => BreakerReport::Silent,
            Self::Cut { why, .. } if why.error == ProxyError::HttpResponseTimeout => BreakerReport::Silent,
            Self::Answered(_) | Self::Cut { .. } | Self::Lost(_) => BreakerReport::Reached,
            Self::Leaked { .. } | Self::Unusable { .. } | Self::NoRoom { status: Some(_), .. } => {
                BreakerReport::Reached
            }
        }
    }

    /// Its name in metrics and the process log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Answered(_) => "answered",
            Self::NotSent(_) => "not-sent",
            Self::Cut { .. } => "cut",
            Self::Lost(_) => "lost",
            Self::TimedOut(_) => "timed-out",
            Self::Leaked { .. } => "leaked",
            Self::Unusable { .. } => "unusable",
            Self::NoRoom { .. } => "no-room",
        }
    }
}

/// A whole answer of the upstream, untouched: hop-by-hop fields are still in it.
#[derive(Debug)]
pub struct UpstreamAnswer {
    /// Its status.
    pub status: StatusCode,
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: UpstreamBody,
    /// From hand-over to head: the `response_delay` of RFC 9111, section 4.2.3.
    pub delay: Duration,
    /// Was its end marked (`Content-Length`, chunked, no body)? Else the connection's end was taken for its end
    /// (RFC 9112, section 8): fit to be passed on, not to be stored.
    pub framed: bool,
}

/// What went wrong, in words that hold neither token nor URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptError {
    /// The error type for `Proxy-Status`.
    pub error: ProxyError,
    /// A few words for people.
    pub text: Cow<'static, str>,
}

/// The longest text of an [`AttemptError`], in bytes: a certificate with a thousand names must not fill a record.
const TEXT_BYTES_MAX: usize = 200;

impl AttemptError {
    pub(super) fn new(error: ProxyError, text: &'static str) -> Self {
        Self { error, text: Cow::Borrowed(text) }
    }

    pub(super) fn because(error: ProxyError, cause: &dyn fmt::Display) -> Self {
        let mut text = cause.to_string();
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        Self { error, text: Cow::Owned(text) }
    }

    /// What it tells the breaker, where it is why nothing was sent.
    #[must_use]
    pub fn told(&self) -> BreakerReport {
        if self.is_local() { BreakerReport::Nothing } else { BreakerReport::Unreachable }
    }

    /// Is it this side's own doing (a bound of ours), not the upstream's?
    pub(super) fn is_local(&self) -> bool {
        matches!(self.error, ProxyError::ConnectionLimitReached | ProxyError::ProxyInternalError)
    }
}

impl fmt::Display for AttemptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.error.as_str(), self.text)
    }
}

/// The error types of RFC 9209, section 2.3, that an attempt can end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyError {
    /// The name could not be resolved.
    DnsError,
    /// No route to the address.
    DestinationIpUnroutable,
    /// The address could not be reached for another reason.
    DestinationUnavailable,
    /// The connection was refused.
    ConnectionRefused,
    /// Connect and handshake took too long.
    ConnectionTimeout,
    /// The connection ended before a complete answer.
    ConnectionTerminated,
    /// No connection became free in time.
    ConnectionLimitReached,
    /// The upstream's certificate was not accepted.
    TlsCertificateError,
    /// The upstream ended the handshake with an alert.
    TlsAlertReceived,
    /// The handshake failed otherwise.
    TlsProtocolError,
    /// The answer's body ended early.
    HttpResponseIncomplete,
    /// The answer's head is too large.
    HttpResponseHeaderSectionSize,
    /// The answer's body is too large.
    HttpResponseBodySize,
    /// The answer has a transfer coding other than chunked.
    HttpResponseTransferCoding,
    /// The answer is encoded though identity was asked for.
    HttpResponseContentCoding,
    /// The answer took too long.
    HttpResponseTimeout,
    /// What came is not HTTP/1.1.
    HttpProtocolError,
    /// The request could not be made from what the gateway rendered.
    ProxyInternalError,
}

impl ProxyError {
    /// Its token in `Proxy-Status` (`error=connection_refused`).
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
