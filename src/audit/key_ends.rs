//! What the log knows of idempotency keys: whose writes took effect. The store of answers is filled up from it.

#![expect(clippy::disallowed_methods, reason = "by the thread `answers`")]

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use memchr::memmem;
use serde::Deserialize;

use super::log::AuditLog;
use super::record::{Kind, Outcome};
use super::recover::{LineReader, readable_opening};
use super::segment::{self, SegmentOpening};
use super::tree::{self, Hash};
use crate::ids::{Fingerprint, RequestId};
use crate::private_files;

/// How a write with an idempotency key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEnd {
    /// The keyed hash of the key.
    pub key: Fingerprint,
    /// The keyed hash of the write.
    pub write: Fingerprint,
    /// The write's request.
    pub request: RequestId,
    /// Who asked for it.
    pub caller: Arc<str>,
    /// When it ended.
    pub time: Timestamp,
    /// It took effect. Else somebody found out that it did not, after it was in doubt.
    pub done: bool,
}

impl AuditLog {
    /// How many records are durable, and the tree's root over them: what tells this log at this moment from any other.
    #[must_use]
    pub fn mark(&self) -> (u64, Hash) {
        let tree = self.shared.durable.lock().unwrap_or_else(PoisonError::into_inner);
        (tree.size(), tree.root())
    }

    /// Hands over how the writes with idempotency keys ended, in order: of the records after `mark` if this log is the one that had
    /// that root at that size, else of all segments that go on after `oldest`. `true`: it is the one. It reads files, and blocks.
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

/// The segments of a folder, the oldest first.
struct SegmentList<'d> {
    dir: &'d Path,
    firsts: Vec<u64>,
}

impl<'d> SegmentList<'d> {
    fn list(dir: &'d Path) -> io::Result<Self> {
        Ok(Self { dir, firsts: segment::list(dir)? })
    }

    /// What its first record says; `None`: it is damaged, or retention has taken it meanwhile.
    fn opening(&self, first: u64) -> Option<SegmentOpening> {
        readable_opening(self.dir, first)
    }

    /// The index of the segment that holds the record after the first `size`, or where it would be.
    fn after(&self, size: u64) -> usize {
        self.firsts.partition_point(|first| *first <= size.saturating_add(1)).saturating_sub(1)
    }

    /// The root of the tree over the first `size` records; `None`: that cannot be known.
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
        // The newest segment that began before all that counts, from the newest on.
        let newer = self.firsts.get(begin..).unwrap_or_default().iter().rev();
        let aged = newer.take_while(|first| self.opening(**first).is_none_or(|opening| opening.time >= oldest)).count();
        begin = begin.max(self.firsts.len().saturating_sub(aged + 1));
        let Some(firsts) = self.firsts.get(begin..) else { return Ok(()) };
        let mut open = OpenKeyedWrites::default();
        for (at, first) in firsts.iter().enumerate() {
            if let Some(opening) = self.opening(*first) {
                open.begin(&opening);
            }
            self.lines(*first, firsts.get(at + 1).copied(), &mut |seq, line| {
                let end = open.apply(line);
                if let Some(end) = end.filter(|end| mark.is_none_or(|mark| seq > mark) && end.time >= oldest) {
                    each(end);
                }
                true
            })?;
        }
        Ok(())
    }

    /// Hands over the records of a segment up to `end`, where the next one begins, as long as `go_on` says so. What cannot be read is
    /// passed over.
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

/// The number that every record begins with.
fn seq_of(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"{\"seq\":")?.split(|byte| *byte == b',').next()?;
    str::from_utf8(digits).ok()?.parse().ok()
}

/// The word of a record's kind, which stands before everything that a caller can choose.
fn is_request(line: &[u8]) -> bool {
    const KIND: &[u8] = b"\"kind\":\"";
    let kind = memmem::find(line, KIND).and_then(|at| line.get(at + KIND.len()..));
    kind.is_some_and(|kind| kind.starts_with(b"request\""))
}

/// The writes with idempotency keys that have not ended, by the numbers of their intents.
#[derive(Default)]
struct OpenKeyedWrites {
    writes: HashMap<u64, KeyEnd>,
    /// By request, the newest: outcomes of old logs name nothing else.
    by_request: HashMap<RequestId, u64>,
}

/// What is looked at of a record.
#[derive(Deserialize)]
struct KeyedLine<'l> {
    seq: u64,
    time: Timestamp,
    kind: &'l str,
    intent: Option<u64>,
    request: Option<String>,
    caller: Option<String>,
    outcome: Option<String>,
    fingerprint: Option<String>,
    idempotency: Option<String>,
}

impl OpenKeyedWrites {
    /// A segment begins, and tells what is open. It knows better than what was read before.
    fn begin(&mut self, opening: &SegmentOpening) {
        *self = Self::default();
        for write in opening.open.list() {
            let doubt = &write.doubt;
            if let Some((key, fingerprint)) = doubt.idempotency.zip(doubt.fingerprint) {
                let (caller, time) = (doubt.caller.clone(), doubt.time);
                self.add(
                    doubt.intent,
                    KeyEnd { key, write: fingerprint, request: doubt.request, caller, time, done: false },
                );
            }
        }
    }

    fn add(&mut self, seq: u64, write: KeyEnd) {
        self.by_request.insert(write.request, seq);
        self.writes.insert(seq, write);
    }

    /// Goes on by this record: the end of a write with a key, if it is one that says something of the key.
    fn apply(&mut self, line: &[u8]) -> Option<KeyEnd> {
        if is_request(line) {
            return None;
        }
        let line: KeyedLine<'_> = serde_json::from_slice(line).ok()?;
        let request = RequestId::parse(line.request?.as_bytes())?;
        let kind = Kind::parse(line.kind)?;
        if kind == Kind::Intent {
            // One without a key that has the same request is another write: what is told of it is not told of this one.
            self.by_request.remove(&request);
            let (key, write) = (line.idempotency?, line.fingerprint?);
            let (key, write) = (Fingerprint::parse(&key)?, Fingerprint::parse(&write)?);
            let caller = line.caller.unwrap_or_default().into();
            self.add(line.seq, KeyEnd { key, write, request, caller, time: line.time, done: false });
            return None;
        }
        let outcome = line.outcome.as_deref().and_then(Outcome::parse)?;
        if !matches!(kind, Kind::Outcome | Kind::Settlement) || outcome == Outcome::InDoubt {
            return None;
        }
        let intent = line.intent.or_else(|| self.by_request.get(&request).copied())?;
        let write = self.writes.remove(&intent)?;
        if self.by_request.get(&write.request) == Some(&intent) {
            self.by_request.remove(&write.request);
        }
        let done = outcome == Outcome::Done;
        (done || kind == Kind::Settlement).then_some(KeyEnd { time: line.time, done, ..write })
    }
}
