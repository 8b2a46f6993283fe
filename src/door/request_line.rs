//! Keeps the `#` of a request's target visible. `http::Uri` silently cuts off what follows one, so that a DELETE of
//! `/variables/prod#old` would delete `prod`. Over HTTP/2, where h2 decodes the target itself, it still does.

/// Stands in a target for every `#` that arrived in it. `http::Uri` lets it pass, and no target may contain it.
pub const FRAGMENT: u8 = b'^';

/// Where in an HTTP/1.1 request the next byte stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RequestLine {
    /// Before its first line; empty lines may come first (RFC 9112 section 2.2).
    Before,
    /// Within it.
    Within,
    /// Behind it.
    #[default]
    Behind,
}

impl RequestLine {
    /// Replaces each `#` in the request line. `begins`: these bytes begin a new request.
    pub(super) fn mark_fragment(&mut self, bytes: &mut [u8], begins: bool) {
        if begins {
            *self = Self::Before;
        }
        let start = match self {
            Self::Before => bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len()),
            Self::Within => 0,
            Self::Behind => return,
        };
        let Some(rest) = bytes.get_mut(start..).filter(|rest| !rest.is_empty()) else { return };
        let end = memchr::memchr(b'\n', rest);
        *self = if end.is_none() { Self::Within } else { Self::Behind };
        let line = rest.split_at_mut(end.unwrap_or(rest.len())).0;
        while let Some(at) = memchr::memchr(b'#', line) {
            line.iter_mut().skip(at).take(1).for_each(|byte| *byte = FRAGMENT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a request that arrives in these pieces.
    fn read(line: &mut RequestLine, pieces: &[&str]) -> String {
        let mut out = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            let mut bytes = piece.as_bytes().to_vec();
            line.mark_fragment(&mut bytes, at == 0);
            out.extend(bytes);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_the_request_line_is_changed_however_it_arrives() {
        let whole = "\r\nGET /a#b?c#d HTTP/1.1\r\nx: #\r\n\r\n#";
        let marked = "\r\nGET /a^b?c^d HTTP/1.1\r\nx: #\r\n\r\n#";
        for cut in 0..whole.len() {
            let mut line = RequestLine::default();
            let (first, second) = whole.split_at(cut);
            let pieces: Vec<&str> = [first, second].into_iter().filter(|piece| !piece.is_empty()).collect();
            assert_eq!(read(&mut line, &pieces), marked, "{cut}");
            assert_eq!(read(&mut line, &["GET /#", " HTTP/1.1\n", "#"]), "GET /^ HTTP/1.1\n#", "the next request");
        }
    }
}
