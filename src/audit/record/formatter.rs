//! JSON on one line, whose strings can neither break the line nor manipulate a terminal.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use crate::ids::{is_invisible, json_escapes};

/// Appends this value as JSON.
pub(crate) fn write_json(value: &impl Serialize, out: &mut Vec<u8>) {
    let start = out.len();
    let _infallible = value.serialize(&mut Serializer::new(Line(out)));
    // Nearly all lines need no escapes. To find that out afterwards, all at once, costs half as much as escaping does.
    // (Without an early end, so that it is compiled to a few wide comparisons.)
    let written = out.get(start..).unwrap_or_default();
    let is_plain = written.iter().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~') & (*byte != b'\\'));
    if !is_plain {
        out.truncate(start);
        let _infallible = value.serialize(&mut Serializer::with_formatter(out, LineFormatter));
    }
}

/// Most of JSON's punctuation comes one byte at a time, for which an append of a slice would cost several times as much.
struct Line<'o>(&'o mut Vec<u8>);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match bytes {
            [byte] => self.0.push(*byte),
            _ => self.0.extend_from_slice(bytes),
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escapes, besides what JSON demands, everything that acts on the text around it.
struct LineFormatter;

impl Formatter for LineFormatter {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        fragment.chars().try_for_each(|c| match is_invisible(c) {
            true => {
                let mut escaped = String::new();
                json_escapes(c, &mut escaped);
                out.write_all(escaped.as_bytes())
            }
            false => out.write_all(c.encode_utf8(&mut [0; 4]).as_bytes()),
        })
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, out: &mut W, escape: CharEscape) -> io::Result<()> {
        let control = match escape {
            CharEscape::Quote => return out.write_all(b"\\\""),
            CharEscape::ReverseSolidus => return out.write_all(b"\\\\"),
            CharEscape::Solidus => return out.write_all(b"/"),
            CharEscape::Backspace => 8,
            CharEscape::Tab => b'\t',
            CharEscape::LineFeed => b'\n',
            CharEscape::FormFeed => 12,
            CharEscape::CarriageReturn => b'\r',
            CharEscape::AsciiControl(control) => control,
        };
        write!(out, "\\u{control:04x}")
    }

    /// JSON from elsewhere: written as it is if it is plain.
    fn write_raw_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.bytes().all(|b| matches!(b, b' '..=b'~')) {
            return out.write_all(fragment.as_bytes());
        }
        let value: Value = serde_json::from_str(fragment).unwrap_or_default();
        Ok(value.serialize(&mut Serializer::with_formatter(out, Self))?)
    }
}
