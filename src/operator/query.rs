//! The query of a page's address, decoded as forms encode it.

use percent_encoding::percent_decode_str;

use super::refusal::OperatorRefusal;

/// Names and values in their order. What an empty form field sends is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PageQuery {
    pairs: Vec<(String, String)>,
    raw: String,
}

impl PageQuery {
    /// Reads `a=b&c=d`; also a form's body.
    ///
    /// # Errors
    /// [`OperatorRefusal::BadParameter`]: it is no UTF-8.
    pub(super) fn parse(raw: Option<&str>) -> Result<Self, OperatorRefusal> {
        let raw = raw.unwrap_or_default();
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok::<_, OperatorRefusal>((decode(name)?, decode(value)?))
        };
        let pairs = raw.split('&').filter(|text| !text.is_empty()).map(pair).collect::<Result<Vec<_>, _>>()?;
        let pairs = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        Ok(Self { pairs, raw: raw.to_owned() })
    }

    /// The first value of this name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Does the name stand there, whatever its value?
    pub(super) fn has(&self, name: &str) -> bool {
        self.raw.split('&').any(|pair| pair.split('=').next() == Some(name))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Refuses names that the page does not know.
    ///
    /// # Errors
    /// [`OperatorRefusal::BadParameter`].
    pub(super) fn only(&self, known: &[&str]) -> Result<(), OperatorRefusal> {
        match self.iter().find(|(name, _)| !known.contains(name)) {
            Some((name, _)) => {
                let name = name.escape_debug();
                let known = known.join(", ");
                Err(OperatorRefusal::BadParameter {
                    why: format!("there is no parameter \"{name}\" here; there are {known}"),
                })
            }
            None => Ok(()),
        }
    }

    /// With its question mark, as it came; empty if there is none.
    pub(super) fn suffix(&self) -> String {
        if self.raw.is_empty() { String::new() } else { format!("?{}", self.raw) }
    }

    /// The same query with another value of `name`.
    pub(super) fn with(&self, name: &str, value: &str) -> String {
        let others = self.iter().filter(|(known, _)| *known != name);
        let pairs = others.chain([(name, value)]).map(|(name, value)| format!("{}={}", encode(name), encode(value)));
        format!("?{}", pairs.collect::<Vec<_>>().join("&"))
    }
}

/// A name or value as it stands in a query.
pub(super) fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn decode(text: &str) -> Result<String, OperatorRefusal> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().map(std::borrow::Cow::into_owned);
    decoded.map_err(|_| OperatorRefusal::BadParameter {
        why: "the query is not UTF-8: encode it as %XX of UTF-8".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_as_forms_encode_it() {
        let query = PageQuery::parse(Some("caller=a+b%26c&operation=&verbose")).unwrap();
        assert_eq!(query.iter().collect::<Vec<_>>(), [("caller", "a b&c")]);
        assert!(query.has("verbose") && !query.has("verb"));
        assert_eq!(query.with("after", "7"), "?caller=a%20b%26c&after=7");
        assert!(PageQuery::parse(Some("a=%ff")).is_err());
        assert!(query.only(&["caller"]).is_ok() && query.only(&["method"]).is_err());
    }
}
