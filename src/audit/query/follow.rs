//! Follows new records, from the running gateway or from its files.

#![expect(clippy::disallowed_methods, reason = "only commands follow files")]

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use super::filter::Filter;
use crate::audit::log::AuditLog;
use crate::audit::record::Record;
use crate::audit::segment;
use crate::audit::segment::forward_reader::ForwardReader;

/// What a follower receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowEvent {
    /// A record's line.
    Line(Arc<str>),
    /// This many records, matching or not, were skipped because the follower was too slow.
    Missed(u64),
}

/// Follows the running log. Applies all filters except times, limit and cursor.
#[derive(Debug)]
pub struct Follower {
    lines: broadcast::Receiver<Arc<str>>,
    ended: watch::Receiver<u8>,
    filter: Filter,
}

impl AuditLog {
    /// Follows new records from now on.
    #[must_use]
    pub fn follow(&self, filter: Filter) -> Follower {
        let filter = unbounded(filter);
        Follower { lines: self.shared.lines.subscribe(), ended: self.shared.ended.subscribe(), filter }
    }
}

fn unbounded(filter: Filter) -> Filter {
    Filter { since: None, until: None, ..filter }
}

impl Follower {
    /// The next matching record. Returns `None` once the log has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<FollowEvent> {
        loop {
            let received = tokio::select! {
                biased;
                received = self.lines.recv() => Some(received),
                _ended = self.ended.wait_for(|threads| *threads > 0) => None,
            };
            let Some(received) = received else { return self.rest() };
            match received {
                Ok(line) if self.wants(&line) => return Some(FollowEvent::Line(line)),
                Ok(_unwanted) => {}
                Err(RecvError::Lagged(missed)) => return Some(FollowEvent::Missed(missed)),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Drains what was sent before the log ended.
    fn rest(&mut self) -> Option<FollowEvent> {
        while let Ok(line) = self.lines.try_recv() {
            if self.wants(&line) {
                return Some(FollowEvent::Line(line));
            }
        }
        None
    }

    fn wants(&self, line: &str) -> bool {
        Record::parse(line.as_bytes()).is_some_and(|seen| self.filter.matches(&seen, line.as_bytes()))
    }
}

/// Follows a log's files, whether or not its gateway is running.
#[derive(Debug)]
pub struct FileFollower {
    tail: ForwardReader,
    line: Vec<u8>,
    filter: Filter,
}

impl FileFollower {
    /// Follows new records from now on.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn open(dir: &Path, filter: Filter) -> io::Result<Self> {
        let newest = segment::list(dir)?.last().copied().unwrap_or(0);
        let length = if newest == 0 { 0 } else { fs::metadata(segment::path(dir, newest))?.len() };
        Ok(Self { tail: ForwardReader::at(dir, newest, length), line: Vec::new(), filter: unbounded(filter) })
    }

    /// The next matching record, or `None` if there is none yet; poll again later.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn poll(&mut self) -> io::Result<Option<String>> {
        while self.tail.next(&mut self.line, None)?.is_some() {
            if Record::parse(&self.line).is_some_and(|seen| self.filter.matches(&seen, &self.line)) {
                return Ok(Some(String::from_utf8_lossy(&self.line).into_owned()));
            }
        }
        Ok(None)
    }
}
