//! Outcomes of writes with idempotency keys, read from the log to rebuild the idempotency store.

#![expect(clippy::disallowed_methods, reason = "called by the thread `answers`")]

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use memchr::memmem;

use super::readable_opening;
use crate::audit::log::AuditLog;
use crate::audit::open_writes::doubts::Doubt;
use crate::audit::open_writes::{OpenWrites, WriteChange};
use crate::audit::record::{Kind, Record};
use crate::audit::segment::line_reader::LineReader;
use crate::audit::segment::tree::{self, Hash};
use crate::audit::segment::{self, SegmentOpening};
use crate::ids::{Fingerprint, RequestId};
use crate::private_files;
use crate::vocabulary::Outcome;

/// How a write with an idempotency key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEnd {
    /// Keyed hash of the key.
    pub key: Fingerprint,
    /// Keyed hash of the write.
    pub write: Fingerprint,
    /// The write's request.
    pub request: RequestId,
    /// The caller's name.
    pub caller: Arc<str>,
    /// When it ended.
    pub time: Timestamp,
    /// Whether it took effect. If not, it was in doubt and later found not to have taken effect.
    pub done: bool,
}

impl AuditLog {
    /// The number of durable records and the root of the tree over them, which together identify this log at this
    /// moment.
    #[must_use]
    pub fn mark(&self) -> (u64, Hash) {
        let tree = self.shared.durable.lock().unwrap_or_else(PoisonError::into_inner);
        (tree.size(), tree.root())
    }

    /// Passes the ends of all writes with idempotency keys to `each`, in order. Covers the records after `mark` if
    /// this log had that root at that size, otherwise all segments that extend past `oldest`. Returns whether the
    /// mark matched. Reads files and blocks.
    ///
    /// # Errors
    /// The segments cannot be read.
    pub fn key_ends(
        &self,
        mark: Option<(u64, Hash)>,
        oldest: Timestamp,
        each: &mut dyn FnMut(KeyEnd),
    ) -> io::Result<bool> {
        let segments = SegmentList::list(self.dir())?;
        let mark = match mark {
            Some((size, root)) if segments.root_at(size)? == Some(root) => Some(size),
            Some(_) | None => None,
        };
        segments.read(mark, oldest, each)?;
        Ok(mark.is_some())
    }
}

/// A folder's segments, oldest first.
struct SegmentList<'d> {
    dir: &'d Path,
    firsts: Vec<u64>,
}

impl<'d> SegmentList<'d> {
    fn list(dir: &'d Path) -> io::Result<Self> {
        Ok(Self { dir, firsts: segment::list(dir)? })
    }

    /// The segment's opening. Returns `None` if it is damaged or retention has deleted it.
    fn opening(&self, first: u64) -> Option<SegmentOpening> {
        readable_opening(self.dir, first)
    }

    /// The index of the segment that holds the record after the first `size`, or where it would be.
    fn after(&self, size: u64) -> usize {
        self.firsts.partition_point(|first| *first <= size.saturating_add(1)).saturating_sub(1)
    }

    /// The root of the tree over the first `size` records. Returns `None` if it cannot be determined.
    fn root_at(&self, size: u64) -> io::Result<Option<Hash>> {
        let at = self.after(size);
        let Some((first, opening)) = self.firsts.get(at).and_then(|first| Some((*first, self.opening(*first)?))) else {
            return Ok(None);
        };
        let mut tree = opening.tree;
        if tree.size() < size {
            self.lines(first, self.firsts.get(at + 1).copied(), &mut |seq, line| {
                let is_next = seq == tree.size() + 1 && seq <= size;
                if is_next {
                    tree.push(tree::leaf(line));
                }
                is_next
            })?;
        }
        Ok((tree.size() == size).then(|| tree.root()))
    }

    fn read(&self, mark: Option<u64>, oldest: Timestamp, each: &mut dyn FnMut(KeyEnd)) -> io::Result<()> {
        let mut begin = mark.map_or(0, |size| self.after(size));
        // The newest segment that began before everything that counts, searching backward.
        let newer = self.firsts.get(begin..).unwrap_or_default().iter().rev();
        let aged = newer.take_while(|first| self.opening(**first).is_none_or(|opening| opening.time >= oldest)).count();
        begin = begin.max(self.firsts.len().saturating_sub(aged + 1));
        let Some(firsts) = self.firsts.get(begin..) else { return Ok(()) };
        let mut open = OpenWrites::default();
        for (at, first) in firsts.iter().enumerate() {
            if let Some(opening) = self.opening(*first) {
                // Its list of open writes overrides what was read before.
                open = opening.open;
            }
            self.lines(*first, firsts.get(at + 1).copied(), &mut |seq, line| {
                let end = apply(&mut open, line);
                if let Some(end) = end.filter(|end| mark.is_none_or(|mark| seq > mark) && end.time >= oldest) {
                    each(end);
                }
                true
            })?;
        }
        Ok(())
    }

    /// Passes a segment's records up to `end`, where the next segment begins, to `go_on` until it returns false.
    /// Skips what it cannot read.
    fn lines(&self, first: u64, end: Option<u64>, go_on: &mut dyn FnMut(u64, &[u8]) -> bool) -> io::Result<()> {
        let file = match private_files::open_to_read(&segment::path(self.dir, first)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut lines = LineReader::new(file);
        while let Some(place) = lines.next()? {
            let Some(seq) = seq_of(lines.text()).filter(|seq| place.complete && end.is_none_or(|end| *seq < end))
            else {
                continue;
            };
            if !go_on(seq, lines.text()) {
                break;
            }
        }
        Ok(())
    }
}

/// The sequence number that every record begins with.
fn seq_of(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"{\"seq\":")?.split(|byte| *byte == b',').next()?;
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether the line is of kind `request`, judged by text that precedes anything a caller can choose.
fn is_request(line: &[u8]) -> bool {
    const KIND: &[u8] = b"\"kind\":\"";
    let kind = memmem::find(line, KIND).and_then(|at| line.get(at + KIND.len()..));
    kind.is_some_and(|kind| kind.starts_with(b"request\""))
}

/// Applies a record. Returns the end of a write with a key, if the record tells anything about the key.
fn apply(open: &mut OpenWrites, line: &[u8]) -> Option<KeyEnd> {
    if is_request(line) {
        return None;
    }
    let record = Record::parse(line)?;
    let Some(WriteChange::Closed(write)) = open.apply(&record) else { return None };
    let done = match record.outcome? {
        Outcome::Done => true,
        Outcome::Rejected | Outcome::NotSent if record.kind == Some(Kind::Settlement) => false,
        Outcome::Rejected | Outcome::NotSent | Outcome::InDoubt => return None,
    };
    let Doubt { idempotency, fingerprint, request, caller, .. } = write;
    Some(KeyEnd { key: idempotency?, write: fingerprint?, request, caller, time: record.time, done })
}
