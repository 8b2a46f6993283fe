//! Signed notes and the Ed25519 keys that sign them, in the text forms C2SP `signed-note` and, for heads,
//! `tlog-checkpoint`.
//!
//! A note is a text of lines, an empty line, and one line per signature: `— NAME BASE64(4 bytes of key id ‖
//! signature)`.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::audit::segment::tree::{Hash, Tree};
use crate::hash;

/// C2SP's type number for Ed25519.
const ED25519_TYPE: u8 = 1;
/// Precedes a signature.
const SIGNED_BY: &str = "\u{2014} ";
/// Precedes a key that a head introduces.
const NEXT_KEY: &str = "key ";
/// Precedes a private key.
const SIGNER: &str = "PRIVATE+KEY+";

/// A public key with its name, in C2SP's form `NAME+ID+BASE64(0x01 ‖ key)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    public: [u8; 32],
}

impl Verifier {
    /// Parses a key; returns `None` if the text is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '+');
        let (name, id, key) = (parts.next()?, parts.next()?, parts.next()?);
        let verifier = Self { name: name.to_owned(), public: typed(key)? };
        let plain = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '+');
        (plain && hash::hex(&verifier.id()) == id).then_some(verifier)
    }

    /// The log's name, which is the first line of its heads.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first four bytes of SHA-256(name ‖ newline ‖ 0x01 ‖ key).
    fn id(&self) -> [u8; 4] {
        let [a, b, c, d, ..] = hash::sha256_parts(&[self.name.as_bytes(), b"\n", &[ED25519_TYPE], &self.public]);
        [a, b, c, d]
    }

    fn has_signed(&self, text: &str, signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.public).verify(text.as_bytes(), signature).is_ok()
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key: Vec<u8> = std::iter::once(ED25519_TYPE).chain(self.public).collect();
        write!(f, "{}+{}+{}", self.name, hash::hex(&self.id()), STANDARD.encode(key))
    }
}

/// Decodes 32 bytes that follow the type number of Ed25519.
fn typed(text: &str) -> Option<[u8; 32]> {
    let bytes = STANDARD.decode(text).ok()?;
    let (kind, key) = bytes.split_first()?;
    (*kind == ED25519_TYPE).then(|| key.try_into().ok())?
}

/// A private key, in C2SP's form `PRIVATE+KEY+NAME+ID+BASE64(0x01 ‖ seed)`.
pub(crate) struct Signer {
    verifier: Verifier,
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl Signer {
    /// Creates the key with this seed.
    pub(crate) fn new(name: &str, seed: [u8; 32]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).ok()?;
        let public = pair.public_key().as_ref().try_into().ok()?;
        Some(Self { verifier: Verifier { name: name.to_owned(), public }, seed, pair })
    }

    /// Parses a key; returns `None` if the text is not one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(SIGNER)?.splitn(3, '+');
        let (name, id, seed) = (parts.next()?, parts.next()?, parts.next()?);
        let signer = Self::new(name, typed(seed)?)?;
        (hash::hex(&signer.verifier.id()) == id).then_some(signer)
    }

    /// The secret text form that [`Signer::parse`] reads.
    pub(crate) fn to_secret(&self) -> String {
        let seed: Vec<u8> = std::iter::once(ED25519_TYPE).chain(self.seed).collect();
        format!("{SIGNER}{}+{}+{}", self.verifier.name, hash::hex(&self.verifier.id()), STANDARD.encode(seed))
    }

    pub(crate) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// A signed head over this tree. `next` is a key that this one introduces and that signs from now on.
    pub(crate) fn sign(&self, tree: &Tree, next: Option<&Verifier>) -> Head {
        let mut text = format!("{}\n{}\n{}\n", self.verifier.name, tree.size(), STANDARD.encode(tree.root()));
        if let Some(next) = next {
            text.push_str(&format!("{NEXT_KEY}{next}\n"));
        }
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(text.as_bytes()).as_ref());
        let next = next.cloned();
        let signatures = vec![NoteSignature { name: self.verifier.name.clone(), id: self.verifier.id(), signature }];
        Head { size: tree.size(), root: tree.root(), next, text, signatures }
    }
}

impl fmt::Debug for Signer {
    /// Hides the private half.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct NoteSignature {
    name: String,
    id: [u8; 4],
    signature: [u8; 64],
}

/// A signed statement of the log's size and root hash (C2SP `tlog-checkpoint`). Its `Display` is the note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of records that it covers.
    pub size: u64,
    /// The root hash of the tree over them.
    pub root: Hash,
    /// The key that signs from now on, if this head introduces one.
    pub next: Option<Verifier>,
    text: String,
    signatures: Vec<NoteSignature>,
}

impl Head {
    /// Parses a note; returns `None` if it is not a head. Does not check any signature.
    #[must_use]
    pub fn parse(note: &str) -> Option<Self> {
        let (body, signatures) = note.split_once("\n\n")?;
        let text = format!("{body}\n");
        let mut lines = body.lines();
        let (_origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
        let digits = size == "0" || (!size.starts_with('0') && size.bytes().all(|b| b.is_ascii_digit()));
        let next = lines.find_map(|line| line.strip_prefix(NEXT_KEY)).map(Verifier::parse);
        let signatures: Vec<_> = signatures.lines().map(signature).collect::<Option<_>>()?;
        Some(Self {
            size: size.parse().ok().filter(|_| digits)?,
            root: STANDARD.decode(root).ok()?.try_into().ok()?,
            next: match next {
                Some(key) => Some(key?),
                None => None,
            },
            text,
            signatures,
        })
    }

    /// The log's name.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    /// Whether this key signed it.
    #[must_use]
    pub fn is_signed_by(&self, key: &Verifier) -> bool {
        let own = |one: &&NoteSignature| one.id == key.id() && one.name == key.name;
        self.origin() == key.name
            && self.signatures.iter().filter(own).any(|one| key.has_signed(&self.text, &one.signature))
    }
}

fn signature(line: &str) -> Option<NoteSignature> {
    let (name, bytes) = line.strip_prefix(SIGNED_BY)?.split_once(' ')?;
    let bytes: [u8; 68] = STANDARD.decode(bytes).ok()?.try_into().ok()?;
    let (id, signature) = bytes.split_first_chunk::<4>()?;
    Some(NoteSignature { name: name.to_owned(), id: *id, signature: signature.try_into().ok()? })
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|one| {
            let bytes: Vec<u8> = one.id.iter().chain(&one.signature).copied().collect();
            writeln!(f, "{SIGNED_BY}{} {}", one.name, STANDARD.encode(bytes))
        })
    }
}

/// Parses a file of several consecutive heads, each ending with its signatures.
#[must_use]
pub fn heads(text: &str) -> Option<Vec<Head>> {
    let mut all = Vec::new();
    let mut note = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        note.push_str(line);
        note.push('\n');
        let ends = line.starts_with(SIGNED_BY) && lines.peek().is_none_or(|next| !next.starts_with(SIGNED_BY));
        if ends {
            all.push(Head::parse(&std::mem::take(&mut note))?);
        }
    }
    note.is_empty().then_some(all)
}

/// What the files `head` and `closed` hold: a head after the introductions of its key.
#[derive(Debug)]
pub(crate) struct IntroducedHead {
    pub(crate) introductions: Vec<Head>,
    /// `None` if the file is damaged.
    pub(crate) head: Option<Head>,
}

impl IntroducedHead {
    /// Parses what [`IntroducedHead::render`] wrote.
    pub(crate) fn parse(text: &str) -> Self {
        let mut introductions = heads(text).unwrap_or_default();
        let head = introductions.pop();
        Self { introductions, head }
    }

    /// The text of such a file. `introductions` is text in the format of the file `keys`.
    pub(crate) fn render(introductions: &str, head: &Head) -> String {
        format!("{introductions}{head}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::segment::tree::leaf;

    fn signer(seed: u8) -> Signer {
        Signer::new("makegate/0011aabb", [seed; 32]).unwrap()
    }

    fn tree(size: u8) -> Tree {
        let mut tree = Tree::default();
        (0..size).for_each(|n| tree.push(leaf(&[n])));
        tree
    }

    #[test]
    fn keys_read_back_what_they_wrote() {
        let signer = signer(7);
        let verifier = signer.verifier().clone();
        assert_eq!(Verifier::parse(&verifier.to_string()), Some(verifier.clone()));
        assert_eq!(Signer::parse(&signer.to_secret()).unwrap().verifier(), &verifier);
        assert_eq!(Verifier::parse(&verifier.to_string().replace("0011", "0012")), None, "the id covers the name");
    }

    /// The example of C2SP's signed-note, which Go's `sumdb/note` made.
    #[test]
    fn known_key_and_signature() {
        let key = Verifier::parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").unwrap();
        let text =
            "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        let line = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=";
        let signature = signature(line).unwrap();
        assert_eq!(signature.id, key.id());
        assert!(key.has_signed(text, &signature.signature));
        assert!(!key.has_signed(&text.replace('t', "T"), &signature.signature));
    }

    #[test]
    fn heads_read_back_what_they_wrote() {
        let (old, new) = (signer(1), signer(2));
        let first = old.sign(&tree(5), Some(new.verifier()));
        let second = new.sign(&tree(6), None);
        assert_eq!(Head::parse(&first.to_string()), Some(first.clone()));
        assert_eq!(heads(&format!("{first}{second}")), Some(vec![first.clone(), second.clone()]));
        assert_eq!(first.next.as_ref(), Some(new.verifier()));
        assert!(first.is_signed_by(old.verifier()) && !first.is_signed_by(new.verifier()));
        assert!(second.is_signed_by(new.verifier()) && !second.is_signed_by(old.verifier()));
    }

    #[test]
    fn no_bit_of_a_head_can_be_changed() {
        let signer = signer(3);
        let note = signer.sign(&tree(9), None).to_string().into_bytes();
        for bit in 0..note.len() * 8 {
            let mut other = note.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            let head = String::from_utf8(other).ok().and_then(|note| Head::parse(&note));
            assert!(!head.is_some_and(|head| head.is_signed_by(signer.verifier())), "bit {bit}");
        }
    }
}
