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
    /// Replaces each `#` in the request line, and in those of further requests that come with it. `begins`: these bytes begin a new
    /// request.
    pub(super) fn mark_fragment(&mut self, mut bytes: &mut [u8], begins: bool) {
        if begins {
            *self = Self::Before;
        }
        while *self != Self::Behind {
            let is_line = |byte: &u8| *self == Self::Within || !matches!(byte, b'\r' | b'\n');
            let start = bytes.iter().position(is_line).unwrap_or(bytes.len());
            let (_, line_on) = bytes.split_at_mut(start);
            if line_on.is_empty() {
                return;
            }
            let end = memchr::memchr(b'\n', line_on);
            let (line, after) = line_on.split_at_mut(end.unwrap_or(line_on.len()));
            while let Some(at) = memchr::memchr(b'#', line) {
                line.iter_mut().skip(at).take(1).for_each(|byte| *byte = FRAGMENT);
            }
            *self = if end.is_none() { Self::Within } else { Self::Behind };
            // Hardly ever another `#` follows; then it may be another request's.
            let next = memchr::memchr(b'#', after).and_then(|_| rest_of_request(after));
            let Some((_, further)) = next.and_then(|next| after.split_at_mut_checked(next)) else { return };
            (*self, bytes) = (Self::Before, further);
        }
    }
}

/// The length of what is left of a request behind its first line. `None` if it cannot be told: the head or the body is not here whole, or
/// the body is chunked.
fn rest_of_request(after_line: &[u8]) -> Option<usize> {
    const END: &[u8] = b"\n\r\n";
    let head = memchr::memmem::find(after_line, END)? + END.len();
    let mut length = 0;
    for field in after_line.get(..head)?.split(|byte| *byte == b'\n') {
        let Some(colon) = memchr::memchr(b':', field) else { continue };
        let (name, value) = field.split_at(colon);
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return None;
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            length = std::str::from_utf8(value).ok()?.trim_start_matches(':').trim().parse().ok()?;
        }
    }
    head.checked_add(length)
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
        let whole = "\r\nGET /a#b?c#d HTTP/1.1\r\nx: #\r\ncontent-length: 1\r\n\r\n#";
        let marked = "\r\nGET /a^b?c^d HTTP/1.1\r\nx: #\r\ncontent-length: 1\r\n\r\n#";
        for cut in 0..whole.len() {
            let mut line = RequestLine::default();
            let (first, second) = whole.split_at(cut);
            let pieces: Vec<&str> = [first, second].into_iter().filter(|piece| !piece.is_empty()).collect();
            assert_eq!(read(&mut line, &pieces), marked, "{cut}");
            assert_eq!(read(&mut line, &["GET /#", " HTTP/1.1\n", "#"]), "GET /^ HTTP/1.1\n#", "the next request");
        }
    }

    #[test]
    fn so_are_the_lines_of_requests_that_come_in_one_piece_but_no_body() {
        let first = "POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\n\"#\n#\"";
        let pipelined = format!("{first}GET /b HTTP/1.1\r\n\r\nDELETE /c#d HTTP/1.1\r\nx: #\r\n\r\n{first}");
        let marked = pipelined.replace("c#d", "c^d");
        assert_eq!(read(&mut RequestLine::default(), &[&pipelined]), marked);
        let chunked = "POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n#\r\n0\r\n\r\n";
        assert_eq!(read(&mut RequestLine::default(), &[chunked]), chunked);
    }
}
