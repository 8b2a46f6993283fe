//! The query of a page's address.

use axum::extract::{FromRequestParts, Query};
use http::Uri;
use http::request::Parts;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::refusal::OperatorRefusal;

/// The parameters in their order. What an empty form field sends counts as not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct PageQuery(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for PageQuery {
    type Rejection = OperatorRefusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, OperatorRefusal> {
        Self::of(&parts.uri)
    }
}

impl PageQuery {
    /// The query of this address.
    ///
    /// # Errors
    /// [`OperatorRefusal::BadParameter`]: it cannot be read.
    pub(super) fn of(address: &Uri) -> Result<Self, OperatorRefusal> {
        let query = Query::<Self>::try_from_uri(address);
        query.map_err(|error| OperatorRefusal::BadParameter { why: error.body_text() })?.0.require_utf8()
    }

    /// Refuses what was not UTF-8, which axum has replaced.
    ///
    /// # Errors
    /// [`OperatorRefusal::BadParameter`].
    pub(super) fn require_utf8(self) -> Result<Self, OperatorRefusal> {
        let is_bad = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
        match self.0.iter().find(|(name, value)| is_bad(name) || is_bad(value)) {
            Some((name, _)) => {
                let why = format!("{}: not UTF-8; encode it as %XX of UTF-8", name.escape_debug());
                Err(OperatorRefusal::BadParameter { why })
            }
            None => Ok(self),
        }
    }

    /// The first value of this name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Is the name there, with or without a value?
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value)).filter(|(_, value)| !value.is_empty())
    }

    /// Refuses names that the page does not know.
    ///
    /// # Errors
    /// [`OperatorRefusal::BadParameter`].
    pub(super) fn allow_only(&self, known: &[&str]) -> Result<(), OperatorRefusal> {
        match self.iter().find(|(name, _)| !known.contains(name)) {
            Some((name, _)) => {
                let (name, known) = (name.escape_debug(), known.join(", "));
                let why = format!("there is no parameter \"{name}\" here; there are {known}");
                Err(OperatorRefusal::BadParameter { why })
            }
            None => Ok(()),
        }
    }

    /// With its question mark; empty if there is none.
    pub(super) fn suffix(&self) -> String {
        Self::render(self.iter())
    }

    /// The same query with another value of `name`.
    pub(super) fn with(&self, name: &str, value: &str) -> String {
        Self::render(self.iter().filter(|(known, _)| *known != name).chain([(name, value)]))
    }

    fn render<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
        let pairs: Vec<_> = pairs.map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
    }
}

/// A name or value as it is written in a query.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parse(query: &str) -> Result<PageQuery, OperatorRefusal> {
        let mut parts = http::Request::get(format!("/?{query}")).body(()).unwrap().into_parts().0;
        PageQuery::from_request_parts(&mut parts, &()).await
    }

    #[tokio::test]
    async fn a_query_is_decoded_as_forms_encode_it() {
        let query = parse("caller=a+b%26c&operation=&verbose").await.unwrap();
        assert_eq!(query.iter().collect::<Vec<_>>(), [("caller", "a b&c")]);
        assert!(query.has("verbose") && !query.has("verb"));
        assert_eq!(
            (query.suffix(), query.with("after", "7")),
            ("?caller=a%20b%26c".into(), "?caller=a%20b%26c&after=7".into())
        );
        let bad = parse("caller=%ff").await;
        assert!(matches!(bad, Err(OperatorRefusal::BadParameter { why }) if why.starts_with("caller: not UTF-8")));
        assert!(query.allow_only(&["caller"]).is_ok() && query.allow_only(&["method"]).is_err());
    }
}
