//! What this door refuses, with words that say what to do.

use std::sync::Arc;
use std::time::Duration;

use axum::response::{Extension, IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::audit::{BadFilter, ProofError, QueryError};
use crate::config::Role;
use crate::door::Unreadable;
use crate::gateway::refusal::{capital, seconds};
use crate::ids::RequestId;

/// The largest body that this door reads.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;

/// Why the door refuses.
#[derive(Debug)]
pub(super) enum OperatorRefusal {
    UnknownHost,
    ForeignOrigin,
    NoKey,
    WrongKey,
    TwoCredentials,
    TooManyFailures {
        retry_after: Duration,
    },
    RoleInsufficient {
        name: Arc<str>,
        role: Role,
        required: Role,
    },
    NoPage,
    NotForScrapers,
    NoDoubt,
    NoMethod {
        allowed: &'static str,
    },
    NotImplemented,
    /// The body has a transfer coding other than `chunked`, or `chunked` twice.
    TransferCoding,
    NotHttp,
    /// The target has a `#`, or the [`crate::door::FRAGMENT`] that stands for one.
    Fragment,
    HeadTooLarge,
    TargetTooLong,
    BadParameter {
        why: String,
    },
    BadBody {
        why: String,
    },
    /// Nobody in the configuration has this name.
    UnknownCaller {
        why: String,
    },
    NotJson,
    BodyTooLarge,
    BodySlow,
    TooManyFollowers,
    /// No more pages can be live.
    TooManyLivePages,
    NoRoom,
    CannotRecord,
    /// The other replicas could not be told yet.
    OthersNotTold,
    /// What the replicas share is out of reach.
    NoEngine,
    Query(QueryError),
    NoRecord {
        newest: u64,
    },
    LogAltered,
    /// The database has no head of this replica.
    NoHead {
        replica: Arc<str>,
    },
    Internal,
}

impl From<BadFilter> for OperatorRefusal {
    fn from(bad: BadFilter) -> Self {
        Self::BadParameter { why: bad.to_string() }
    }
}

impl From<QueryError> for OperatorRefusal {
    fn from(error: QueryError) -> Self {
        Self::Query(error)
    }
}

impl From<ProofError> for OperatorRefusal {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::NoRecord { newest } => Self::NoRecord { newest },
            ProofError::Altered => Self::LogAltered,
            ProofError::Query(error) => Self::Query(error),
        }
    }
}

/// A handler's or layer's answer names the refusal; `render_refusal` writes it in the form that the request asks for.
impl IntoResponse for OperatorRefusal {
    fn into_response(self) -> Response {
        (self.status(), Extension(Arc::new(self))).into_response()
    }
}

impl OperatorRefusal {
    /// Status, the last part of its `type`, title.
    const fn row(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::UnknownHost => (StatusCode::MISDIRECTED_REQUEST, "unknown-host", "Unknown host"),
            Self::ForeignOrigin => (StatusCode::FORBIDDEN, "foreign-origin", "Foreign origin"),
            Self::NoKey => (StatusCode::UNAUTHORIZED, "no-key", "Operator key missing"),
            Self::WrongKey => (StatusCode::UNAUTHORIZED, "wrong-key", "Wrong operator key"),
            Self::TwoCredentials => (StatusCode::BAD_REQUEST, "two-credentials", "More than one Authorization header"),
            Self::TooManyFailures { .. } => (StatusCode::TOO_MANY_REQUESTS, "too-many-failures", "Too many wrong keys"),
            Self::RoleInsufficient { .. } => {
                (StatusCode::FORBIDDEN, "role-insufficient", "The operator's role does not allow this")
            }
            Self::NotForScrapers => (StatusCode::NOT_FOUND, "no-page", "No such page"),
            Self::NoPage => (StatusCode::NOT_FOUND, "no-page", "No such page"),
            Self::NoDoubt => (StatusCode::NOT_FOUND, "no-doubt", "No such write in doubt"),
            Self::NoMethod { .. } => (StatusCode::METHOD_NOT_ALLOWED, "no-method", "Method not allowed"),
            Self::NotImplemented => (StatusCode::NOT_IMPLEMENTED, "not-implemented", "Not implemented"),
            Self::NotHttp => (StatusCode::BAD_REQUEST, "not-http", "Not an HTTP request"),
            Self::Fragment => (StatusCode::BAD_REQUEST, "ambiguous-target", "The target is ambiguous"),
            Self::TransferCoding => (StatusCode::NOT_IMPLEMENTED, "unknown-transfer-coding", "Unknown transfer coding"),
            Self::HeadTooLarge => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head-too-large", "The request's head is too large")
            }
            Self::TargetTooLong => (StatusCode::URI_TOO_LONG, "target-too-long", "The target is too long"),
            Self::BadParameter { .. } => (StatusCode::BAD_REQUEST, "bad-parameter", "Invalid parameter"),
            Self::UnknownCaller { .. } => (StatusCode::BAD_REQUEST, "unknown-caller", "Unknown caller"),
            Self::BadBody { .. } => (StatusCode::BAD_REQUEST, "bad-body", "Invalid body"),
            Self::NotJson => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", "Content-Type must be JSON"),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large"),
            Self::BodySlow => (StatusCode::REQUEST_TIMEOUT, "body-slow", "Body too slow"),
            Self::TooManyFollowers => (StatusCode::SERVICE_UNAVAILABLE, "too-many-followers", "Too many followers"),
            Self::TooManyLivePages => (StatusCode::SERVICE_UNAVAILABLE, "too-many-live-pages", "Too many live pages"),
            Self::NoRoom => (StatusCode::SERVICE_UNAVAILABLE, "no-room", "Too many large answers under way"),
            Self::OthersNotTold => {
                (StatusCode::SERVICE_UNAVAILABLE, "others-not-told", "The other replicas do not know of it yet")
            }
            Self::NoEngine => {
                (StatusCode::SERVICE_UNAVAILABLE, "no-engine", "The replicas' database cannot be reached")
            }
            Self::CannotRecord => (StatusCode::SERVICE_UNAVAILABLE, "cannot-record", "The log cannot record this"),
            Self::Query(QueryError::TooLong) => {
                (StatusCode::GATEWAY_TIMEOUT, "query-too-long", "The query took too long")
            }
            Self::Query(QueryError::Busy) => {
                (StatusCode::SERVICE_UNAVAILABLE, "query-busy", "Too many queries are running")
            }
            Self::Query(QueryError::DiskSlow) => {
                (StatusCode::SERVICE_UNAVAILABLE, "disk-slow", "The log's disk does not answer")
            }
            Self::Query(QueryError::Indexing) => {
                (StatusCode::SERVICE_UNAVAILABLE, "index-behind", "The log's index is being built")
            }
            Self::Query(QueryError::Io(_)) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "log-unreadable", "The log cannot be read")
            }
            Self::Query(QueryError::Database(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "database-unreachable", "The replicas' database does not answer")
            }
            Self::NoRecord { .. } => (StatusCode::NOT_FOUND, "no-record", "No such record"),
            Self::NoHead { .. } => (StatusCode::NOT_FOUND, "no-head", "No such head"),
            Self::LogAltered => (StatusCode::INTERNAL_SERVER_ERROR, "log-altered", "The log was altered"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
        }
    }

    pub(super) const fn status(&self) -> StatusCode {
        let (status, ..) = self.row();
        status
    }

    /// Is it said to whoever has shown no key?
    pub(super) const fn comes_before_key(&self) -> bool {
        matches!(
            self,
            Self::UnknownHost
                | Self::ForeignOrigin
                | Self::NoKey
                | Self::WrongKey
                | Self::TwoCredentials
                | Self::TooManyFailures { .. }
        )
    }

    pub(super) const fn title(&self) -> &'static str {
        let (.., title) = self.row();
        title
    }

    pub(super) fn detail(&self) -> String {
        match self {
            Self::UnknownHost => {
                "This door answers to its own addresses, to localhost and to the names in operator.names; add this name there."
                    .to_owned()
            }
            Self::ForeignOrigin => {
                "A page of another origin sent this request. Use this door's own pages, or send it without a browser.".to_owned()
            }
            Self::NoKey | Self::WrongKey => {
                "Send an operator's key as `Authorization: Bearer KEY`, or as the password of Basic with any name.".to_owned()
            }
            Self::TwoCredentials => "Send one Authorization header.".to_owned(),
            Self::TooManyFailures { retry_after } => {
                format!("Too many wrong keys came from your address. Try again in {} s.", seconds(*retry_after))
            }
            Self::RoleInsufficient { name, role, required } => format!(
                "Operator {name} has the role {}, but this takes {}. Roles are given under [[operator.key]] in the configuration.",
                role.as_str(),
                required.as_str()
            ),
            Self::NotForScrapers => "This door has /metrics, /livez and /readyz. Everything else is at the operator door.".to_owned(),
            Self::NoPage => "There is no page at this path. The menu of / leads to all of them; each is also there with .json and .csv.".to_owned(),
            Self::NoDoubt => "No write in doubt has this request id. /doubts lists them.".to_owned(),
            Self::NoMethod { allowed } => format!("This path takes {allowed}."),
            Self::NotImplemented => "No path takes this method.".to_owned(),
            Self::NotHttp => "What arrived cannot be read as a request in HTTP/1.1; the connection ends.".to_owned(),
            Self::Fragment => {
                "The target has a `#` or a `^`. Leave out what follows a `#`, or write %23 or %5E if it is part of a value.".to_owned()
            }
            Self::TransferCoding => {
                "A body may only be sent with `Transfer-Encoding: chunked`, or with its length.".to_owned()
            }
            Self::HeadTooLarge => "limits.head_bytes and limits.head_fields say how large a head may be.".to_owned(),
            Self::TargetTooLong => "Ask for less in the query.".to_owned(),
            Self::BadParameter { why } | Self::BadBody { why } => format!("{why}."),
            Self::UnknownCaller { why } => capital(why),
            Self::NotJson => "Send `Content-Type: application/json`.".to_owned(),
            Self::BodyTooLarge => format!("A body has at most {BODY_BYTES_MAX} bytes."),
            Self::BodySlow => "The body did not arrive in time. Send it again.".to_owned(),
            Self::TooManyFollowers => "No more clients can follow the log. End one, or read /audit.".to_owned(),
            Self::TooManyLivePages => {
                "No more pages can be live for this operator now. Close one, or load the page again from time to time.".to_owned()
            }
            Self::NoRoom => "Other large answers are still being read. Ask for less with `limit`, or try again.".to_owned(),
            Self::OthersNotTold => {
                "It was done here. The other replicas do it as soon as the database that they share can be reached; /replicas says why it cannot."
                    .to_owned()
            }
            Self::NoEngine => {
                "The database that the replicas share decides which verdict counts, and it does not answer. Nothing is settled here; try again soon. /replicas says why."
                    .to_owned()
            }
            Self::CannotRecord => "Nothing was done, because it could not be recorded. /readyz?verbose says why.".to_owned(),
            Self::NoRecord { newest } => capital(&format!("{}.", ProofError::NoRecord { newest: *newest })),
            Self::NoHead { replica } => {
                format!("The replicas' database has no head of a replica named {replica}. /replicas lists them.")
            }
            Self::LogAltered => capital(&format!("{}.", ProofError::Altered)),
            Self::Query(error) => capital(&format!("{error}.")),
            Self::Internal => "The process log says what went wrong.".to_owned(),
        }
    }

    /// The problem document (RFC 9457).
    pub(super) fn problem(&self) -> Value {
        let (status, kind, title) = self.row();
        json!({
            "type": format!("urn:makegate:operator:{kind}"),
            "title": title,
            "status": status.as_u16(),
            "detail": self.detail(),
        })
    }

    /// What its answer says in headers.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.status() == StatusCode::UNAUTHORIZED {
            // Each in a field of its own: Chromium does not ask for a password where another scheme follows in the same one.
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"makegate\""));
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Self::NoMethod { allowed } = self {
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        if let Some(after) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds(after)));
        }
        headers
    }

    fn retry_after(&self) -> Option<Duration> {
        if let Self::TooManyFailures { retry_after } = self {
            return Some(*retry_after);
        }
        let passes = matches!(
            self,
            Self::Query(QueryError::Busy | QueryError::DiskSlow | QueryError::Indexing | QueryError::Database(_))
                | Self::TooManyFollowers
                | Self::TooManyLivePages
                | Self::NoRoom
        );
        passes.then_some(Duration::from_secs(1))
    }
}

/// The answer to a request that could not be read.
pub(super) fn answer_unread(why: Unreadable, id: &RequestId) -> http::Response<Bytes> {
    let refusal = match why {
        Unreadable::HeadTooLarge => OperatorRefusal::HeadTooLarge,
        Unreadable::TargetTooLong => OperatorRefusal::TargetTooLong,
        Unreadable::NotHttp => OperatorRefusal::NotHttp,
    };
    let mut response = http::Response::new(Bytes::from(refusal.problem().to_string()));
    *response.status_mut() = refusal.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    HeaderValue::from_str(id.as_str()).into_iter().for_each(|id| drop(headers.insert("x-request-id", id)));
    response
}
