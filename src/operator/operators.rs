//! Who may come in, and what each may do. Replaced as a whole by a reload.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::config::{OperatorKey, Role};
use crate::hash;
use crate::ids::KeyId;

/// An operator whose key came with a request.
#[derive(Debug)]
pub(super) struct Operator {
    key: OperatorKey,
    /// Cancelled when a reload takes the key away or changes its role.
    pub(super) revoked: CancellationToken,
}

impl Operator {
    fn new(key: &OperatorKey) -> Arc<Self> {
        Arc::new(Self { key: key.clone(), revoked: CancellationToken::new() })
    }

    pub(super) const fn name(&self) -> &Arc<str> {
        &self.key.name
    }

    pub(super) const fn role(&self) -> Role {
        self.key.role
    }

    pub(super) fn key_id(&self) -> KeyId {
        KeyId::of(&self.key.hash)
    }
}

/// The operators in force.
pub(super) struct Operators {
    in_force: ArcSwap<Vec<Arc<Operator>>>,
}

impl Operators {
    pub(super) fn new(keys: &[OperatorKey]) -> Self {
        Self { in_force: ArcSwap::from_pointee(keys.iter().map(Operator::new).collect()) }
    }

    /// Whose key this is. Takes the same time whatever the key is: it is hashed, and compared with each.
    pub(super) fn find(&self, key: &[u8]) -> Option<Arc<Operator>> {
        let (hash, operators) = (hash::sha256(key), self.in_force.load());
        let compare = |found: Option<usize>, (at, operator): (usize, &Arc<Operator>)| {
            let is_it = hash::constant_time_eq(&hash, &operator.key.hash);
            found.or(is_it.then_some(at))
        };
        let found = operators.iter().enumerate().fold(None, compare)?;
        operators.get(found).cloned()
    }

    pub(super) fn keys(&self) -> Vec<OperatorKey> {
        self.in_force.load().iter().map(|operator| operator.key.clone()).collect()
    }

    /// Replaces all of them. What an operator who is gone, or has another role now, still follows ends.
    pub(super) fn replace(&self, keys: &[OperatorKey]) {
        let before = self.in_force.load_full();
        let kept = |key: &OperatorKey| before.iter().find(|operator| operator.key == *key).cloned();
        self.in_force.store(Arc::new(keys.iter().map(|key| kept(key).unwrap_or_else(|| Operator::new(key))).collect()));
        for operator in before.iter().filter(|operator| !keys.contains(&operator.key)) {
            operator.revoked.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, secret: &str, role: Role) -> OperatorKey {
        OperatorKey { name: name.into(), hash: hash::sha256(secret.as_bytes()), role }
    }

    #[test]
    fn only_who_is_gone_or_has_another_role_is_revoked() {
        let (anna, ben, eve) =
            (key("anna", "a", Role::Admin), key("ben", "b", Role::Operate), key("eve", "e", Role::Read));
        let operators = Operators::new(&[anna.clone(), ben.clone(), eve]);
        let find = |secret: &str| operators.find(secret.as_bytes());
        let came_in = ["a", "b", "e"].map(|secret| find(secret).unwrap());
        operators.replace(&[OperatorKey { role: Role::Read, ..ben }, anna]);
        assert_eq!(came_in.map(|operator| operator.revoked.is_cancelled()), [false, true, true]);
        assert_eq!(find("b").unwrap().role(), Role::Read);
        assert!(find("e").is_none() && find("").is_none());
        assert_eq!(&**find("a").unwrap().name(), "anna");
    }
}
