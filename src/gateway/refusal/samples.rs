//! A sample of each refusal, with the default limits. The tables of the documents are generated from them.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use jiff::Timestamp;

use super::super::admit::target::Ambiguity;
use super::{CredentialFault, EngineShortage, Refusal};
use crate::callers::SharedKind;
use crate::clock::Clock;
use crate::config::CertificateName;
use crate::ids::{KeyId, RequestId};
use crate::issuers::{TokenFault, VerifiedToken};
use crate::quota::{QuotaOutlook, WaitsFor};
use crate::shares::Shortage;
use crate::upstream::{AttemptError, BreakerScope, ProxyError};

impl Refusal {
    /// One sample of each kind, sorted by code.
    #[must_use]
    pub fn samples() -> Vec<Self> {
        let mut samples = of_callers();
        samples.extend(of_bounds());
        samples.extend(of_the_upstream());
        samples
    }
}

fn of_callers() -> Vec<Refusal> {
    let key = KeyId::of(&[0; 32]);
    vec![
        Refusal::Ambiguous { why: Ambiguity::EmptySegment },
        Refusal::TargetTooLong { bytes_max: 8000 },
        Refusal::Repeated { parameter: "pg[limit]".to_owned() },
        Refusal::TwoCredentials,
        Refusal::BadAuthority { why: "The request names no host: send one Host header" },
        Refusal::KeyInTarget,
        Refusal::NotHttp,
        Refusal::HeadTooLarge { bytes_max: 32 << 10, fields_max: 64 },
        Refusal::NoKey,
        Refusal::UnknownKey,
        CredentialFault::KeyExpired { key, since: Timestamp::constant(1_801_440_000, 0) }.into(),
        CredentialFault::KeyFromElsewhere { key }.into(),
        CredentialFault::UnknownIssuer.into(),
        CredentialFault::InvalidToken { why: TokenFault::Signature }.into(),
        CredentialFault::TokenOfNobody { token: Arc::new(VerifiedToken::sample()) }.into(),
        CredentialFault::CertificateOfNobody { names: [CertificateName::dns("tool.internal")].into() }.into(),
        CredentialFault::NoIssuerKeys { issuer: "cluster".into() }.into(),
        Refusal::NoOperation,
        Refusal::NoMethod { allowed: vec![Method::GET, Method::HEAD, Method::POST] },
        Refusal::NotImplemented,
        Refusal::TransferCoding,
        Refusal::NotGranted { grant: "usage:read".to_owned() },
        Refusal::OutOfScope { organization: 11 },
        Refusal::Unscoped,
        CredentialFault::ForeignPage { why: "`Origin` must be this door's own" }.into(),
    ]
}

fn of_bounds() -> Vec<Refusal> {
    let retry_after = Duration::from_secs(5);
    let outlook = QuotaOutlook {
        waits_for: WaitsFor::Kept,
        after: retry_after,
        free: 25,
        spent: 35,
        waiting: 50,
        ..QuotaOutlook::UNKNOWN
    };
    let first = RequestId::parse(b"01jc").unwrap_or_else(|| RequestId::new(&Clock::system()));
    vec![
        Refusal::TooFast { retry_after, one_of: 1 },
        Refusal::TooMany { most: 64 },
        Refusal::Busy,
        Refusal::Short { of: SharedKind::Requests, short: Shortage::Share },
        Refusal::Short { of: SharedKind::Connections, short: Shortage::Share },
        Refusal::NoConnection,
        Refusal::NoTurn,
        Refusal::Short { of: SharedKind::Joined, short: Shortage::Share },
        Refusal::NotAnObject { why: "the body is JSON, but not an object".to_owned() },
        Refusal::UnwantedBody,
        Refusal::BodyCut,
        Refusal::BodySlow,
        Refusal::BodyTooLarge { bytes_max: 1 << 20 },
        Refusal::NotJson,
        Refusal::BadKey,
        Refusal::Short { of: SharedKind::Bodies, short: Shortage::Share },
        Refusal::UncheckablePrecondition {
            why: "the catalogue has no read of this resource that it could be compared with",
        },
        Refusal::HeldInDoubt { first },
        Refusal::KeyRunning { first },
        Refusal::KeyReused { first },
        Refusal::KeyInDoubt { first },
        Refusal::AnswerNotKept { first },
        Refusal::NoRoomForKey,
        Refusal::AnswersUnavailable,
        Refusal::PreconditionFailed { why: "the resource has changed: read it again" },
        Refusal::NoQuota { outlook },
        Refusal::QuotaQueueFull { outlook },
        Refusal::CannotRecord,
        Refusal::LogFull,
        Refusal::Short { of: SharedKind::Records, short: Shortage::Share },
        Refusal::Short { of: SharedKind::Doubts, short: Shortage::Share },
        Refusal::NotCached,
    ]
}

fn of_the_upstream() -> Vec<Refusal> {
    let why = |error, text: &'static str| AttemptError { error, text: text.into() };
    let refused = why(ProxyError::ConnectionRefused, "the connection was refused");
    let late = why(ProxyError::HttpResponseTimeout, "no answer in time");
    let cut = why(ProxyError::HttpResponseIncomplete, "the body ended before its end");
    let encoded = why(ProxyError::HttpResponseContentCoding, "the answer is encoded, though identity was asked for");
    let ended = why(ProxyError::ConnectionTerminated, "the connection ended without an answer");
    vec![
        Refusal::Unreachable { why: refused },
        Refusal::TimedOut { why: late.clone() },
        Refusal::Cut { why: cut.clone() },
        Refusal::TokenRefused,
        Refusal::Redirected { status: StatusCode::FOUND },
        Refusal::Leaked,
        Refusal::Unusable { why: encoded },
        Refusal::Short { of: SharedKind::Answers, short: Shortage::Share },
        Refusal::BreakerOpen { what: BreakerScope::All, retry_after: Duration::from_secs(5) },
        Refusal::NotNarrowable { why: "an organization has no id" },
        Refusal::UnreadResource { status: StatusCode::INTERNAL_SERVER_ERROR },
        Refusal::DoubtTimedOut { why: late },
        Refusal::DoubtCut { why: ended },
        Refusal::AnswerLost { why: cut },
        Refusal::Late,
        Refusal::NoEngine { why: EngineShortage::NoWrites },
        Refusal::Internal,
    ]
}
