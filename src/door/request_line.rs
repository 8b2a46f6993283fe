//! Keeps the `#` of a request's target visible. `http::Uri` silently cuts off what follows one, so that a DELETE of
//! `/variables/prod#old` would delete `prod`. `request_frames` does the same over HTTP/2.
//!
//! To know which bytes are a request line, every byte of a connection is followed: through heads, bodies of a known length and chunks.
//! What hyper refuses may be followed wrongly, because hyper ends such a connection; what hyper accepts must be followed as hyper reads it.

use std::mem::take;

/// Stands in a target for every `#` that arrived in it. `http::Uri` lets it pass, and no target may contain it.
pub const FRAGMENT: u8 = b'^';

/// Follows the requests of an HTTP/1.1 connection, and marks the `#` in their request lines.
#[derive(Debug, Default)]
pub(super) struct RequestLines {
    place: Place,
    framing: BodyFraming,
    /// A line of the head, or of a chunk's size, that has not arrived whole. hyper bounds both.
    begun: Vec<u8>,
}

/// Where the next byte stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Before a request line; empty lines may come first (RFC 9112 section 2.2).
    #[default]
    Before,
    /// Within a request line.
    Line,
    /// In the header section.
    Head,
    /// In a body, of which so many bytes are left.
    Body(u64),
    /// In the line that begins a chunk.
    ChunkSize,
    /// In a chunk's data and the line end behind it, of which so many bytes are left.
    Chunk(u64),
    /// In the trailer section.
    Trailers,
}

/// How long the body is that follows the header section.
#[derive(Clone, Copy, Debug, Default)]
struct BodyFraming {
    length: u64,
    is_chunked: bool,
}

impl RequestLines {
    /// Replaces each `#` that is in a request line. `bytes` are the next ones of the connection.
    pub(super) fn mark_fragments(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let length = self.advance(bytes).clamp(1, bytes.len());
            bytes = bytes.split_at_mut(length).1;
        }
    }

    /// Do the bytes so far end within a head?
    pub(super) const fn is_within_head(&self) -> bool {
        matches!(self.place, Place::Line | Place::Head)
    }

    /// Follows some of the bytes, and returns how many.
    fn advance(&mut self, bytes: &mut [u8]) -> usize {
        match self.place {
            Place::Before => {
                let empty = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                if empty < bytes.len() {
                    self.place = Place::Line;
                }
                empty
            }
            Place::Line => {
                let end = line_end(bytes);
                let (line, _) = bytes.split_at_mut(end.unwrap_or(bytes.len()));
                while let Some(at) = memchr::memchr(b'#', line) {
                    line.iter_mut().skip(at).take(1).for_each(|byte| *byte = FRAGMENT);
                }
                if end.is_some() {
                    (self.place, self.framing) = (Place::Head, BodyFraming::default());
                }
                line.len()
            }
            Place::Head => self.line(bytes, Self::header_line),
            Place::ChunkSize => self.line(bytes, Self::chunk_size_line),
            Place::Trailers => self.line(bytes, Self::trailer_line),
            Place::Body(left) | Place::Chunk(left) => {
                let now = left.min(bytes.len() as u64);
                self.place = match (self.place, left - now) {
                    (Place::Body(_), 0) => Place::Before,
                    (Place::Body(_), left) => Place::Body(left),
                    (_, 0) => Place::ChunkSize,
                    (_, left) => Place::Chunk(left),
                };
                usize::try_from(now).unwrap_or(bytes.len())
            }
        }
    }

    /// Follows one line, or as much of it as there is.
    fn line(&mut self, bytes: &[u8], follow: fn(&mut Self, &[u8])) -> usize {
        let end = line_end(bytes);
        let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        match (end, self.begun.is_empty()) {
            (None, _) => self.begun.extend_from_slice(part),
            (Some(_), true) => follow(self, part),
            (Some(_), false) => {
                let mut whole = take(&mut self.begun);
                whole.extend_from_slice(part);
                follow(self, &whole);
            }
        }
        part.len()
    }

    fn header_line(&mut self, line: &[u8]) {
        if is_empty_line(line) {
            self.place = match self.framing {
                BodyFraming { is_chunked: true, .. } => Place::ChunkSize,
                BodyFraming { length: 0, .. } => Place::Before,
                BodyFraming { length, .. } => Place::Body(length),
            };
            return;
        }
        if value_of(line, b"transfer-encoding").is_some() {
            self.framing.is_chunked = true;
        } else if let Some(value) = value_of(line, b"content-length") {
            self.framing.length = number(value.trim_ascii(), 10);
        }
    }

    fn chunk_size_line(&mut self, line: &[u8]) {
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        self.place = match number(line.get(..digits).unwrap_or_default(), 16) {
            0 => Place::Trailers,
            size => Place::Chunk(size.saturating_add(b"\r\n".len() as u64)),
        };
    }

    fn trailer_line(&mut self, line: &[u8]) {
        if is_empty_line(line) {
            self.place = Place::Before;
        }
    }
}

/// The length of the line that `bytes` begin with, and of its end.
fn line_end(bytes: &[u8]) -> Option<usize> {
    memchr::memchr(b'\n', bytes).map(|at| at + 1)
}

fn is_empty_line(line: &[u8]) -> bool {
    matches!(line, b"\r\n" | b"\n")
}

/// The value, if this is the header field with this name.
fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (own, rest) = line.split_at_checked(name.len())?;
    rest.strip_prefix(b":").filter(|_| own.eq_ignore_ascii_case(name))
}

/// Reads a number; 0 if it is none, or too large: hyper refuses both.
fn number(digits: &[u8], radix: u32) -> u64 {
    std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, radix).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What becomes of requests that arrive in these pieces.
    fn read(pieces: &[&[u8]]) -> Vec<u8> {
        let mut lines = RequestLines::default();
        let mut out = Vec::new();
        for piece in pieces {
            let mut bytes = piece.to_vec();
            lines.mark_fragments(&mut bytes);
            out.extend(bytes);
        }
        out
    }

    /// A body with anything in it, also what looks like another request, and how it is sent.
    fn body() -> impl Strategy<Value = String> {
        const TEXT: &str = "[#\r\nG0-9 a;]{0,24}|GET /#b HTTP/1.1\r\n\r\n";
        let chunk = (TEXT, "(;[a-z#]{1,4})?", any::<bool>()).prop_filter_map("a chunk", |(data, more, upper)| {
            let size = if upper { format!("{:X}", data.len()) } else { format!("{:03x}", data.len()) };
            (!data.is_empty()).then(|| format!("{size}{more}\r\n{data}\r\n"))
        });
        let chunked = (prop::collection::vec(chunk, 0..4), "(x: #\r\n){0,2}", "[Cc]hunked");
        prop_oneof![
            Just("\r\n".to_owned()),
            (TEXT, "[Cc]ontent-[Ll]ength: {0,3}")
                .prop_map(|(text, name)| format!("{name}{}\r\n\r\n{text}", text.len())),
            chunked.prop_map(|(chunks, trailers, coding)| format!(
                "Transfer-Encoding: {coding}\r\n\r\n{}0\r\n{trailers}\r\n",
                chunks.concat()
            )),
        ]
    }

    proptest! {
        #[test]
        fn only_request_lines_are_changed_however_requests_follow_each_other_and_arrive(
            requests in prop::collection::vec(("(\r\n){0,2}", "[A-Z]{1,7} /[a-z#]{0,6}(\\?[a-z#]{0,4})? HTTP/1.1\r?\n", "(x: [#a]{0,3}\r\n){0,3}", body()), 1..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let whole: String = requests.iter().map(|(empty, line, head, body)| format!("{empty}{line}{head}{body}")).collect();
            let marked: String =
                requests.iter().map(|(empty, line, head, body)| format!("{empty}{}{head}{body}", line.replace('#', "^"))).collect();
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).chain([whole.len()]).collect();
            ends.sort_unstable();
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let pieces: Vec<&[u8]> = starts.zip(&ends).map(|(start, end)| &whole.as_bytes()[start..*end]).collect();
            prop_assert_eq!(String::from_utf8(read(&pieces)).unwrap(), marked);
        }
    }

    #[test]
    fn bytes_that_are_no_requests_are_followed_to_their_end() {
        for bytes in [
            &b"\n\r\n\r"[..],
            b"\xff#\xff\n\n\n",
            b"a\ntransfer-encoding: x\n\nzz\n#\n\n",
            b"a\ncontent-length: -1\n\n#",
        ] {
            assert_eq!(read(&[bytes]).len(), bytes.len());
        }
    }
}
