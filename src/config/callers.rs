//! Reads `[[caller]]` and checks the callers against each other.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::certificate_name::{CERTIFICATE_NAME, CertificateName};
use super::network::NETWORK;
use super::units::{CALLER, CLAIM, EXPIRY, KEY, NOTE, ORGANIZATION, RATE, UID, count, default_burst};
use super::{CallerConfig, Grants, IdentityConfig, IssuerConfig, KeyConfig, Rate, Scope};
use crate::ids::KeyHash;
use crate::toml_reader::{FLAG, Table, TextSpan, ValueKind, nearest, quoted};

/// What every caller is checked against: the other callers, and the grants that exist.
pub(super) struct CallerChecks {
    /// Every grant that some operation requires.
    grants: BTreeSet<Arc<str>>,
    /// Whether client certificates are configured; if so, a caller needs no key.
    takes_certificates: bool,
    /// The names of the issuers of tokens.
    issuers: Vec<Arc<str>>,
    names: HashSet<Arc<str>>,
    keys: HashMap<KeyHash, Arc<str>>,
    uids: HashMap<u32, Arc<str>>,
    identities: HashMap<IdentityConfig, Arc<str>>,
    certificates: HashMap<CertificateName, Arc<str>>,
}

impl CallerChecks {
    pub(super) fn new(grants: BTreeSet<Arc<str>>, takes_certificates: bool, issuers: &[IssuerConfig]) -> Self {
        Self {
            grants,
            takes_certificates,
            issuers: issuers.iter().map(|issuer| issuer.name.clone()).collect(),
            names: HashSet::new(),
            keys: HashMap::new(),
            uids: HashMap::new(),
            identities: HashMap::new(),
            certificates: HashMap::new(),
        }
    }

    /// Reads one `[[caller]]`.
    pub(super) fn read(&mut self, t: &Table<'_>) -> CallerConfig {
        let name = t.required("name", CALLER).unwrap_or_default();
        if !name.is_empty() && !self.names.insert(name.clone()) {
            t.wrong_at(&["name"], format!("a caller named {} already exists", quoted(&name)), "choose another name");
        }
        let rate = t.value("rate", "600/min", RATE);
        CallerConfig {
            identities: self.identities(t, &name),
            certificates: self.certificates(t, &name),
            uids: self.uids(t, &name),
            keys: self.keys(t, &name),
            grants: self.grants(t),
            organizations: organizations(t),
            rate,
            burst: burst(t, rate),
            may_refresh: t.value("may_refresh", "true", FLAG),
            name,
        }
    }

    fn keys(&mut self, t: &Table<'_>, caller: &Arc<str>) -> Vec<KeyConfig> {
        let given = t.list_or_tables("keys", KEY_ALONE, key_table);
        if given.is_none() && t.has("keys") {
            // Not even a list: the value may be a key.
            t.hide(t.span_at(&["keys"]));
        }
        let keys = given.unwrap_or_default();
        for key in &keys {
            if let Some(owner) = self.keys.insert(key.value.hash, caller.clone()) {
                let whose =
                    if owner == *caller { "this caller".to_owned() } else { format!("caller {}", quoted(&owner)) };
                t.wrong(
                    key.place.clone(),
                    format!("this key already belongs to {whose}"),
                    "give each caller its own keys",
                );
            }
        }
        if !["keys", "uids", "identities", "certificates"].iter().any(|key| t.has(key)) && !self.takes_certificates {
            let help = "run `makegate key new --caller NAME` and add the line it prints";
            t.missing("keys is missing: nobody could authenticate as this caller", help);
        }
        keys.into_iter().map(|key| key.value).collect()
    }

    fn identities(&mut self, t: &Table<'_>, caller: &Arc<str>) -> Vec<IdentityConfig> {
        let issuers = std::mem::take(&mut self.issuers);
        let mut given = Vec::new();
        let read = t.tables("identities", "issuer", |t| {
            let (issuer, subject) = (t.required("issuer", CALLER)?, t.required("subject", CLAIM)?);
            if !issuers.contains(&issuer) {
                let help = match nearest(&issuer, issuers.iter().map(|known| &**known)) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => "add it as [[issuer]]".to_owned(),
                };
                t.wrong_at(&["issuer"], format!("no issuer is named {}", quoted(&issuer)), help);
            }
            let identity = IdentityConfig { issuer, subject };
            if let Some(owner) = self.identities.insert(identity.clone(), caller.clone()) {
                let what = format!("this subject already identifies caller {}", quoted(&owner));
                t.wrong_at(&["subject"], what, "give each caller subjects of its own");
            }
            given.push(identity);
            Some(())
        });
        drop(read);
        self.issuers = issuers;
        given
    }

    /// The names in certificates that identify the caller. Its own name does, too, wherever certificates are taken.
    fn certificates(&mut self, t: &Table<'_>, caller: &Arc<str>) -> Vec<CertificateName> {
        if self.takes_certificates && !caller.is_empty() {
            self.certificate(t, CertificateName::dns(caller), caller, t.span_at(&["name"]));
        }
        let given = t.list("certificates", CERTIFICATE_NAME).unwrap_or_default();
        for (at, name) in given.iter().enumerate() {
            if given.iter().take(at).any(|earlier| earlier.value == name.value) {
                t.wrong(name.place.clone(), format!("{} appears twice", quoted(name.value.as_str())), "remove one");
            }
            self.certificate(t, name.value.clone(), caller, name.place.clone());
        }
        given.into_iter().map(|name| name.value).collect()
    }

    /// Notes that certificates with this name identify `caller`, and no other one.
    fn certificate(&mut self, t: &Table<'_>, name: CertificateName, caller: &Arc<str>, place: TextSpan) {
        let text = name.to_string();
        if let Some(owner) = self.certificates.insert(name, caller.clone()).filter(|owner| owner != caller) {
            let (text, owner, caller) = (quoted(&text), quoted(&owner), quoted(caller));
            let what = format!("a certificate with the name {text} would identify two callers, {owner} and {caller}");
            t.wrong(place, what, "give each caller certificates of its own");
        }
    }

    fn uids(&mut self, t: &Table<'_>, caller: &Arc<str>) -> Vec<u32> {
        let given = t.list("uids", UID).unwrap_or_default();
        for uid in &given {
            if let Some(owner) = self.uids.insert(uid.value, caller.clone()) {
                let what = format!("the user id {} already identifies caller {}", uid.value, quoted(&owner));
                t.wrong(uid.place.clone(), what, "give each caller its own user");
            }
        }
        given.into_iter().map(|uid| uid.value).collect()
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

/// A key without further terms.
const KEY_ALONE: ValueKind<KeyConfig> = ValueKind::text(KEY.what, KEY.example, |text| {
    (KEY.parse)(text).map(|hash| KeyConfig { hash, expires: None, from: Vec::new(), note: None })
});

/// `{ hash, expires, from, note }`.
fn key_table(t: &Table<'_>) -> Option<KeyConfig> {
    let hash = t.required("hash", KEY);
    let (expires, note) = (t.optional("expires", EXPIRY), t.optional("note", NOTE));
    let from = t.list("from", NETWORK);
    if t.is_empty_list("from") {
        let help = "list addresses and networks, such as \"10.0.0.0/8\", or leave it out to allow all";
        t.wrong_at(&["from"], "from is empty: this key could be used from nowhere", help);
    }
    let from = from.unwrap_or_default().into_iter().map(|network| network.value).collect();
    Some(KeyConfig { hash: hash?, expires, from, note })
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
