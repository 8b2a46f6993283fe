//! Blocks: the index's rows.

#![expect(clippy::disallowed_methods, reason = "by the thread `audit-index`, and by queries")]

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rusqlite::{Row, Transaction, params};

use super::ledger::{self, LedgerCounts};
use super::terms::{self, Term};
use crate::audit::record::Record;
use crate::audit::segment;
use crate::audit::segment::forward_reader::LinePosition;
use crate::private_files;

/// Consecutive records in one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexBlock {
    /// Sequence number of the first record.
    pub(crate) first: u64,
    /// Sequence number of the last valid record. Later records in its lines are void because their numbers were
    /// reassigned.
    pub(crate) last: u64,
    pub(crate) place: LinePosition,
    terms: Vec<u8>,
}

impl IndexBlock {
    /// From a row with the columns `first, last, segment, offset, length, terms`.
    pub(crate) fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
        let place = LinePosition { segment: number(2)?, offset: number(3)?, length: number(4)? };
        Ok(Self { first: number(0)?, last: number(1)?, place, terms: row.get(5)? })
    }

    /// Whether any of its records has this term.
    pub(crate) fn has(&self, term: Term) -> bool {
        let (all, _) = self.terms.as_chunks::<8>();
        all.binary_search_by_key(&term, |bytes| Term::from_be_bytes(*bytes)).is_ok()
    }

    /// Reads its lines. Returns `None` if they are gone.
    pub(crate) fn read(&self, dir: &Path) -> io::Result<Option<Vec<u8>>> {
        read(dir, self.place)
    }
}

/// Reads what is in this place. Returns `None` if it is gone.
pub(super) fn read(dir: &Path, place: LinePosition) -> io::Result<Option<Vec<u8>>> {
    let file = match private_files::open_to_read(&segment::path(dir, place.segment)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if place.offset.saturating_add(place.length) > file.metadata()?.len() {
        return Ok(None);
    }
    let mut lines = vec![0; usize::try_from(place.length).unwrap_or(0)];
    file.read_exact_at(&mut lines, place.offset)?;
    Ok(Some(lines))
}

/// A block under construction.
#[derive(Debug)]
pub(crate) struct BlockBuilder {
    first: u64,
    pub(crate) last: u64,
    place: LinePosition,
    /// Its newest line.
    pub(crate) newest_line: LinePosition,
    oldest: i64,
    newest: i64,
    pub(crate) records: usize,
    terms: BTreeSet<Term>,
    /// What its records add to the ledger.
    pub(crate) ledger: LedgerCounts,
}

impl BlockBuilder {
    pub(crate) fn new(record: &Record<'_>, place: LinePosition) -> Self {
        let time = record.time.as_microsecond();
        Self {
            first: record.seq,
            last: record.seq,
            place: LinePosition { length: 0, ..place },
            newest_line: place,
            oldest: time,
            newest: time,
            records: 0,
            terms: BTreeSet::new(),
            ledger: LedgerCounts::default(),
        }
    }

    /// Adds a record; `line`, if it was read.
    pub(crate) fn add(&mut self, record: &Record<'_>, line: Option<&[u8]>, place: LinePosition) {
        let time = record.time.as_microsecond();
        self.last = self.last.max(record.seq);
        self.newest_line = place;
        self.place.length = place.offset + place.length - self.place.offset;
        (self.oldest, self.newest) = (self.oldest.min(time), self.newest.max(time));
        self.records += 1;
        terms::of(record, |term| {
            self.terms.insert(term);
        });
        ledger::count(&mut self.ledger, record, line);
    }

    pub(crate) fn store(&self, transaction: &Transaction<'_>, has: &mut Vec<(Term, i64)>) -> rusqlite::Result<()> {
        has.extend(self.terms.iter().map(|term| (*term, self.first.cast_signed())));
        let LinePosition { segment, offset, length } = self.place;
        let (first, segment) = (self.first.cast_signed(), segment.cast_signed());
        let terms: Vec<u8> = self.terms.iter().flat_map(|term| term.to_be_bytes()).collect();
        let (offset, length) = (offset.cast_signed(), length.cast_signed());
        let row = params![first, self.last.cast_signed(), segment, offset, length, self.oldest, self.newest, terms];
        let sql = "INSERT OR REPLACE INTO blocks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        transaction.prepare_cached(sql)?.execute(row)?;
        let sql = "INSERT INTO segments VALUES (?1, ?2, ?3) ON CONFLICT (segment) DO UPDATE
            SET oldest = min(oldest, excluded.oldest), newest = max(newest, excluded.newest)";
        transaction.prepare_cached(sql)?.execute([segment, self.oldest, self.newest]).map(drop)
    }
}
