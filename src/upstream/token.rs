//! The one shared Make token: hidden from all output, added to one header, searched for in every response.

use std::fmt;

use http::{HeaderMap, HeaderValue};
use memchr::memmem::Finder;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret as _, SecretString};

use crate::config::SecretSource;
use crate::config::secret::{SecretError, secret_in};
use crate::hash;
use crate::watched_files::Snapshot;

/// Minimum length: a shorter token would be found in every response by chance.
const TOKEN_BYTES_MIN: usize = 8;
/// Maximum length: with its header name it must fit into any server's header limit.
const TOKEN_BYTES_MAX: usize = 4096;
/// All characters except those that RFC 3986, section 2.3, leaves unescaped.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The token, ready for use. `Debug` reveals nothing.
pub struct Token {
    secret: SecretString,
    header: HeaderValue,
    /// The token in every form that a response could contain: plain, percent-encoded, JSON-escaped, base64.
    forms: Vec<Finder<'static>>,
    /// The same for header names, which have no upper case.
    name_form: Finder<'static>,
}

/// Why a text cannot be the token. Says what to write instead, and nothing of the text.
#[derive(Debug, thiserror::Error)]
pub enum InvalidToken {
    /// There is no text.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Only white space.
    #[error("the token is empty; provide the Make API token")]
    Empty,
    /// Fewer than 8 bytes.
    #[error("the token has fewer than 8 characters; provide the whole Make API token")]
    Short,
    /// More than 4,096 bytes.
    #[error("the token has more than 4096 characters; provide only the Make API token")]
    Long,
    /// An invalid character.
    #[error(
        "the token contains characters other than letters, digits and -._~+/=; \
         provide only the Make API token, without the word Token, quotes or a second line"
    )]
    Character,
}

impl Token {
    /// Reads the token from `source`.
    ///
    /// # Errors
    /// [`InvalidToken`] if it cannot be read, or cannot be a token.
    pub fn read(files: &Snapshot, source: &SecretSource) -> Result<Self, InvalidToken> {
        Self::new(&secret_in(files, source)?)
    }

    /// Parses the token in `secret`; surrounding white space (such as a trailing newline) is ignored.
    ///
    /// # Errors
    /// [`InvalidToken`] if it cannot be a token.
    pub fn new(secret: &SecretString) -> Result<Self, InvalidToken> {
        let text = secret.expose_secret().trim_ascii();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
        match text.len() {
            0 => return Err(InvalidToken::Empty),
            _ if !text.bytes().all(plain) => return Err(InvalidToken::Character),
            1..TOKEN_BYTES_MIN => return Err(InvalidToken::Short),
            TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX => {}
            _ => return Err(InvalidToken::Long),
        }
        let mut header = HeaderValue::try_from(format!("Token {text}")).map_err(|_| InvalidToken::Character)?;
        header.set_sensitive(true);
        Ok(Self {
            secret: SecretString::from(text),
            header,
            forms: forms(text).iter().map(|form| Finder::new(form).into_owned()).collect(),
            name_form: Finder::new(&text.to_ascii_lowercase()).into_owned(),
        })
    }

    /// The value of `Authorization`, marked sensitive.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }

    /// Whether the headers or the body contain the token in any of its forms.
    pub(super) fn is_in(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        self.in_text(body)
            || headers.iter().any(|(name, value)| {
                self.in_text(value.as_bytes()) || self.name_form.find(name.as_str().as_bytes()).is_some()
            })
    }

    fn in_text(&self, text: &[u8]) -> bool {
        let found = |text: &[u8]| self.forms.iter().any(|form| form.find(text).is_some());
        found(text) || (memchr::memmem::find(text, b"\\u").is_some() && found(&unescaped(text)))
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        hash::constant_time_eq(self.secret.expose_secret().as_bytes(), other.secret.expose_secret().as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Every form of the token to search for, without duplicates.
fn forms(token: &str) -> Vec<Vec<u8>> {
    let percent = utf8_percent_encode(token, RESERVED).to_string();
    let mut forms = vec![
        token.as_bytes().to_vec(),
        percent.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d").into_bytes(),
        percent.into_bytes(),
        token.replace('/', "\\/").into_bytes(),
    ];
    for shift in 0..3 {
        let standard = base64_core(token.as_bytes(), shift);
        forms.push(
            standard
                .iter()
                .map(|c| {
                    if *c == b'+' {
                        b'-'
                    } else if *c == b'/' {
                        b'_'
                    } else {
                        *c
                    }
                })
                .collect(),
        );
        forms.push(standard);
    }
    forms.sort();
    forms.dedup();
    forms
}

/// Decodes JSON's `\u00xx` escapes of ASCII, as a JSON parser would.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = rest.strip_prefix(b"\\u00").and_then(|after| after.split_at_checked(2));
        let spelled = digits.and_then(|(two, after)| {
            let byte = u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()?;
            Some((byte, after))
        });
        let (byte, after) = spelled.unwrap_or((*first, after));
        out.push(byte);
        rest = after;
    }
    out
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
    use super::*;

    const TEXT: &str = "3f2a91c4-77de-4b0a-9a51-0c6d1e8b2f47";

    fn token(text: &str) -> Token {
        Token::new(&SecretString::from(text)).unwrap()
    }

    fn in_body(token: &Token, body: &str) -> bool {
        token.is_in(&HeaderMap::new(), body.as_bytes())
    }

    #[test]
    fn only_a_token_is_a_token() {
        for (text, bad) in [
            ("", InvalidToken::Empty),
            (" \n", InvalidToken::Empty),
            ("short", InvalidToken::Short),
            ("Token 3f2a91c4-77de", InvalidToken::Character),
            ("3f2a91c4\n77de4b0a", InvalidToken::Character),
            ("\"3f2a91c4-77de\"", InvalidToken::Character),
            ("tökentöken", InvalidToken::Character),
            (&"x".repeat(4097), InvalidToken::Long),
        ] {
            let why = Token::new(&SecretString::from(text)).unwrap_err();
            assert_eq!(why.to_string(), bad.to_string(), "{text}");
        }
        assert_eq!(token("3f2a91c4-77de\n"), token("3f2a91c4-77de"));
        assert_ne!(token("3f2a91c4-77de"), token("3f2a91c4-77df"));
    }

    #[test]
    fn nothing_shows_it() {
        let token = token(TEXT);
        assert_eq!(format!("{token:?} {:?}", token.header()), "Token(…) Sensitive");
        assert_eq!(token.header().as_bytes(), format!("Token {TEXT}").as_bytes());
    }

    #[test]
    fn it_is_found_in_bodies_header_values_and_names() {
        let token = token(TEXT);
        assert!(in_body(&token, &format!("{{\"echo\":\"Token {TEXT}\"}}")));
        assert!(!in_body(&token, &TEXT[..35]));
        let mut headers = HeaderMap::new();
        headers.insert("x-plain", HeaderValue::from_static("3f2a91c4-77de-4b0a"));
        assert!(!token.is_in(&headers, b""));
        headers.insert("x-echo", HeaderValue::try_from(format!("a={TEXT};")).unwrap());
        assert!(token.is_in(&headers, b""));
        let mut headers = HeaderMap::new();
        headers.insert(http::HeaderName::try_from(format!("x-{TEXT}")).unwrap(), HeaderValue::from_static(""));
        assert!(token.is_in(&headers, b""));
    }

    #[test]
    fn it_is_found_in_base64_at_every_alignment() {
        let token = token(TEXT);
        // printf 'Token %s'; printf 'a=%s;'; printf '%s' of the token, each through base64.
        for encoded in [
            "VG9rZW4gM2YyYTkxYzQtNzdkZS00YjBhLTlhNTEtMGM2ZDFlOGIyZjQ3",
            "YT0zZjJhOTFjNC03N2RlLTRiMGEtOWE1MS0wYzZkMWU4YjJmNDc7",
            "eDNmMmE5MWM0LTc3ZGUtNGIwYS05YTUxLTBjNmQxZThiMmY0Nw==",
        ] {
            assert!(in_body(&token, encoded), "{encoded}");
        }
    }

    #[test]
    fn it_is_found_percent_encoded_and_json_escaped() {
        let token = token("ab+cd/ef==");
        for form in ["ab%2Bcd%2Fef%3D%3D", "ab%2bcd%2fef%3d%3d", "ab+cd\\/ef==", "ab+cd/ef=="] {
            assert!(in_body(&token, form), "{form}");
        }
        assert!(!in_body(&token, "ab cd/ef=="));
        let escaped: String = "ab+cd/ef==".bytes().map(|b| format!("\\u{b:04x}")).collect();
        assert!(in_body(&token, &escaped));
        assert!(in_body(&token, "ab\\u002bcd/ef=="));
    }
}
