//! One function for each thing that reads what others wrote. Each takes any bytes, and panics if something does not hold that always must.
//! The fuzz targets in `fuzz/` call them, and so does a test with the inputs in `fuzz/corpus`.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a fuzz target tells what it found by panicking")]
#![expect(clippy::disallowed_methods, reason = "`verify` reads files")]

use std::path::Path;

use http::{HeaderMap, Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::SecretString;

use crate::audit::{AuditorInput, Record};
use crate::catalogue::Catalogue;
use crate::config::{self, Scope};
use crate::door::RequestFrames;
use crate::gateway::admit::target::Target;
use crate::gateway::list_scope::ListPage;
use crate::upstream::Token;

/// Everything that could mean something in a path but divide its segments.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The name of a target, and its function.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// Every target: its name in `fuzz/`, and its function.
pub const TARGETS: [FuzzTarget; 8] = [
    ("request_target", request_target),
    ("catalogue", catalogue),
    ("log_reader", log_reader),
    ("verify", verify),
    ("configuration", configuration),
    ("narrowing", narrowing),
    ("token_search", token_search),
    ("request_frames", request_frames),
];

/// A request target that is accepted has one reading: its canonical path is accepted again and stays the same.
pub fn request_target(bytes: &[u8]) {
    let Ok(uri) = Uri::try_from(bytes) else { return };
    let Ok(target) = Target::parse(&uri) else { return };
    assert!(target.path.starts_with('/'), "{uri} → {:?}", target.path);
    assert!(!target.path.split('/').any(|segment| matches!(segment, "." | "..")), "{uri} → {:?}", target.path);
    let written = utf8_percent_encode(&target.path, ESCAPED).to_string();
    let again = written.parse::<Uri>().unwrap_or_else(|error| panic!("{uri} → {written}: {error}"));
    let again = Target::parse(&again).unwrap_or_else(|why| panic!("{uri} → {written}: {why}")).path.into_owned();
    assert_eq!(target.path, again, "{uri}");
}

/// A method and a path, divided by a space: an operation that matches has this method, and its path as many segments.
pub fn catalogue(bytes: &[u8]) {
    let Some((method, path)) = std::str::from_utf8(bytes).ok().and_then(|text| text.split_once(' ')) else { return };
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    if let Ok(matched) = Catalogue::built_in().classify(&method, path) {
        let row = matched.operation;
        assert!(
            row.method == method || (method == Method::HEAD && row.method == Method::GET),
            "{method} {path}: {}",
            row.id
        );
    }
}

/// Lines of a log's segment.
pub fn log_reader(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Some(record) = Record::parse(line) {
            assert!(!format!("{record:?}").is_empty());
        }
    }
}

/// A folder whose only segment is this: it is a log with or without problems, or none.
pub fn verify(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("00000000000000000001.jsonl"), bytes).unwrap();
    let auditor = AuditorInput { heads: Vec::new(), keys: Vec::new() };
    if let Ok(report) = crate::audit::verify(dir.path(), &auditor, &mut |_, _| {}) {
        assert!(!format!("{report:?}").is_empty());
    }
}

/// A configuration file: every mistake has a place in it.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = config::parse(text, Path::new("makegate.toml")) {
        assert!(!error.mistakes.is_empty());
        let lines = text.split('\n').count().max(1);
        for mistake in &error.mistakes {
            assert!((1..=lines + 1).contains(&mistake.line), "{} of {lines}: {}", mistake.line, mistake.message);
            assert!(!mistake.message.is_empty());
        }
    }
}

/// A list from upstream: what is left of it for a scope is JSON without other organizations.
pub fn narrowing(bytes: &[u8]) {
    let uri = Uri::from_static("/api/v2/organizations");
    let page = ListPage::of(&Target::parse(&uri).unwrap());
    let Ok(cut) = page.cut_whole(bytes, "organizations", &Scope::Only(vec![5, 7])) else { return };
    let cut: serde_json::Value = serde_json::from_str(&cut).unwrap_or_else(|error| panic!("no longer JSON: {error}"));
    let left = cut.get("organizations").and_then(serde_json::Value::as_array);
    for one in left.into_iter().flatten() {
        let id = one.get("id").and_then(serde_json::Value::as_u64);
        assert!(matches!(id, None | Some(5 | 7)), "{one}");
    }
}

/// An answer's body: the token is found wherever it stands as it is.
pub fn token_search(bytes: &[u8]) {
    const TOKEN: &str = "3f2a91c4-77de-4b0a-9a51-0c6d1e8b2f47";
    let token = Token::new(&SecretString::from(TOKEN)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let is_in = |body: &[u8]| runtime.block_on(token.is_in(&HeaderMap::new(), body));
    let _found_or_not = is_in(bytes);
    let middle = bytes.split_at(bytes.len() / 2);
    assert!(is_in(&[middle.0, TOKEN.as_bytes(), middle.1].concat()));
}

/// The length of a first piece, and the bytes of an HTTP/2 client: h2 gets the same whether they arrive in one piece or two, and nothing is
/// left out of what it gets.
pub fn request_frames(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let (first, second) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    let pass = |pieces: &[&[u8]]| RequestFrames::new(0, 16 << 10).pass(pieces.iter().copied());
    let (passed, inserted) = pass(&[bytes]);
    assert_eq!((passed.clone(), inserted), pass(&[first, second]));
    assert!(passed.len() - inserted <= bytes.len());
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// How often each input is changed at random.
    const CHANGES: usize = 50;

    /// `MAKEGATE_SEED` plays a run again.
    #[test]
    fn every_input_of_the_corpus_is_taken_also_a_little_changed() {
        let seed = std::env::var("MAKEGATE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("MAKEGATE_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for (name, takes) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
            let mut inputs: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            inputs.sort();
            assert!(!inputs.is_empty(), "{name} has no inputs");
            takes(b"");
            for input in inputs {
                println!("{}", input.display());
                let bytes = fs::read(&input).unwrap();
                takes(&bytes);
                (0..CHANGES).for_each(|_| takes(&changed(&mut random, &bytes)));
            }
        }
    }

    fn changed(random: &mut fastrand::Rng, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..=bytes.len());
            match random.u8(..4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random.u8(..)),
                2 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.u8(..8)),
                _ => {
                    let again: Vec<u8> = bytes.iter().skip(at).take(random.usize(1..20)).copied().collect();
                    bytes.splice(at..at, again);
                }
            }
        }
        bytes
    }

    /// Every function is a target of cargo-fuzz, and the other way round.
    #[test]
    fn every_target_is_in_the_fuzz_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            let calls = fs::read_to_string(folder.join(format!("fuzz_targets/{name}.rs"))).unwrap();
            assert!(calls.contains(&format!("makegate::fuzz::{name}(")), "{calls}");
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        }
        assert_eq!(fs::read_dir(folder.join("fuzz_targets")).unwrap().count(), TARGETS.len());
    }
}
