//! Finds the token in an answer in every form that one step of encoding gives it: in another letter case, with or without dashes, as
//! hexadecimal digits, percent-encoded, as HTML entities, with JSON's escapes (also in JSON within JSON), as base64 in either alphabet and
//! at any alignment, as UTF-16, or as a list of byte values; each with line breaks in it or not.
//!
//! The text is reduced to its letters and digits in lower case, and so is each form, so one search finds all spellings of a form. What is
//! escaped is found by a second pass over the unescaped text. Both passes work in a window of fixed size.

use http::HeaderMap;
use memchr::memmem::Finder;
use secrecy::zeroize::Zeroizing;

use crate::hash;

/// A token with fewer letters and digits than this is searched for with its punctuation, because words of a text could add up to it.
const LOOSE_BYTES_MIN: usize = 16;
/// Bytes of reduced text that are searched at once.
const WINDOW_BYTES: usize = 16 * 1024;
/// Room for what headers usually add to that.
const HEADER_BYTES: usize = 512;
/// After this many bytes others get their turn on the thread.
const TURN_BYTES: usize = 64 * 1024;
/// So much of a form is searched for first.
const BEGINNING_BYTES: usize = 8;
/// The longest name of an HTML entity.
const ENTITY_BYTES_MAX: usize = 31;

/// What to search for.
pub(super) struct TokenSearch {
    reduced: Reduction,
    forms: Vec<TokenForm>,
    shortest: usize,
    longest: usize,
}

/// One form of the token. It is wiped with the token: the search library has only its beginning.
struct TokenForm {
    whole: Secret,
    beginning: Finder<'static>,
}

type Secret = Zeroizing<Vec<u8>>;

impl TokenForm {
    fn new(whole: Secret) -> Self {
        let beginning = Finder::new(whole.get(..BEGINNING_BYTES).unwrap_or(&whole)).into_owned();
        Self { whole, beginning }
    }

    fn is_in(&self, text: &[u8]) -> bool {
        let mut rest = text;
        while let Some(at) = self.beginning.find(rest) {
            let found = rest.get(at..).unwrap_or_default();
            if found.starts_with(&self.whole) {
                return true;
            }
            rest = found.get(1..).unwrap_or_default();
        }
        false
    }
}

/// What becomes of each byte of a text: 0 leaves it out.
struct Reduction([u8; 256]);

impl Reduction {
    /// Keeps letters and digits, in lower case.
    fn loose() -> Self {
        Self::of(|byte| byte.is_ascii_alphanumeric())
    }

    /// Keeps all that is visible. Both alphabets of base64 become the same.
    fn with_punctuation() -> Self {
        Self::of(|byte| byte.is_ascii_graphic())
    }

    fn of(is_kept: impl Fn(u8) -> bool) -> Self {
        let mut table = [0; 256];
        for (byte, place) in (0..=u8::MAX).zip(&mut table) {
            if is_kept(byte) {
                *place = match byte {
                    b'-' => b'+',
                    b'_' => b'/',
                    other => other.to_ascii_lowercase(),
                };
            }
        }
        Self(table)
    }

    /// Appends what is kept of the text. Without a branch per byte, because every answer goes through here.
    fn append(&self, text: &[u8], to: &mut Vec<u8>) {
        let mut end = to.len();
        to.resize(end + text.len(), 0);
        for byte in text {
            let kept = self.0.get(usize::from(*byte)).copied().unwrap_or(0);
            if let Some(place) = to.get_mut(end) {
                *place = kept;
            }
            end += usize::from(kept != 0);
        }
        to.truncate(end);
    }
}

impl TokenSearch {
    pub(super) fn new(token: &str) -> Self {
        let alphanumeric = token.bytes().filter(u8::is_ascii_alphanumeric).count();
        let reduced = if alphanumeric < LOOSE_BYTES_MIN { Reduction::with_punctuation() } else { Reduction::loose() };
        let list = |value: fn(u8) -> String| token.bytes().map(value).collect::<Vec<_>>().join(",").into_bytes();
        let mut spelled = vec![
            token.as_bytes().to_vec(),
            hash::hex(token.as_bytes()).into_bytes(),
            list(|byte| byte.to_string()),
            list(|byte| format!("{byte:#x}")),
        ];
        spelled.extend((0..3).map(|shift| base64_core(token.as_bytes(), shift)));
        let reduce = |form: Vec<u8>| {
            let form = Secret::new(form);
            let mut kept = Secret::new(Vec::with_capacity(form.len()));
            reduced.append(&form, &mut kept);
            kept
        };
        let mut forms: Vec<Secret> = spelled.into_iter().map(reduce).collect();
        forms.sort_unstable_by(|one, other| one.as_slice().cmp(other));
        forms.dedup();
        let lengths = || forms.iter().map(|form| form.len());
        let (shortest, longest) = (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0));
        Self { forms: forms.into_iter().map(TokenForm::new).collect(), reduced, shortest, longest }
    }

    /// Whether the headers or the body contain the token in any of its forms.
    pub(super) async fn is_in(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let new_window =
            || SearchWindow { search: self, text: Vec::with_capacity(body.len().min(WINDOW_BYTES) + HEADER_BYTES) };
        // All in one, because every search costs: a form that only two texts together contain is better not passed on, either.
        let mut window = new_window();
        for (name, value) in headers {
            for text in [name.as_str().as_bytes(), value.as_bytes()] {
                // A text never becomes longer when it is reduced, and most of these are too short to contain a form.
                let may_contain = text.len() >= self.shortest;
                if may_contain && (window.add(text) || (has_escapes(text) && new_window().finds_unescaped(text).await))
                {
                    return true;
                }
            }
        }
        for piece in body.chunks(TURN_BYTES) {
            if window.add(piece) {
                return true;
            }
            if body.len() > TURN_BYTES {
                tokio::task::yield_now().await;
            }
        }
        window.end() || (has_escapes(body) && new_window().finds_unescaped(body).await)
    }

    fn is_in_reduced(&self, text: &[u8]) -> bool {
        self.forms.iter().any(|form| form.is_in(text))
    }
}

/// The part of a reduced text that is searched next.
struct SearchWindow<'s> {
    search: &'s TokenSearch,
    text: Vec<u8>,
}

impl SearchWindow<'_> {
    /// Is a form in what this text is without its escapes?
    async fn finds_unescaped(&mut self, text: &[u8]) -> bool {
        let (mut rest, mut turn) = (text, 0);
        while let Some((first, after)) = rest.split_first() {
            // All that comes before the next escape, or one escape.
            let plain = first_escape(rest).unwrap_or(rest.len());
            let (byte, left) =
                if plain > 0 { (None, rest.get(plain..).unwrap_or_default()) } else { unescape(*first, after) };
            let found = match byte {
                Some(byte) => self.push(byte),
                None => self.add(rest.get(..plain).unwrap_or_default()),
            };
            if found {
                return true;
            }
            turn += rest.len() - left.len();
            rest = left;
            if turn > TURN_BYTES {
                turn = 0;
                tokio::task::yield_now().await;
            }
        }
        self.end()
    }

    /// Adds to the text. Is a form in what is full now?
    fn add(&mut self, text: &[u8]) -> bool {
        for piece in text.chunks(WINDOW_BYTES) {
            self.search.reduced.append(piece, &mut self.text);
            if self.text.len() >= WINDOW_BYTES && self.finds_in_full_window() {
                return true;
            }
        }
        false
    }

    /// The same for one byte.
    fn push(&mut self, byte: u8) -> bool {
        let kept = self.search.reduced.0.get(usize::from(byte)).copied().unwrap_or(0);
        if kept != 0 {
            self.text.push(kept);
        }
        self.text.len() >= WINDOW_BYTES && self.finds_in_full_window()
    }

    fn finds_in_full_window(&mut self) -> bool {
        let found = self.search.is_in_reduced(&self.text);
        // A form may have begun.
        let done = self.text.len().saturating_sub(self.search.longest);
        self.text.drain(..done);
        found
    }

    /// Is a form in the rest?
    fn end(&self) -> bool {
        self.search.is_in_reduced(&self.text)
    }
}

fn first_escape(text: &[u8]) -> Option<usize> {
    memchr::memchr3(b'\\', b'%', b'&', text)
}

fn has_escapes(text: &[u8]) -> bool {
    first_escape(text).is_some()
}

/// What an escape stands for, if that is one ASCII character, and what comes after it. `first` is one of those that [`first_escape`] finds.
fn unescape(first: u8, after: &[u8]) -> (Option<u8>, &[u8]) {
    match first {
        b'%' => hex_digits(after, 2).unwrap_or((None, after)),
        b'&' => entity(after).unwrap_or((None, after)),
        _ => backslash(after),
    }
}

/// Any number of backslashes, because JSON within JSON doubles them.
fn backslash(after: &[u8]) -> (Option<u8>, &[u8]) {
    let slashes = after.iter().take_while(|byte| **byte == b'\\').count();
    let after = after.get(slashes..).unwrap_or_default();
    match after.split_first() {
        Some((b'u', digits)) => hex_digits(digits, 4).unwrap_or((None, after)),
        Some((b'x', digits)) => hex_digits(digits, 2).unwrap_or((None, after)),
        Some((b'b' | b'f' | b'n' | b'r' | b't', rest)) => (None, rest),
        Some(_) | None => (None, after),
    }
}

/// The character with this many hexadecimal digits.
fn hex_digits(text: &[u8], count: usize) -> Option<(Option<u8>, &[u8])> {
    let (digits, rest) = text.split_at_checked(count)?;
    Some((character(digits, 16)?, rest))
}

/// `&#51;`, `&#x33;`, or a named entity; those with names are never letters or digits of ASCII.
fn entity(after: &[u8]) -> Option<(Option<u8>, &[u8])> {
    let Some(number) = after.strip_prefix(b"#") else {
        let name = after.iter().take(ENTITY_BYTES_MAX).take_while(|byte| byte.is_ascii_alphanumeric()).count();
        let rest = after.get(name..)?.strip_prefix(b";")?;
        return (name > 1).then_some((None, rest));
    };
    let (digits, radix) = match number.strip_prefix(b"x").or_else(|| number.strip_prefix(b"X")) {
        Some(digits) => (digits, 16),
        None => (number, 10),
    };
    let is_digit = |byte: &&u8| char::from(**byte).is_digit(radix);
    let length = digits.iter().take(ENTITY_BYTES_MAX).take_while(is_digit).count();
    let (digits, rest) = digits.split_at_checked(length)?;
    Some((character(digits, radix)?, rest.strip_prefix(b";").unwrap_or(rest)))
}

/// The ASCII character with this number, `Some(None)` if it is another one. `None`: these are no digits.
fn character(digits: &[u8], radix: u32) -> Option<Option<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(radix);
    let number =
        digits.iter().try_fold(0_u32, |number, byte| Some(number.saturating_mul(radix).saturating_add(digit(byte)?)));
    let number = number.filter(|_| !digits.is_empty())?;
    Some(u8::try_from(number).ok().filter(u8::is_ascii))
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The base64 characters that depend only on the token when `shift` bytes (modulo 3) of other text precede it.
fn base64_core(token: &[u8], shift: usize) -> Vec<u8> {
    let text: Vec<u8> = std::iter::repeat_n(0, shift).chain(token.iter().copied()).collect();
    let byte = |at: usize| u16::from(text.get(at).copied().unwrap_or(0));
    ((shift * 8).div_ceil(6)..text.len() * 8 / 6)
        .filter_map(|sextet| {
            let bit = sextet * 6;
            let word = byte(bit / 8) << 8 | byte(bit / 8 + 1);
            BASE64.get(usize::from(word >> (10 - bit % 8) & 63)).copied()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    use super::*;

    const UUID: &str = "3f2a91c4-77de-4b0a-9a51-0c6d1e8b2f47";
    /// With every kind of character that a token can have.
    const MIXED: &str = "aB3_x.Yz~Q9-k+Lm/0pR7sT==";
    const SHORT: &str = "ab+cd/ef==";

    async fn finds(token: &str, body: impl AsRef<[u8]>) -> bool {
        TokenSearch::new(token).is_in(&HeaderMap::new(), body.as_ref()).await
    }

    fn each(token: &str, form: impl Fn(u8) -> String) -> String {
        token.bytes().map(form).collect()
    }

    /// Every form of a token, by name.
    fn forms(token: &str) -> Vec<(&'static str, Vec<u8>)> {
        let text = |name, text: String| (name, text.into_bytes());
        let list = |value: fn(u8) -> String, between: &str| token.bytes().map(value).collect::<Vec<_>>().join(between);
        let utf16 = |bytes: fn(u16) -> [u8; 2]| token.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
        let lines = |text: String, width: usize, end: &str| {
            let lines: Vec<_> = text.as_bytes().chunks(width).map(|line| String::from_utf8_lossy(line)).collect();
            lines.join(end)
        };
        let mut forms = vec![
            text("plain", token.to_owned()),
            text("upper case", token.to_uppercase()),
            text("hex", each(token, |byte| format!("{byte:02x}"))),
            text("HEX", each(token, |byte| format!("{byte:02X}"))),
            text("hex with spaces", list(|byte| format!("{byte:02x}"), " ")),
            text("hex numbers", list(|byte| format!("{byte:#04x}"), ", ")),
            text("\\x", each(token, |byte| format!("\\x{byte:02x}"))),
            text("percent", each(token, |byte| format!("%{byte:02X}"))),
            text("Percent", each(token, |byte| format!("%{byte:02x}"))),
            text("decimal entities", each(token, |byte| format!("&#{byte};"))),
            text("decimal entities with zeros", each(token, |byte| format!("&#{byte:06};"))),
            text("hex entities", each(token, |byte| format!("&#x{byte:X};"))),
            text("hex entities, no end", each(token, |byte| format!("&#X{byte:02x} "))),
            text("JSON escapes", each(token, |byte| format!("\\u{byte:04x}"))),
            text("JSON Escapes", each(token, |byte| format!("\\u{byte:04X}"))),
            text("JSON in JSON", each(token, |byte| format!("\\\\u{byte:04x}"))),
            text("JSON in JSON in JSON", each(token, |byte| format!("\\\\\\\\u{byte:04x}"))),
            text("escaped slashes", token.replace('/', "\\/")),
            text("escaped slashes in JSON", token.replace('/', "\\\\/")),
            text("list", list(|byte| byte.to_string(), ", ")),
            text("List", list(|byte| byte.to_string(), ",\n  ")),
            ("UTF-16 LE", utf16(u16::to_le_bytes)),
            ("UTF-16 BE", utf16(u16::to_be_bytes)),
        ];
        if token.len() > LOOSE_BYTES_MIN {
            forms.push(text("without dashes", token.replace('-', "")));
            forms.push(text("hex with colons", list(|byte| format!("{byte:02x}"), ":")));
        }
        for prefix in ["", "x", "xy", "Token "] {
            let standard = STANDARD.encode(format!("{prefix}{token};"));
            forms.push(text("base64 in lines", lines(standard.clone(), 16, "\r\n")));
            forms.push(text("base64 in lines in JSON", lines(standard.clone(), 19, "\\n")));
            forms.push(text("base64 in lines in JSON in JSON", lines(standard.clone(), 7, "\\\\r\\\\n")));
            forms.push(text("base64", standard));
            forms.push(text("URL-safe base64", URL_SAFE_NO_PAD.encode(format!("{prefix}{token}"))));
        }
        forms
    }

    #[tokio::test]
    async fn it_is_found_in_every_form_anywhere() {
        for token in [UUID, MIXED, SHORT] {
            for (name, form) in forms(token) {
                // At any place in relation to a window's end, and after any text that could be taken for part of it.
                for before in [0, 1, WINDOW_BYTES - 40, WINDOW_BYTES - 1, WINDOW_BYTES, 2 * WINDOW_BYTES - 17] {
                    let body = [&b"{\"a\":\"".repeat(before.div_ceil(6))[..before], &form, b"\"}"].concat();
                    assert!(finds(token, &body).await, "{name} of {token} after {before}");
                }
                for before in ["%", "\\", "\\u", "\\n", "&", "&#", "&#x", "%2", "100%", "\\\\"] {
                    let plain = ["plain", "hex", "list"].contains(&name) || name.starts_with("base64");
                    let body = [before.as_bytes(), &form].concat();
                    assert!(!plain || finds(token, &body).await, "{name} of {token} after {before}");
                }
            }
        }
    }

    #[tokio::test]
    async fn other_texts_are_not_it() {
        for token in [UUID, MIXED, SHORT] {
            let other = token.replace(['4', '0', 'e'], "5");
            for (name, form) in forms(&other) {
                assert!(!finds(token, &form).await, "{name} of {other} is taken for {token}");
            }
            for text in ["", "%", "\\", "&", "&#", "&#;", "&#x;", "\\u12", "\\x", "%%%", "\\\\\\", "&&amp;;"] {
                assert!(!finds(token, text).await, "{text}");
            }
            let long = include_str!("../../config/operations.toml");
            assert!(!finds(token, long).await && !finds(token, &token[1..]).await && !finds(token, &token[..7]).await);
        }
        // The words of a short token may stand beside each other.
        assert!(!finds("sandbox-token", "the sandbox token").await);
        assert!(finds("sandbox-token", "the SANDBOX-token").await);
    }

    #[tokio::test]
    async fn it_is_found_in_header_names_and_values() {
        let search = TokenSearch::new(UUID);
        for (name, form) in forms(UUID) {
            let Ok(value) = http::HeaderValue::from_bytes(&form) else { continue };
            let mut headers = HeaderMap::from_iter([(http::header::ETAG, value)]);
            assert!(search.is_in(&headers, b"").await, "{name}");
            headers.clear();
            assert!(!search.is_in(&headers, b"").await);
        }
        let name = http::HeaderName::try_from(format!("x-{UUID}")).unwrap();
        assert!(search.is_in(&HeaderMap::from_iter([(name, http::HeaderValue::from_static(""))]), b"").await);
        // Not one half in a header and the other in the next.
        let halves = [(http::header::ETAG, &UUID[..18]), (http::header::VARY, &UUID[18..])];
        let halves = halves.map(|(name, half)| (name, http::HeaderValue::from_str(half).unwrap()));
        assert!(!search.is_in(&HeaderMap::from_iter(halves), b"").await);
    }

    #[test]
    fn the_window_does_not_grow_with_the_text() {
        let search = TokenSearch::new(UUID);
        let mut window = SearchWindow { search: &search, text: Vec::new() };
        for text in [&b"x".repeat(3 * WINDOW_BYTES)[..], b"{\"a\": 1}", &b"y".repeat(10 * WINDOW_BYTES + 7)] {
            assert!(!window.add(text));
            assert!(window.text.len() < WINDOW_BYTES && window.text.capacity() <= 4 * WINDOW_BYTES);
        }
    }
}
