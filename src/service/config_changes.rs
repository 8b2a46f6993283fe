//! What a reload changed in who may do what, in words for the log: names and key ids alone, never a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use crate::config::{CallerConfig, Config, Grants, KeyConfig, OperatorKey, Scope};
use crate::ids::KeyId;

/// What is written of the changes, in bytes; the rest is counted.
const WORDS_MAX: usize = 4096;

/// The changes from one configuration to another, each with its operators.
pub(super) fn changes(
    (before, operators_before): (&Config, &[OperatorKey]),
    (after, operators_after): (&Config, &[OperatorKey]),
) -> String {
    let rights = |config: &Config| named("caller", config.callers.iter().map(|caller| (&*caller.name, rights(caller))));
    let roles = |operators: &[OperatorKey]| {
        named("operator", operators.iter().map(|operator| (&*operator.name, role(operator))))
    };
    let mut words = differences(&rights(before), &rights(after));
    words.extend(differences(&roles(operators_before), &roles(operators_after)));
    if words.is_empty() {
        return "callers, grants, scopes and keys are as before".to_owned();
    }
    bounded(&words)
}

/// Of a caller or an operator: `+grant usage:read` or `-grant usage:read` for each of these, depending on which side has it.
type Rights = BTreeSet<(&'static str, String)>;

fn named<'c>(kind: &str, each: impl Iterator<Item = (&'c str, Rights)>) -> BTreeMap<String, Rights> {
    each.map(|(name, rights)| (format!("{kind} {name}"), rights)).collect()
}

fn rights(caller: &CallerConfig) -> Rights {
    let mut rights: Rights = caller.keys.iter().map(|key| ("key", key_in_words(key))).collect();
    let identities = caller.identities.iter().map(|one| format!("{} {}", one.issuer, one.subject));
    rights.extend(identities.map(|identity| ("identity", identity)));
    rights.extend(caller.certificates.iter().map(|name| ("certificate", name.to_string())));
    rights.extend(caller.uids.iter().map(|uid| ("user id", uid.to_string())));
    match &caller.grants {
        Grants::All => drop(rights.insert(("grant", "*".to_owned()))),
        Grants::Some(grants) => rights.extend(grants.iter().map(|grant| ("grant", grant.to_string()))),
    }
    match &caller.organizations {
        Scope::All => drop(rights.insert(("organization", "all".to_owned()))),
        Scope::Only(ids) => rights.extend(ids.iter().map(|id| ("organization", id.to_string()))),
    }
    rights
}

/// Its id, and when and from where it may be used.
fn key_in_words(key: &KeyConfig) -> String {
    let expires = key.expires.iter().map(|expiry| format!(" until {}", expiry.written));
    let from = key.from.iter().map(|network| format!(" from {network}"));
    expires.chain(from).fold(KeyId::of(&key.hash).to_string(), |words, terms| words + &terms)
}

fn role(operator: &OperatorKey) -> Rights {
    let key = KeyId::of(&operator.hash).to_string();
    Rights::from([("key", key), ("role", operator.role.as_str().to_owned())])
}

fn differences(before: &BTreeMap<String, Rights>, after: &BTreeMap<String, Rights>) -> Vec<String> {
    let nothing = Rights::new();
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let of = |name: &&String| {
        let (old, new) = (before.get(*name), after.get(*name));
        let what = match (old, new) {
            (Some(_), None) => return Some(format!("{name} removed")),
            (None, _) => " added",
            (Some(_), Some(_)) => "",
        };
        let (old, new) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
        let signed = |sign: &'static str| move |(kind, value): &(&'static str, String)| format!("{sign}{kind} {value}");
        let changed: Vec<_> =
            new.difference(old).map(signed("+")).chain(old.difference(new).map(signed("-"))).collect();
        (!changed.is_empty() || !what.is_empty()).then(|| format!("{name}{what}: {}", changed.join(", ")))
    };
    names.iter().filter_map(of).collect()
}

/// All of them, or as many as there is room for, and how many more there are.
fn bounded(words: &[String]) -> String {
    let mut text = String::new();
    for (at, change) in words.iter().enumerate() {
        if text.len() + change.len() > WORDS_MAX {
            return joined(text, &format_args!("and {} more changes", words.len() - at));
        }
        text = joined(text, change);
    }
    text
}

fn joined(text: String, more: &impl Display) -> String {
    if text.is_empty() { more.to_string() } else { format!("{text}; {more}") }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;
    use crate::config::{self, Role};

    const LEAST: &str = "operator.key_env = \"K\"\nupstream.token_env = \"T\"\n";

    fn config(callers: &str) -> Config {
        config::parse(&format!("{LEAST}{callers}"), Path::new("m.toml")).unwrap().config
    }

    fn caller(name: &str, key: &str, rest: &str) -> String {
        format!("[[caller]]\nname = \"{name}\"\nkeys = [\"sha256:{}\"]\n{rest}\n", key.repeat(32))
    }

    #[test]
    fn rights_keys_and_scopes_are_told_by_caller_and_operator() {
        let old = config(&(caller("a", "11", "grants = [\"*\"]") + &caller("b", "22", "grants = [\"usage:read\"]")));
        let new = caller("a", "33", "grants = [\"billing:read\"]\norganizations = [7, 8]");
        let new = config(&(new + &caller("c", "44", "grants = [\"*\"]\norganizations = [9]")));
        let anna = |role| [OperatorKey { name: "anna".into(), hash: [0xab; 32], role }];
        let told = changes((&old, &anna(Role::Read)), (&new, &anna(Role::Admin)));
        let expected = "caller a: +grant billing:read, +key 33333333, +organization 7, +organization 8, -grant *, -key 11111111, \
            -organization all; caller b removed; caller c added: +grant *, +key 44444444, +organization 9; \
            operator anna: +role admin, -role read";
        assert_eq!(told, expected);
        let table =
            format!("{{ hash = \"sha256:{}\", expires = \"2027-01-31\", from = [\"10.0.0.0/8\"] }}", "11".repeat(32));
        let terms = caller("a", "11", "grants = [\"*\"]").replace(&format!("\"sha256:{}\"", "11".repeat(32)), &table);
        let told = changes((&config(&caller("a", "11", "grants = [\"*\"]")), &[]), (&config(&terms), &[]));
        assert_eq!(told, "caller a: +key 11111111 until 2027-01-31 from 10.0.0.0/8, -key 11111111");
        assert_eq!(changes((&old, &[]), (&old, &[])), "callers, grants, scopes and keys are as before");
    }

    #[test]
    fn very_many_changes_are_counted() {
        let many = (0..500).fold(String::new(), |mut text, number| {
            let _infallible =
                writeln!(text, "[[caller]]\nname = \"c{number}\"\nkeys = []\ngrants = [\"usage:read\"]\n");
            text
        });
        let told = changes((&config(""), &[]), (&config(&many), &[]));
        assert!(told.len() < WORDS_MAX + 100 && told.ends_with(" more changes"), "{told}");
    }
}
