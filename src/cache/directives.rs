//! Tolerant parsing of `Cache-Control` (RFC 9111, section 5.2): a list of directives, some with a value.

use std::time::Duration;

use http::header::{AsHeaderName, HeaderMap};

/// Largest number of seconds told apart from larger ones (RFC 9111, section 1.2.2).
const SECONDS_MAX: u64 = 1 << 31;

/// Calls `each` with the name and unquoted value of every directive in all lines of a field, in order.
pub(super) fn for_each(headers: &HeaderMap, field: impl AsHeaderName, mut each: impl FnMut(&str, Option<&str>)) {
    for line in headers.get_all(field) {
        // Bytes beyond ASCII can only occur in values of directives that are unknown here.
        let line = String::from_utf8_lossy(line.as_bytes());
        for directive in split(&line) {
            match directive.split_once('=') {
                Some((name, value)) => each(name, Some(unquoted(value))),
                None if directive.is_empty() => {}
                None => each(directive, None),
            }
        }
    }
}

/// Splits a comma-separated list; commas within quotes do not separate.
fn split(line: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |c| {
        let separates = c == ',' && !quoted;
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && c == '\\' && !escaped;
        separates
    })
    .map(|member| member.trim_matches([' ', '\t']))
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value)
}

/// Parses a number of seconds; one that is too large counts as very long. Returns `None` if it is not a number.
pub(super) fn seconds(value: &str) -> Option<Duration> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_secs(value.parse().unwrap_or(SECONDS_MAX).min(SECONDS_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http::header::CACHE_CONTROL;

    fn read(lines: &[&'static str]) -> Vec<(String, Option<String>)> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, HeaderValue::from_static(line));
        }
        let mut found = Vec::new();
        for_each(&headers, CACHE_CONTROL, |name, value| found.push((name.to_owned(), value.map(str::to_owned))));
        found
    }

    #[test]
    fn directives_come_from_all_lines_and_quotes_hide_commas() {
        let found = read(&[r#"no-cache ,, max-age="5","#, r#"x="a\", max-age=1,b", MIN-fresh= 3"#]);
        let expected =
            [("no-cache", None), ("max-age", Some("5")), ("x", Some(r#"a\", max-age=1,b"#)), ("MIN-fresh", Some(" 3"))];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))));
    }

    #[test]
    fn seconds_are_plain_decimals() {
        assert_eq!(seconds("003600"), Some(Duration::from_secs(3600)));
        assert_eq!(seconds("99999999999999999999999"), Some(Duration::from_secs(SECONDS_MAX)));
        for wrong in ["", " 3", "-1", "+1", "1.0", "'5'", "5a", "٣"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
