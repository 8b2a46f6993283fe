//! Secrets: read from where the configuration says, never from the configuration itself.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use super::Source;

/// No secret is longer; more is the wrong file.
const SECRET_BYTES_MAX: u64 = 8 * 1024;

/// Where systemd puts what `LoadCredential=` names.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The secret that `source` holds: printable ASCII without spaces. One newline at its end is no part of it.
///
/// # Errors
/// A sentence that names the source and says what to do. It never holds any of the secret.
pub fn secret(source: &Source) -> Result<SecretString, String> {
    secret_of(source, |name| std::env::var_os(name))
}

/// Is there something at `source`? (Not whether it is fit to be a secret.)
#[must_use]
pub fn exists(source: &Source) -> bool {
    let variable = |name: &str| std::env::var_os(name);
    match source {
        Source::File(path) => place(path, variable).is_some(),
        Source::Env(name) => variable(name).is_some(),
    }
}

/// How messages name the source.
#[must_use]
pub fn described(source: &Source) -> String {
    match source {
        Source::File(path) => format!("the file {path:?}"),
        Source::Env(name) => format!("the environment variable {name}"),
    }
}

fn secret_of(source: &Source, variable: impl Fn(&str) -> Option<OsString>) -> Result<SecretString, String> {
    let bytes = match source {
        Source::File(path) => match place(path, variable) {
            Some(place) => read(&place).map_err(|error| format!("cannot read {}: {error}", described(source)))?,
            None => {
                return Err(format!(
                    "{} is not there, nor is its name in ${CREDENTIALS}: create it",
                    described(source)
                ));
            }
        },
        Source::Env(name) => match variable(name) {
            Some(value) => Zeroizing::new(value.into_encoded_bytes()),
            None => return Err(format!("{} is not set: set it", described(source))),
        },
    };
    let text = str::from_utf8(&bytes).map(|text| text.strip_suffix('\n').unwrap_or(text));
    let text = text.map(|text| text.strip_suffix('\r').unwrap_or(text));
    match text {
        Ok("") => Err(format!("{} is empty: write the secret into it", described(source))),
        Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(SecretString::from(text)),
        Ok(_) | Err(_) => {
            Err(format!("{} holds more than one secret: write it alone, without spaces or quotes", described(source)))
        }
    }
}

/// The file itself, or the credential of its name.
fn place(path: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if path.exists() {
        return Some(path.to_owned());
    }
    let credential = Path::new(&variable(CREDENTIALS)?).join(path.file_name()?);
    credential.exists().then_some(credential)
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(SECRET_BYTES_MAX + 1).unwrap_or(0)));
    File::open(path)?.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(io::Error::other("it is too large for a secret"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_secret_is_one_line_of_printable_ascii() {
        let of = |value: &str| secret_of(&Source::Env("X".into()), |_| Some(value.into()));
        assert_eq!(of("abc-1\n").unwrap().expose_secret(), "abc-1");
        assert_eq!(of("abc\r\n").unwrap().expose_secret(), "abc");
        for bad in ["", "\n", "a b", "a\n\n", "a\nb\n", "ä", "\u{7f}", " a"] {
            let why = of(bad).unwrap_err();
            assert!(why.starts_with("the environment variable X"), "{why}");
        }
        assert!(secret_of(&Source::Env("X".into()), |_| None).unwrap_err().contains("is not set"));
    }

    #[test]
    fn a_name_that_is_not_there_is_looked_for_among_the_credentials() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("make"), "from-systemd\n").unwrap();
        let credentials = |name: &str| (name == CREDENTIALS).then(|| folder.path().into());
        let found = secret_of(&Source::File("/nowhere/make".into()), credentials).unwrap();
        assert_eq!(found.expose_secret(), "from-systemd");
        let why = secret_of(&Source::File("/nowhere/other".into()), credentials).unwrap_err();
        assert_eq!(
            why,
            "the file \"/nowhere/other\" is not there, nor is its name in $CREDENTIALS_DIRECTORY: create it"
        );
    }

    #[test]
    fn a_large_file_is_no_secret_and_is_not_read_whole() {
        let why = secret_of(&Source::File("/dev/zero".into()), |_| None).unwrap_err();
        assert_eq!(why, "cannot read the file \"/dev/zero\": it is too large for a secret");
    }
}
