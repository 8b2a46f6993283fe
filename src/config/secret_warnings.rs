//! Warnings about the secrets themselves: weak ones, one that serves two purposes, files that others can read. A secret that cannot be
//! read is not warned about here.

#![expect(clippy::disallowed_methods, reason = "runs at startup and on the `watched-files` thread")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use secrecy::{ExposeSecret as _, SecretString};

use super::secret::secret_in;
use super::{Config, OperatorKey, SecretSource};
use crate::hash;
use crate::ids::KeyHash;
use crate::toml_reader::{Table, quoted};
use crate::watched_files::Snapshot;

/// Fewer characters can be guessed.
const OPERATOR_KEY_CHARS_MIN: usize = 20;
/// The permission of everybody to read a file, or to write to it.
const OTHERS: u32 = 0o006;
/// The permission of everybody to get to what is in a folder.
const OTHERS_PASS: u32 = 0o001;

/// A setting: its section and its key.
type Place = [&'static str; 2];

pub(super) fn check(root: &Table<'_>, config: &Config, files: &Snapshot) {
    let place = |section, source: &SecretSource, [file, env]: [&'static str; 2]| match source {
        SecretSource::File(_) => [section, file],
        SecretSource::Env(_) => [section, env],
    };
    let token = secret_in(files, &config.upstream.token).ok();
    let token_place = place("upstream", &config.upstream.token, ["token_file", "token_env"]);
    let unnamed =
        config.operator.key.as_ref().and_then(|source| {
            Some((secret_in(files, source).ok()?, place("operator", source, ["key_file", "key_env"])))
        });
    if let Some((key, place)) = &unnamed
        && key.expose_secret().len() < OPERATOR_KEY_CHARS_MIN
    {
        let message =
            format!("the operator key has fewer than {OPERATOR_KEY_CHARS_MIN} characters, and can be guessed");
        root.warn_at(place, message, "replace it by a long random one: openssl rand -hex 24");
    }
    let unnamed = unnamed.map(|(key, place)| (OperatorKey::admin(&key), place));
    let named = config.operator.keys.iter().map(|key| (key.clone(), ["operator", "key"]));
    reused(root, config, (token.as_ref(), token_place), &unnamed.into_iter().chain(named).collect::<Vec<_>>());
    let mut sources = vec![(token_place, &config.upstream.token)];
    sources.extend(
        config.operator.key.as_ref().map(|source| (place("operator", source, ["key_file", "key_env"]), source)),
    );
    let headers = config.otel.headers.as_ref();
    sources.extend(headers.map(|source| (place("otel", source, ["headers_file", "headers_env"]), source)));
    let replicas = config.replicas.as_ref();
    sources.extend(replicas.map(|replicas| (place("replicas", &replicas.url, ["url_file", "url_env"]), &replicas.url)));
    if let Some(replicas) = replicas {
        open_to_others(root, &["replicas", "key_file"], &replicas.key_file);
    }
    for (place, source) in sources {
        if let SecretSource::File(path) = source {
            open_to_others(root, &place, path);
        }
    }
    for (section, tls) in [("gateway", &config.gateway.tls), ("operator", &config.operator.tls)] {
        if let Some(tls) = tls {
            open_to_others(root, &[section, "tls", "key"], &tls.key);
        }
    }
}

/// Secrets that serve two purposes: whoever is given one for the first has it for the second.
fn reused(
    root: &Table<'_>,
    config: &Config,
    (token, token_place): (Option<&SecretString>, Place),
    operators: &[(OperatorKey, Place)],
) {
    let caller = |hash: &KeyHash| {
        config
            .callers
            .iter()
            .find(|caller| caller.keys.iter().any(|key| key.hash == *hash))
            .map(|caller| quoted(&caller.name))
    };
    let token = token.map(|token| hash::sha256(token.expose_secret().trim_ascii().as_bytes()));
    if let Some(name) = token.as_ref().and_then(caller) {
        let help = "give the caller a key of its own: makegate key new; and replace the token, which others know";
        root.warn_at(&token_place, format!("the Make token is also a key of caller {name}"), help);
    }
    for (at, (operator, place)) in operators.iter().enumerate() {
        let name = quoted(&operator.name);
        if token == Some(operator.hash) {
            root.warn_at(
                place,
                format!("the Make token is also the key of operator {name}"),
                "give operators keys of their own",
            );
        }
        if let Some(caller) = caller(&operator.hash) {
            let message = format!("the key of operator {name} is also a key of caller {caller}");
            root.warn_at(place, message, "give each a key of its own: the caller may do what the operator may");
        }
        if let Some((other, _)) = operators.iter().take(at).find(|(other, _)| other.hash == operator.hash) {
            let message = format!(
                "the key of operator {name} is also that of operator {}, under whose name it is recorded",
                quoted(&other.name)
            );
            root.warn_at(place, message, "give each operator a key of their own");
        }
    }
}

fn open_to_others(root: &Table<'_>, place: &[&str], path: &Path) {
    let has = |path: &Path, bits| std::fs::metadata(path).is_ok_and(|about| about.permissions().mode() & bits != 0);
    let folders = std::path::absolute(path).unwrap_or_default();
    let mut folders = folders.ancestors().skip(1);
    if has(path, OTHERS) && folders.all(|folder| has(folder, OTHERS_PASS)) {
        let message = format!("every user of this machine may read or write the file {path:?}");
        root.warn_at(place, message, format!("take that away: chmod o= {path:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::read;
    use crate::hash::{hex, sha256};

    const TOKEN: &str = "4cb9b7ee-1cb5-4b6e-8bd8-3b1f0dffd1a7";
    const LONG: &str = "an-operator-key-that-is-long";

    /// What is warned about with these secrets in files of this mode, which everybody can get to.
    fn warnings(secrets: (&str, &str), mode: u32, more: &str) -> Vec<String> {
        warnings_in(0o755, secrets, mode, more)
    }

    fn warnings_in(folder: u32, (token, operator): (&str, &str), mode: u32, more: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(folder)).unwrap();
        let path = |name: &str| dir.path().join(name);
        for (file, text) in [("token", token), ("operator", operator)] {
            fs::write(path(file), text).unwrap();
            fs::set_permissions(path(file), fs::Permissions::from_mode(mode)).unwrap();
        }
        let text = format!("operator.key_file = \"operator\"\nupstream.token_file = \"token\"\n{more}");
        fs::write(path("m.toml"), text).unwrap();
        let read = read(&path("m.toml")).unwrap_or_else(|failure| panic!("{failure}"));
        let told = read.warnings.iter().map(|warning| format!("{}: {}", warning.line, warning.message));
        let told: Vec<_> = told.filter(|told| !told.contains("no caller is configured")).collect();
        assert!(!told.iter().any(|told| told.contains(token) || told.contains(operator)), "{told:?}");
        told
    }

    fn caller(key: &str) -> String {
        format!("[[caller]]\nname = \"a\"\ngrants = [\"*\"]\nkeys = [\"sha256:{}\"]\n", hex(&sha256(key.as_bytes())))
    }

    fn operator(name: &str, key: &str) -> String {
        let hash = hex(&sha256(key.as_bytes()));
        format!("[[operator.key]]\nname = \"{name}\"\nhash = \"sha256:{hash}\"\nrole = \"read\"\n")
    }

    #[test]
    fn weak_and_reused_secrets_are_warned_about() {
        let none: [&str; 0] = [];
        assert_eq!(warnings((TOKEN, LONG), 0o600, &caller("another")), none);
        assert_eq!(
            warnings((TOKEN, "short-operator-key"), 0o600, ""),
            ["1: the operator key has fewer than 20 characters, and can be guessed"]
        );
        assert_eq!(warnings((TOKEN, TOKEN), 0o600, ""), ["1: the Make token is also the key of operator \"operator\""]);
        assert_eq!(warnings((TOKEN, LONG), 0o600, &caller(TOKEN)), ["2: the Make token is also a key of caller \"a\""]);
        let both = "the key of operator \"operator\" is also a key of caller \"a\"";
        assert_eq!(warnings((TOKEN, LONG), 0o600, &caller(LONG)), [format!("1: {both}")]);
        let told = warnings((TOKEN, LONG), 0o600, &(operator("anna", "annas-key") + &caller("annas-key")));
        assert_eq!(told, ["3: the key of operator \"anna\" is also a key of caller \"a\""]);
        let told = warnings((TOKEN, LONG), 0o600, &operator("anna", LONG));
        assert_eq!(
            told,
            ["3: the key of operator \"anna\" is also that of operator \"operator\", under whose name it is recorded"]
        );
    }

    #[test]
    fn files_that_everybody_may_read_or_write_are_warned_about() {
        assert!(warnings((TOKEN, LONG), 0o640, "").is_empty());
        for mode in [0o644, 0o602] {
            assert!(
                warnings_in(0o700, (TOKEN, LONG), mode, "").is_empty(),
                "nobody else gets to a file in such a folder"
            );
            let told = warnings((TOKEN, LONG), mode, "");
            assert_eq!(told.len(), 2, "{told:?}");
            assert!(told[0].starts_with("1: every user of this machine may read or write the file"), "{told:?}");
        }
    }
}
