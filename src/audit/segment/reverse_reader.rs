//! Reads the log's lines from the files in blocks, newest first.

#![expect(clippy::disallowed_methods, reason = "by `disk::wait`, and by commands")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::audit::record::Record;
use crate::audit::segment;
use crate::private_files;

const BLOCK: u64 = 256 << 10;

/// Reads backward through the segments. Skips what is not a record and what a later segment makes void.
#[derive(Debug)]
pub(crate) struct ReverseReader {
    dir: PathBuf,
    /// Segments not begun yet, newest last.
    segments: Vec<u64>,
    /// Only records below this number are returned.
    below: u64,
    /// The segment that is being read, or was read last.
    segment: u64,
    file: Option<File>,
    /// Offset of `block` in the file.
    start: u64,
    /// Bytes read but not returned yet.
    block: Vec<u8>,
}

impl ReverseReader {
    /// Starts with the newest record below this number.
    pub(crate) fn below(dir: &Path, below: u64) -> io::Result<Self> {
        let mut segments = segment::list(dir)?;
        segments.retain(|first| *first < below);
        Ok(Self { dir: dir.to_owned(), segments, below, segment: u64::MAX, file: None, start: 0, block: Vec::new() })
    }

    /// The newest remaining record.
    pub(crate) fn newest(&mut self) -> io::Result<Option<Vec<u8>>> {
        while let Some(line) = self.line()? {
            if let Some(seen) = Record::parse(&line).filter(|seen| seen.seq < self.below) {
                self.below = seen.seq;
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// The preceding line, of whatever kind.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(newline) = memchr::memrchr(b'\n', &self.block) {
                let line = self.block.split_off(newline + 1);
                self.block.truncate(newline);
                return Ok(Some(line));
            }
            if self.start > 0 {
                self.read_block()?;
            } else if self.file.take().is_some() {
                return Ok(Some(std::mem::take(&mut self.block)));
            } else if !self.begin_segment()? {
                return Ok(None);
            }
        }
    }

    /// Opens the next segment. What follows its last newline is not a complete line and is dropped.
    fn begin_segment(&mut self) -> io::Result<bool> {
        let Some(first) = self.segments.pop() else { return Ok(false) };
        self.below = self.below.min(self.segment);
        self.segment = first;
        match private_files::open_to_read(&segment::path(&self.dir, first)) {
            Ok(file) => {
                self.start = file.metadata()?.len();
                self.file = Some(file);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn read_block(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let length = self.start.min(BLOCK);
        let mut block = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut block, self.start - length)?;
        block.append(&mut self.block);
        self.block = block;
        self.start -= length;
        Ok(())
    }
}
