//! Reads the log's lines from the growing files, oldest first.

#![expect(clippy::disallowed_methods, reason = "by threads that own files, by `disk::wait`, and by commands")]

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::audit::segment;
use crate::private_files;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinePosition {
    /// The first sequence number of its segment.
    pub(crate) segment: u64,
    /// Offset of the line in its segment, in bytes.
    pub(crate) offset: u64,
    /// Length in bytes, without the newline.
    pub(crate) length: u64,
}

impl LinePosition {
    /// Its segment, and its offset there.
    pub(crate) const fn start(self) -> (u64, u64) {
        (self.segment, self.offset)
    }

    /// Offset of what comes after the line and its newline.
    pub(crate) const fn end(self) -> u64 {
        self.offset + self.length + 1
    }
}

/// Reads forward from a given position.
#[derive(Debug)]
pub(crate) struct ForwardReader {
    dir: PathBuf,
    segment: u64,
    offset: u64,
    reader: Option<BufReader<File>>,
    /// A newer segment exists, and this one was read once more after it could last grow.
    last_look: bool,
}

impl ForwardReader {
    /// Starts at this offset of this segment; segment 0 comes before all others.
    pub(crate) fn at(dir: &Path, segment: u64, offset: u64) -> Self {
        Self { dir: dir.to_owned(), segment, offset, reader: None, last_look: false }
    }

    /// The position of the next read.
    pub(crate) const fn position(&self) -> (u64, u64) {
        (self.segment, self.offset)
    }

    /// Skips the line at this position, which the reader has from elsewhere. Returns false if it is not the next one.
    pub(crate) fn skip(&mut self, line: LinePosition) -> bool {
        let is_next = self.position() == line.start();
        if is_next {
            (self.offset, self.reader, self.last_look) = (line.end(), None, false);
        }
        is_next
    }

    /// The next complete line, without its newline, and its position. Returns `None` if there is none yet. Reads up
    /// to `end` (the segment and length up to which the log is durable), or everything if that is `None`.
    pub(crate) fn next(&mut self, line: &mut Vec<u8>, end: Option<(u64, u64)>) -> io::Result<Option<LinePosition>> {
        loop {
            if end.is_some_and(|end| self.position() >= end) {
                return Ok(None);
            }
            if let Some(place) = self.read(line)? {
                return Ok(Some(place));
            }
            let Some(next) = segment::after(&self.dir, self.segment)? else { return Ok(None) };
            if self.last_look || self.reader.is_none() {
                *self = Self::at(&self.dir, next, 0);
            } else {
                self.last_look = true;
            }
        }
    }

    fn read(&mut self, line: &mut Vec<u8>) -> io::Result<Option<LinePosition>> {
        line.clear();
        if self.reader.is_none() {
            self.reader = self.open()?;
        }
        let Some(reader) = &mut self.reader else { return Ok(None) };
        let read = reader.read_until(b'\n', line)?;
        if line.pop_if(|last| *last == b'\n').is_none() {
            reader.seek(SeekFrom::Start(self.offset))?;
            return Ok(None);
        }
        let length = u64::try_from(line.len()).unwrap_or(0);
        let place = LinePosition { segment: self.segment, offset: self.offset, length };
        self.offset += u64::try_from(read).unwrap_or(0);
        Ok(Some(place))
    }

    /// Returns `None` if the segment does not exist (any more).
    fn open(&self) -> io::Result<Option<BufReader<File>>> {
        if self.segment == 0 {
            return Ok(None); // there is none, whatever file has its name
        }
        match private_files::open_to_read(&segment::path(&self.dir, self.segment)) {
            Ok(mut file) => {
                file.seek(SeekFrom::Start(self.offset))?;
                Ok(Some(BufReader::with_capacity(64 << 10, file)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
