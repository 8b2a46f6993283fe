//! When certificates begin to be good, and when they and revocation lists expire.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;

/// When a certificate begins to be good and when it expires (RFC 5280, section 4.1), as far as it says so. webpki reads that, but reveals
/// it only in errors, and neither time of a certificate that ends before it begins.
pub(super) fn period(certificate: &[u8]) -> (Option<Timestamp>, Option<Timestamp>) {
    let Some(validity) = validity(certificate) else { return (None, None) };
    let next = |der| {
        let (tag, time, rest) = der_value(der)?;
        Some((der_time(tag, std::str::from_utf8(time).ok()?), rest))
    };
    match next(validity) {
        Some((begin, rest)) => (begin, next(rest).and_then(|(end, _)| end).filter(|end| end.as_second() < NEVER)),
        None => (None, None),
    }
}

/// When a certificate expires.
pub(super) fn end(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    period(certificate).1
}

/// RFC 5280, section 4.1.2.5: the expiry date of a certificate that never expires.
const NEVER: i64 = 253_402_300_799;

/// The two times, in DER.
fn validity(certificate: &[u8]) -> Option<&[u8]> {
    /// The tag of the version, which one of version 1 leaves out.
    const VERSION: u8 = 0xa0;
    let (_, certificate, _) = der_value(certificate)?;
    let (_, mut to_be_signed, _) = der_value(certificate)?;
    if to_be_signed.first() == Some(&VERSION) {
        (_, _, to_be_signed) = der_value(to_be_signed)?;
    }
    let (_, _serial, rest) = der_value(to_be_signed)?;
    let (_, _algorithm, rest) = der_value(rest)?;
    let (_, _issuer, rest) = der_value(rest)?;
    let (_, validity, _) = der_value(rest)?;
    Some(validity)
}

/// When a newer list is due in place of this one (`nextUpdate`, RFC 5280 section 5.1.2.5), if it says so. webpki reads that, but does not
/// reveal it.
pub(super) fn list_end(list: &[u8]) -> Option<Timestamp> {
    const INTEGER: u8 = 0x02;
    let (_, list, _) = der_value(list)?;
    let (_, mut to_be_signed, _) = der_value(list)?;
    if to_be_signed.first() == Some(&INTEGER) {
        (_, _, to_be_signed) = der_value(to_be_signed)?; // the version
    }
    let (_, _algorithm, rest) = der_value(to_be_signed)?;
    let (_, _issuer, rest) = der_value(rest)?;
    let (_, _this_update, rest) = der_value(rest)?;
    let (tag, next_update, _) = der_value(rest)?;
    der_time(tag, std::str::from_utf8(next_update).ok()?)
}

/// The first value in DER: its tag, its contents and what follows it.
pub(super) fn der_value(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    const LONG: u8 = 0x80;
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first & LONG {
        0 => (usize::from(*first), rest),
        _ => {
            let (length, rest) = rest.split_at_checked(usize::from(first & !LONG))?;
            let add = |sum: usize, byte: &u8| sum.checked_mul(256)?.checked_add(usize::from(*byte));
            (length.iter().try_fold(0, add)?, rest)
        }
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((*tag, contents, rest))
}

/// A time in DER: `YYMMDDHHMMSSZ`, or with four digits for the year.
fn der_time(tag: u8, text: &str) -> Option<Timestamp> {
    const UTC_TIME: u8 = 0x17;
    const GENERALIZED_TIME: u8 = 0x18;
    let text = match tag {
        // RFC 5280 section 4.1.2.5.1.
        UTC_TIME if text < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let (date, time) = text.split_at_checked(8)?;
    format!("{date}T{time}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a list; what follows the times does not matter.
    fn list(version: &[u8], next_update: &[u8]) -> Vec<u8> {
        let value = |contents: &[u8]| [&[0x30, u8::try_from(contents.len()).unwrap()], contents].concat();
        let this_update = b"\x17\x0d260101000000Z";
        let parts = [version, &value(b"algorithm"), &value(b"issuer"), this_update, next_update];
        value(&value(&parts.concat()))
    }

    #[test]
    fn a_certificate_tells_when_it_begins_and_ends_even_if_it_does_so_before() {
        let key = rcgen::KeyPair::generate().unwrap();
        let told = |begin: (i32, u8), end: (i32, u8)| {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(begin.0, begin.1, 1);
            params.not_after = rcgen::date_time_ymd(end.0, end.1, 1);
            let certificate = params.self_signed(&key).unwrap();
            for length in 0..certificate.der().len() / 4 {
                let _no_panic = period(&certificate.der()[..length]);
            }
            let (begin, end) = period(certificate.der());
            [begin, end].map(|time| time.map(|time| time.to_string()))
        };
        let day = |text: &str| Some(format!("{text}T00:00:00Z"));
        assert_eq!(told((2026, 1), (2027, 2)), [day("2026-01-01"), day("2027-02-01")]);
        assert_eq!(told((2027, 2), (2026, 1)), [day("2027-02-01"), day("2026-01-01")]);
        assert_eq!(told((1975, 1), (2051, 1)), [day("1975-01-01"), day("2051-01-01")]);
        assert_eq!(period(b"nothing"), (None, None));
    }

    #[test]
    fn a_list_tells_when_the_next_one_is_due() {
        let told = |version: &[u8], next: &[u8]| list_end(&list(version, next)).map(|end| end.to_string());
        let utc: &[u8] = b"\x17\x0d261231235959Z";
        assert_eq!(told(b"\x02\x01\x01", utc).as_deref(), Some("2026-12-31T23:59:59Z"));
        assert_eq!(told(b"", utc).as_deref(), Some("2026-12-31T23:59:59Z"));
        assert_eq!(told(b"", b"\x18\x0f40000101000000Z").as_deref(), Some("4000-01-01T00:00:00Z"));
        assert_eq!((told(b"", b""), told(b"", b"\x30\x00"), told(b"", b"\x17\x02xx")), (None, None, None));
        let whole = list(b"\x02\x01\x01", utc);
        for length in 0..whole.len() {
            assert_eq!(list_end(&whole[..length]), None, "{length} bytes of it");
        }
        assert_eq!(der_value(&[0x30, 0x89, 255, 255, 255, 255, 255, 255, 255, 255, 255]), None);
    }
}
