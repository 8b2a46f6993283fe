//! Refusals: answers that the gateway gives itself. Each refusal is one value, one row of a table, one answer and one record.

mod credential;
mod engine;
mod headers;
mod problem;
mod samples;
mod shortage;

use std::fmt::Write as _;
use std::time::Duration;

use http::{Method, StatusCode};

use super::admit::target::Ambiguity;
use crate::callers::SharedKind;
use crate::ids::RequestId;
use crate::quota::QuotaOutlook;
use crate::shares::Shortage;
use crate::upstream::{AttemptError, BreakerScope};

pub use credential::CredentialFault;
pub use engine::EngineShortage;

/// A refusal, with what its texts and headers need.
#[expect(missing_docs, reason = "each variant's comment explains its fields")]
#[derive(Clone, Debug)]
pub enum Refusal {
    /// The target can be read in two ways.
    Ambiguous { why: Ambiguity },
    /// The target is longer than `limits.target_bytes`.
    TargetTooLong { bytes_max: usize },
    /// A single-valued parameter of the operation is given twice.
    Repeated { parameter: String },
    /// Two credentials, or one that is not text.
    TwoCredentials,
    /// The request does not name exactly one host, or not one of this door.
    BadAuthority { why: &'static str },
    /// A key is in the path or the query.
    KeyInTarget,
    /// What arrived is not an HTTP request.
    NotHttp,
    /// The head is larger than `limits.head_bytes`, or has more fields than `limits.head_fields`.
    HeadTooLarge { bytes_max: usize, fields_max: usize },
    /// No credential, or one in an unknown form.
    NoKey,
    /// A key that no caller has.
    UnknownKey,
    /// A credential that is known, but does not identify its caller.
    Credential { why: CredentialFault },
    /// No operation of the catalogue has this path.
    NoOperation,
    /// The path has operations, but none with this method.
    NoMethod { allowed: Vec<Method> },
    /// A method that no operation could have: longer than [`super::admit::steps::METHOD_BYTES_MAX`], CONNECT or TRACE.
    NotImplemented,
    /// The body has a transfer coding other than `chunked`, or `chunked` twice.
    TransferCoding,
    /// The caller does not have the grant.
    NotGranted { grant: String },
    /// The organization is outside the caller's scope.
    OutOfScope { organization: u64 },
    /// The operation is for callers with access to all organizations.
    Unscoped,
    /// The caller exceeded its rate.
    TooFast { retry_after: Duration, one_of: u32 },
    /// The caller has `limits.in_flight_per_caller` requests under way.
    TooMany { most: usize },
    /// All callers together have `limits.in_flight` requests under way.
    Busy,
    /// No connection to the upstream became free in time.
    NoConnection,
    /// Earlier writes to the resource did not finish in time.
    NoTurn,
    /// The operation takes a JSON object, and the body is something else.
    NotAnObject { why: String },
    /// The operation takes no body, but the request has one.
    UnwantedBody,
    /// The body ended early.
    BodyCut,
    /// The body did not arrive within `limits.body`, or paused for longer than `limits.body_gap`.
    BodySlow,
    /// The body is larger than `limits.body_bytes`.
    BodyTooLarge { bytes_max: usize },
    /// The body's `Content-Type` is not JSON.
    NotJson,
    /// The `Idempotency-Key` is invalid.
    BadKey,
    /// The write's precondition cannot be checked.
    UncheckablePrecondition { why: &'static str },
    /// The write's precondition does not hold.
    PreconditionFailed { why: &'static str },
    /// The resource could not be read to check the write's precondition.
    UnreadResource { status: StatusCode },
    /// An identical write of this caller is in doubt.
    HeldInDoubt { first: RequestId },
    /// The write with this idempotency key is under way.
    KeyRunning { first: RequestId },
    /// The idempotency key was used for a different request.
    KeyReused { first: RequestId },
    /// The write with this idempotency key is in doubt.
    KeyInDoubt { first: RequestId },
    /// The write with this idempotency key took effect, but its answer was not kept.
    AnswerNotKept { first: RequestId },
    /// The caller's idempotency keys fill its share of the store.
    NoRoomForKey,
    /// The answers to idempotency keys cannot be read or written.
    AnswersUnavailable,
    /// No quota became free within `upstream.quota_wait`.
    NoQuota { outlook: QuotaOutlook },
    /// Too many requests of this caller wait for this quota.
    QuotaQueueFull { outlook: QuotaOutlook },
    /// The log cannot store an intent.
    CannotRecord,
    /// The log's buffer is full.
    LogFull,
    /// `only-if-cached`, and the cache has no usable answer.
    NotCached,
    /// Provably nothing was sent: the upstream could not be reached.
    Unreachable { why: AttemptError },
    /// A read was not answered in time.
    TimedOut { why: AttemptError },
    /// A read's connection ended before the complete answer.
    Cut { why: AttemptError },
    /// The upstream rejected the gateway's token (401).
    TokenRefused,
    /// The upstream answered with a redirect.
    Redirected { status: StatusCode },
    /// The upstream's answer contained the token.
    Leaked,
    /// The upstream's answer cannot be passed on: too large, encoded without being asked to, or not HTTP.
    Unusable { why: AttemptError },
    /// The caller used its share of something that callers share, or the other callers use all of it.
    Short { of: SharedKind, short: Shortage },
    /// The breaker is open: the upstream could not be reached recently, or did not answer this operation.
    BreakerOpen { what: BreakerScope, retry_after: Duration },
    /// The list cannot be narrowed to the caller's organizations.
    NotNarrowable { why: &'static str },
    /// A write may or may not have taken effect: it was not answered in time.
    DoubtTimedOut { why: AttemptError },
    /// A write may or may not have taken effect: its connection ended.
    DoubtCut { why: AttemptError },
    /// A write took effect, but its answer was lost.
    AnswerLost { why: AttemptError },
    /// What the replicas share is out of reach.
    NoEngine { why: EngineShortage },
    /// The deadline has passed.
    Late,
    /// A fault in makegate itself.
    Internal,
}

/// What all refusals of one kind have in common.
#[derive(Clone, Copy, Debug)]
pub struct RefusalRow {
    /// HTTP status.
    pub status: StatusCode,
    /// Unique code, `MG…`.
    pub code: &'static str,
    /// Short text for humans.
    pub title: &'static str,
    /// The failure concerns one request (its turn, its deadline), not the upstream: requests that joined its fetch then fetch for
    /// themselves.
    pub is_own: bool,
    /// A stale answer may be sent instead, because the upstream, or the way to it, fails (`docs/decisions/stale-answers.md`).
    pub stale_may_answer: bool,
    /// When to retry, unless the refusal itself knows better.
    retry_after: Option<Duration>,
    /// Error token of RFC 9209 when the gateway answers for the upstream, unless the refusal itself knows better.
    proxy_error: Option<&'static str>,
}

impl RefusalRow {
    const fn own(self) -> Self {
        Self { is_own: true, ..self }
    }

    const fn stale(self) -> Self {
        Self { stale_may_answer: true, ..self }
    }

    const fn soon(self) -> Self {
        Self { retry_after: Some(Duration::from_secs(1)), ..self }
    }

    const fn proxy(self, error: &'static str) -> Self {
        Self { proxy_error: Some(error), ..self }
    }
}

const fn row(status: StatusCode, code: &'static str, title: &'static str) -> RefusalRow {
    RefusalRow { status, code, title, is_own: false, stale_may_answer: false, retry_after: None, proxy_error: None }
}

impl From<CredentialFault> for Refusal {
    fn from(why: CredentialFault) -> Self {
        Self::Credential { why }
    }
}

impl Refusal {
    /// The only place that maps refusals to HTTP. It has no `_` arm, and the tables of the documents are generated from it.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "a table, one row per refusal")]
    pub const fn row(&self) -> RefusalRow {
        match self {
            Self::Ambiguous { .. } => row(StatusCode::BAD_REQUEST, "MG101", "The target is ambiguous"),
            Self::TargetTooLong { .. } => row(StatusCode::URI_TOO_LONG, "MG102", "The target is too long"),
            Self::Repeated { .. } => row(StatusCode::BAD_REQUEST, "MG103", "A single-valued parameter is given twice"),
            Self::TwoCredentials => row(StatusCode::BAD_REQUEST, "MG104", "More than one credential"),
            Self::BadAuthority { .. } => {
                row(StatusCode::BAD_REQUEST, "MG105", "The host is missing, ambiguous or unknown")
            }
            Self::KeyInTarget => row(StatusCode::BAD_REQUEST, "MG106", "A key is in the target"),
            Self::NotHttp => row(StatusCode::BAD_REQUEST, "MG107", "Not an HTTP request"),
            Self::HeadTooLarge { .. } => {
                row(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "MG108", "The request's head is too large")
            }
            Self::NoKey => row(StatusCode::UNAUTHORIZED, "MG111", "No key"),
            Self::UnknownKey => row(StatusCode::UNAUTHORIZED, "MG112", "Unknown key").own(),
            Self::Credential { why } => why.row(),
            Self::NoOperation => row(StatusCode::NOT_FOUND, "MG121", "No such operation").own(),
            Self::NoMethod { .. } => row(StatusCode::METHOD_NOT_ALLOWED, "MG122", "Method not allowed"),
            Self::NotImplemented => row(StatusCode::NOT_IMPLEMENTED, "MG123", "Not implemented"),
            Self::TransferCoding => row(StatusCode::NOT_IMPLEMENTED, "MG124", "Unknown transfer coding"),
            Self::NotGranted { .. } => row(StatusCode::FORBIDDEN, "MG131", "Missing grant").own(),
            Self::OutOfScope { .. } => row(StatusCode::FORBIDDEN, "MG132", "Organization out of scope").own(),
            Self::Unscoped => {
                row(StatusCode::FORBIDDEN, "MG133", "Only for callers with access to all organizations").own()
            }
            Self::TooFast { .. } => row(StatusCode::TOO_MANY_REQUESTS, "MG141", "The caller's rate is exceeded"),
            Self::TooMany { .. } => {
                row(StatusCode::TOO_MANY_REQUESTS, "MG142", "This caller has too many requests under way").soon()
            }
            Self::Busy => row(StatusCode::SERVICE_UNAVAILABLE, "MG143", "Too many requests under way").soon(),
            Self::NoConnection => row(StatusCode::SERVICE_UNAVAILABLE, "MG146", "No connection became free in time")
                .own()
                .stale()
                .soon()
                .proxy("connection_limit_reached"),
            Self::NoTurn => {
                row(StatusCode::SERVICE_UNAVAILABLE, "MG147", "Earlier writes did not finish in time").soon()
            }
            Self::NotAnObject { .. } => row(StatusCode::BAD_REQUEST, "MG151", "The body is not a JSON object"),
            Self::UnwantedBody => row(StatusCode::BAD_REQUEST, "MG152", "The operation takes no body"),
            Self::BodyCut => row(StatusCode::BAD_REQUEST, "MG153", "The body is incomplete"),
            Self::BodySlow => row(StatusCode::REQUEST_TIMEOUT, "MG154", "The body arrived too slowly"),
            Self::BodyTooLarge { .. } => row(StatusCode::PAYLOAD_TOO_LARGE, "MG155", "The body is too large"),
            Self::NotJson => row(StatusCode::UNSUPPORTED_MEDIA_TYPE, "MG156", "Content-Type must be JSON"),
            Self::BadKey => row(StatusCode::BAD_REQUEST, "MG157", "Invalid Idempotency-Key"),
            Self::UncheckablePrecondition { .. } => {
                row(StatusCode::BAD_REQUEST, "MG159", "The precondition cannot be checked")
            }
            Self::PreconditionFailed { .. } => row(StatusCode::PRECONDITION_FAILED, "MG168", "The precondition failed"),
            Self::UnreadResource { .. } => {
                row(StatusCode::BAD_GATEWAY, "MG211", "The resource could not be read").proxy("http_protocol_error")
            }
            Self::HeldInDoubt { .. } => row(StatusCode::CONFLICT, "MG161", "An identical write is in doubt"),
            Self::KeyRunning { .. } => {
                row(StatusCode::CONFLICT, "MG162", "The write with this Idempotency-Key is under way")
            }
            Self::KeyReused { .. } => {
                row(StatusCode::UNPROCESSABLE_ENTITY, "MG163", "The Idempotency-Key belongs to another request")
            }
            Self::KeyInDoubt { .. } => {
                row(StatusCode::CONFLICT, "MG164", "The write with this Idempotency-Key is in doubt")
            }
            Self::AnswerNotKept { .. } => row(StatusCode::CONFLICT, "MG165", "Done, but the answer was not kept"),
            Self::NoRoomForKey => row(StatusCode::SERVICE_UNAVAILABLE, "MG166", "No room for another Idempotency-Key"),
            Self::AnswersUnavailable => {
                row(StatusCode::SERVICE_UNAVAILABLE, "MG167", "Idempotency-Keys cannot be looked up")
            }
            Self::NoQuota { .. } => {
                row(StatusCode::TOO_MANY_REQUESTS, "MG171", "No quota became free in time").own().stale()
            }
            Self::QuotaQueueFull { .. } => {
                row(StatusCode::TOO_MANY_REQUESTS, "MG172", "This caller has too many requests waiting for quota")
                    .own()
                    .stale()
            }
            Self::CannotRecord => row(StatusCode::SERVICE_UNAVAILABLE, "MG181", "The write cannot be recorded"),
            Self::LogFull => row(StatusCode::SERVICE_UNAVAILABLE, "MG182", "The log's buffer is full"),
            Self::NotCached => row(StatusCode::GATEWAY_TIMEOUT, "MG191", "Not in the cache"),
            Self::Unreachable { .. } => row(StatusCode::BAD_GATEWAY, "MG201", "The upstream cannot be reached").stale(),
            Self::TimedOut { .. } => {
                row(StatusCode::GATEWAY_TIMEOUT, "MG202", "The upstream did not answer in time").stale()
            }
            Self::Cut { .. } => row(StatusCode::BAD_GATEWAY, "MG203", "The upstream's answer was cut off").stale(),
            Self::TokenRefused => row(StatusCode::BAD_GATEWAY, "MG204", "The upstream rejected the gateway's token")
                .proxy("proxy_configuration_error"),
            Self::Redirected { .. } => row(StatusCode::BAD_GATEWAY, "MG205", "The upstream answered with a redirect")
                .proxy("http_protocol_error"),
            Self::Leaked => row(StatusCode::BAD_GATEWAY, "MG206", "The upstream's answer contained the token")
                .proxy("http_protocol_error"),
            Self::Unusable { .. } => row(StatusCode::BAD_GATEWAY, "MG207", "The upstream's answer cannot be passed on"),
            Self::Short { of, .. } => shortage::row(*of),
            Self::BreakerOpen { .. } => {
                row(StatusCode::SERVICE_UNAVAILABLE, "MG209", "Requests to the upstream are paused")
                    .stale()
                    .proxy("destination_unavailable")
            }
            Self::NotNarrowable { .. } => {
                row(StatusCode::BAD_GATEWAY, "MG210", "The list cannot be narrowed").proxy("http_protocol_error")
            }
            Self::DoubtTimedOut { .. } => row(StatusCode::GATEWAY_TIMEOUT, "MG221", "In doubt: no answer in time"),
            Self::DoubtCut { .. } => row(StatusCode::BAD_GATEWAY, "MG222", "In doubt: the answer was cut off"),
            Self::AnswerLost { .. } => row(StatusCode::BAD_GATEWAY, "MG223", "Done, but the answer was lost"),
            Self::NoEngine { .. } => {
                row(StatusCode::SERVICE_UNAVAILABLE, "MG241", "The replicas' database cannot be reached").stale().soon()
            }
            Self::Late => row(StatusCode::GATEWAY_TIMEOUT, "MG231", "The deadline has passed")
                .own()
                .stale()
                .proxy("http_response_timeout"),
            Self::Internal => row(StatusCode::INTERNAL_SERVER_ERROR, "MG500", "Internal error").own(),
        }
    }

    /// What happened and what to do about it, in one or two sentences.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "a list of sentences, one per refusal")]
    pub fn detail(&self) -> String {
        match self {
            Self::Ambiguous { why } => format!("{}.", capital(&why.to_string())),
            Self::TargetTooLong { bytes_max } => format!("A target may have at most {bytes_max} bytes."),
            Self::Repeated { parameter } => format!("`{parameter}` takes one value: send it once."),
            Self::TwoCredentials => "Send one Authorization header, or none if your certificate names the caller.".to_owned(),
            Self::BadAuthority { why } => format!("{why}."),
            Self::KeyInTarget => {
                "URLs are written to logs: send the key as `Authorization: Token KEY`, and replace this one.".to_owned()
            }
            Self::NotHttp => "What arrived cannot be read as a request in HTTP/1.1; the connection ends.".to_owned(),
            Self::HeadTooLarge { bytes_max, fields_max } => {
                format!("A request's head has at most {bytes_max} bytes and {fields_max} fields.")
            }
            Self::NoKey => {
                "Send the caller's key as `Authorization: Token KEY` or `Authorization: Bearer KEY`.".to_owned()
            }
            Self::UnknownKey => "No caller has this key. Send a key of the gateway, not Make's token.".to_owned(),
            Self::Credential { why } => why.detail(),
            Self::NoOperation => {
                "No operation in the catalogue has this path: Make's begin with /api/v2/. An operator can add one as [[operation]]."
                    .to_owned()
            }
            Self::NoMethod { allowed } => format!("This path accepts {}.", list(allowed)),
            Self::NotImplemented => {
                "No operation uses this method: methods have at most 32 bytes, and CONNECT and TRACE are not supported.".to_owned()
            }
            Self::TransferCoding => {
                "A body may only be sent with `Transfer-Encoding: chunked`, or with its length; the connection ends.".to_owned()
            }
            Self::NotGranted { grant } => {
                format!("The caller needs the grant `{grant}`; an operator can add it to the caller's `grants`.")
            }
            Self::OutOfScope { organization } => {
                format!(
                    "The caller may not access organization {organization}; an operator can add it to the caller's `organizations`."
                )
            }
            Self::Unscoped => {
                "This operation does not belong to one organization: only callers without `organizations` may use it.".to_owned()
            }
            Self::TooFast { retry_after, one_of: 0 | 1 } => {
                format!("This caller exceeded its own rate: wait {} s.", seconds(*retry_after))
            }
            Self::TooFast { retry_after, one_of } => format!(
                "The replicas' database cannot be reached, and until it can, this replica grants one part in {one_of} of the caller's rate: wait {} s.",
                seconds(*retry_after)
            ),
            Self::TooMany { most } => {
                format!("A caller may have at most {most} requests under way at once: wait for some to finish.")
            }
            Self::Busy => "The gateway already has as many requests under way as it allows: try again shortly.".to_owned(),
            Self::NoConnection => {
                "Earlier requests are using all connections to the upstream. Nothing was sent: try again shortly.".to_owned()
            }
            Self::NoTurn => {
                "Writes to the same resource go one at a time, and earlier ones did not finish in time. Nothing was sent: try again shortly."
                    .to_owned()
            }
            Self::NotAnObject { why } => format!("This operation takes a JSON object: {why}."),
            Self::UnwantedBody => "This operation takes no body: send none.".to_owned(),
            Self::BodyCut => "The body ended early; nothing was forwarded.".to_owned(),
            Self::BodySlow => "The body did not arrive in time; nothing was forwarded.".to_owned(),
            Self::BodyTooLarge { bytes_max } => format!("A body may have at most {bytes_max} bytes; nothing was forwarded."),
            Self::NotJson => "Send `Content-Type: application/json`, and no Content-Encoding.".to_owned(),
            Self::BadKey => {
                "Send one Idempotency-Key of 1 to 255 visible ASCII characters, bare or in double quotes, without quotes or backslashes inside."
                    .to_owned()
            }
            Self::UncheckablePrecondition { why } => format!("{}. Nothing was sent.", capital(why)),
            Self::PreconditionFailed { why } => format!("{}. The write was not sent.", capital(why)),
            Self::UnreadResource { status } => {
                format!(
                    "Make answered {} when the gateway read the resource to check the precondition. The write was not sent.",
                    status.as_u16()
                )
            }
            Self::HeldInDoubt { first } => {
                format!(
                    "Your request {first} was identical and may have taken effect. Check whether it did; an operator can settle it at /doubts. To repeat the write anyway, send it with a new Idempotency-Key."
                )
            }
            Self::KeyRunning { first } => {
                format!("Your request {first} with this Idempotency-Key has not been answered yet: try again shortly.")
            }
            Self::KeyReused { first } => {
                format!("Your request {first} with this Idempotency-Key was different: use a new Idempotency-Key for each write.")
            }
            Self::KeyInDoubt { first } => {
                format!(
                    "Your request {first} with this Idempotency-Key may or may not have taken effect. Check whether it did; an operator can settle it at /doubts."
                )
            }
            Self::AnswerNotKept { first } => {
                format!("Your request {first} with this Idempotency-Key took effect, but its answer was not kept. Do not send it again.")
            }
            Self::NoRoomForKey => {
                "This caller has used all of its room for Idempotency-Keys; each is kept for `limits.idempotency_age`. Nothing was forwarded.".to_owned()
            }
            Self::AnswersUnavailable => {
                "The answers stored for Idempotency-Keys cannot be read or written right now, so makegate cannot tell whether this write was done before. Nothing was forwarded: try again shortly.".to_owned()
            }
            Self::NoQuota { outlook } => format!("{outlook}: wait {} s.", seconds(outlook.after)),
            Self::QuotaQueueFull { outlook } => {
                let (waiting, wait) = (outlook.waiting, seconds(outlook.after));
                format!("This caller already has the maximum number of requests waiting for this quota ({waiting}). {outlook}: wait {wait} s.")
            }
            Self::CannotRecord => {
                "The log cannot be written, and no write is forwarded without a record. Nothing was forwarded.".to_owned()
            }
            Self::LogFull => "The log cannot be written and its buffer is full. Nothing was forwarded.".to_owned(),
            Self::NotCached => "The cache has no usable answer, and only-if-cached forbids asking Make.".to_owned(),
            Self::Unreachable { why } => format!("Nothing was sent: {}.", why.text),
            Self::TimedOut { why } | Self::Cut { why } => format!("{}; a read is safe to send again.", capital(&why.text)),
            Self::TokenRefused => {
                "Make answered 401 to the gateway's own token. Your key is fine; an operator must replace the token."
                    .to_owned()
            }
            Self::Redirected { status } => {
                format!("The upstream answered {}; the gateway does not follow redirects.", status.as_u16())
            }
            Self::Leaked => {
                "The answer was withheld because it contained the gateway's token; an operator should investigate.".to_owned()
            }
            Self::Unusable { why } => format!("{}.", capital(&why.text)),
            Self::Short { of, short } => shortage::detail(*of, *short).to_owned(),
            Self::BreakerOpen { what: BreakerScope::All, retry_after } => {
                format!(
                    "The upstream could not be reached several times in a row; nothing was sent. Wait {} s.",
                    seconds(*retry_after)
                )
            }
            Self::BreakerOpen { what: BreakerScope::Part(part), retry_after } => {
                format!(
                    "The upstream did not answer {part} several times in a row; nothing was sent. Wait {} s.",
                    seconds(*retry_after)
                )
            }
            Self::NotNarrowable { why } => {
                format!("The upstream's list cannot be narrowed to the caller's organizations: {why}.")
            }
            Self::DoubtTimedOut { why } | Self::DoubtCut { why } => {
                format!(
                    "{}; the write may or may not have taken effect. Check whether it did before you send it again.",
                    capital(&why.text)
                )
            }
            Self::AnswerLost { why } => format!("The write took effect, but {}. Do not send it again.", why.text),
            Self::NoEngine { why } => why.detail().to_owned(),
            Self::Late => "There was no answer before the deadline; nothing was changed upstream.".to_owned(),
            Self::Internal => "makegate failed while handling this request; see its process log.".to_owned(),
        }
    }
}

/// Whole seconds for `Retry-After`, rounded up and at least 1 (Make's SDK ignores dates and 0).
#[must_use]
pub fn seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

fn list(methods: &[Method]) -> String {
    methods.iter().enumerate().fold(String::new(), |mut text, (index, method)| {
        let _infallible = write!(text, "{}{method}", if index == 0 { "" } else { ", " });
        text
    })
}

/// The sentence with a capital letter first.
#[must_use]
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
