//! Proofs (RFC 9162, sections 2.1.3 and 2.1.4) that a record is in a head's tree, and that one head's tree grew into
//! another's. Segments store the tree before them, so a proof reads the leaves of only a few segments, whatever the
//! log's size, and what retention deleted stays provable as a whole.

use std::io;
use std::path::Path;

use super::leaves;
use crate::audit::recover::read_opening;
use crate::audit::segment;
use crate::audit::segment::tree::{Hash, Tree, node};

/// Leaves from `begin` up to, but not including, `end`, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeafRange {
    begin: u64,
    end: u64,
}

/// The largest power of two below the number of leaves, where RFC 9162 splits.
fn split(span: LeafRange) -> u64 {
    let leaves = span.end - span.begin;
    span.begin + (1 << (u64::BITS - 1 - (leaves - 1).leading_zeros()))
}

/// The subtrees whose roots prove that leaf `index` is in a tree of `size`, in the order of the RFC's `PATH`.
pub(crate) fn inclusion(index: u64, size: u64) -> Vec<LeafRange> {
    let mut whole = LeafRange { begin: 0, end: size };
    let mut spans = Vec::new();
    while whole.end - whole.begin > 1 {
        let middle = split(whole);
        let (left, right) = (LeafRange { end: middle, ..whole }, LeafRange { begin: middle, ..whole });
        let (inside, beside) = if index < middle { (left, right) } else { (right, left) };
        spans.push(beside);
        whole = inside;
    }
    spans.reverse();
    spans
}

/// The subtrees whose roots prove that the tree of `from` leaves grew into that of `to`, in the order of the RFC's
/// `PROOF`.
pub(crate) fn consistency(from: u64, to: u64) -> Vec<LeafRange> {
    let mut whole = LeafRange { begin: 0, end: to };
    let mut spans = Vec::new();
    let mut is_known = true;
    while whole.end != from {
        let middle = split(whole);
        let (left, right) = (LeafRange { end: middle, ..whole }, LeafRange { begin: middle, ..whole });
        if from <= middle {
            spans.push(right);
            whole = left;
        } else {
            spans.push(left);
            whole = right;
            is_known = false;
        }
    }
    if !is_known {
        spans.push(whole);
    }
    spans.reverse();
    spans
}

/// The root that an inclusion proof leads to (RFC 9162, section 2.1.3.2). Returns `None` if the proof has the wrong
/// shape.
pub(crate) fn root_of(leaf: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    let (mut at, mut last) = (index, size.checked_sub(1)?);
    let mut root = leaf;
    for beside in path {
        if last == 0 {
            return None;
        }
        if at % 2 == 1 || at == last {
            root = node(beside, &root);
            while at.is_multiple_of(2) && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            root = node(&root, beside);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    (last == 0).then_some(root)
}

/// Reads subtrees from the log's folder.
pub(crate) struct SubtreeReader<'d> {
    dir: &'d Path,
    /// The segments, each with the tree before it as its opening states it.
    segments: Vec<(u64, Option<Tree>)>,
}

impl<'d> SubtreeReader<'d> {
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn open(dir: &'d Path) -> io::Result<Self> {
        let opening = |first| {
            let opening = read_opening(dir, first).map_err(|error| io::Error::other(error.to_string()))?;
            Ok((first, opening.map(|opening| opening.tree)))
        };
        Ok(Self { dir, segments: segment::list(dir)?.into_iter().map(opening).collect::<io::Result<_>>()? })
    }

    /// The roots of all these subtrees.
    ///
    /// # Errors
    /// A segment is gone or cannot be read.
    pub(crate) fn roots(&self, spans: &[LeafRange]) -> io::Result<Vec<Hash>> {
        spans.iter().map(|span| self.root(*span)).collect()
    }

    /// Starts from what a segment's opening states about the span's earlier leaves, and adds the leaves from there
    /// on.
    fn root(&self, span: LeafRange) -> io::Result<Hash> {
        let trees = self.segments.iter().rev().filter_map(|(_, tree)| tree.as_ref());
        let known = trees.filter_map(|tree| part(tree, span)).max_by_key(Tree::size);
        let mut tree = known.unwrap_or_default();
        let mut at = span.begin + tree.size();
        while at < span.end {
            let after = self.segments.partition_point(|(first, _)| *first <= at + 1);
            let own = after.checked_sub(1).and_then(|own| self.segments.get(own));
            let (first, _) = own.ok_or(io::ErrorKind::NotFound)?;
            let end = self.segments.get(after).map_or(span.end, |(next, _)| span.end.min(*next - 1));
            leaves::read(self.dir, *first, at + 1, end - at)?.into_iter().for_each(|leaf| tree.push(leaf));
            at = end;
        }
        Ok(tree.root())
    }
}

/// The tree over the span's leaves, if it consists of perfect subtrees of `whole`.
fn part(whole: &Tree, span: LeafRange) -> Option<Tree> {
    let end = span.end.min(whole.size());
    let (mut at, mut subtrees) = (0_u64, Vec::new());
    for (bit, subtree) in (0..u64::BITS).rev().filter(|bit| whole.size() >> bit & 1 == 1).zip(whole.frontier()) {
        let next = at + (1 << bit);
        if at >= span.begin && next <= end {
            subtrees.push(*subtree);
        } else if at < end && next > span.begin {
            return None;
        }
        at = next;
    }
    Tree::from_parts(end.checked_sub(span.begin)?, subtrees)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::segment::tree::leaf;

    fn root(leaves: &[Hash]) -> Hash {
        let mut tree = Tree::default();
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        tree.root()
    }

    fn within(leaves: &[Hash], begin: u64, end: u64) -> &[Hash] {
        &leaves[usize::try_from(begin).unwrap()..usize::try_from(end).unwrap()]
    }

    fn roots(leaves: &[Hash], spans: &[LeafRange]) -> Vec<Hash> {
        spans.iter().map(|span| root(within(leaves, span.begin, span.end))).collect()
    }

    /// RFC 9162, section 2.1.4.2, taken literally.
    fn grew(from: u64, to: u64, first: Hash, second: Hash, path: &[Hash]) -> bool {
        if from == to {
            return path.is_empty() && first == second;
        }
        let mut path: Vec<Hash> = path.to_vec();
        if from.is_power_of_two() {
            path.insert(0, first);
        }
        let (mut at, mut last) = (from - 1, to - 1);
        while at % 2 == 1 {
            (at, last) = (at >> 1, last >> 1);
        }
        let Some((seed, rest)) = path.split_first() else { return false };
        let (mut old, mut new) = (*seed, *seed);
        for beside in rest {
            if last == 0 {
                return false;
            }
            if at % 2 == 1 || at == last {
                (old, new) = (node(beside, &old), node(beside, &new));
                while at % 2 == 0 && at != 0 {
                    (at, last) = (at >> 1, last >> 1);
                }
            } else {
                new = node(&new, beside);
            }
            (at, last) = (at >> 1, last >> 1);
        }
        old == first && new == second && last == 0
    }

    #[test]
    fn every_leaf_of_every_tree_is_proven_and_no_other() {
        let leaves: Vec<Hash> = (0..70_u8).map(|n| leaf(&[n])).collect();
        for size in 1..=leaves.len() {
            let whole = root(&leaves[..size]);
            for index in 0..size {
                let path = roots(&leaves, &inclusion(index as u64, size as u64));
                assert_eq!(root_of(leaves[index], index as u64, size as u64, &path), Some(whole), "{index} of {size}");
                assert_ne!(root_of(leaf(b"x"), index as u64, size as u64, &path), Some(whole));
            }
        }
    }

    #[test]
    fn every_tree_is_proven_to_have_grown() {
        let leaves: Vec<Hash> = (0..70_u8).map(|n| leaf(&[n])).collect();
        for to in 1..=leaves.len() {
            for from in 1..=to {
                let path = roots(&leaves, &consistency(from as u64, to as u64));
                let (first, second) = (root(&leaves[..from]), root(&leaves[..to]));
                assert!(grew(from as u64, to as u64, first, second, &path), "{from} to {to}");
                assert!(from == to || !grew(from as u64, to as u64, leaf(b"x"), second, &path), "{from} to {to}");
            }
        }
    }

    #[test]
    fn a_part_of_a_tree_is_made_of_its_subtrees_or_of_none() {
        let leaves: Vec<Hash> = (0..40_u8).map(|n| leaf(&[n])).collect();
        let mut found = 0;
        for size in 1..=40 {
            let mut whole = Tree::default();
            leaves[..size].iter().for_each(|leaf| whole.push(*leaf));
            let spans = (0..40).flat_map(|index| inclusion(index, 40));
            for span in spans {
                if let Some(part) = part(&whole, span) {
                    let end = span.end.min(size as u64);
                    assert_eq!(part.root(), root(within(&leaves, span.begin, end)), "{span:?} of {size}");
                    found += 1;
                }
            }
        }
        assert!(found > 500, "{found}");
    }
}
