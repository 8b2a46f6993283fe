//! Secrets that stand where none belongs. What looks like one is blotted out of everything that is shown: the file's text, every
//! message, and values that messages quote.

use std::collections::BTreeSet;

use super::TextSpan;

/// What comes before a credential in a header, and so before one that was copied from there.
const SCHEMES: [&str; 3] = ["Token ", "Bearer ", "Basic "];
/// A shorter word after a scheme is prose.
const CREDENTIAL_BYTES_MIN: usize = 8;
/// A shorter word tells nothing of a secret.
const HIDDEN_WORD_BYTES_MIN: usize = 6;
/// So many hex digits and nothing else are no name, but a random key.
const HEX_KEY_DIGITS_MIN: usize = 32;

/// `text` with everything that looks like a secret blotted out: each character by one of the same length, so that positions stay valid.
#[must_use]
pub fn mask_secrets(text: &str) -> String {
    mask(text, &[])
}

/// The same, with these positions blotted out, too.
pub(super) fn mask(text: &str, hidden: &[TextSpan]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for place in hidden.iter().chain(&secrets(text)) {
        for (index, character) in text.get(place.clone()).unwrap_or_default().char_indices() {
            let start = place.start + index;
            if let Some(within) = bytes.get_mut(start..start + character.len_utf8()) {
                masked(character).encode_utf8(within);
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// The words in these positions, and in what looks like a secret, that are long enough to tell something.
pub(super) fn hidden_words<'t>(text: &'t str, hidden: &[TextSpan]) -> BTreeSet<&'t str> {
    let places = hidden.iter().cloned().chain(secrets(text));
    let words = places.filter_map(|place| text.get(place)).flat_map(|secret| {
        secret
            .split(|c: char| c.is_whitespace() || matches!(c, '=' | '"' | '\'' | '[' | ']' | ','))
            .filter(|word| word.len() >= HIDDEN_WORD_BYTES_MIN)
    });
    words.collect()
}

fn masked(character: char) -> char {
    match (character, character.len_utf8()) {
        ('\n', _) => '\n',
        (_, 1) => '*',
        (_, 2) => '·',
        (_, 3) => '•',
        (_, _) => '𐄁',
    }
}

/// Whether a value that names something, such as a file or a variable, is a secret itself.
#[must_use]
pub fn looks_like_a_secret(value: &str) -> bool {
    let value = value.trim();
    let is_hex_key = value.len() >= HEX_KEY_DIGITS_MIN && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex_key
        || uuid::Uuid::try_parse(value).is_ok()
        || value.contains(PEM_BEGIN)
        || SCHEMES
            .iter()
            .any(|scheme| value.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
}

/// The positions of what looks like a secret.
fn secrets(text: &str) -> Vec<TextSpan> {
    let mut found = uuids(text);
    found.extend(pem_blocks(text));
    found.extend(credentials(text));
    found.extend(user_parts(text));
    found
}

/// UUIDs, the form of Make's tokens and makegate's keys.
fn uuids(text: &str) -> Vec<TextSpan> {
    const LENGTH: usize = 36;
    let like = |at: usize, byte: u8| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    let first_dashes = text.match_indices('-').filter_map(|(dash, _)| dash.checked_sub(8));
    let places = first_dashes.map(|start| start..start + LENGTH);
    places
        .filter(|place| {
            let candidate = text.as_bytes().get(place.clone());
            candidate.is_some_and(|bytes| bytes.iter().enumerate().all(|(at, byte)| like(at, *byte)))
        })
        .collect()
}

const PEM_BEGIN: &str = "-----BEGIN";
const PEM_END: &str = "-----END";

/// Keys and certificates in PEM, to the end of the last one's line. One without an end may go on to the end of the text.
fn pem_blocks(text: &str) -> Vec<TextSpan> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = text.get(from..).and_then(|rest| rest.find(PEM_BEGIN)).map(|start| from + start) {
        let end = text.get(start..).and_then(|rest| rest.find(PEM_END)).map(|end| start + end + PEM_END.len());
        from = end.unwrap_or(text.len());
        found.push(start..from);
    }
    found
}

/// What follows `Token`, `Bearer` or `Basic`, up to a space, a quote or the end of the line.
fn credentials(text: &str) -> Vec<TextSpan> {
    let lower = text.to_ascii_lowercase();
    let of_scheme = |scheme: &&str| {
        let starts: Vec<usize> =
            lower.match_indices(&scheme.to_ascii_lowercase()).map(|(at, _)| at + scheme.len()).collect();
        starts
    };
    let credential = |start: usize| {
        let rest = text.get(start..)?;
        let length =
            rest.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ',' | ';')).unwrap_or(rest.len());
        (length >= CREDENTIAL_BYTES_MIN).then_some(start..start + length)
    };
    SCHEMES.iter().flat_map(of_scheme).filter_map(credential).collect()
}

/// The user and password of URLs: what is between `://` and `@`.
fn user_parts(text: &str) -> Vec<TextSpan> {
    let part = |(scheme, _): (usize, &str)| {
        let start = scheme + "://".len();
        let rest = text.get(start..)?;
        let end =
            rest.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '?' | '#')).unwrap_or(rest.len());
        let length = rest.get(..end)?.rfind('@')?;
        Some(start..start + length)
    };
    text.match_indices("://").filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "4cb9b7ee-1cb5-4b6e-8bd8-3b1f0dffd1a7";

    #[test]
    fn what_looks_like_a_secret_is_blotted_out_and_nothing_else() {
        let of = |text: &str| mask_secrets(text);
        assert_eq!(of(&format!("x {UUID}-y")), format!("x {}-y", "*".repeat(36)));
        assert_eq!(
            of("token s3cr3t-no-uuid, \"Bearer abc.def.ghi\""),
            format!("token {}, \"Bearer {}\"", "*".repeat(14), "*".repeat(11))
        );
        assert_eq!(of("http://u:p@w@h/x@y and http://h/a@b"), "http://*****@h/x@y and http://h/a@b");
        let stars = |count: usize| "*".repeat(count);
        let block = "a -----BEGIN KEY-----\nabc\n-----END KEY----- b";
        assert_eq!(of(block), format!("a {}\n***\n{} KEY----- b", stars(19), stars(8)));
        assert_eq!(of("-----BEGIN KEY-----\nabc é"), format!("{}\n****·", stars(19)));
        for plain in ["the token is empty", "Bearer or Basic", "a://b", "ci-token-file.pem", "deadbeef"] {
            assert_eq!(of(plain), plain);
        }
        for secret in [UUID, &UUID.replace('-', ""), "Token x", "bearer x", "-----BEGIN X", &"ab".repeat(24)] {
            assert!(looks_like_a_secret(secret), "{secret}");
        }
        for path in
            ["/run/secrets/make", "token", "Token", "operator.key", "abcdef0123456789", &format!("/var/{UUID}/make")]
        {
            assert!(!looks_like_a_secret(path), "{path}");
        }
    }
}
