//! JSON strings that can neither break a line nor manipulate a terminal.

use std::io::Write as _;

/// Appends the string, in quotes.
pub(crate) fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    if text.bytes().all(|b| matches!(b, 0x20..=0x7e) && b != b'"' && b != b'\\') {
        out.extend_from_slice(text.as_bytes());
    } else {
        text.chars().for_each(|c| write_char(c, out));
    }
    out.push(b'"');
}

fn write_char(c: char, out: &mut Vec<u8>) {
    if matches!(c, '"' | '\\') {
        out.push(b'\\');
    }
    if c.is_control() || is_invisible(c) {
        let _infallible = write!(out, "\\u{:04x}", u32::from(c));
    } else {
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// Line separators and characters that change text direction: callers must not be able to change how the log looks to
/// its readers.
pub(crate) const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}
