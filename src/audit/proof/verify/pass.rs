//! The pass over the segments: every line in the order of the records, the tree that they make, and where it must be what
//! somebody said before: at each segment's first record, and at each signed head.

#![expect(clippy::disallowed_methods, reason = "only commands verify")]

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use jiff::Timestamp;

use super::super::super::disk;
use super::super::super::events::HEAD_MISMATCH;
use super::super::super::open_writes::OpenWrites;
use super::super::super::recover::{self, LineReader};
use super::super::super::retention::{self, SeqRange};
use super::super::super::segment::{self, SegmentOpening};
use super::super::super::stored_record::StoredRecord;
use super::super::super::tree::{self, Hash, Tree};
use super::super::leaves::StoredLeaves;
use super::trust::{ClaimedHead, TrustChain};
use super::{VerifyFindings, writes};
use crate::private_files;

/// How often progress is told, in bytes.
const TELL_BYTES: u64 = 4 << 20;
/// Records that are told one by one when the tree does not fit; more are summed up.
const SUSPECTS_MAX: usize = 1000;

/// What the pass found beside problems.
#[derive(Debug, Default)]
pub(super) struct PassSummary {
    pub(super) records: u64,
    pub(super) oldest: u64,
    pub(super) proven: u64,
    pub(super) proven_time: Option<Timestamp>,
    pub(super) heads: usize,
    pub(super) in_doubt: usize,
    pub(super) under_way: usize,
    /// A segment went while the log was read, and nothing that was read says why.
    pub(super) has_changed: bool,
}

/// The pass.
pub(super) struct SegmentPass<'a> {
    dir: &'a Path,
    findings: &'a mut VerifyFindings,
    /// Heads to come, the smallest first.
    heads: VecDeque<ClaimedHead>,
    /// The log was closed: nothing can be missing because it was copied while somebody wrote.
    is_closed: bool,
    /// The tree that the lines make.
    tree: Tree,
    /// The tree that the leaf hashes beside the segments make, from the first that is not its line's.
    by_leaves: Option<Tree>,
    /// Records whose line is not what its leaf hash says, since the last head that fitted.
    suspects: Vec<(u64, String)>,
    /// The first record since the last opening, and the last head, that fitted.
    since: (u64, u64),
    /// A head did not fit: neither will those after it.
    is_refuted: bool,
    open: OpenWrites,
    /// Whole segments that are not there.
    gaps: Vec<SeqRange>,
    /// A segment was there when the folder was listed, and then was not.
    has_vanished: bool,
    /// Records that an event of the retention says to be deleted, or to be deleted soon.
    deleted: Vec<SeqRange>,
    /// Records are missing, or cannot be read: what they said of writes is not known.
    is_torn: bool,
    time: Option<Timestamp>,
    passed: PassSummary,
}

/// Lines in a row that are no record.
#[derive(Debug)]
struct BadLines {
    offset: u64,
    count: u64,
    /// A line that was being written when the machine stopped: without its end, or with holes.
    is_torn: bool,
}

/// One segment while it is read.
struct SegmentReading {
    first: u64,
    /// Where the next one begins.
    end: Option<u64>,
    file: String,
    leaves: StoredLeaves,
    bad: Option<BadLines>,
    void: u64,
}

impl<'a> SegmentPass<'a> {
    pub(super) fn new(dir: &'a Path, trust: TrustChain, findings: &'a mut VerifyFindings) -> Self {
        let mut pass = Self {
            dir,
            findings,
            heads: trust.heads.into(),
            is_closed: trust.is_closed,
            tree: Tree::default(),
            by_leaves: None,
            suspects: Vec::new(),
            since: (1, 1),
            is_refuted: false,
            open: OpenWrites::default(),
            gaps: Vec::new(),
            has_vanished: false,
            deleted: Vec::new(),
            is_torn: false,
            time: None,
            passed: PassSummary::default(),
        };
        pass.compare_heads(); // those of the empty log
        pass
    }

    /// The number that comes next.
    pub(super) const fn next(&self) -> u64 {
        self.tree.size() + 1
    }

    /// Reads the segments before this one that the list of the folder lacks: those that are made while it is listed need not be in
    /// it, though later ones are.
    pub(super) fn unlisted(&mut self, first: u64, read: &mut dyn FnMut(u64)) -> io::Result<()> {
        while self.passed.oldest > 0 && self.next() < first && segment::path(self.dir, self.next()).is_file() {
            let before = self.next();
            self.segment(before, Some(first), read)?;
            if self.next() == before {
                break;
            }
        }
        Ok(())
    }

    /// Reads one segment up to `end`, where the next one begins.
    pub(super) fn segment(&mut self, first: u64, end: Option<u64>, read: &mut dyn FnMut(u64)) -> io::Result<()> {
        let path = segment::path(self.dir, first);
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The leaf hashes first: a running gateway writes them after the lines, so that every one has its line.
        let leaves = StoredLeaves::load(self.dir, first)?;
        disk::about_to_read();
        let lines = match private_files::open_to_read(&path) {
            Ok(file) => LineReader::new(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.has_vanished = true;
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.findings.problem("unreadable", Some(&file), Some(first), error.to_string());
                self.is_torn = true;
                return Ok(());
            }
            Err(error) => return Err(io::Error::new(error.kind(), format!("{file}: {error}"))),
        };
        let mut segment = SegmentReading { first, end, file, leaves, bad: None, void: 0 };
        self.lines(&mut segment, lines, read)?;
        self.end_segment(segment);
        Ok(())
    }

    fn lines(
        &mut self,
        segment: &mut SegmentReading,
        mut lines: LineReader,
        read: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        let (mut is_first, mut told) = (true, 0);
        while let Some(place) = lines.next()? {
            let line = lines.text();
            if std::mem::take(&mut is_first) {
                self.opening(segment, line);
            }
            match StoredRecord::parse(line).filter(|seen| place.complete && !recover::is_far(seen.seq, self.next())) {
                Some(seen) => self.record(segment, &seen, line),
                None => {
                    let is_torn = !place.complete || line.contains(&0);
                    let bad = segment.bad.get_or_insert(BadLines { offset: place.offset, count: 0, is_torn });
                    bad.count += 1;
                    bad.is_torn |= is_torn;
                }
            }
            if place.offset - told >= TELL_BYTES {
                read(place.offset - told);
                told = place.offset;
            }
        }
        Ok(())
    }

    /// What a segment's first record says must be what the records before it are.
    fn opening(&mut self, segment: &SegmentReading, line: &[u8]) {
        let opening = SegmentOpening::parse(line, segment.first).ok();
        let is_gap = self.next() < segment.first;
        if is_gap {
            self.gaps.push((self.next(), segment.first - 1));
        }
        let Some(opening) = opening else {
            if is_gap {
                self.jump(Tree::of_unreadable(segment.first - 1), OpenWrites::default());
            }
            // A line that is no record at all is told by who reads the lines.
            if StoredRecord::parse(line).is_some_and(|seen| seen.seq == segment.first) {
                let words = format!("record {} is not the opening that a segment begins with", segment.first);
                self.findings.problem("altered", Some(&segment.file), Some(segment.first), words);
            }
            return;
        };
        if is_gap {
            self.jump(opening.tree, opening.open);
        } else if self.next() == segment.first {
            self.compare_opening(segment, opening, tree::leaf(line));
        }
    }

    /// The records before this are gone with their segments: what the opening says of them counts. A later head proves it.
    fn jump(&mut self, tree: Tree, open: OpenWrites) {
        (self.tree, self.open) = (tree, open);
        self.by_leaves = None;
        self.since.0 = self.next();
        let mut skipped: Vec<u64> = Vec::new();
        while let Some(claimed) = self.heads.pop_front_if(|claimed| claimed.head.size < self.tree.size()) {
            skipped.push(claimed.head.size);
        }
        if let Some(newest) = skipped.last() {
            let words = "cannot be compared any more: records that they cover are past the retention";
            self.findings.note(format!("{} heads of up to {newest} records {words}", skipped.len()));
        }
        self.compare_heads();
    }

    fn compare_opening(&mut self, segment: &SegmentReading, opening: SegmentOpening, own: Hash) {
        let root = opening.tree.root();
        let fits = self.tree.root() == root;
        if !fits && !self.admit(root) {
            if segment.leaves.get(segment.first).is_some_and(|leaf| leaf != own) {
                return; // it is the opening that was altered, and is told so as any record
            }
            let (from, to) = (self.since.0, segment.first - 1);
            let words = format!(
                "of the records {from} to {to} at least one is not what it was when record {} was written",
                segment.first
            );
            self.findings.problem("altered", Some(&segment.file), Some(from), words);
            (self.tree, self.by_leaves) = (opening.tree, None);
            self.suspects.clear();
        }
        self.since.0 = segment.first;
        if fits && !self.is_torn && opening.open != self.open {
            let words =
                format!("the open writes that record {} names are not those of the records before", segment.first);
            self.findings.problem("altered", Some(&segment.file), Some(segment.first), words);
        }
        self.open = opening.open;
    }

    /// One line that is a record.
    fn record(&mut self, segment: &mut SegmentReading, seen: &StoredRecord<'_>, line: &[u8]) {
        if segment.end.is_some_and(|end| seen.seq >= end) {
            segment.void += 1;
            return;
        }
        let leaf = tree::leaf(line);
        let next = self.next();
        let stored = segment.leaves.get(seen.seq);
        let is_renumbered = seen.seq != next && stored.is_some_and(|stored| stored != leaf);
        if is_renumbered {
            self.told(segment, "altered", next, format!("record {next} was altered: it says that it is {}", seen.seq));
        } else if seen.seq < next {
            self.told(
                segment,
                "misplaced",
                seen.seq,
                format!("record {} stands here again, after record {}", seen.seq, next - 1),
            );
            return;
        } else if seen.seq > next {
            self.missing(segment, seen.seq - 1);
        } else if let Some(bad) = segment.bad.take() {
            let words = format!("{} lines before record {next}, at byte {}, are no records", bad.count, bad.offset);
            self.told(segment, "unreadable", next, words);
        }
        let at = self.next();
        if !is_renumbered && segment.leaves.get(at).is_some_and(|stored| stored != leaf) {
            self.suspect(at, &segment.file);
        }
        self.look(segment, seen);
        self.push(leaf, segment.leaves.get(at));
    }

    /// What the record says beside its hash.
    fn look(&mut self, segment: &SegmentReading, seen: &StoredRecord<'_>) {
        self.time = Some(seen.time);
        if self.passed.oldest == 0 {
            self.passed.oldest = seen.seq;
        }
        if let Some(wrong) = writes::apply(&mut self.open, seen).filter(|_| !self.is_torn) {
            self.told(segment, "write", seen.seq, format!("record {} is {wrong}", seen.seq));
        }
        self.deleted.extend(retention::gone(seen));
        if seen.event.as_deref() == Some(HEAD_MISMATCH) {
            let words = format!("record {} says that a start found the log altered", seen.seq);
            self.told(segment, "event", seen.seq, words);
        }
    }

    fn told(&mut self, segment: &SegmentReading, what: &'static str, seq: u64, words: String) {
        self.findings.problem(what, Some(&segment.file), Some(seq), words);
    }

    /// The line is not what its leaf hash says: one of the two was altered, and what fits later says which.
    fn suspect(&mut self, seq: u64, file: &str) {
        if self.by_leaves.is_none() {
            self.by_leaves = Some(self.tree.clone());
        }
        if self.suspects.len() < SUSPECTS_MAX {
            self.suspects.push((seq, file.to_owned()));
        }
    }

    /// The records up to `last` are not here.
    fn missing(&mut self, segment: &mut SegmentReading, last: u64) {
        let next = self.next();
        let range = if next == last { format!("record {next}") } else { format!("the records {next} to {last}") };
        match segment.bad.take() {
            Some(bad) => {
                let words = format!("{range} cannot be read, at byte {}", bad.offset);
                self.told(segment, "unreadable", next, words);
            }
            None => self.told(segment, "missing", next, format!("{range}: missing")),
        }
        self.is_torn = true;
        if self.by_leaves.is_none() {
            self.by_leaves = Some(self.tree.clone());
        }
        for seq in next..=last {
            self.push(tree::leaf(b""), segment.leaves.get(seq));
        }
    }

    fn push(&mut self, leaf: Hash, stored: Option<Hash>) {
        self.tree.push(leaf);
        if let Some(by_leaves) = &mut self.by_leaves {
            by_leaves.push(stored.unwrap_or(leaf));
        }
        self.compare_heads();
    }

    /// Compares the tree with the heads of its size.
    fn compare_heads(&mut self) {
        while let Some(claimed) = self.heads.pop_front_if(|claimed| claimed.head.size == self.tree.size()) {
            let (size, root) = (claimed.head.size, claimed.head.root);
            if self.tree.root() == root {
                self.leaves_are_wrong();
                self.passed.heads += 1;
                (self.passed.proven, self.passed.proven_time) = (size, self.time);
                self.since = (size + 1, size + 1);
            } else if !self.admit(root) && !self.is_refuted {
                self.is_refuted = true;
                let from = self.since.1;
                let words = format!("of the records {from} to {size} at least one is not what this head covers");
                self.findings.problem("head", Some(&claimed.name), Some(from), words);
            }
        }
    }

    /// The leaf hashes lead to this root, which the lines do not: then the lines were altered, and it is known which.
    fn admit(&mut self, root: Hash) -> bool {
        let Some(by_leaves) = self.by_leaves.take_if(|tree| tree.root() == root) else { return false };
        self.tree = by_leaves;
        self.tell_suspects();
        true
    }

    fn tell_suspects(&mut self) {
        for (seq, file) in std::mem::take(&mut self.suspects) {
            self.findings.problem("altered", Some(&file), Some(seq), format!("record {seq} is not what was recorded"));
        }
    }

    /// A head says that the lines are right: then their leaf hashes are not.
    fn leaves_are_wrong(&mut self) {
        self.by_leaves = None;
        if let Some((seq, file)) = std::mem::take(&mut self.suspects).into_iter().next() {
            let words =
                "beside its segment is not that of its line, which a signed head proves: leaf hashes are derived";
            self.findings.note(format!("{file}: the leaf hash of record {seq} {words}"));
        }
    }

    /// What stands at the end of a segment, or should.
    fn end_segment(&mut self, mut segment: SegmentReading) {
        if segment.void > 0 {
            let SegmentReading { file, void, .. } = &segment;
            self.findings.note(format!("{file}: its last {void} lines are void: their numbers were given again"));
        }
        // The leaf hashes of a log that was written to may have been copied after its records.
        let counts = self.is_closed || segment.end.is_some();
        let last = segment.leaves.last().filter(|_| counts).unwrap_or(0);
        let last = last.min(segment.end.map_or(u64::MAX, |end| end - 1));
        let is_short = last >= self.next();
        let bad_ends = segment.bad.as_ref().map(|bad| (bad.is_torn, self.next() + bad.count - 1));
        match (bad_ends, segment.end) {
            (Some((_, bad)), Some(end)) if self.next() < end => self.missing(&mut segment, bad.max(last).min(end - 1)),
            (Some((false, bad)), None) => self.missing(&mut segment, bad.max(last)),
            (Some((true, _)), None) if !is_short => self.note_torn(&segment),
            (Some(_), Some(_)) => self.note_torn(&segment),
            (Some(_), None) | (None, _) if is_short => self.missing(&mut segment, last),
            (Some(_), None) | (None, _) => {}
        }
    }

    fn note_torn(&mut self, segment: &SegmentReading) {
        let offset = segment.bad.as_ref().map_or(0, |bad| bad.offset);
        let words = "it ends in what is not a record yet, or never became one: it was acknowledged to nobody";
        self.findings.note(format!("{}: from byte {offset} on {words}", segment.file));
    }

    /// After the last segment.
    pub(super) fn finish(mut self) -> PassSummary {
        self.tell_suspects();
        let mut has_changed = false;
        for (first, last) in std::mem::take(&mut self.gaps) {
            if !self.deleted.iter().any(|(begin, end)| *begin <= first && last <= *end) {
                let words = format!(
                    "the records {first} to {last} are missing, and no event says that the retention took them"
                );
                self.findings.problem("missing", None, Some(first), words);
                has_changed = self.has_vanished;
            }
        }
        let records = self.tree.size();
        self.end_of_heads(records);
        let in_doubt = self.open.list().into_iter().filter(|write| write.in_doubt).count();
        let under_way = self.open.list().len() - in_doubt;
        PassSummary { records, in_doubt, under_way, has_changed, ..self.passed }
    }

    /// Heads that cover more records than there are.
    fn end_of_heads(&mut self, records: u64) {
        let from = records + 1;
        let is_cut = |claimed: &&ClaimedHead| self.is_closed || !claimed.is_own;
        if let Some(claimed) = self.heads.iter().rfind(is_cut) {
            let to = claimed.head.size;
            let words =
                format!("the records {from} to {to}, which this head covers, are missing: the log's tail was cut off");
            self.findings.problem("cut", Some(&claimed.name), Some(from), words);
        } else if let Some(claimed) = self.heads.back() {
            let (name, to) = (&claimed.name, claimed.head.size);
            self.findings.note(format!(
                "{name}: the records {from} to {to}, which this head covers, are not here: makegate had not closed the log when \
                 it was copied, or killed; if records were cut off, only a head that was exported tells"
            ));
        }
    }
}
