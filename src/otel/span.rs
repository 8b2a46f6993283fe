//! A span that has ended, as it waits to be sent. Building one copies little; it is turned into a message by whoever sends it.

use std::borrow::Cow;
use std::sync::Arc;

use super::SpanContext;
use super::messages::{AnyValue, AnyValueKind, KeyValue, OtlpSpan, OtlpStatus};

/// Size limit of one text in a span, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// The W3C flag for a sampled trace, and OTLP's for knowing whether the parent is in another process.
const SAMPLED: u32 = 0x01;
const KNOWS_WHETHER_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// What a span stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A step within the process.
    Internal = 1,
    /// A request that was answered.
    Server = 2,
    /// A request that was sent.
    Client = 3,
}

/// A span that has ended.
#[derive(Debug)]
pub struct EndedSpan {
    /// Its place in its trace.
    pub context: SpanContext,
    /// The span that it is a part of.
    pub parent: Option<SpanContext>,
    /// Whether that one is in another process.
    pub is_parent_remote: bool,
    /// What it stands for.
    pub kind: SpanKind,
    /// Its name.
    pub name: Cow<'static, str>,
    /// When it began, in nanoseconds since 1970.
    pub began_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// Whether it ended with an error.
    pub has_failed: bool,
    /// More about it.
    pub attributes: Vec<(&'static str, SpanValue)>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpanValue {
    /// One of makegate's own words.
    Word(&'static str),
    /// A text that is kept anyway.
    Shared(Arc<str>),
    /// Any other text; see [`SpanValue::text`].
    Text(Box<str>),
    /// A number.
    Number(i64),
}

impl SpanValue {
    /// A text; the rest of one that is too long is left out.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::Text(text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or_default().into())
    }

    /// A text that is kept anyway, unless it is too long.
    #[must_use]
    pub fn shared(text: &Arc<str>) -> Self {
        if text.len() > TEXT_BYTES_MAX { Self::text(text) } else { Self::Shared(text.clone()) }
    }
}

impl<N: Into<i64>> From<N> for SpanValue {
    fn from(number: N) -> Self {
        Self::Number(number.into())
    }
}

impl From<EndedSpan> for OtlpSpan {
    fn from(span: EndedSpan) -> Self {
        let remote = if span.is_parent_remote { IS_REMOTE } else { 0 };
        Self {
            trace_id: span.context.trace.to_vec(),
            span_id: span.context.span.to_vec(),
            parent_span_id: span.parent.map(|parent| parent.span.to_vec()).unwrap_or_default(),
            name: span.name.into_owned(),
            kind: span.kind as i32,
            start_time_unix_nano: span.began_ns,
            end_time_unix_nano: span.ended_ns,
            attributes: span.attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
            status: span.has_failed.then_some(OtlpStatus { code: 2 }),
            flags: SAMPLED | KNOWS_WHETHER_REMOTE | remote,
        }
    }
}

fn attribute(key: &str, value: SpanValue) -> KeyValue {
    let value = match value {
        SpanValue::Word(text) => AnyValueKind::Text(text.to_owned()),
        SpanValue::Shared(text) => AnyValueKind::Text(text.to_string()),
        SpanValue::Text(text) => AnyValueKind::Text(text.into_string()),
        SpanValue::Number(number) => AnyValueKind::Integer(number),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

/// An attribute with a text.
pub(super) fn text_attribute(key: &str, text: &str) -> KeyValue {
    attribute(key, SpanValue::Text(text.into()))
}
