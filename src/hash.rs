//! SHA-256 and HMAC from aws-lc, which rustls links anyway, and random bytes from the system.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::{digest, hmac};
use rustix::rand::{GetRandomFlags, getrandom};

/// A faster hash than the standard library's, for maps whose keys no caller can choose freely enough to make many of them collide.
pub(crate) type FastHash = foldhash::fast::RandomState;

/// A map by names that the configuration gives.
pub(crate) type NameMap<V> = HashMap<Arc<str>, V, FastHash>;

/// SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// SHA-256 of the concatenated parts, without joining them first.
#[must_use]
pub fn sha256_parts(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// A key for [`hmac_sha256`]. To prepare one costs as much as to use it, so it is done once.
#[must_use]
pub fn hmac_key(bytes: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, bytes)
}

/// HMAC-SHA-256 of the parts, each preceded by its length (8 bytes, big-endian).
#[must_use]
pub fn hmac_sha256(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// Random bytes from the system's generator.
///
/// # Errors
/// The system provides no randomness; nothing that needs it can continue.
pub fn random<const N: usize>() -> Result<[u8; N], std::io::Error> {
    // Not from aws-lc, whose generator takes 50 ms to initialize.
    let mut out = [0; N];
    let mut filled = 0;
    while let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::empty())?;
    }
    Ok(out)
}

/// Initializes TLS's random number generator on a separate thread. That takes 50 ms, which the first handshake would
/// otherwise wait for.
pub fn warm_tls() {
    let begun = std::thread::Builder::new().name("warm-tls".to_owned()).spawn(|| {
        // If this fails, the handshake fails too and reports it.
        let _unused = aws_lc_rs::rand::fill(&mut [0]);
    });
    if let Err(error) = begun {
        tracing::debug!(%error, "the first TLS handshake will take longer");
    }
}

/// Lowercase hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    text.extend(hex_digits(bytes).map(char::from));
    text
}

/// The digits of [`hex`] as an iterator.
pub fn hex_digits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let halves = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    halves.map(|half| DIGITS.get(usize::from(half)).copied().unwrap_or(b'0'))
}

/// Parses 64 hexadecimal digits (either case); `None` for anything else.
#[must_use]
pub fn unhex32(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(out)
}

/// Compares two byte strings in constant time.
#[must_use]
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}
