//! The Merkle tree over all records (RFC 9162, section 2.1), kept as its frontier: the roots of its perfect subtrees.

use crate::hash;

/// Hash of a node or leaf.
pub type Hash = [u8; 32];

/// The leaf hash of a record's line (without its newline): SHA-256(0x00 ‖ line).
#[must_use]
pub fn leaf(line: &[u8]) -> Hash {
    hash::sha256_parts(&[&[0], line])
}

pub(crate) fn node(left: &Hash, right: &Hash) -> Hash {
    hash::sha256_parts(&[&[1], left, right])
}

/// A tree of `size` leaves: one hash for every bit set in the size, largest subtree first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    frontier: Vec<Hash>,
}

impl Tree {
    /// Rebuilds the tree that a segment's first record describes. Returns `None` if the number of hashes does not fit
    /// the size.
    #[must_use]
    pub fn from_parts(size: u64, frontier: Vec<Hash>) -> Option<Self> {
        let subtrees = usize::try_from(size.count_ones()).ok()?;
        (frontier.len() == subtrees).then_some(Self { size, frontier })
    }

    /// A tree of `size` leaves that can no longer be read; each counts as an empty line.
    #[must_use]
    pub fn of_unreadable(size: u64) -> Self {
        let mut subtrees = Vec::new();
        let mut subtree = leaf(b"");
        for bit in 0..u64::BITS - size.leading_zeros() {
            if size >> bit & 1 == 1 {
                subtrees.push(subtree);
            }
            subtree = node(&subtree, &subtree);
        }
        subtrees.reverse();
        Self { size, frontier: subtrees }
    }

    /// Number of leaves.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The roots of the perfect subtrees, largest first.
    #[must_use]
    pub fn frontier(&self) -> &[Hash] {
        &self.frontier
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut subtree = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.frontier.pop() {
                subtree = node(&left, &subtree);
            }
        }
        self.frontier.push(subtree);
        self.size += 1;
    }

    /// The root hash (for no leaves, SHA-256 of the empty string).
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut subtrees = self.frontier.iter().rev();
        let Some(smallest) = subtrees.next() else { return hash::sha256(b"") };
        subtrees.fold(*smallest, |right, left| node(left, &right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9162, section 2.1.1, taken literally.
    fn naive_root(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [] => hash::sha256(b""),
            [one] => leaf(one),
            many => {
                let split = many.len().next_power_of_two() / 2;
                node(&naive_root(&many[..split]), &naive_root(&many[split..]))
            }
        }
    }

    #[test]
    fn frontier_has_the_root_of_the_rfc_for_every_size() {
        let leaves: Vec<Vec<u8>> = (0..200_u32).map(|n| format!("record {n}").into_bytes()).collect();
        let mut tree = Tree::default();
        for size in 0..=leaves.len() {
            assert_eq!(tree.root(), naive_root(&leaves[..size]), "{size} leaves");
            assert_eq!(Tree::from_parts(tree.size(), tree.frontier().to_vec()), Some(tree.clone()));
            if let Some(next) = leaves.get(size) {
                tree.push(leaf(next));
            }
        }
    }

    #[test]
    fn unreadable_leaves_count_as_empty_lines() {
        let mut tree = Tree::default();
        for size in 0..70 {
            assert_eq!(Tree::of_unreadable(size), tree);
            tree.push(leaf(b""));
        }
    }

    #[test]
    fn known_answer() {
        // RFC 9162's hashes of the empty tree and of a single empty leaf.
        assert_eq!(
            hash::hex(&Tree::default().root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(hash::hex(&leaf(b"")), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
    }
}
