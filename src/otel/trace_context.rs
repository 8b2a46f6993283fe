//! The ids of traces and spans, and the header that carries them from one service to the next (W3C trace context).

use crate::config::SampledShare;
use crate::hash::{self, hex};

/// A span's place in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// The trace that it belongs to.
    pub(super) trace: [u8; 16],
    /// The span itself.
    pub(super) span: [u8; 8],
}

/// What a caller's `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncomingContext {
    pub(super) context: SpanContext,
    pub(super) is_sampled: bool,
}

/// Which traces are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Of the traces that it decides on, the share that is sent.
    pub share: SampledShare,
    /// Whether a caller's `traceparent` decides for its own trace.
    pub follows_parent: bool,
}

impl Sampler {
    pub(super) fn includes(self, trace: [u8; 16], parent: Option<&IncomingContext>) -> bool {
        match parent {
            Some(parent) if self.follows_parent => parent.is_sampled,
            Some(_) | None => {
                let [.., a, b, c, d, e, f, g, h] = trace;
                self.share.includes(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
        }
    }
}

impl SpanContext {
    /// A span of this trace or, without one, the first of a new trace. `None` if the system has no randomness.
    pub(super) fn new(trace: Option<[u8; 16]>) -> Option<Self> {
        match trace {
            Some(trace) => Some(Self { trace, span: hash::random().ok()? }),
            None => {
                let random = hash::random::<24>().ok()?;
                let (trace, span) = random.split_first_chunk::<16>()?;
                Some(Self { trace: *trace, span: span.try_into().ok()? })
            }
        }
    }

    /// The value of `traceparent` that names this span as the parent.
    #[must_use]
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", hex(&self.trace), hex(&self.span))
    }
}

impl IncomingContext {
    /// The caller's span.
    #[must_use]
    pub const fn context(&self) -> SpanContext {
        self.context
    }

    /// Reads a `traceparent` of version 00. `None` if it is not one, or an id in it is 0.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        let is_whole =
            version == "00" && parts.next().is_none() && (trace.len(), span.len(), flags.len()) == (32, 16, 2);
        let trace = bytes_of(trace).filter(|_| is_whole)?;
        let span = bytes_of(span)?;
        let [flags] = bytes_of(flags)?;
        let is_valid = trace != [0; 16] && span != [0; 8];
        is_valid.then_some(Self { context: SpanContext { trace, span }, is_sampled: flags & 1 == 1 })
    }
}

/// The bytes that a lower-case hexadecimal text stands for.
fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_alike() {
        let read = IncomingContext::parse(GIVEN).unwrap();
        assert!(read.is_sampled);
        assert_eq!(read.context.traceparent(), GIVEN);
        assert!(!IncomingContext::parse(&GIVEN.replace("-01", "-00")).unwrap().is_sampled);
        let zeros = [
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ];
        let others = [
            "",
            "00",
            &GIVEN.replace("00-4", "01-4"),
            &GIVEN.to_uppercase(),
            &format!("{GIVEN}-x"),
            &GIVEN.replace("b7-", "b-7"),
        ];
        for wrong in zeros.into_iter().chain(others) {
            assert_eq!(IncomingContext::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_parent_decides_only_where_it_is_followed() {
        let parent = IncomingContext::parse(GIVEN).unwrap();
        let unsampled = IncomingContext { is_sampled: false, ..parent };
        let asked = |share, follows_parent, parent: Option<&IncomingContext>| {
            Sampler { share, follows_parent }.includes([7; 16], parent)
        };
        assert!(asked(SampledShare::NONE, true, Some(&parent)) && !asked(SampledShare::NONE, false, Some(&parent)));
        assert!(!asked(SampledShare::ALL, true, Some(&unsampled)) && asked(SampledShare::ALL, false, Some(&unsampled)));
        assert!(asked(SampledShare::ALL, true, None) && !asked(SampledShare::NONE, true, None));
    }

    #[test]
    fn a_new_context_has_ids_of_its_own() {
        let (one, other) = (SpanContext::new(None).unwrap(), SpanContext::new(None).unwrap());
        assert!(one.trace != other.trace && one.span != other.span);
        let child = SpanContext::new(Some(one.trace)).unwrap();
        assert!(child.trace == one.trace && child.span != one.span);
    }
}
