//! Warnings of `makegate check` about what ends soon, has ended or cannot be used: callers' keys, certificates, revocation lists, issuers'
//! keys.

use std::fmt::Display;
use std::path::Path;

use jiff::Timestamp;

use crate::config::{Config, Diagnostic, JwksSource, Severity, TlsFiles};
use crate::door::{certificate_periods, revocation_list_ends};
use crate::gateway::key_expiry::KeyExpiry;
use crate::hash;
use crate::issuers::Issuer;
use crate::watched_files::Snapshot;

/// Keys, or certificates of one file, that are warned about one by one; the others are counted.
const SHOWN_MAX: usize = 20;
/// Larger files are the wrong ones.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Warns about `config`, which was read from `text`.
pub(super) fn warnings(config: &Config, text: &str, files: &Snapshot, now: Timestamp) -> Vec<Diagnostic> {
    let mut warnings = keys(config, text, now);
    for (section, tls) in [("gateway", &config.gateway.tls), ("operator", &config.operator.tls)] {
        if let Some(tls) = tls {
            warnings.extend(of_door(section, tls, files, now));
        }
    }
    let authorities = config.upstream.ca_file.iter().map(|path| ("upstream.ca_file".to_owned(), path)).chain(
        config
            .issuers
            .iter()
            .filter_map(|issuer| Some((format!("the issuer {}", issuer.name), issuer.ca_file.as_ref()?))),
    );
    for (setting, path) in authorities {
        warnings.extend(of_file(&setting, FileKind::Certificates, path, files, now));
    }
    warnings.extend(config.issuers.iter().filter_map(|issuer| {
        let JwksSource::File(path) = &issuer.keys else { return None };
        let unusable = Issuer::read(issuer, files, &[]).err().filter(|_| is_there(path, files))?;
        Some(warning(format!("the keys of the issuer {}: {unusable}", issuer.name)))
    }));
    warnings
}

fn keys(config: &Config, text: &str, now: Timestamp) -> Vec<Diagnostic> {
    let text = text.to_ascii_lowercase();
    let keys = config.callers.iter().flat_map(|caller| caller.keys.iter().map(move |key| (caller, key)));
    let mut ending =
        keys.filter_map(|(caller, key)| Some((caller, key, KeyExpiry::of(key, now)?, key.expires.as_ref()?)));
    let warnings = ending.by_ref().take(SHOWN_MAX).map(|(caller, key, ends, at)| {
        let message = format!("a key of caller {:?} {} ({})", caller.name, ends.as_str(), at.written);
        let help = Some(format!("replace it: makegate key new --caller {}", caller.name));
        at_text(&text, &hash::hex(&key.hash), Diagnostic { help, ..warning(message) })
    });
    let mut warnings: Vec<_> = warnings.collect();
    let more = ending.count();
    if more > 0 {
        warnings.push(warning(format!("{more} more keys of callers expire soon or have expired")));
    }
    warnings
}

/// Moves the warning to where the file has `part`, which it has once.
fn at_text(text: &str, part: &str, warning: Diagnostic) -> Diagnostic {
    let Some(at) = text.find(part) else { return warning };
    let before = text.get(..at).unwrap_or_default();
    let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
    Diagnostic { line: before.matches('\n').count() + 1, column, span: at..at + part.len(), ..warning }
}

fn of_door(section: &str, tls: &TlsFiles, files: &Snapshot, now: Timestamp) -> Vec<Diagnostic> {
    let named = [("cert", Some(&tls.cert)), ("client_ca", tls.client_ca.as_ref())];
    let certificates = named.into_iter().filter_map(|(key, path)| Some((key, FileKind::Certificates, path?)));
    let all = certificates.chain(tls.crl.iter().map(|path| ("crl", FileKind::RevocationLists, path)));
    all.flat_map(|(key, kind, path)| of_file(&format!("{section}.tls.{key}"), kind, path, files, now)).collect()
}

/// What a file contains.
#[derive(Clone, Copy)]
enum FileKind {
    Certificates,
    RevocationLists,
}

fn of_file(setting: &str, kind: FileKind, path: &Path, files: &Snapshot, now: Timestamp) -> Vec<Diagnostic> {
    let warn = |why: &dyn Display| warning(format!("{setting}: {why}"));
    let (what, periods) = match kind {
        FileKind::Certificates => ("certificate", certificate_periods(path, files)),
        FileKind::RevocationLists => {
            let ends = revocation_list_ends(path, files);
            ("revocation list", ends.map(|ends| ends.into_iter().map(|end| (None, end)).collect()))
        }
    };
    let periods = match periods {
        Ok(periods) => periods,
        Err(error) if is_there(path, files) => return vec![warn(&error)],
        Err(_) => return Vec::new(), // already warned about
    };
    let told = periods.into_iter().filter_map(|(begin, end)| match (begin, KeyExpiry::at(end, now)) {
        (Some(begin), _) if end <= begin => Some(format!("ends ({end}) before it begins ({begin}): nobody accepts it")),
        (_, Some(ends)) => Some(format!("{} ({end})", ends.as_str())),
        (Some(begin), None) if begin > now => {
            Some(format!("is not valid before {begin}: until then nobody accepts it"))
        }
        (Some(_) | None, None) => None,
    });
    told.map(|told| warn(&format!("a {what} in {path:?} {told}"))).take(SHOWN_MAX).collect()
}

fn warning(message: String) -> Diagnostic {
    Diagnostic::of_file(Severity::Warning, message)
}

fn is_there(path: &Path, files: &Snapshot) -> bool {
    !files.read(path, FILE_BYTES_MAX).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
