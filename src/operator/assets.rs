//! What pages are made of besides HTML: the stylesheet, the script, the icon; and the policy that lets a browser use these alone.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

use crate::hash;

pub(super) const STYLE: &str = include_str!("style.css");
/// Keys, copy buttons, and pages that change by themselves. Nothing depends on it.
pub(super) const SCRIPT: &str = concat!(include_str!("page.js"), include_str!("live.js"));
pub(super) const ICON: &str = include_str!("favicon.svg");

/// The icon as an address that holds it.
pub(super) fn icon_address() -> String {
    format!("data:image/svg+xml;base64,{}", STANDARD.encode(ICON))
}

/// The content security policy of every answer: only what this door serves, and what it writes into pages for those who have no key
/// and could fetch nothing else: the icon, and the stylesheet, which is told by its hash.
pub(super) fn policy() -> HeaderValue {
    static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
        let hash = STANDARD.encode(hash::sha256(STYLE.as_bytes()));
        let policy = format!(
            "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-{hash}'; img-src 'self' data:; connect-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        );
        HeaderValue::try_from(policy).ok()
    });
    POLICY.clone().unwrap_or(HeaderValue::from_static("default-src 'none'"))
}
