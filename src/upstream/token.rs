//! The one shared Make token: hidden from all output, added to one header, searched for in every response.

use std::fmt;

use http::{HeaderMap, HeaderValue};
use memchr::memmem::Finder;
use secrecy::{ExposeSecret as _, SecretString};

use super::token_search::TokenSearch;
use crate::config::SecretSource;
use crate::config::secret::{SecretError, secret_in};
use crate::hash;
use crate::watched_files::Snapshot;

/// Minimum length: a shorter token would be found in every response by chance.
const TOKEN_BYTES_MIN: usize = 8;
/// Maximum length: with its header name it must fit into any server's header limit.
const TOKEN_BYTES_MAX: usize = 4096;

/// The token, ready for use. `Debug` reveals nothing.
pub struct Token {
    secret: SecretString,
    /// Stands for it in requests until they are written: nobody can guess it who does not know the token.
    stand_in: HeaderValue,
    stand_in_finder: Finder<'static>,
    search: TokenSearch,
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
        let stand_in = hash::hex(&hash::sha256_parts(&[b"stand-in of a token", text.as_bytes()]));
        let mut stand_in = HeaderValue::try_from(stand_in).map_err(|_| InvalidToken::Character)?;
        stand_in.set_sensitive(true);
        let stand_in_finder = Finder::new(stand_in.as_bytes()).into_owned();
        Ok(Self { secret: SecretString::from(text), stand_in, stand_in_finder, search: TokenSearch::new(text) })
    }

    /// The value of `Authorization`, with what stands for the token until it is written.
    pub(super) fn header(&self) -> HeaderValue {
        self.stand_in.clone()
    }

    /// What the writer replaces.
    pub(super) fn stand_in(&self) -> &[u8] {
        self.stand_in.as_bytes()
    }

    /// Where it begins in these bytes.
    pub(super) fn find_stand_in(&self, bytes: &[u8]) -> Option<usize> {
        self.stand_in_finder.find(bytes)
    }

    /// What it is replaced with.
    pub(super) fn exposed(&self) -> [&[u8]; 2] {
        [b"Token ", self.secret.expose_secret().as_bytes()]
    }

    /// Whether the headers or the body contain the token in any of its forms.
    pub(crate) async fn is_in(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        self.search.is_in(headers, body).await
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

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "3f2a91c4-77de-4b0a-9a51-0c6d1e8b2f47";

    fn token(text: &str) -> Token {
        Token::new(&SecretString::from(text)).unwrap()
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
        assert_eq!(token.header().as_bytes(), token.stand_in());
        assert!(!token.header().to_str().unwrap().contains(&TEXT[..8]), "requests carry only what stands for it");
        assert_eq!(token.exposed().concat(), format!("Token {TEXT}").as_bytes());
    }
}
