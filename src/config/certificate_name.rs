//! The names in certificates, compared as RFC 5280 (section 7) compares them.

use std::fmt;
use std::net::IpAddr;

use super::units::is_plain;
use crate::toml_reader::{InvalidValue, ValueKind};

/// A longer name is refused.
const NAME_BYTES_MAX: usize = 2048;

/// A subject alternative name. Two are equal if a certificate with the one is a certificate with the other: case does not matter in DNS
/// names, in the scheme and the host of URIs, and in the host of e-mail addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CertificateName {
    /// A DNS name.
    Dns(Box<str>),
    /// A URI, such as a SPIFFE id.
    Uri(Box<str>),
    /// An e-mail address.
    Email(Box<str>),
}

impl CertificateName {
    /// A certificate's `dNSName`.
    #[must_use]
    pub fn dns(name: &str) -> Self {
        Self::Dns(name.to_ascii_lowercase().into())
    }

    /// A certificate's `uniformResourceIdentifier`.
    #[must_use]
    pub fn uri(name: &str) -> Self {
        let (scheme, rest) = name.split_once(':').unwrap_or((name, ""));
        let mut text = scheme.to_ascii_lowercase();
        text.extend((scheme.len() < name.len()).then_some(':'));
        let Some(after) = rest.strip_prefix("//") else { return Self::Uri((text + rest).into()) };
        let (authority, path) = after.split_at(after.find(['/', '?', '#']).unwrap_or(after.len()));
        let (user, host) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        Self::Uri(format!("{text}//{user}{}{path}", host.to_ascii_lowercase()).into())
    }

    /// A certificate's `rfc822Name`.
    #[must_use]
    pub fn email(name: &str) -> Self {
        let (mailbox, host) = name.split_at(name.rfind('@').unwrap_or(name.len()));
        Self::Email((mailbox.to_owned() + &host.to_ascii_lowercase()).into())
    }

    /// The name as it is compared.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Dns(name) | Self::Uri(name) | Self::Email(name) => name,
        }
    }

    /// Reads a name, whose kind shows in its form.
    fn parse(text: &str) -> Option<Self> {
        let is_text = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_text || text.parse::<IpAddr>().is_ok() {
            return None;
        }
        if let Some((scheme, rest)) = text.split_once(':') {
            let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && is_plain(scheme, b"+-.");
            // What is a number behind the colon is a port.
            let is_uri = is_scheme && rest.bytes().any(|byte| !byte.is_ascii_digit());
            return is_uri.then(|| Self::uri(text));
        }
        let is_host = |host: &str| is_plain(host, b"-._") && host.bytes().any(|byte| byte.is_ascii_alphanumeric());
        match text.rsplit_once('@') {
            Some((mailbox, host)) => (!mailbox.is_empty() && is_host(host)).then(|| Self::email(text)),
            None => is_host(text).then(|| Self::dns(text)),
        }
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

pub(super) const CERTIFICATE_NAME: ValueKind<CertificateName> =
    ValueKind::text("a name in a certificate", "\"spiffe://example.org/report\"", |text| {
        let help =
            "write a whole DNS name, URI or e-mail address: \"report.internal\", \"spiffe://example.org/report\"";
        let wrong = || InvalidValue::quoting(text, "is not a name that identifies by a certificate", help);
        CertificateName::parse(text).ok_or_else(wrong)
    });

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> CertificateName {
        CertificateName::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn names_are_equal_where_case_does_not_matter() {
        for (written, in_certificate, is_equal) in [
            ("Report.Internal", CertificateName::dns("report.INTERNAL"), true),
            ("report.internal", CertificateName::dns("report.internal.example"), false),
            ("report.internal", CertificateName::dns("*.internal"), false),
            ("report.internal", CertificateName::uri("report.internal"), false),
            ("spiffe://td/ns/a", CertificateName::uri("SPIFFE://TD/ns/a"), true),
            ("spiffe://td/ns/a", CertificateName::uri("spiffe://td/ns/A"), false),
            ("spiffe://td/ns/a", CertificateName::uri("spiffe://td/ns/a/"), false),
            ("spiffe://td/ns/a", CertificateName::dns("spiffe://td/ns/a"), false),
            ("https://Me@Host?Q", CertificateName::uri("HTTPS://Me@host?Q"), true),
            ("https://Me@Host?Q", CertificateName::uri("https://me@host?Q"), false),
            ("urn:Example:Report", CertificateName::uri("URN:Example:Report"), true),
            ("urn:Example:Report", CertificateName::uri("urn:example:report"), false),
            ("Ann@Example.com", CertificateName::email("Ann@example.COM"), true),
            ("Ann@Example.com", CertificateName::email("ann@example.com"), false),
            ("Ann@Example.com", CertificateName::dns("Ann@Example.com"), false),
        ] {
            assert_eq!(parsed(written) == in_certificate, is_equal, "{written} {in_certificate:?}");
        }
    }

    #[test]
    fn what_no_certificate_identifies_by_is_refused() {
        for bad in [
            "", "10.0.0.1", "fe80::1", "*.internal", "report.internal:8443", "a b", "é", "@x", "a@", ":x", "http:", "-",
        ] {
            assert_eq!(CertificateName::parse(bad), None, "{bad}");
        }
    }
}
