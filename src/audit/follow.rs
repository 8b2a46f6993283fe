//! New records as they come: of the running gateway, or from its files.

#![expect(clippy::disallowed_methods, reason = "only commands follow files")]

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use super::filter::Filter;
use super::forward_reader::ForwardReader;
use super::log::AuditLog;
use super::segment;
use super::stored_record::StoredRecord;

/// What a follower is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowEvent {
    /// A record's line.
    Line(Arc<str>),
    /// So many records (wanted or not) came faster than they were taken, and are passed over.
    Missed(u64),
}

/// Follows the running log. Filters count, their times, limits and cursors do not.
#[derive(Debug)]
pub struct Follower {
    lines: broadcast::Receiver<Arc<str>>,
    ended: watch::Receiver<u8>,
    filter: Filter,
}

impl AuditLog {
    /// New records from now on.
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
    /// The next that is wanted. `None`: the log has ended. Cancel-safe.
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

    /// What came before the end.
    fn rest(&mut self) -> Option<FollowEvent> {
        while let Ok(line) = self.lines.try_recv() {
            if self.wants(&line) {
                return Some(FollowEvent::Line(line));
            }
        }
        None
    }

    fn wants(&self, line: &str) -> bool {
        StoredRecord::parse(line.as_bytes()).is_some_and(|seen| self.filter.matches(&seen))
    }
}

/// Follows a log's files, whether its gateway runs or not.
#[derive(Debug)]
pub struct FileFollower {
    tail: ForwardReader,
    line: Vec<u8>,
    filter: Filter,
}

impl FileFollower {
    /// New records from now on.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn open(dir: &Path, filter: Filter) -> io::Result<Self> {
        let newest = segment::list(dir)?.last().copied().unwrap_or(0);
        let length = if newest == 0 { 0 } else { fs::metadata(segment::path(dir, newest))?.len() };
        Ok(Self { tail: ForwardReader::at(dir, newest, length), line: Vec::new(), filter: unbounded(filter) })
    }

    /// The next record that is wanted; `None`: there is none yet, look again in a moment.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn poll(&mut self) -> io::Result<Option<String>> {
        while self.tail.next(&mut self.line, None)?.is_some() {
            if StoredRecord::parse(&self.line).is_some_and(|seen| self.filter.matches(&seen)) {
                return Ok(Some(String::from_utf8_lossy(&self.line).into_owned()));
            }
        }
        Ok(None)
    }
}
