//! The operators: `[[operator.key]]`, and the key of `key_file` or `key_env`, which is one admin.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};

use super::OperatorConfig;
use super::secret::{SecretError, secret_in};
use super::units::{KEY, OPERATOR};
use crate::hash;
use crate::ids::KeyHash;
use crate::toml_reader::{Table, ValueKind, one_of, quoted};
use crate::watched_files::Snapshot;

/// What an operator may do. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// See pages and query the log.
    Read,
    /// Also settle writes in doubt, purge the cache, and reopen a quota.
    Operate,
    /// Everything, such as rotating the key that signs heads.
    Admin,
}

impl Role {
    const ALL: [Self; 3] = [Self::Read, Self::Operate, Self::Admin];

    /// The role's name in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

/// One operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorKey {
    /// The name, which stands in the records of what the operator does.
    pub name: Arc<str>,
    /// SHA-256 of the key.
    pub hash: KeyHash,
    /// What the operator may do.
    pub role: Role,
}

impl OperatorKey {
    /// The name of the operator whose key is in `key_file` or `key_env`.
    pub const UNNAMED: &'static str = "operator";

    /// The admin whose key is in `key_file` or `key_env`.
    #[must_use]
    pub fn admin(key: &SecretString) -> Self {
        Self { name: Self::UNNAMED.into(), hash: hash::sha256(key.expose_secret().as_bytes()), role: Role::Admin }
    }
}

impl OperatorConfig {
    /// Every operator. Reads the key of `key_file` or `key_env`, if the configuration names one.
    ///
    /// # Errors
    /// [`SecretError`], if that key cannot be read.
    pub fn operators(&self, files: &Snapshot) -> Result<Vec<OperatorKey>, SecretError> {
        let unnamed = self.key.as_ref().map(|source| secret_in(files, source)).transpose()?;
        Ok(unnamed.iter().map(OperatorKey::admin).chain(self.keys.iter().cloned()).collect())
    }
}

const ROLE: ValueKind<Role> =
    ValueKind::text("a role", "\"read\"", |text| one_of(text, "role", &Role::ALL, Role::as_str));

/// Reads `[[operator.key]]`.
pub(super) fn read(t: &Table<'_>) -> Vec<OperatorKey> {
    let has_unnamed = t.has("key_file") || t.has("key_env");
    let (mut names, mut hashes) = (HashSet::new(), HashMap::new());
    if has_unnamed {
        names.insert(Arc::from(OperatorKey::UNNAMED));
    }
    let keys = t.tables("key", "name", |t| {
        let name = t.required("name", OPERATOR).unwrap_or_default();
        if !name.is_empty() && !names.insert(name.clone()) {
            t.wrong_at(&["name"], format!("an operator named {} already exists", quoted(&name)), "choose another name");
        }
        let hash = t.required("hash", KEY);
        if let Some(owner) = hash.and_then(|hash| hashes.insert(hash, name.clone())) {
            let message = format!("this key already belongs to operator {}", quoted(&owner));
            t.wrong_at(&["hash"], message, "give each operator a key of their own");
        }
        let role = t.required("role", ROLE);
        Some(OperatorKey { name, hash: hash?, role: role? })
    });
    let written = keys.len();
    let keys: Vec<_> = keys.into_iter().flatten().collect();
    if !has_unnamed && written > 0 && keys.len() == written && keys.iter().all(|key| key.role != Role::Admin) {
        let help = "give one [[operator.key]] role = \"admin\", or add key_file or key_env, whose key is an admin's";
        t.missing("no operator is an admin: nobody could rotate the key of the log's heads", help);
    }
    keys
}
