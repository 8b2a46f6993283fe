//! Recovers what an earlier run left: where the log continues, what is damaged, and which writes have no outcome.
//!
//! The newest segment with a readable opening tells everything about all earlier ones. That segment and the ones
//! after it are read completely. A torn tail of the last segment (bytes that end in no record, with no record after
//! them) was acknowledged to nobody and is cut off. Damage with records after it is left as it is and never written
//! to again. The log then continues in a new segment after the last readable number, and each unreadable record
//! counts in the tree as an empty line.

#![expect(clippy::disallowed_methods, reason = "at startup, and by the thread `audit-writer`")]

pub(super) mod key_ends;

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::audit::open_writes::OpenWrites;
use crate::audit::open_writes::doubts::Doubt;
use crate::audit::proof::heads;
use crate::audit::record::Record;
use crate::audit::retention::state::RetentionState;
use crate::audit::segment::disk::{OpenError, with_context};
use crate::audit::segment::line_reader::LineReader;
use crate::audit::segment::tree::{self, Hash, Tree};
use crate::audit::segment::{self, BadOpening, SegmentOpening};
use crate::private_files;

/// Maximum number of records missing in one place. A sequence number further ahead is itself taken as damage.
const MISSING_MAX: u64 = 10_000_000;

/// The event recorded when the log is closed cleanly.
pub(crate) const STOP: &str = "stop";

/// What was found at startup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The writes in doubt, oldest first.
    pub doubts: Vec<Doubt>,
    /// Those that the previous run left under way.
    pub new_doubts: Vec<Doubt>,
    /// Number of bytes cut off as a torn tail.
    pub cut_bytes: u64,
    /// Segments that are damaged in the middle and left as they are.
    pub quarantined: Vec<PathBuf>,
    /// Number of unreadable records in these segments.
    pub missing: u64,
    /// Whether the previous run ended cleanly, or there was none.
    pub clean: bool,
    /// Number of records ever in the log.
    pub records: u64,
}

/// Where the writer continues.
#[derive(Debug, Default)]
pub(crate) struct ResumePoint {
    /// The tree over all records.
    pub(crate) tree: Tree,
    /// The writes that are open.
    pub(crate) open: OpenWrites,
    /// What retention needs to know after a restart.
    pub(crate) kept: RetentionState,
    /// The last segment and its opening, if it can be continued.
    pub(crate) resume: Option<(u64, SegmentOpening)>,
    /// The fingerprint key's name, from the newest readable segment.
    pub(crate) fingerprint_key: Option<String>,
    /// The last segment.
    pub(crate) last: Option<u64>,
    /// Leaf hashes of the last segment.
    pub(crate) leaves: Vec<Hash>,
    /// The root over as many records as the newest signed head covers, if they were read.
    pub(crate) root_at_head: Option<Hash>,
}

/// Reads the log, and cuts off a torn tail.
pub(crate) fn recover(dir: &Path) -> Result<(ResumePoint, Recovered), OpenError> {
    let mut segments = segment::list(dir).map_err(with_context("cannot read the audit folder", dir))?;
    let signed = heads::stored(dir).map(|head| head.size);
    let mut scan = RecoveryScan { clean: true, signed, ..RecoveryScan::default() };
    set_aside_empty_segments(dir, &mut segments, &mut scan)?;
    let begin = newest_with_opening(dir, &segments, &mut scan)?;
    scan.note_root_at_head();
    for (at, first) in segments.iter().enumerate().skip(begin) {
        scan.read_segment(dir, *first, segments.get(at + 1).copied())?;
    }
    let clean = scan.clean && scan.cut_bytes == 0 && scan.quarantined.is_empty();
    let new_doubts = scan.open.list().filter(|write| !write.in_doubt).map(|write| write.doubt.clone());
    let recovered = Recovered {
        new_doubts: new_doubts.collect(),
        doubts: scan.open.list().map(|write| write.doubt.clone()).collect(),
        cut_bytes: scan.cut_bytes,
        quarantined: scan.quarantined,
        missing: scan.missing,
        clean,
        records: scan.tree.size(),
    };
    let resume = segments.last().copied().zip(scan.opening.filter(|_| clean));
    let (leaves, root_at_head) = (scan.leaves, scan.root_at_head);
    let last = segments.last().copied();
    let fingerprint_key = scan.fingerprint_key;
    Ok((
        ResumePoint {
            tree: scan.tree,
            open: scan.open,
            kept: scan.kept,
            resume,
            fingerprint_key,
            last,
            leaves,
            root_at_head,
        },
        recovered,
    ))
}

/// The writes that are open according to the files alone, oldest first: in doubt, or under way in a running makegate.
/// Changes nothing and needs no lock.
///
/// # Errors
/// [`OpenError`] if the folder cannot be read or was written by a newer makegate.
pub fn doubts_in(dir: &Path) -> Result<Vec<Doubt>, OpenError> {
    let segments = segment::list(dir).map_err(with_context("cannot read the audit folder", dir))?;
    let mut scan = RecoveryScan::default();
    let begin = newest_with_opening(dir, &segments, &mut scan)?;
    for (at, first) in segments.iter().enumerate().skip(begin) {
        let path = segment::path(dir, *first);
        let end = segments.get(at + 1).copied();
        scan.read_lines(&path, end).map_err(with_context("cannot read the segment", &path))?;
        scan.skip_to(end.unwrap_or(0));
    }
    Ok(scan.open.list().map(|write| write.doubt.clone()).collect())
}

/// Puts aside segments at the end that contain no record at all: nothing in them was ever acknowledged.
fn set_aside_empty_segments(dir: &Path, segments: &mut Vec<u64>, scan: &mut RecoveryScan) -> Result<(), OpenError> {
    while let Some(first) = segments.last().copied() {
        let path = segment::path(dir, first);
        let doing = with_context("cannot read the segment", &path);
        let (size, has_records) = probe(&path, first).map_err(doing)?;
        if has_records {
            return Ok(());
        }
        set_aside(&path, size).map_err(with_context("cannot put aside the empty segment", &path))?;
        scan.cut_bytes += size;
        segments.pop();
    }
    Ok(())
}

/// Renames instead of deleting, because the file may once have been more than the beginning of a segment.
pub(crate) fn set_aside(path: &Path, size: u64) -> io::Result<()> {
    if size == 0 { fs::remove_file(path) } else { fs::rename(path, path.with_extension("jsonl.torn")) }
}

fn probe(path: &Path, first: u64) -> io::Result<(u64, bool)> {
    let file = private_files::open_to_read(path)?;
    let size = file.metadata()?.len();
    let mut lines = LineReader::new(file);
    while let Some(line) = lines.next()? {
        if line.complete && Record::parse(lines.text()).is_some_and(|seen| is_plausible(seen.seq, first)) {
            return Ok((size, true));
        }
    }
    Ok((size, false))
}

fn is_plausible(seq: u64, expected: u64) -> bool {
    seq >= expected && !is_far(seq, expected)
}

/// Whether the number is so far ahead that it must be damaged itself; believing it would mean going through all
/// records between.
pub(crate) const fn is_far(seq: u64, expected: u64) -> bool {
    seq.saturating_sub(expected) > MISSING_MAX
}

/// The index of the newest segment with a readable opening, or of the oldest segment if none has one.
fn newest_with_opening(dir: &Path, segments: &[u64], scan: &mut RecoveryScan) -> Result<usize, OpenError> {
    for (at, first) in segments.iter().enumerate().rev() {
        if let Some(opening) = read_opening(dir, *first)? {
            (scan.tree, scan.open) = (opening.tree.clone(), opening.open.clone());
            scan.kept = RetentionState { believed: opening.kept.believed.or(Some(opening.time)), ..opening.kept };
            return Ok(at);
        }
    }
    if let Some(oldest) = segments.first() {
        scan.tree = Tree::of_unreadable(oldest.saturating_sub(1));
    }
    Ok(0)
}

/// The segment's opening. Returns `None` if it cannot be read or has been deleted.
pub(crate) fn readable_opening(dir: &Path, first: u64) -> Option<SegmentOpening> {
    read_opening(dir, first).ok().flatten()
}

/// The segment's opening. Returns `None` if it is damaged.
pub(crate) fn read_opening(dir: &Path, first: u64) -> Result<Option<SegmentOpening>, OpenError> {
    let path = segment::path(dir, first);
    let read = || -> io::Result<Vec<u8>> {
        let mut lines = LineReader::new(private_files::open_to_read(&path)?);
        lines.next()?;
        Ok(lines.text().to_owned())
    };
    let line = read().map_err(with_context("cannot read the segment", &path))?;
    match SegmentOpening::parse(&line, first) {
        Ok(opening) => Ok(Some(opening)),
        Err(BadOpening::Damaged) => Ok(None),
        Err(BadOpening::Newer(format)) => Err(OpenError::Newer { path, format }),
    }
}

/// What has been read so far.
#[derive(Debug, Default)]
struct RecoveryScan {
    tree: Tree,
    open: OpenWrites,
    kept: RetentionState,
    opening: Option<SegmentOpening>,
    fingerprint_key: Option<String>,
    cut_bytes: u64,
    quarantined: Vec<PathBuf>,
    missing: u64,
    clean: bool,
    leaves: Vec<Hash>,
    signed: Option<u64>,
    root_at_head: Option<Hash>,
}

impl RecoveryScan {
    /// Reads one segment up to `end`, where the next one begins.
    fn read_segment(&mut self, dir: &Path, first: u64, end: Option<u64>) -> Result<(), OpenError> {
        let path = segment::path(dir, first);
        self.opening = read_opening(dir, first)?;
        if let Some(name) = self.opening.as_ref().and_then(|opening| opening.fingerprint_key.clone()) {
            self.fingerprint_key = Some(name);
        }
        self.leaves.clear();
        let damage = self.read_lines(&path, end).map_err(with_context("cannot read the segment", &path))?;
        let short = end.is_some_and(|end| self.tree.size() + 1 < end);
        if damage.inside || short {
            self.quarantined.push(path);
        } else if let (Some(torn), None) = (damage.torn, end) {
            self.cut_bytes += cut(&path, torn).map_err(with_context("cannot cut off the torn tail of", &path))?;
        }
        if let Some(end) = end.filter(|_| short) {
            self.skip_to(end);
        }
        Ok(())
    }

    fn read_lines(&mut self, path: &Path, end: Option<u64>) -> io::Result<SegmentDamage> {
        let mut lines = LineReader::new(private_files::open_to_read(path)?);
        let mut damage = SegmentDamage::default();
        while let Some(line) = lines.next()? {
            let expected = self.tree.size() + 1;
            let seen = Record::parse(lines.text()).filter(|seen| line.complete && is_plausible(seen.seq, expected));
            let Some(seen) = seen.filter(|seen| end.is_none_or(|end| seen.seq < end)) else {
                damage.torn.get_or_insert(line.offset);
                continue;
            };
            damage.inside |= damage.torn.take().is_some() || seen.seq != expected;
            self.skip_to(seen.seq);
            self.push(tree::leaf(lines.text()));
            self.open.apply(&seen);
            if seen.is_refusal() {
                self.kept.refusal_bytes += u64::try_from(lines.text().len() + 1).unwrap_or(0);
            }
            self.clean = seen.event.as_deref() == Some(STOP);
        }
        Ok(damage)
    }

    /// Counts the records before this one as unreadable.
    fn skip_to(&mut self, seq: u64) {
        while self.tree.size() + 1 < seq {
            self.push(tree::leaf(b""));
            self.missing += 1;
        }
    }

    fn push(&mut self, leaf: Hash) {
        self.tree.push(leaf);
        self.leaves.push(leaf);
        self.note_root_at_head();
    }

    fn note_root_at_head(&mut self) {
        if self.signed == Some(self.tree.size()) {
            self.root_at_head = Some(self.tree.root());
        }
    }
}

/// What is wrong with a segment.
#[derive(Debug, Default)]
struct SegmentDamage {
    /// There is no record from this offset on.
    torn: Option<u64>,
    /// Something before a record is not a record, or a record is missing.
    inside: bool,
}

/// Truncates the file to this length and returns the number of bytes cut off.
fn cut(path: &Path, length: u64) -> io::Result<u64> {
    let file = private_files::open(OpenOptions::new().write(true), path)?;
    let before = file.metadata()?.len();
    file.set_len(length)?;
    file.sync_all()?;
    Ok(before.saturating_sub(length))
}
