//! The headers of a refusal.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{EngineShortage, Refusal, list, seconds};

impl Refusal {
    /// When to retry, if known.
    #[must_use]
    #[expect(clippy::wildcard_enum_match_arm, reason = "the row has it for the others")]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooFast { retry_after, .. } | Self::BreakerOpen { retry_after, .. } => Some(*retry_after),
            Self::NoQuota { outlook } | Self::QuotaQueueFull { outlook } => Some(outlook.after),
            known => known.row().retry_after,
        }
    }

    /// Error token of RFC 9209 when the gateway answers for the upstream.
    #[must_use]
    #[expect(clippy::wildcard_enum_match_arm, reason = "the row has it for the others")]
    pub const fn proxy_error(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { why }
            | Self::TimedOut { why }
            | Self::Cut { why }
            | Self::DoubtTimedOut { why }
            | Self::DoubtCut { why }
            | Self::Unusable { why }
            | Self::AnswerLost { why } => Some(why.error.as_str()),
            known => known.row().proxy_error,
        }
    }

    /// Adds this refusal's headers: `Retry-After`, `Allow`, `WWW-Authenticate`, `Proxy-Status`, `Cache-Status` where a lease
    /// is missing, and the quota's `RateLimit`.
    #[expect(clippy::wildcard_enum_match_arm, reason = "most refusals add no header of their own")]
    pub fn add_headers(&self, headers: &mut HeaderMap) {
        let mut put = |name: &'static str, text: String| {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        };
        if let Some(after) = self.retry_after() {
            put("retry-after", seconds(after).to_string());
        }
        if let Some(error) = self.proxy_error() {
            put("proxy-status", format!("makegate; error={error}"));
        }
        if self.row().status == StatusCode::UNAUTHORIZED {
            put("www-authenticate", "Token realm=\"makegate\", Bearer realm=\"makegate\"".to_owned());
        }
        match self {
            Self::NoMethod { allowed } => put("allow", list(allowed)),
            Self::NoQuota { outlook } | Self::QuotaQueueFull { outlook } => {
                put("ratelimit-policy", format!("\"quota\";q={};w=60", outlook.limit));
                put("ratelimit", format!("\"quota\";r=0;t={}", seconds(outlook.after)));
            }
            Self::NoEngine { why: EngineShortage::NoLease } => {
                put("cache-status", "makegate; fwd=miss; detail=no-lease".to_owned());
            }
            _ => {}
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}
