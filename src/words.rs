//! The small words that every part speaks: request ids, key ids.

use std::cell::Cell;
use std::fmt;

use jiff::Timestamp;

use crate::clock::Clock;
use crate::hash;

/// The longest request id that is taken from a caller.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// A request's id: the caller's own where it is short and plain, else a time-ordered UUID (version 7). Kept inline.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId {
    len: u8,
    text: [u8; REQUEST_ID_BYTES_MAX],
}

thread_local! {
    /// State of this thread's id generator (SplitMix64), seeded once from the system; 0: not yet.
    static IDS: Cell<u64> = const { Cell::new(0) };
}

impl RequestId {
    /// A new id: unique, ordered by time to the millisecond, without a system call for randomness.
    #[must_use]
    pub fn new(clock: &Clock) -> Self {
        Self::at(clock.wall())
    }

    /// The same where the time is known.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let mut random = [0; 10];
        random[..8].copy_from_slice(&next_random().to_be_bytes());
        random[8..].copy_from_slice(&next_random().to_be_bytes()[..2]);
        let mut text = [0; REQUEST_ID_BYTES_MAX];
        let len = uuid::Builder::from_unix_timestamp_millis(millis, &random)
            .into_uuid()
            .hyphenated()
            .encode_lower(&mut text)
            .len();
        Self { len: u8::try_from(len).unwrap_or(0), text }
    }

    /// A caller's own id, if it is short and plain: 1 to 64 letters, digits, `.`, `_`, `-`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > REQUEST_ID_BYTES_MAX || !text.iter().all(plain) {
            return None;
        }
        let mut id = Self { len: u8::try_from(text.len()).ok()?, text: [0; REQUEST_ID_BYTES_MAX] };
        id.text.get_mut(..text.len())?.copy_from_slice(text);
        Some(id)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.text.get(..usize::from(self.len)).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

fn next_random() -> u64 {
    IDS.with(|state| {
        if state.get() == 0 {
            // Without system randomness ids are still unique in the process: the address of the cell tells threads apart.
            let seed = hash::random::<8>().map_or(std::ptr::from_ref(state) as u64, u64::from_ne_bytes);
            state.set(seed | 1);
        }
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A key's SHA-256: all that is ever stored of a key.
pub type KeyHash = [u8; 32];

/// How records name a key: the first 8 hex digits of its hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 4]);

impl KeyId {
    /// The name of the key with this hash.
    #[must_use]
    pub fn of(hash: &KeyHash) -> Self {
        let [a, b, c, d, ..] = *hash;
        Self([a, b, c, d])
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hash::hex(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A keyed hash that tells equal things apart from others (writes, idempotency keys, values) and nothing about them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// HMAC-SHA-256 of the parts, each preceded by its length, cut to 16 bytes.
    pub(crate) fn of(key: &[u8], parts: &[&[u8]]) -> Self {
        let lengths: Vec<[u8; 8]> = parts.iter().map(|part| (part.len() as u64).to_be_bytes()).collect();
        let framed: Vec<&[u8]> =
            lengths.iter().zip(parts).flat_map(|(length, part)| [length.as_slice(), part]).collect();
        let whole = u128::from_be_bytes(first_half(hash::hmac_sha256(key, &framed)));
        Self(whole.to_be_bytes())
    }

    /// The fingerprint that these bytes are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The fingerprint that 32 hex digits spell.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(text, 16).ok().map(|whole| Self(whole.to_be_bytes())))?
    }
}

fn first_half(hash: [u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    half
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hash::hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The digits of a number, written to the end of `digits`, which has room for all of them.
#[must_use]
pub fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        length += 1;
        if number == 0 {
            break;
        }
    }
    digits.get(digits.len() - length..).unwrap_or_default()
}

/// The text with every character shown that would act on the text around it: controls, and marks that turn its direction.
#[must_use]
pub fn visible(text: &str) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if acts(c) {
            shown.extend(c.escape_unicode())
        } else {
            shown.push(c)
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_join_alike_have_different_fingerprints() {
        let one = Fingerprint::of(b"key", &[b"ab", b"c"]);
        assert_ne!(one, Fingerprint::of(b"key", &[b"a", b"bc"]));
        assert_ne!(one, Fingerprint::of(b"other", &[b"ab", b"c"]));
        assert_eq!(Fingerprint::parse(&one.to_string()), Some(one));
        assert_eq!(Fingerprint::parse("+123456789abcdef0123456789abcdef"), None);
    }
}
