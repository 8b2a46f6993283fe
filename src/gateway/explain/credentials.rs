//! By which of its credentials a caller can be known now.

use jiff::Timestamp;

use crate::config::KeyConfig;
use crate::gateway::admit::policy::{Caller, Policy};
use crate::gateway::refusal::{CredentialFault, Refusal};
use crate::ids::KeyId;

/// Credentials of each kind that are named; the others are counted.
const NAMED_MAX: usize = 5;

/// The credentials by which this caller can be known, in words.
///
/// # Errors
/// All that it has are expired keys, or it has no credential.
pub(super) fn known_by(policy: &Policy, caller: &Caller, now: Timestamp) -> Result<String, Refusal> {
    let config = &caller.config;
    let end_of = |key: &&KeyConfig| key.expires.as_ref().map(|expiry| expiry.at).filter(|end| *end <= now);
    let (expired, in_force): (Vec<_>, Vec<_>) = config.keys.iter().partition(|key| end_of(key).is_some());
    let mut ways = Vec::new();
    ways.extend(counted("key", in_force.iter().map(|key| key_in_force(key))));
    let identities = config.identities.iter();
    ways.extend(counted("identity", identities.map(|by| format!("{} of the issuer {}", by.subject, by.issuer))));
    ways.extend(counted("user id", config.uids.iter().map(u32::to_string)));
    if policy.takes_certificates() {
        ways.push("a client certificate with its name".to_owned());
        ways.extend(counted("certificate name", config.certificates.iter().map(ToString::to_string)));
    }
    if ways.is_empty() {
        let last =
            expired.iter().filter_map(|key| Some((end_of(key)?, KeyId::of(&key.hash)))).max_by_key(|(end, _)| *end);
        return Err(last.map_or(Refusal::UnknownKey, |(since, key)| CredentialFault::KeyExpired { key, since }.into()));
    }
    let written = |key: &&KeyConfig| key.expires.as_ref().map_or("", |expiry| &*expiry.written).to_owned();
    let gone = expired.iter().map(|key| format!("{} on {}", KeyId::of(&key.hash), written(key)));
    let gone = counted("key", gone).map_or_else(String::new, |gone| format!("; expired: {gone}"));
    Ok(ways.join(", ") + &gone)
}

fn key_in_force(key: &KeyConfig) -> String {
    let mut text = KeyId::of(&key.hash).to_string();
    if let Some(expiry) = &key.expires {
        text += &format!(", expires {}", expiry.written);
    }
    if !key.from.is_empty() {
        let from: Vec<_> = key.from.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        let more = if key.from.len() > NAMED_MAX { " and more" } else { "" };
        text += &format!(", only from {}{more}", from.join(" "));
    }
    text
}

/// Their number, and the first few. `None` if there are none.
fn counted(what: &str, credentials: impl ExactSizeIterator<Item = String>) -> Option<String> {
    let count = credentials.len();
    let named: Vec<_> = credentials.take(NAMED_MAX).collect();
    let more = if count > NAMED_MAX { "; …" } else { "" };
    let plural = match (count, what) {
        (1, _) => what.to_owned(),
        (_, "identity") => "identities".to_owned(),
        _ => format!("{what}s"),
    };
    (count > 0).then(|| format!("{count} {plural} ({}{more})", named.join("; ")))
}
