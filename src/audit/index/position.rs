//! How far the index reaches, and by what it knows its log.

use std::io;
use std::path::Path;

use rusqlite::{Connection, Transaction, params};

use super::block;
use crate::audit::segment::forward_reader::LinePosition;
use crate::audit::segment::tree::Hash;
use crate::hash::sha256;

/// The newest line that a block covers. No other log has it in this place, because a line has a time, and mostly an id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexPosition {
    /// Where it is; segment 0: no block is stored yet.
    pub(crate) line: LinePosition,
    pub(crate) seq: u64,
    /// Its hash; empty, if it was gone when its block was stored.
    hash: Vec<u8>,
}

impl IndexPosition {
    /// The position of this line, which is read.
    pub(super) fn of(dir: &Path, line: LinePosition, seq: u64) -> io::Result<Self> {
        Ok(Self { line, seq, hash: hash_at(dir, line)?.map(Vec::from).unwrap_or_default() })
    }

    pub(crate) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        connection.query_row("SELECT segment, offset, length, seq, hash FROM position", [], |row| {
            let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            let line = LinePosition { segment: number(0)?, offset: number(1)?, length: number(2)? };
            Ok(Self { line, seq: number(3)?, hash: row.get(4)? })
        })
    }

    pub(super) fn store(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let [segment, offset, length] = [self.line.segment, self.line.offset, self.line.length].map(u64::cast_signed);
        let row = params![segment, offset, length, self.seq.cast_signed(), self.hash];
        let sql = "UPDATE position SET segment = ?1, offset = ?2, length = ?3, seq = ?4, hash = ?5";
        transaction.prepare_cached(sql)?.execute(row).map(drop)
    }

    /// Where the next line begins: a segment, and an offset in it.
    pub(super) const fn next(&self) -> (u64, u64) {
        if self.line.segment == 0 { (0, 0) } else { (self.line.segment, self.line.end()) }
    }

    /// Whether this log has the line. If it is gone, nothing tells.
    pub(crate) fn is_of_log(&self, dir: &Path) -> io::Result<bool> {
        Ok(self.seq == 0 || hash_at(dir, self.line)?.is_some_and(|hash| self.hash == hash))
    }
}

fn hash_at(dir: &Path, line: LinePosition) -> io::Result<Option<Hash>> {
    Ok(block::read(dir, line)?.map(|line| sha256(&line)))
}
