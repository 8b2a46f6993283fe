//! Reads `[[caller]]` and checks the callers against each other.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::units::{CALLER, KEY, ORGANIZATION, RATE, count, default_burst};
use super::{CallerConfig, Grants, Rate, Scope};
use crate::ids::KeyHash;
use crate::toml_reader::{FLAG, Table, ValueKind, nearest, quoted};

/// What every caller is checked against: the other callers, and the grants that exist.
pub(super) struct CallerChecks {
    /// Every grant that some operation requires.
    grants: BTreeSet<Arc<str>>,
    /// Whether client certificates are configured; if so, a caller needs no key.
    certificates: bool,
    names: HashSet<Arc<str>>,
    keys: HashMap<KeyHash, Arc<str>>,
}

impl CallerChecks {
    pub(super) fn new(grants: BTreeSet<Arc<str>>, certificates: bool) -> Self {
        Self { grants, certificates, names: HashSet::new(), keys: HashMap::new() }
    }

    /// Reads one `[[caller]]`.
    pub(super) fn read(&mut self, t: &Table<'_>) -> CallerConfig {
        let name = t.required("name", CALLER).unwrap_or_default();
        if !name.is_empty() && !self.names.insert(name.clone()) {
            t.wrong_at(&["name"], format!("a caller named {} already exists", quoted(&name)), "choose another name");
        }
        let rate = t.value("rate", "600/min", RATE);
        CallerConfig {
            keys: self.keys(t, &name),
            grants: self.grants(t),
            organizations: organizations(t),
            rate,
            burst: burst(t, rate),
            may_refresh: t.value("may_refresh", "true", FLAG),
            name,
        }
    }

    fn keys(&mut self, t: &Table<'_>, caller: &Arc<str>) -> Vec<KeyHash> {
        let given = t.list("keys", KEY);
        if given.is_none() && t.has("keys") {
            // Not even a list: the value may be a key.
            t.hide(t.span_at(&["keys"]));
        }
        let keys = given.unwrap_or_default();
        for key in &keys {
            if let Some(owner) = self.keys.insert(key.value, caller.clone()) {
                let whose =
                    if owner == *caller { "this caller".to_owned() } else { format!("caller {}", quoted(&owner)) };
                t.wrong(
                    key.place.clone(),
                    format!("this key already belongs to {whose}"),
                    "give each caller its own keys",
                );
            }
        }
        if !t.has("keys") && !self.certificates {
            let help = "run `makegate key new --caller NAME` and add the line it prints";
            t.missing("keys is missing: nobody could authenticate as this caller", help);
        }
        keys.into_iter().map(|key| key.value).collect()
    }

    fn grants(&self, t: &Table<'_>) -> Grants {
        let Some(given) = t.list("grants", GRANT) else {
            if !t.has("grants") {
                t.missing(
                    "grants is missing",
                    "add for example grants = [\"organizations:read\"]; [\"*\"] grants everything",
                );
            }
            return Grants::Some(Vec::new());
        };
        if t.is_empty_list("grants") {
            t.warn_at(
                &["grants"],
                "a caller without grants cannot do anything",
                "add the grants it needs; [\"*\"] grants everything",
            );
        }
        for grant in given.iter().filter(|grant| &*grant.value != "*" && !self.grants.contains(&grant.value)) {
            let known = || self.grants.iter().map(|grant| &**grant);
            let help = match nearest(&grant.value, known()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("valid grants: *, {}", known().collect::<Vec<_>>().join(", ")),
            };
            t.wrong(grant.place.clone(), format!("no operation requires the grant {}", quoted(&grant.value)), help);
        }
        if given.iter().any(|grant| &*grant.value == "*") {
            return Grants::All;
        }
        let sorted: BTreeSet<_> = given.into_iter().map(|grant| grant.value).collect();
        Grants::Some(sorted.into_iter().collect())
    }
}

/// Any text; the catalogue decides which grants exist.
const GRANT: ValueKind<Arc<str>> = ValueKind::text("a grant", "\"organizations:read\"", |text| Ok(Arc::from(text)));

fn organizations(t: &Table<'_>) -> Scope {
    let Some(given) = t.list("organizations", ORGANIZATION) else {
        if !t.has("organizations") {
            t.record_derived("organizations", "all".to_owned());
        }
        return Scope::All;
    };
    let mut ids = BTreeSet::new();
    for id in &given {
        if !ids.insert(id.value) {
            t.wrong(id.place.clone(), format!("{} appears twice", id.value), "remove one");
        }
    }
    if t.is_empty_list("organizations") {
        let help = "list the organizations, or leave the key out to allow all";
        t.wrong_at(&["organizations"], "organizations is empty", help);
    }
    Scope::Only(ids.into_iter().collect())
}

fn burst(t: &Table<'_>, rate: Rate) -> u32 {
    let default = default_burst(rate);
    if !t.has("burst") {
        t.record_derived("burst", default.to_string());
    }
    t.optional("burst", BURST).unwrap_or(default)
}

const BURST: ValueKind<u32> = ValueKind { example: "60", ..count::<u32, 4_294_967_295>() };
