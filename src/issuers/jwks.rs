//! The public keys of an issuer: a JSON Web Key Set (RFC 7517).

use std::fmt;
use std::ops::RangeInclusive;

use aws_lc_rs::error::KeyRejected;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

use crate::hash;

/// Keys of one issuer; a larger set is the wrong file.
const KEYS_MAX: usize = 64;

/// Length of the modulus of an RSA key: 2048 to 8192 bits. A shorter one can be broken.
const RSA_BYTES: RangeInclusive<usize> = 256..=1024;

/// How a token may be signed. There is no other way: neither unsigned, nor with a shared secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignatureAlgorithm {
    Rs256,
    Es256,
    EdDsa,
}

impl SignatureAlgorithm {
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            // RFC 9864 names the curve.
            "EdDSA" | "Ed25519" => Some(Self::EdDsa),
            _ => None,
        }
    }
}

/// A hash of a public key, by which the key is found in another set.
pub(super) type PublicKeyHash = [u8; 32];

/// One public key.
pub(super) struct IssuerKey {
    id: Option<String>,
    algorithm: SignatureAlgorithm,
    public: ParsedPublicKey,
    pub(super) hash: PublicKeyHash,
}

impl fmt::Debug for IssuerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerKey").field("id", &self.id).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl IssuerKey {
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        self.public.verify_sig(message, signature).is_ok()
    }
}

/// The public keys of an issuer, at least one.
#[derive(Debug)]
pub(super) struct KeySet(Vec<IssuerKey>);

/// Why a text is no set of keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeySetError {
    #[error("it is not a JSON Web Key Set: {0}")]
    NotJson(#[from] serde_json::Error),
    #[error("it has {0} keys, more than {KEYS_MAX}")]
    TooMany(usize),
    #[error("it holds a private key: keep that secret, and list public keys only")]
    Private,
    #[error("it has no key for RS256, ES256 or EdDSA")]
    NoKey,
}

#[derive(Deserialize)]
struct SetOfKeys {
    keys: Vec<Value>,
}

/// The members of a key that matter (RFC 7518 section 6, RFC 8037 section 2).
#[derive(Deserialize)]
struct JsonWebKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Parses a set. Keys for other purposes or of other kinds are left out.
    pub(super) fn parse(json: &[u8]) -> Result<Self, KeySetError> {
        let SetOfKeys { keys } = serde_json::from_slice(json)?;
        if keys.len() > KEYS_MAX {
            return Err(KeySetError::TooMany(keys.len()));
        }
        if keys.iter().any(|key| key.get("d").is_some()) {
            return Err(KeySetError::Private);
        }
        let keys: Vec<_> = keys.into_iter().filter_map(|key| issuer_key(serde_json::from_value(key).ok()?)).collect();
        if keys.is_empty() { Err(KeySetError::NoKey) } else { Ok(Self(keys)) }
    }

    /// The keys that may have signed a token with this header: the one that it names, or all of its algorithm.
    pub(super) fn candidates(
        &self,
        id: Option<&str>,
        algorithm: SignatureAlgorithm,
    ) -> impl Iterator<Item = &IssuerKey> {
        let is_named = move |key: &&IssuerKey| id.is_none_or(|id| key.id.as_deref() == Some(id));
        self.0.iter().filter(move |key| key.algorithm == algorithm).filter(is_named)
    }

    pub(super) fn has(&self, hash: &PublicKeyHash) -> bool {
        self.0.iter().any(|key| key.hash == *hash)
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }
}

fn issuer_key(key: JsonWebKey) -> Option<IssuerKey> {
    let signs = key.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
        && key.key_ops.as_ref().is_none_or(|uses| uses.iter().any(|one| one == "verify"));
    let (algorithm, public) = public_key(&key)?;
    let fits = key.alg.as_deref().is_none_or(|name| SignatureAlgorithm::parse(name) == Some(algorithm));
    let public = public.ok().filter(|_| signs && fits)?;
    let hash = hash::sha256_parts(&[&[algorithm as u8], public.as_ref()]);
    Some(IssuerKey { id: key.kid, algorithm, public, hash })
}

fn public_key(key: &JsonWebKey) -> Option<(SignatureAlgorithm, Result<ParsedPublicKey, KeyRejected>)> {
    let bytes = |member: &Option<String>| URL_SAFE_NO_PAD.decode(member.as_ref()?).ok();
    match (&*key.kty, key.crv.as_deref()) {
        ("RSA", _) => {
            let n = bytes(&key.n).filter(|n| RSA_BYTES.contains(&n.iter().skip_while(|byte| **byte == 0).count()))?;
            let components = rsa::PublicKeyComponents { n, e: bytes(&key.e)? };
            let public = components.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256);
            Some((SignatureAlgorithm::Rs256, public))
        }
        ("EC", Some("P-256")) => {
            // SEC 1 section 2.3.3: an uncompressed point.
            const UNCOMPRESSED: u8 = 4;
            let point = [vec![UNCOMPRESSED], bytes(&key.x)?, bytes(&key.y)?].concat();
            Some((SignatureAlgorithm::Es256, ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)))
        }
        ("OKP", Some("Ed25519")) => Some((SignatureAlgorithm::EdDsa, ParsedPublicKey::new(&ED25519, bytes(&key.x)?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(json: &str) -> String {
        KeySet::parse(json.as_bytes()).map_or_else(|error| error.to_string(), |keys| format!("{} keys", keys.len()))
    }

    #[test]
    fn only_keys_that_verify_signatures_are_kept() {
        let ed = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;
        assert_eq!(
            told(&format!(r#"{{"keys":[{ed}}},{ed},"use":"enc"}},{ed},"alg":"RS256"}},{ed},"key_ops":["sign"]}}]}}"#)),
            "1 keys"
        );
        assert_eq!(told(&format!(r#"{{"keys":[{ed}}},7,{{}},{{"kty":"oct","k":"AA"}}],"more":1}}"#)), "1 keys");
        let none = "it has no key for RS256, ES256 or EdDSA";
        let short = r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#;
        let off_the_curve = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}]}"#;
        for without in [r#"{"keys":[]}"#, short, off_the_curve, r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#] {
            assert_eq!(told(without), none, "{without}");
        }
        assert!(told(&format!(r#"{{"keys":[{ed},"d":"AA"}}]}}"#)).contains("private key"));
        assert!(told(&format!(r#"{{"keys":[{}]}}"#, vec!["1"; 65].join(","))).contains("65 keys, more than 64"));
        assert!(told("[]").contains("not a JSON Web Key Set"));
    }
}
