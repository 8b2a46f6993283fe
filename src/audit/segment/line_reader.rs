//! Reads a file's lines while a writer may be appending to it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};

use super::disk;

/// A file's lines with their positions. A line without a newline is the last one: a writer may be about to complete
/// it, and reading on would return its second half as a line.
pub(crate) struct LineReader {
    reader: BufReader<GrowingFile>,
    offset: u64,
    text: Vec<u8>,
    has_ended: bool,
}

/// A file that a writer may append to between two reads.
struct GrowingFile(File);

impl Read for GrowingFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        disk::about_to_read();
        self.0.read(into)
    }
}

/// A line's position, and whether it ends in a newline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileLine {
    pub(crate) offset: u64,
    pub(crate) complete: bool,
}

impl LineReader {
    pub(crate) fn new(file: File) -> Self {
        Self {
            reader: BufReader::with_capacity(64 << 10, GrowingFile(file)),
            offset: 0,
            text: Vec::new(),
            has_ended: false,
        }
    }

    pub(crate) fn next(&mut self) -> io::Result<Option<FileLine>> {
        self.text.clear();
        let length = if self.has_ended { 0 } else { self.reader.read_until(b'\n', &mut self.text)? };
        if length == 0 {
            return Ok(None);
        }
        let complete = self.text.pop_if(|last| *last == b'\n').is_some();
        self.has_ended = !complete;
        let place = FileLine { offset: self.offset, complete };
        self.offset += u64::try_from(length).unwrap_or(0);
        Ok(Some(place))
    }

    /// The line without its newline.
    pub(crate) fn text(&self) -> &[u8] {
        &self.text
    }
}
