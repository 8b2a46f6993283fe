//! Reads secrets from the sources that the configuration names.

#![expect(clippy::disallowed_methods, reason = "runs at startup and on the `watched-files` thread")]

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use super::SecretSource;
use crate::watched_files::{FileContents, Snapshot};

/// Size limit of a secret; anything larger is the wrong file.
const SECRET_BYTES_MAX: u64 = 8 * 1024;

/// The folder where systemd puts the files of `LoadCredential=`.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Reads the secret from `source`: printable ASCII without spaces. One trailing newline is ignored.
///
/// # Errors
/// [`SecretError`].
pub fn secret(source: &SecretSource) -> Result<SecretString, SecretError> {
    secret_in(&Snapshot::new(), source)
}

/// As [`secret`], read from `files`.
///
/// # Errors
/// As [`secret`].
pub fn secret_in(files: &Snapshot, source: &SecretSource) -> Result<SecretString, SecretError> {
    secret_of(files, source, |name| std::env::var_os(name))
}

/// Whether the source exists, regardless of whether it holds a valid secret.
#[must_use]
pub fn exists(source: &SecretSource) -> bool {
    let variable = |name: &str| std::env::var_os(name);
    match source {
        SecretSource::File(path) => path.exists() || credential(path, variable).is_some_and(|path| path.exists()),
        SecretSource::Env(name) => variable(name).is_some(),
    }
}

/// The file that is meant by a path: it, or the systemd credential of its name if it does not exist.
#[must_use]
pub fn file_or_credential(path: &Path) -> PathBuf {
    located(path, |name| std::env::var_os(name))
}

/// The folder of systemd's credentials, if there is one.
pub(super) fn credentials() -> Option<PathBuf> {
    std::env::var_os(CREDENTIALS).map(PathBuf::from)
}

/// Why there is no secret: names the source and says what to do, without any part of the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is no such file, nor a credential of its name.
    #[error("{0} does not exist, and ${CREDENTIALS} has no file of that name: create it")]
    NoFile(SecretSource),
    /// The file cannot be read.
    #[error("cannot read {0}: {1}")]
    Unreadable(SecretSource, io::Error),
    /// There is no such environment variable.
    #[error("{0} is not set")]
    NotSet(SecretSource),
    /// Nothing is in it.
    #[error("{0} is empty: write the secret to it")]
    Empty(SecretSource),
    /// More than a secret is in it.
    #[error("{0} is not one plain secret: write only the secret, without spaces or quotes")]
    NotPlain(SecretSource),
}

fn secret_of(
    files: &Snapshot,
    source: &SecretSource,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<SecretString, SecretError> {
    let bytes = match source {
        SecretSource::File(path) => match read(files, path, variable) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(SecretError::NoFile(source.clone())),
            read => read.map_err(|error| SecretError::Unreadable(source.clone(), error))?,
        },
        SecretSource::Env(name) => match variable(name) {
            Some(value) => Arc::new(Zeroizing::new(value.into_encoded_bytes())),
            None => return Err(SecretError::NotSet(source.clone())),
        },
    };
    let text = str::from_utf8(&bytes).map(|text| text.strip_suffix('\n').unwrap_or(text));
    let text = text.map(|text| text.strip_suffix('\r').unwrap_or(text));
    match text {
        Ok("") => Err(SecretError::Empty(source.clone())),
        Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(SecretString::from(text)),
        Ok(_) | Err(_) => Err(SecretError::NotPlain(source.clone())),
    }
}

/// Reads the file, or the systemd credential of its name.
fn read(files: &Snapshot, path: &Path, variable: impl Fn(&str) -> Option<OsString>) -> io::Result<FileContents> {
    let own = files.read(path, SECRET_BYTES_MAX);
    match (&own, credential(path, variable)) {
        (Err(error), Some(credential)) if error.kind() == io::ErrorKind::NotFound => {
            files.read(&credential, SECRET_BYTES_MAX)
        }
        _ => own,
    }
}

fn located(path: &Path, variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let elsewhere = || credential(path, variable).filter(|credential| credential.exists());
    if path.exists() { path.to_owned() } else { elsewhere().unwrap_or_else(|| path.to_owned()) }
}

fn credential(path: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    Some(Path::new(&variable(CREDENTIALS)?).join(path.file_name()?))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_file_that_is_missing_is_looked_for_among_the_credentials() {
        let (dir, credentials) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = dir.path().join("replicas.key");
        let found = |folder: Option<&Path>| located(&path, |_| folder.map(|folder| folder.as_os_str().to_owned()));
        assert_eq!(found(None), path);
        assert_eq!(found(Some(credentials.path())), path, "it is nowhere");
        let credential = credentials.path().join("replicas.key");
        std::fs::write(&credential, [7; 32]).unwrap();
        assert_eq!(found(Some(credentials.path())), credential);
        std::fs::write(&path, [8; 32]).unwrap();
        assert_eq!(found(Some(credentials.path())), path, "its own place comes first");
    }

    #[test]
    fn a_secret_is_one_line_of_printable_ascii() {
        let of = |value: &str| secret_of(&Snapshot::new(), &SecretSource::Env("X".into()), |_| Some(value.into()));
        assert_eq!(of("abc-1\n").unwrap().expose_secret(), "abc-1");
        assert_eq!(of("abc\r\n").unwrap().expose_secret(), "abc");
        for bad in ["", "\n", "a b", "a\n\n", "a\nb\n", "ä", "\u{7f}", " a"] {
            let why = of(bad).unwrap_err().to_string();
            assert!(why.starts_with("the environment variable X"), "{why}");
        }
        assert!(
            secret_of(&Snapshot::new(), &SecretSource::Env("X".into()), |_| None)
                .unwrap_err()
                .to_string()
                .contains("is not set")
        );
    }

    #[test]
    fn a_name_that_is_not_there_is_looked_for_among_the_credentials() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("make"), "from-systemd\n").unwrap();
        let credentials = |name: &str| (name == CREDENTIALS).then(|| folder.path().into());
        let found = secret_of(&Snapshot::new(), &SecretSource::File("/nowhere/make".into()), credentials).unwrap();
        assert_eq!(found.expose_secret(), "from-systemd");
        let why = secret_of(&Snapshot::new(), &SecretSource::File("/nowhere/other".into()), credentials).unwrap_err();
        assert_eq!(
            why.to_string(),
            "the file \"/nowhere/other\" does not exist, and $CREDENTIALS_DIRECTORY has no file of that name: create it"
        );
    }

    #[test]
    fn a_large_file_or_a_device_is_no_secret() {
        let why = |path: &str| {
            secret_of(&Snapshot::new(), &SecretSource::File(path.into()), |_| None).unwrap_err().to_string()
        };
        assert_eq!(why("/dev/zero"), "cannot read the file \"/dev/zero\": it is not a regular file");
        let large = tempfile::NamedTempFile::new().unwrap();
        large.as_file().set_len(SECRET_BYTES_MAX + 1).unwrap();
        let why = why(large.path().to_str().unwrap());
        assert!(why.ends_with("it is larger than 8192 bytes"), "{why}");
    }
}
