//! The names of a certificate's subject.

use rustls::pki_types::CertificateDer;

use super::validity::der_value;
use crate::config::CertificateName;

/// Its subject alternative names that are DNS names, URIs or e-mail addresses (RFC 5280, section 4.2.1.6). The common name does not
/// count, because an authority's name constraints do not apply to it.
pub(super) fn subject_names(certificate: &CertificateDer<'_>) -> Option<Vec<CertificateName>> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let names = parsed.valid_dns_names().map(CertificateName::dns);
    let names = names.chain(parsed.valid_uri_names().map(CertificateName::uri));
    Some(names.chain(emails(certificate)).collect())
}

/// Its e-mail addresses, which webpki does not reveal.
fn emails(certificate: &CertificateDer<'_>) -> Vec<CertificateName> {
    const RFC822_NAME: u8 = 0x81;
    let names = alternative_names(certificate).into_iter().flat_map(values);
    let emails = names.filter(|(tag, _)| *tag == RFC822_NAME).filter_map(|(_, name)| str::from_utf8(name).ok());
    emails.filter(|name| name.is_ascii()).map(CertificateName::email).collect()
}

/// The contents of the extension that has the alternative names. `None` if there is none.
fn alternative_names<'c>(certificate: &'c CertificateDer<'_>) -> Option<&'c [u8]> {
    const EXTENSIONS: u8 = 0xa3;
    /// 2.5.29.17
    const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
    let (_, certificate, _) = der_value(certificate)?;
    let (_, to_be_signed, _) = der_value(certificate)?;
    let (_, extensions) = values(to_be_signed).find(|(tag, _)| *tag == EXTENSIONS)?;
    let (_, extensions, _) = der_value(extensions)?;
    let extension = values(extensions).map(|(_, one)| one).find(|one| {
        let id = der_value(one);
        id.is_some_and(|(_, id, _)| id == SUBJECT_ALT_NAME)
    })?;
    // The value is the last one: whether it is critical may be in between.
    let (_, value) = values(extension).last()?;
    let (_, names, _) = der_value(value)?;
    Some(names)
}

/// The values in DER that follow each other, each with its tag.
fn values(mut der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (tag, contents, rest) = der_value(der)?;
        der = rest;
        Some((tag, contents))
    })
}
