//! SHA-256 and HMAC, from aws-lc (the library that rustls links anyway), and random bytes, from the system.

use aws_lc_rs::{digest, hmac};
use rustix::rand::{GetRandomFlags, getrandom};

/// SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// SHA-256 of the parts one after the other, without joining them first.
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

/// HMAC-SHA-256 of the parts one after the other under `key`.
#[must_use]
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// Random bytes from the system's generator.
///
/// # Errors
/// The system gives no randomness: nothing that needs it may go on.
pub fn random<const N: usize>() -> Result<[u8; N], std::io::Error> {
    // Not from aws-lc: its generator takes 50 ms to begin.
    let mut out = [0; N];
    let mut filled = 0;
    while let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::empty())?;
    }
    Ok(out)
}

/// Lets TLS's own generator of random numbers begin on a thread of its own: that takes 50 ms, and would else be waited for by
/// the first handshake.
pub fn warm_tls() {
    let begun = std::thread::Builder::new().name("warm-tls".to_owned()).spawn(|| {
        // If it fails, so does the handshake, and says so.
        let _unused = aws_lc_rs::rand::fill(&mut [0]);
    });
    if let Err(error) = begun {
        tracing::debug!(%error, "the first TLS handshake will take longer");
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    text.extend(hex_digits(bytes).map(char::from));
    text
}

/// The digits of [`hex`], one by one.
pub fn hex_digits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let halves = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    halves.map(|half| DIGITS.get(usize::from(half)).copied().unwrap_or(b'0'))
}

/// The bytes that 64 hexadecimal digits (either case) spell; `None` for anything else.
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

/// Whether two byte strings are equal, in a time that does not depend on where they differ.
#[must_use]
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}
