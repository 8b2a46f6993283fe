//! Reads `[[issuer]]`: platforms whose tokens identify callers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::units::{CALLER, CLAIM, JWKS_URL, PATH};
use crate::toml_reader::{Table, quoted};

/// `[[issuer]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerConfig {
    /// Its name in this configuration.
    pub name: Arc<str>,
    /// Its name in tokens (`iss`).
    pub issuer: Arc<str>,
    /// What its tokens must be for (`aud`).
    pub audience: Arc<str>,
    /// Where its public keys are.
    pub keys: JwksSource,
    /// The authorities that the server of the keys is verified with, instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// Where the public keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwksSource {
    /// In a file.
    File(PathBuf),
    /// At a URL.
    Url(http::Uri),
}

/// One of a caller's `identities`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdentityConfig {
    /// The issuer's name in this configuration.
    pub issuer: Arc<str>,
    /// Whom a token must be about (`sub`).
    pub subject: Arc<str>,
}

/// Reads every `[[issuer]]`.
pub(super) fn read(root: &Table<'_>, base: &Path) -> Vec<IssuerConfig> {
    let (mut names, mut claims) = (HashMap::new(), HashMap::new());
    let issuers = root.tables("issuer", "name", |t| {
        let issuer = one(t, base)?;
        if names.insert(issuer.name.clone(), ()).is_some() {
            let what = format!("an issuer named {} already exists", quoted(&issuer.name));
            t.wrong_at(&["name"], what, "choose another name");
        }
        if let Some(other) = claims.insert(issuer.issuer.clone(), issuer.name.clone()) {
            let what = format!("the tokens of this issuer are already those of {}", quoted(&other));
            t.wrong_at(&["issuer"], what, "remove one");
        }
        Some(issuer)
    });
    issuers.into_iter().flatten().collect()
}

fn one(t: &Table<'_>, base: &Path) -> Option<IssuerConfig> {
    let (name, issuer, audience) =
        (t.required("name", CALLER), t.required("issuer", CLAIM), t.required("audience", CLAIM));
    let (file, url) = (t.optional("jwks_file", PATH), t.optional("jwks_url", JWKS_URL));
    let ca_file = t.optional("ca_file", PATH).map(|path| base.join(path));
    if !t.has("jwks_file") && !t.has("jwks_url") {
        let help = "add jwks_url = \"https://…\", or jwks_file = \"jwks.json\"";
        t.missing("neither jwks_file nor jwks_url says where the issuer's public keys are", help);
    }
    if t.has("jwks_file") && t.has("jwks_url") {
        t.wrong_at(&["jwks_url"], "both jwks_file and jwks_url are set", "remove one");
    }
    if t.has("ca_file") && !t.has("jwks_url") {
        t.wrong_at(
            &["ca_file"],
            "ca_file is set, but jwks_url is not",
            "leave it out: a file is read from this machine",
        );
    }
    let keys = file.map(|path| JwksSource::File(base.join(path))).or_else(|| url.map(JwksSource::Url))?;
    Some(IssuerConfig { name: name?, issuer: issuer?, audience: audience?, keys, ca_file })
}
