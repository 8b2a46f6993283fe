//! Step 2, target: one canonical form of path and query. An ambiguous target is refused, never repaired.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::Uri;
use percent_encoding::percent_decode_str;

use crate::catalogue::{MatchedOperation, Operation, ParameterKind, PathSegment};
use crate::door::FRAGMENT;

/// Maximum number of values in a set (`cols[]`) that can be part of a cache key (`docs/decisions/cache-keys.md`).
const SET_VALUES_MAX: usize = 64;

/// A request's target in canonical form.
#[derive(Debug, PartialEq, Eq)]
pub struct Target<'u> {
    /// The path, decoded. No segment contains `/`, so splitting it is unambiguous.
    pub path: Cow<'u, str>,
    /// The query's parameters in order, escaped canonically but not decoded: `+` and `%20` stay different.
    pub query: Vec<QueryPair<'u>>,
}

/// Why a target can be read in more than one way, and what to write instead.
#[expect(missing_docs, reason = "each variant's sentence explains it")]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguity {
    #[error("the target is not a path: write /api/v2/…")]
    NotAPath,
    #[error("the path's escapes are not UTF-8")]
    NotUtf8,
    #[error("the path contains non-ASCII characters: percent-encode them")]
    PathNotAscii,
    #[error("the path contains {}, which is ambiguous: leave it out", shown(*.0))]
    Character(char),
    #[error("the path contains an escaped {}, which is ambiguous: leave it out", shown(*.0))]
    Escaped(char),
    #[error("the path has an empty segment: use single slashes, and none at the end")]
    EmptySegment,
    #[error("the path has a `.` or `..` segment: write the path without it")]
    DotSegment,
    #[error("the {0} contains `#` (write %23) or a bare `^` (write %5E)")]
    Fragment(&'static str),
    #[error("a `%` is not followed by two hexadecimal digits: write %25 for a literal `%`")]
    Percent,
    #[error("the query contains NUL: leave it out")]
    QueryNul,
    #[error("the query contains non-ASCII characters: percent-encode them")]
    QueryNotAscii,
}

fn shown(character: char) -> String {
    if character.is_control() { format!("U+{:04X}", u32::from(character)) } else { format!("`{character}`") }
}

/// One query parameter, escaped canonically.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryPair<'u> {
    /// The parameter's name.
    pub name: Cow<'u, str>,
    /// What follows the first `=`; `None` without `=`.
    pub value: Option<Cow<'u, str>>,
}

/// The target as its operation understands it: the cache key and what goes upstream.
#[derive(Debug, PartialEq, Eq)]
pub struct CacheKeyPlan<'u> {
    /// Path and query as they go upstream.
    pub target: Cow<'u, str>,
    /// The cache key, if it differs from the target because a refresh is not part of it. Requests with equal keys are equal.
    refresh_key: Option<String>,
    /// Does the operation's cache key cover every parameter, in the form given?
    pub keyed: bool,
    /// Does a parameter (`wait=true`) ask for the upstream's current state?
    pub refresh: bool,
}

impl CacheKeyPlan<'_> {
    /// The cache key; valid only if `keyed`.
    #[must_use]
    pub fn key(&self) -> &str {
        self.refresh_key.as_deref().unwrap_or(&self.target)
    }
}

impl<'u> Target<'u> {
    /// Parses the target that hyper read from the request line.
    ///
    /// # Errors
    /// What is ambiguous.
    pub fn parse(uri: &'u Uri) -> Result<Self, Ambiguity> {
        let path = canonical_path(uri.path())?;
        let query = match uri.query() {
            None => Vec::new(),
            Some(text) => text.split('&').filter(|part| !part.is_empty()).map(pair).collect::<Result<_, _>>()?,
        };
        Ok(Self { path, query })
    }

    /// The first value of a parameter, decoded (`+` is a space).
    #[must_use]
    pub fn value(&self, name: &str) -> Option<String> {
        self.values(name).next()
    }

    /// All values of a parameter, decoded.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> + 'a {
        self.query.iter().filter(move |p| p.name == name).filter_map(|p| p.value.as_deref().map(decoded))
    }

    /// Interprets this target for `row`.
    ///
    /// # Errors
    /// The name of a single-valued parameter that is given twice.
    pub fn plan(&'u self, row: &Operation, matched: &MatchedOperation<'_, '_>) -> Result<CacheKeyPlan<'u>, String> {
        for parameter in &row.query {
            let given = self.query.iter().filter(|pair| pair.name == *parameter.name).count();
            if given > 1 && parameter.kind != ParameterKind::Set {
                return Err(parameter.name.to_string());
            }
        }
        let path = render_path(&self.path, row, matched);
        if self.query.is_empty() {
            return Ok(CacheKeyPlan { target: path, refresh_key: None, keyed: true, refresh: false });
        }
        let refresh = self.wants_refresh(row);
        let query = self.key_query(row, refresh);
        let keyed = query.is_some();
        let key_query = if refresh && keyed { self.key_query(row, false) } else { None };
        let refresh_key = key_query.map(|query| joined(path.clone(), &query).into_owned());
        let target = joined(path, &query.unwrap_or_else(|| self.raw_query()));
        Ok(CacheKeyPlan { target, refresh_key, keyed, refresh })
    }

    fn wants_refresh(&self, row: &Operation) -> bool {
        row.query.iter().filter(|p| p.kind == ParameterKind::Refresh).any(|parameter| {
            self.query.iter().any(|pair| pair.name == *parameter.name && pair.value.as_deref() == Some("true"))
        })
    }

    /// The query's normal form for the cache key: in the row's order, without defaults, with sets sorted (only queries that are provably
    /// equal become equal). Returns `None` if the answer cannot be stored.
    fn key_query(&self, row: &Operation, with_refresh: bool) -> Option<String> {
        let known = |pair: &QueryPair<'_>| row.query.iter().any(|parameter| pair.name == *parameter.name);
        if !self.query.iter().all(known) {
            return None;
        }
        let mut out = String::new();
        for parameter in &row.query {
            let mut values = Vec::new();
            for pair in self.query.iter().filter(|pair| pair.name == *parameter.name) {
                values.push(pair.value.as_deref().filter(|value| well_formed(parameter.kind, value))?);
            }
            values.sort_unstable();
            values.dedup();
            let by_default = |value: &str| match parameter.kind {
                ParameterKind::Flag => value == parameter.default.as_deref().unwrap_or("false"),
                ParameterKind::Refresh => !with_refresh || value == "false",
                ParameterKind::Scalar | ParameterKind::Number => Some(value) == parameter.default.as_deref(),
                ParameterKind::Set => false,
            };
            if values.len() > SET_VALUES_MAX {
                return None;
            }
            for value in values.into_iter().filter(|value| !by_default(value)) {
                push_pair(&mut out, &parameter.name, Some(value));
            }
        }
        Some(out)
    }

    /// The query as sent, canonically escaped, in its own order.
    fn raw_query(&self) -> String {
        let mut out = String::new();
        for pair in &self.query {
            push_pair(&mut out, &pair.name, pair.value.as_deref());
        }
        out
    }
}

/// A cache key must be unambiguous: a request with an empty or odd value goes upstream, and its answer is not stored.
fn well_formed(kind: ParameterKind, value: &str) -> bool {
    match kind {
        ParameterKind::Set | ParameterKind::Scalar => !value.is_empty(),
        ParameterKind::Number => {
            value.len() <= 18
                && value.bytes().all(|b| b.is_ascii_digit())
                && (value == "0" || !value.starts_with('0'))
                && !value.is_empty()
        }
        ParameterKind::Flag | ParameterKind::Refresh => matches!(value, "true" | "false"),
    }
}

/// Appends `name=value` to a query.
pub(crate) fn push_pair(query: &mut String, name: &str, value: Option<&str>) {
    if !query.is_empty() {
        query.push('&');
    }
    query.push_str(name);
    if let Some(value) = value {
        query.push('=');
        query.push_str(value);
    }
}

fn joined<'u>(path: Cow<'u, str>, query: &str) -> Cow<'u, str> {
    if query.is_empty() { path } else { Cow::Owned([&path, "?", query].concat()) }
}

/// Decodes a query component like a form (`+` is a space). Invalid UTF-8 becomes U+FFFD.
pub(crate) fn decoded(text: impl AsRef<str>) -> String {
    let text = text.as_ref();
    if !text.contains(['+', '%']) {
        return text.to_owned(); // nearly every one
    }
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// The path that goes upstream: the template's literals with each parameter's value encoded anew, never a copy of the request's path.
fn render_path<'u>(path: &'u str, row: &Operation, matched: &MatchedOperation<'_, '_>) -> Cow<'u, str> {
    if path.bytes().all(is_plain_in_path) {
        return Cow::Borrowed(path); // rendering would not change it
    }
    let mut values = matched.parameters();
    Cow::Owned(path_with(row, |_| values.next().map_or("", |(_, value)| value)))
}

/// The path of `row` for the upstream, with these parameter values.
pub(crate) fn path_with<'v>(row: &Operation, mut value: impl FnMut(&str) -> &'v str) -> String {
    let mut out = String::with_capacity(row.path.as_str().len() + 16);
    for segment in row.path.segments() {
        out.push('/');
        match segment {
            PathSegment::Literal(text) => out.push_str(text),
            PathSegment::Parameter(name) => {
                for byte in value(name).bytes() {
                    push_escaped(&mut out, byte, is_plain_in_path(byte) && byte != b'/');
                }
            }
        }
    }
    out
}

const fn is_plain_in_path(byte: u8) -> bool {
    is_unreserved(byte) || matches!(byte, b'/' | b'$')
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn push_escaped(out: &mut String, byte: u8, plain: bool) {
    if plain {
        out.push(char::from(byte));
    } else {
        let _infallible = write!(out, "%{byte:02X}");
    }
}

fn canonical_path(raw: &str) -> Result<Cow<'_, str>, Ambiguity> {
    let Some(rest) = raw.strip_prefix('/') else {
        return Err(Ambiguity::NotAPath);
    };
    if is_plainly_canonical(raw) || rest.is_empty() {
        return Ok(Cow::Borrowed(raw));
    }
    for segment in rest.split('/') {
        check_segment(segment)?;
    }
    if !raw.contains('%') {
        return Ok(Cow::Borrowed(raw));
    }
    let decoded = percent_decode_str(raw).decode_utf8().map_err(|_| Ambiguity::NotUtf8)?;
    Ok(Cow::Owned(decoded.into_owned()))
}

/// Matches nearly every path: unreserved characters in segments that are neither empty nor begin with a dot. Others need a closer look.
fn is_plainly_canonical(path: &str) -> bool {
    let mut before = b'/';
    let plain = path.bytes().skip(1).all(|byte| {
        let fits =
            if before == b'/' { is_unreserved(byte) && byte != b'.' } else { is_unreserved(byte) || byte == b'/' };
        before = byte;
        fits
    });
    plain && before != b'/'
}

fn check_segment(segment: &str) -> Result<(), Ambiguity> {
    let mut text = Vec::with_capacity(if segment.contains('%') { segment.len() } else { 0 });
    let mut bytes = segment.bytes();
    let escaped = segment.contains('%');
    while let Some(byte) = bytes.next() {
        let value = match byte {
            b'%' => decode_escape(&mut bytes)?,
            0x80.. => return Err(Ambiguity::PathNotAscii),
            FRAGMENT => return Err(Ambiguity::Fragment("path")),
            b'"' | b'<' | b'>' | b'\\' | b'`' | b'{' | b'|' | b'}' | b';' | 0..=0x20 | 0x7f => {
                return Err(Ambiguity::Character(byte.into()));
            }
            other => other,
        };
        if byte == b'%' && matches!(value, b'/' | b'\\' | b'%' | b';' | 0..=0x1f | 0x7f) {
            return Err(Ambiguity::Escaped(value.into()));
        }
        if escaped {
            text.push(value);
        }
    }
    match if escaped { text.as_slice() } else { segment.as_bytes() } {
        b"" => Err(Ambiguity::EmptySegment),
        b"." | b".." => Err(Ambiguity::DotSegment),
        _ => Ok(()),
    }
}

/// Decodes an escape, taking its two digits from `bytes`.
fn decode_escape(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, Ambiguity> {
    let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).and_then(|n| u8::try_from(n).ok());
    match (digit(), digit()) {
        (Some(high), Some(low)) => Ok(high << 4 | low),
        _ => Err(Ambiguity::Percent),
    }
}

fn pair(part: &str) -> Result<QueryPair<'_>, Ambiguity> {
    Ok(match part.split_once('=') {
        Some((name, value)) => QueryPair { name: component(name)?, value: Some(component(value)?) },
        None => QueryPair { name: component(part)?, value: None },
    })
}

/// Escapes a name or value of the query canonically: unreserved characters and `[ ] $` are not escaped, whatever must be escaped is, with
/// upper-case digits.
fn component(raw: &str) -> Result<Cow<'_, str>, Ambiguity> {
    let as_is = |b: u8| {
        b.is_ascii_graphic() && !matches!(b, b'%' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
    };
    if raw.bytes().all(as_is) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut out = String::with_capacity(raw.len() + 8);
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => match decode_escape(&mut bytes)? {
                0 => return Err(Ambiguity::QueryNul),
                value => push_escaped(&mut out, value, is_unreserved(value) || matches!(value, b'[' | b']' | b'$')),
            },
            0x80.. => return Err(Ambiguity::QueryNotAscii),
            FRAGMENT => return Err(Ambiguity::Fragment("query")),
            other => push_escaped(&mut out, other, as_is(other)),
        }
    }
    Ok(Cow::Owned(out))
}
