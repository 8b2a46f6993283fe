//! The pass over the segments: reads every line in record order, builds the tree, and compares it with each segment's
//! opening and each signed head.

#![expect(clippy::disallowed_methods, reason = "only commands verify")]

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use jiff::Timestamp;

use super::super::leaves::StoredLeaves;
use super::findings::VerifyFindings;
use super::trust::{ClaimedHead, TrustChain};
use super::writes;
use crate::audit::log::events::HEAD_MISMATCH;
use crate::audit::open_writes::OpenWrites;
use crate::audit::record::Record;
use crate::audit::recover;
use crate::audit::retention::{self, SeqRange};
use crate::audit::segment::line_reader::LineReader;
use crate::audit::segment::tree::{self, Hash, Tree};
use crate::audit::segment::{self, SegmentOpening, disk};
use crate::private_files;

/// How often progress is reported, in bytes.
const PROGRESS_BYTES: u64 = 4 << 20;
/// Maximum number of records reported one by one when the tree does not match; more are summed up.
const SUSPECTS_MAX: usize = 1000;

/// What the pass found besides problems.
#[derive(Debug, Default)]
pub(super) struct PassSummary {
    pub(super) records: u64,
    pub(super) oldest: u64,
    pub(super) proven: u64,
    pub(super) proven_time: Option<Timestamp>,
    pub(super) heads: usize,
    pub(super) in_doubt: usize,
    pub(super) under_way: usize,
    /// A segment disappeared while the log was read, and nothing that was read explains it.
    pub(super) has_changed: bool,
}

pub(super) struct SegmentPass<'a> {
    dir: &'a Path,
    findings: &'a mut VerifyFindings,
    /// Heads not yet compared, smallest first.
    heads: VecDeque<ClaimedHead>,
    /// The log was closed, so missing records cannot be due to copying during writing.
    is_closed: bool,
    /// The tree over the lines.
    tree: Tree,
    /// The tree over the stored leaf hashes, from the first one that does not match its line.
    by_leaves: Option<Tree>,
    /// Records whose line does not match its leaf hash, since the last matching head.
    suspects: Vec<(u64, String)>,
    /// The first record since the last matching opening, and since the last matching head.
    since: (u64, u64),
    /// A head did not match, so later ones will not either.
    is_refuted: bool,
    open: OpenWrites,
    /// Ranges of records whose segments are missing.
    gaps: Vec<SeqRange>,
    /// A segment that was listed was gone when it was read.
    has_vanished: bool,
    /// Records that a retention event announces as deleted or about to be.
    deleted: Vec<SeqRange>,
    /// Records are missing or unreadable, so what they said about writes is unknown.
    is_torn: bool,
    time: Option<Timestamp>,
    passed: PassSummary,
}

/// Consecutive lines that are not records.
#[derive(Debug)]
struct BadLines {
    offset: u64,
    count: u64,
    /// A line that was being written when the machine stopped: it has no end, or has holes.
    is_torn: bool,
}

/// A segment being read.
struct SegmentReading {
    first: u64,
    /// Where the next segment begins.
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

    /// The next sequence number.
    pub(super) const fn next(&self) -> u64 {
        self.tree.size() + 1
    }

    /// Reads the segments before this one that are missing from the listing: one created during the listing may be
    /// missing from it although later ones are not.
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
        // Load the leaf hashes first: a running gateway writes them after the lines, so every hash read has its line.
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
        let (mut is_first, mut reported) = (true, 0);
        while let Some(place) = lines.next()? {
            let line = lines.text();
            if std::mem::take(&mut is_first) {
                self.opening(segment, line);
            }
            match Record::parse(line).filter(|seen| place.complete && !recover::is_far(seen.seq, self.next())) {
                Some(seen) => self.record(segment, &seen, line),
                None => {
                    let is_torn = !place.complete || line.contains(&0);
                    let bad = segment.bad.get_or_insert(BadLines { offset: place.offset, count: 0, is_torn });
                    bad.count += 1;
                    bad.is_torn |= is_torn;
                }
            }
            if place.offset - reported >= PROGRESS_BYTES {
                read(place.offset - reported);
                reported = place.offset;
            }
        }
        Ok(())
    }

    /// Checks that a segment's opening agrees with the records before it.
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
            // A line that is not a record at all is reported by the line reader.
            if Record::parse(line).is_some_and(|seen| seen.seq == segment.first) {
                let words = format!("record {} is not a segment's opening", segment.first);
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

    /// The records before this are gone with their segments, so the opening is taken at its word. A later head proves
    /// it.
    fn jump(&mut self, tree: Tree, open: OpenWrites) {
        (self.tree, self.open) = (tree, open);
        self.by_leaves = None;
        self.since.0 = self.next();
        let mut skipped: Vec<u64> = Vec::new();
        while let Some(claimed) = self.heads.pop_front_if(|claimed| claimed.head.size < self.tree.size()) {
            skipped.push(claimed.head.size);
        }
        if let Some(newest) = skipped.last() {
            let words = "can no longer be compared: they cover records that are past the retention";
            self.findings.note(format!("{} heads of up to {newest} records {words}", skipped.len()));
        }
        self.compare_heads();
    }

    fn compare_opening(&mut self, segment: &SegmentReading, opening: SegmentOpening, own: Hash) {
        let root = opening.tree.root();
        let fits = self.tree.root() == root;
        if !fits && !self.admit(root) {
            if segment.leaves.get(segment.first).is_some_and(|leaf| leaf != own) {
                return; // the opening itself was altered, which is reported like any other record
            }
            let (from, to) = (self.since.0, segment.first - 1);
            let words = format!(
                "at least one of the records {from} to {to} has changed since record {} was written",
                segment.first
            );
            self.findings.problem("altered", Some(&segment.file), Some(from), words);
            (self.tree, self.by_leaves) = (opening.tree, None);
            self.suspects.clear();
        }
        self.since.0 = segment.first;
        if fits && !self.is_torn && opening.open != self.open {
            let words =
                format!("the open writes that record {} lists do not match the records before it", segment.first);
            self.findings.problem("altered", Some(&segment.file), Some(segment.first), words);
        }
        self.open = opening.open;
    }

    /// Handles one line that is a record.
    fn record(&mut self, segment: &mut SegmentReading, seen: &Record<'_>, line: &[u8]) {
        if segment.end.is_some_and(|end| seen.seq >= end) {
            segment.void += 1;
            return;
        }
        let leaf = tree::leaf(line);
        let next = self.next();
        let stored = segment.leaves.get(seen.seq);
        let is_renumbered = seen.seq != next && stored.is_some_and(|stored| stored != leaf);
        if is_renumbered {
            self.problem(segment, "altered", next, format!("record {next} was altered: it claims to be {}", seen.seq));
        } else if seen.seq < next {
            self.problem(
                segment,
                "misplaced",
                seen.seq,
                format!("record {} appears again after record {}", seen.seq, next - 1),
            );
            return;
        } else if seen.seq > next {
            self.missing(segment, seen.seq - 1);
        } else if let Some(bad) = segment.bad.take() {
            let words = format!("{} lines before record {next}, at byte {}, are not records", bad.count, bad.offset);
            self.problem(segment, "unreadable", next, words);
        }
        let at = self.next();
        if !is_renumbered && segment.leaves.get(at).is_some_and(|stored| stored != leaf) {
            self.suspect(at, &segment.file);
        }
        self.check_content(segment, seen);
        self.push(leaf, segment.leaves.get(at));
    }

    /// Checks the record's content.
    fn check_content(&mut self, segment: &SegmentReading, seen: &Record<'_>) {
        self.time = Some(seen.time);
        if self.passed.oldest == 0 {
            self.passed.oldest = seen.seq;
        }
        if let Some(wrong) = writes::apply(&mut self.open, seen).filter(|_| !self.is_torn) {
            self.problem(segment, "write", seen.seq, format!("record {} is {wrong}", seen.seq));
        }
        self.deleted.extend(retention::announced_range(seen));
        if seen.event.as_deref() == Some(HEAD_MISMATCH) {
            let words = format!("record {} says that makegate found the log altered at startup", seen.seq);
            self.problem(segment, "event", seen.seq, words);
        }
    }

    fn problem(&mut self, segment: &SegmentReading, what: &'static str, seq: u64, words: String) {
        self.findings.problem(what, Some(&segment.file), Some(seq), words);
    }

    /// The line does not match its leaf hash, so one of the two was altered; the next match tells which.
    fn suspect(&mut self, seq: u64, file: &str) {
        if self.by_leaves.is_none() {
            self.by_leaves = Some(self.tree.clone());
        }
        if self.suspects.len() < SUSPECTS_MAX {
            self.suspects.push((seq, file.to_owned()));
        }
    }

    /// Handles records up to `last` that are missing here.
    fn missing(&mut self, segment: &mut SegmentReading, last: u64) {
        let next = self.next();
        let range = if next == last { format!("record {next}") } else { format!("records {next} to {last}") };
        match segment.bad.take() {
            Some(bad) => {
                let words = format!("{range} cannot be read, at byte {}", bad.offset);
                self.problem(segment, "unreadable", next, words);
            }
            None => self.problem(segment, "missing", next, format!("{range}: missing")),
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
                let words = format!("at least one of the records {from} to {size} is not what this head covers");
                self.findings.problem("head", Some(&claimed.name), Some(from), words);
            }
        }
    }

    /// If the leaf hashes lead to this root and the lines do not, the lines were altered, and it is known which.
    fn admit(&mut self, root: Hash) -> bool {
        let Some(by_leaves) = self.by_leaves.take_if(|tree| tree.root() == root) else { return false };
        self.tree = by_leaves;
        self.report_suspects();
        true
    }

    fn report_suspects(&mut self) {
        for (seq, file) in std::mem::take(&mut self.suspects) {
            self.findings.problem("altered", Some(&file), Some(seq), format!("record {seq} is not what was recorded"));
        }
    }

    /// A head proves the lines right, so the leaf hashes are wrong.
    fn leaves_are_wrong(&mut self) {
        self.by_leaves = None;
        if let Some((seq, file)) = std::mem::take(&mut self.suspects).into_iter().next() {
            let words =
                "does not match its line, but a signed head proves the line right (leaf hashes are only derived)";
            self.findings.note(format!("{file}: the leaf hash of record {seq} {words}"));
        }
    }

    /// Handles what is at the end of a segment, or is missing there.
    fn end_segment(&mut self, mut segment: SegmentReading) {
        if segment.void > 0 {
            let SegmentReading { file, void, .. } = &segment;
            self.findings
                .note(format!("{file}: its last {void} lines are void, because their numbers were reassigned"));
        }
        // If the log was being written, its leaf hashes may have been copied after its records.
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
        let words = "there is no complete record; it was never acknowledged";
        self.findings.note(format!("{}: from byte {offset} on {words}", segment.file));
    }

    /// Finishes after the last segment.
    pub(super) fn finish(mut self) -> PassSummary {
        self.report_suspects();
        let mut has_changed = false;
        for (first, last) in std::mem::take(&mut self.gaps) {
            if !self.deleted.iter().any(|(begin, end)| *begin <= first && last <= *end) {
                let words =
                    format!("records {first} to {last} are missing, and no event says that retention deleted them");
                self.findings.problem("missing", None, Some(first), words);
                has_changed = self.has_vanished;
            }
        }
        let records = self.tree.size();
        self.end_of_heads(records);
        let (in_doubt, under_way) = (self.open.in_doubt(), self.open.under_way());
        PassSummary { records, in_doubt, under_way, has_changed, ..self.passed }
    }

    /// Checks the heads that cover more records than there are.
    fn end_of_heads(&mut self, records: u64) {
        let from = records + 1;
        let is_cut = |claimed: &&ClaimedHead| self.is_closed || !claimed.is_own;
        if let Some(claimed) = self.heads.iter().rfind(is_cut) {
            let to = claimed.head.size;
            let words =
                format!("records {from} to {to}, which this head covers, are missing: the log's tail was cut off");
            self.findings.problem("cut", Some(&claimed.name), Some(from), words);
        } else if let Some(claimed) = self.heads.back() {
            let (name, to) = (&claimed.name, claimed.head.size);
            self.findings.note(format!(
                "{name}: records {from} to {to}, which this head covers, are not here: makegate had not closed the log when \
                 it was copied, or was killed; only an exported head can tell whether records were cut off"
            ));
        }
    }
}
