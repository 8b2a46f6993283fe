//! Ids that all parts share: request ids, key ids, fingerprints.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;

use aws_lc_rs::hmac;
use jiff::Timestamp;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::Clock;
use crate::hash;

/// The longest request id accepted from a caller.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// A request id: the caller's own if it is short and plain, otherwise a time-ordered UUID (version 7). Stored inline.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId {
    len: u8,
    text: [u8; REQUEST_ID_BYTES_MAX],
}

/// Number of random bytes in an id, besides its time.
const RANDOM_BYTES: usize = 10;
/// Number of random bytes that a thread fetches at once, to save a system call per id.
const POOL_BYTES: usize = 200 * RANDOM_BYTES;

/// A pool of random bytes from the system's generator, so that nobody can predict the next id from earlier ones.
struct RandomPool {
    bytes: [u8; POOL_BYTES],
    left: usize,
}

thread_local! {
    static POOL: RefCell<RandomPool> = const { RefCell::new(RandomPool { bytes: [0; POOL_BYTES], left: 0 }) };
}

impl RandomPool {
    fn take(&mut self) -> [u8; RANDOM_BYTES] {
        if self.left < RANDOM_BYTES {
            self.fill();
        }
        self.left -= RANDOM_BYTES;
        let taken = self.bytes.get(self.left..).and_then(|bytes| bytes.first_chunk());
        taken.copied().unwrap_or_default()
    }

    fn fill(&mut self) {
        self.bytes = hash::random().unwrap_or_else(|_no_randomness| self.fallback_bytes());
        self.left = POOL_BYTES;
    }

    /// Fallback without system randomness: ids are still unique within the process, because the pool's address
    /// distinguishes threads, and no easier to guess than the previous ones.
    fn fallback_bytes(&self) -> [u8; POOL_BYTES] {
        let (mut bytes, address) = ([0; POOL_BYTES], std::ptr::from_ref(self) as u64);
        for (at, part) in bytes.chunks_mut(32).enumerate() {
            let hashed = hash::sha256_parts(&[&self.bytes, &address.to_be_bytes(), &at.to_be_bytes()]);
            part.iter_mut().zip(hashed).for_each(|(to, from)| *to = from);
        }
        bytes
    }
}

impl RequestId {
    /// A new id: unique, ordered by time to the millisecond, and unpredictable.
    #[must_use]
    pub fn new(clock: &Clock) -> Self {
        Self::at(clock.wall())
    }

    /// As [`RequestId::new`], for a known time.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let random = POOL.with_borrow_mut(RandomPool::take);
        let mut text = [0; REQUEST_ID_BYTES_MAX];
        let len = uuid::Builder::from_unix_timestamp_millis(millis, &random)
            .into_uuid()
            .hyphenated()
            .encode_lower(&mut text)
            .len();
        Self { len: u8::try_from(len).unwrap_or(0), text }
    }

    /// Parses a caller's own id if it is short and plain: 1 to 64 letters, digits, `.`, `_`, `-`.
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

/// The SHA-256 of a key, which is all that is ever stored of it.
pub type KeyHash = [u8; 32];

/// The name of a key in records: the first 8 hex digits of its hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 4]);

impl KeyId {
    /// The id of the key with this hash.
    #[must_use]
    pub fn of(hash: &KeyHash) -> Self {
        let [a, b, c, d, ..] = *hash;
        Self([a, b, c, d])
    }

    /// Parses 8 hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u32::from_str_radix(text, 16).ok().map(|whole| Self(whole.to_be_bytes())))?
    }

    /// The raw bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 4] {
        &self.0
    }
}

impl KeyId {
    fn digits(&self) -> KeyIdDigits {
        let mut digits = [b'0'; 8];
        digits.iter_mut().zip(hash::hex_digits(&self.0)).for_each(|(to, digit)| *to = digit);
        KeyIdDigits(digits)
    }
}

/// A key's id as text, without memory of its own.
struct KeyIdDigits([u8; 8]);

impl Deref for KeyIdDigits {
    type Target = str;

    fn deref(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.digits())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A keyed hash that identifies equal values (writes, idempotency keys, values) and reveals nothing about them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// HMAC-SHA-256 of the parts, each preceded by its length, truncated to 16 bytes.
    pub(crate) fn of(key: &hmac::Key, parts: &[&[u8]]) -> Self {
        Self(hash::hmac_sha256(key, parts).first_chunk().copied().unwrap_or_default())
    }

    /// Wraps the bytes of a fingerprint.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Parses a fingerprint from 32 hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(text, 16).ok().map(|whole| Self(whole.to_be_bytes())))?
    }
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

/// Makes an id text in what is written with serde, and accepts only what it parses.
macro_rules! serde_as_text {
    ($($id:ident: $text:expr, $parse:expr;)*) => {$(
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&($text)(self))
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(IdVisitor($parse))
            }
        }
    )*};
}

serde_as_text! {
    KeyId: KeyId::digits, KeyId::parse;
    RequestId: RequestId::as_str, |text| RequestId::parse(text.as_bytes());
    Fingerprint: |fingerprint: &Fingerprint| hash::hex(&fingerprint.0), Fingerprint::parse;
}

struct IdVisitor<T>(fn(&str) -> Option<T>);

impl<T> Visitor<'_> for IdVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// Writes the digits of a number to the end of `digits`, which has room for any number.
#[must_use]
pub fn write_decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
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

/// Whether this character would affect the text around it, or hide in it: control characters, line separators, marks
/// that change its direction, and what Unicode lets a program not show at all (`Default_Ignorable_Code_Point`, with
/// zero-width and tag characters). Callers must not be able to change how a text looks to its readers.
#[must_use]
pub fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Escapes every character that is [invisible](is_invisible).
#[must_use]
pub fn escape_invisible(text: &str) -> String {
    escape(text, |shown, c| shown.extend(c.escape_unicode()))
}

/// The same, but keeps the ends of lines, and tabs.
#[must_use]
pub fn escape_invisible_in_lines(text: &str) -> String {
    escape(text, |shown, c| match c {
        '\n' | '\r' | '\t' => shown.push(c),
        _ => shown.extend(c.escape_unicode()),
    })
}

/// The same as JSON writes it. Between its strings JSON has no such characters except the ends of lines, and tabs.
#[must_use]
pub fn escape_invisible_in_json(json: &str) -> String {
    escape(json, |shown, c| match c {
        '\n' | '\r' | '\t' => shown.push(c),
        _ => json_escapes(c, shown),
    })
}

/// Writes this character as JSON's `\uXXXX`, twice if it takes two.
pub(crate) fn json_escapes(c: char, out: &mut impl fmt::Write) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        let _full = write!(out, "\\u{unit:04x}");
    }
}

fn escape(text: &str, replace: impl Fn(&mut String, char)) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        match is_invisible(c) {
            true => replace(&mut shown, c),
            false => shown.push(c),
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_bits(id: &RequestId) -> u128 {
        // The id without time, version and variant.
        uuid::Uuid::try_parse(id.as_str()).unwrap().as_u128() & 0x0fff_3fff_ffff_ffff_ffff
    }

    /// With a non-cryptographic generator, the next id is a function of the last one. The gateway's former generator
    /// revealed its state with a single id.
    #[test]
    fn one_id_does_not_tell_the_next() {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mix = |state: u64| {
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        let unshift = |value: u64, by: u32| (0..64 / by).fold(value, |found, _| value ^ (found >> by));
        let unmix = |output: u64| {
            let mixed = unshift(output, 31).wrapping_mul(0x3196_42b2_d24d_8ec3);
            let mixed = unshift(mixed, 27).wrapping_mul(0x96de_1b17_3f11_9089);
            unshift(mixed, 30)
        };
        assert_eq!(unmix(mix(4711)), 4711);
        let (told, next) = (RequestId::at(Timestamp::UNIX_EPOCH), RequestId::at(Timestamp::UNIX_EPOCH));
        let told = u64::try_from(random_bits(&told) >> 16).unwrap();
        // Six of its bits hold the id's version and variant.
        for hidden in 0..64_u64 {
            let output = told | (hidden >> 2) << 60 | (hidden & 3) << 46;
            let guessed = mix(unmix(output).wrapping_add(STEP.wrapping_mul(2)));
            let guessed = u128::from(guessed) & 0x0fff_3fff_ffff_ffff;
            assert_ne!(guessed, random_bits(&next) >> 16, "the next id was guessed");
        }
    }

    #[test]
    fn ids_are_unique_ordered_by_time_and_use_every_random_bit() {
        let at = |ms| RequestId::at(Timestamp::from_millisecond(ms).unwrap());
        let ids: Vec<RequestId> = (0..5_000).map(at).collect();
        assert!(ids.is_sorted_by_key(|id| id.as_str().to_owned()));
        let random: std::collections::HashSet<u128> = ids.iter().map(random_bits).collect();
        assert_eq!(random.len(), ids.len());
        let (set, unset) = random.iter().fold((0, 0), |(set, unset), bits| (set | bits, unset | !bits));
        assert_eq!((set, unset & set), (set, set), "each bit is set in some id, and not in another");
        assert_eq!(set.count_ones(), 74);
    }

    #[test]
    fn without_randomness_ids_are_still_unique() {
        let mut store = RandomPool { bytes: [7; POOL_BYTES], left: 0 };
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10 {
            store.bytes = store.fallback_bytes();
            seen.extend(store.bytes.chunks(RANDOM_BYTES).map(<[u8]>::to_vec));
        }
        assert_eq!(seen.len(), 2_000);
    }

    #[test]
    fn parts_that_join_alike_have_different_fingerprints() {
        let one = Fingerprint::of(&hash::hmac_key(b"key"), &[b"ab", b"c"]);
        assert_ne!(one, Fingerprint::of(&hash::hmac_key(b"key"), &[b"a", b"bc"]));
        assert_ne!(one, Fingerprint::of(&hash::hmac_key(b"other"), &[b"ab", b"c"]));
        assert_eq!(Fingerprint::parse(&one.to_string()), Some(one));
        assert_eq!(Fingerprint::parse("+123456789abcdef0123456789abcdef"), None);
    }

    #[test]
    fn what_hides_is_escaped_in_texts_lines_and_json() {
        // A terminal's escape, C1, a zero-width space, an override of the direction, a tag, a filler, a variation selector.
        let hidden = "a\u{1b}\u{9b}\u{200b}\u{202e}\u{e0041}\u{3164}\u{fe0f}\u{ad}\tb\n\u{e9}\u{4e2d}";
        let shown = "a\\u{1b}\\u{9b}\\u{200b}\\u{202e}\\u{e0041}\\u{3164}\\u{fe0f}\\u{ad}";
        assert_eq!(escape_invisible(hidden), format!("{shown}\\u{{9}}b\\u{{a}}\u{e9}\u{4e2d}"));
        assert_eq!(escape_invisible_in_lines(hidden), format!("{shown}\tb\n\u{e9}\u{4e2d}"));
        let json = escape_invisible_in_json(&serde_json::to_string(hidden).unwrap());
        assert!(!json.chars().any(is_invisible), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hidden);
    }
}
