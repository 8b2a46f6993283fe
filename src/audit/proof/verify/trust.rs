//! Establishes trust: the chain of keys that introduced each other, and the heads that they signed.

#![expect(clippy::disallowed_methods, reason = "only commands verify")]

use std::io;
use std::path::Path;

use super::super::note::{self, Head, IntroducedHead, Verifier};
use super::super::{closing_head, heads};
use super::findings::{AuditorInput, VerifyFindings};
use crate::audit::segment::disk;
use crate::private_files;

#[derive(Debug)]
pub(super) struct TrustedKey {
    pub(super) verifier: Verifier,
    /// Number of records at its rotation, when it was erased; it cannot have signed anything larger.
    until: Option<u64>,
}

/// A head signed by a trusted key, not yet compared with the records.
#[derive(Debug)]
pub(super) struct ClaimedHead {
    /// Where it comes from.
    pub(super) name: String,
    pub(super) head: Head,
    /// It is in the log's folder. If the log was copied during writing, it may have been copied after the records.
    pub(super) is_own: bool,
}

/// Trusted keys and their heads.
#[derive(Debug, Default)]
pub(super) struct TrustChain {
    pub(super) keys: Vec<TrustedKey>,
    /// Smallest first.
    pub(super) heads: Vec<ClaimedHead>,
    /// The folder shows that makegate closed the log, so it has all records of every head in it.
    pub(super) is_closed: bool,
}

/// Reads the folder's keys and heads, and adds what the auditor brought.
pub(super) fn gather(
    dir: &Path,
    auditor_input: &AuditorInput,
    findings: &mut VerifyFindings,
) -> io::Result<TrustChain> {
    let mut trust = TrustChain::default();
    trust.keys.extend(auditor_input.keys.iter().map(|key| TrustedKey { verifier: key.clone(), until: None }));
    // A key is introduced before it signs anything, so read the head before the chain: the chain then knows its key,
    // whatever a running gateway does meanwhile. In a copy `keys` may be older; then the introductions before the
    // head extend it.
    let head = read(&heads::path(dir))?.map(|text| IntroducedHead::parse(&text));
    let closed = read(&closing_head::path(dir))?.map(|text| IntroducedHead::parse(&text));
    let public = read(&heads::public_path(dir))?;
    let chain = read(&heads::keys_path(dir))?;
    let has_keys = chain.is_some();
    match chain.map(|text| note::heads(&text)) {
        Some(Some(mut chain)) => {
            for (name, file) in [("head", &head), ("closed", &closed)] {
                let carried = file.iter().flat_map(|file| &file.introductions);
                add_carried(&mut chain, carried, name, findings);
            }
            trust.follow(&chain, !auditor_input.keys.is_empty(), findings);
        }
        Some(None) => findings.problem("key", Some("keys"), None, "the chain of keys is damaged"),
        None => {}
    }
    trust.own_head(head, has_keys, findings);
    trust.closed(closed, findings);
    trust.public(public, findings);
    if read(&heads::refuted_path(dir))?.is_some() {
        let words = "at startup the log did not match this head: it was altered while makegate was not running";
        findings.problem("head", Some("head.refuted"), None, words);
    }
    for (name, head) in &auditor_input.heads {
        trust.claim(name, head.clone(), false, findings);
    }
    if trust.heads.is_empty() && findings.is_clean() {
        findings
            .note("there is no signed head, so nothing shows whether records were cut off the end or the whole log was replaced");
    }
    trust.heads.sort_by_key(|claimed| claimed.head.size);
    Ok(trust)
}

/// Adds the introductions that stand before a head and go on where `keys` ends. Of a key that `keys` introduces there is one
/// introduction: another one was altered.
fn add_carried<'h>(
    chain: &mut Vec<Head>,
    carried: impl Iterator<Item = &'h Head>,
    file: &str,
    findings: &mut VerifyFindings,
) {
    for head in carried {
        match chain.iter().find(|known| known.next == head.next) {
            Some(known) if known == head => {}
            None if head.next.is_some() => chain.push(head.clone()),
            Some(_) | None => {
                findings.problem(
                    "key",
                    Some(file),
                    None,
                    "an introduction in this file was altered: keys has another one",
                );
            }
        }
    }
}

impl TrustChain {
    /// The first key is trusted unless the auditor brought keys; each later one must be introduced by a key before
    /// it.
    fn follow(&mut self, chain: &[Head], pinned: bool, findings: &mut VerifyFindings) {
        let mut is_known = false;
        for (at, head) in chain.iter().enumerate() {
            let Some(next) = &head.next else {
                findings.problem("key", Some("keys"), None, format!("head {} in the chain introduces no key", at + 1));
                continue;
            };
            let known = self.keys.iter().any(|key| key.verifier == *next);
            let vouched = self.keys.iter_mut().find(|key| key.until.is_none() && head.is_signed_by(&key.verifier));
            let is_own = head.is_signed_by(next);
            match vouched {
                Some(old) if old.verifier != *next => old.until = Some(head.size),
                Some(_) => {}
                None if known || (at == 0 && is_own && !pinned) => {}
                // Nothing can be said about a log's keys before the first trusted one.
                None if pinned && !is_known => continue,
                None => {
                    let why = if is_own { "introduces itself" } else { "was not introduced by any earlier key" };
                    let words = format!("key {next} {why}; if you know it is right, pass it with --key");
                    findings.problem("key", Some("keys"), None, words);
                    continue;
                }
            }
            is_known = true;
            if !known {
                self.keys.push(TrustedKey { verifier: next.clone(), until: None });
            }
            if head.size > 0 {
                self.heads.push(ClaimedHead { name: "keys".to_owned(), head: head.clone(), is_own: true });
            }
        }
    }

    fn own_head(&mut self, file: Option<IntroducedHead>, has_keys: bool, findings: &mut VerifyFindings) {
        match file {
            Some(IntroducedHead { head: Some(head), .. }) => self.claim("head", head, true, findings),
            Some(_) => findings.problem("head", Some("head"), None, "the newest signed head is damaged"),
            None if has_keys => {
                findings.problem(
                    "head",
                    Some("head"),
                    None,
                    "the newest signed head is missing, although there are keys",
                );
            }
            None => {}
        }
    }

    /// A closed log has a head over its last record. Its folder shows this only until makegate opens the log again.
    fn closed(&mut self, file: Option<IntroducedHead>, findings: &mut VerifyFindings) {
        let Some(file) = file else { return };
        let newest = self.heads.iter().map(|claimed| claimed.head.size).max().unwrap_or(0);
        let Some(head) = file.head else {
            findings.problem("head", Some("closed"), None, "the log's closing head is damaged");
            return;
        };
        if head.size >= newest {
            self.is_closed = true;
            self.claim("closed", head, true, findings);
        }
    }

    /// The public key beside the log must be one of the log's keys (the previous one after an interrupted rotation).
    /// Nothing depends on this file: one that has the log's name but was not introduced may have been copied after a
    /// rotation, and everything else before it.
    fn public(&self, public: Option<String>, findings: &mut VerifyFindings) {
        let Some(text) = public else { return };
        match Verifier::parse(text.trim_end()) {
            Some(key) if self.keys.iter().any(|one| one.verifier == key) => {}
            Some(key) if self.keys.iter().any(|one| one.verifier.name() == key.name()) => findings.note(
                "no key of this log introduced the one in head.pub. If the key was rotated while this copy was made, copy the folder again. \
                 Otherwise someone else put it there: don't trust it",
            ),
            _ => findings.problem("key", Some("head.pub"), None, "this is not a key of this log"),
        }
    }

    /// Accepts a head if a key trusted at that size signed it.
    fn claim(&mut self, name: &str, head: Head, is_own: bool, findings: &mut VerifyFindings) {
        let size = head.size;
        match self.keys.iter().find(|key| head.is_signed_by(&key.verifier)) {
            Some(TrustedKey { until: Some(until), .. }) if size > *until => {
                let words = format!("its key was erased at record {until}, but it covers {size} records: it is forged");
                findings.problem("head", Some(name), None, words);
            }
            Some(_) => self.heads.push(ClaimedHead { name: name.to_owned(), head, is_own }),
            None => {
                let words = format!("the head of {size} records is not signed by any key of this log");
                findings.problem("head", Some(name), None, words);
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    disk::about_to_read();
    match private_files::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        // Reported as a damaged file.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(String::new())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
