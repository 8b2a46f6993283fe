//! The log's files: `NNNNNNNNNNNNNNNNNNNN.jsonl`, named after their first sequence number, one record per line.
//!
//! The first record of each file is the event `segment`, which holds the tree over all earlier records and the open
//! writes. A segment can therefore be read, proven and continued after all earlier ones have been deleted.
//!
//! A later segment's name takes precedence: records in an earlier segment with that number or a higher one are void.
//! This happens when the disk fails during a batch: its records were acknowledged to nobody, so they are written
//! again, with the same numbers, to a new segment, even if the broken file could not be truncated.

#![expect(clippy::disallowed_methods, reason = "by threads that own files, by `disk::wait`, and by commands")]

pub(super) mod disk;
pub(super) mod forward_reader;
pub(super) mod line_reader;
pub(super) mod reverse_reader;
pub(super) mod tree;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::tree::Tree;
use crate::audit::open_writes::{OpenWrite, OpenWrites};
use crate::audit::record::formatter::write_json;
use crate::audit::retention::state::RetentionState;
use crate::hash;

/// The log format that this version writes, and the newest it reads.
pub(crate) const FORMAT: u32 = 1;

const DIGITS: usize = 20;
const SUFFIX: &str = ".jsonl";

pub(crate) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}{SUFFIX}"))
}

/// The first sequence numbers of all segments in the folder, ascending.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    Ok(names(dir)?.0)
}

/// The files that are named with digits like a segment but cannot be one. makegate never reads them.
pub(crate) fn impostors(dir: &Path) -> io::Result<Vec<String>> {
    Ok(names(dir)?.1)
}

fn names(dir: &Path) -> io::Result<(Vec<u64>, Vec<String>)> {
    disk::about_to_read();
    let (mut segments, mut impostors) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        let is_number = |digits: &&str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let Some(digits) = digits.filter(is_number) else { continue };
        // The first record has the number 1.
        match digits.parse::<u64>().ok().filter(|first| *first > 0 && digits.len() == DIGITS) {
            Some(first) => segments.push(first),
            None => impostors.push(name.to_string_lossy().into_owned()),
        }
    }
    segments.sort_unstable();
    impostors.sort_unstable();
    Ok((segments, impostors))
}

pub(crate) fn after(dir: &Path, segment: u64) -> io::Result<Option<u64>> {
    Ok(list(dir)?.into_iter().find(|first| *first > segment))
}

/// What a segment's first record holds.
#[derive(Clone, Debug)]
pub(crate) struct SegmentOpening {
    /// The tree over all records before this segment.
    pub(crate) tree: Tree,
    /// The writes that were open when this segment began.
    pub(crate) open: OpenWrites,
    pub(crate) time: Timestamp,
    /// What retention needs to know after a restart.
    pub(crate) kept: RetentionState,
    /// Identifies the fingerprint key. Segments from older versions have none.
    pub(crate) fingerprint_key: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadOpening {
    /// The line is damaged, or is some other record.
    Damaged,
    /// Written by a newer makegate in this format.
    Newer(u32),
}

#[derive(Serialize, Deserialize)]
struct StoredOpening {
    seq: u64,
    time: String,
    kind: String,
    event: String,
    format: u32,
    tree_size: u64,
    frontier: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint_key: Option<String>,
    open: Vec<OpenWrite>,
    #[serde(flatten)]
    kept: RetentionState,
}

/// The part that every format shares.
#[derive(Deserialize)]
struct OpeningVersion {
    event: String,
    format: u32,
}

impl SegmentOpening {
    /// The line, without its newline. Its sequence number is the tree's size plus one.
    pub(crate) fn render(&self) -> Vec<u8> {
        let stored = StoredOpening {
            seq: self.tree.size() + 1,
            time: format!("{:.6}", self.time),
            kind: "event".to_owned(),
            event: "segment".to_owned(),
            format: FORMAT,
            tree_size: self.tree.size(),
            frontier: self.tree.frontier().iter().map(|subtree| hash::hex(subtree)).collect(),
            fingerprint_key: self.fingerprint_key.clone(),
            open: self.open.list().cloned().collect(),
            kept: self.kept,
        };
        let mut line = Vec::new();
        write_json(&stored, &mut line);
        line
    }

    /// Parses the first line of the segment that begins with `first`.
    pub(crate) fn parse(line: &[u8], first: u64) -> Result<Self, BadOpening> {
        let version: OpeningVersion = serde_json::from_slice(line).map_err(|_| BadOpening::Damaged)?;
        if version.event == "segment" && version.format > FORMAT {
            return Err(BadOpening::Newer(version.format));
        }
        let stored: StoredOpening = serde_json::from_slice(line).map_err(|_| BadOpening::Damaged)?;
        Self::checked(stored, first).ok_or(BadOpening::Damaged)
    }

    fn checked(stored: StoredOpening, first: u64) -> Option<Self> {
        let frontier = stored.frontier.iter().map(|hex| hash::unhex32(hex)).collect::<Option<Vec<_>>>()?;
        let tree = Tree::from_parts(stored.tree_size, frontier)?;
        let fits = stored.event == "segment" && stored.seq == first && tree.size().checked_add(1) == Some(first);
        let time = stored.time.parse().ok().filter(|_| fits)?;
        let open = stored.open.into_iter().collect();
        Some(Self { tree, open, time, kept: stored.kept, fingerprint_key: stored.fingerprint_key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::{Kind, Record};
    use crate::audit::segment::tree::leaf;
    use crate::ids::RequestId;

    #[test]
    fn opening_reads_back_what_it_wrote() {
        let mut tree = Tree::default();
        (0..5_u8).for_each(|n| tree.push(leaf(&[n])));
        let mut open = OpenWrites::default();
        let time: Timestamp = "2026-07-01T12:00:00.000001Z".parse().unwrap();
        let request = RequestId::parse(b"w-1");
        open.apply(&Record { seq: 3, request, organization: Some(11), ..Record::new(Kind::Intent, time) });
        let kept = RetentionState { refusal_bytes: 700, refusal_bytes_gone: 300, believed: Some(time) };
        let fingerprint_key = Some("abc".to_owned());
        let line = SegmentOpening { tree: tree.clone(), open: open.clone(), time, kept, fingerprint_key }.render();
        let opening = SegmentOpening::parse(&line, 6).unwrap();
        assert_eq!((opening.tree, opening.open, opening.time, opening.kept), (tree, open, time, kept));
        assert_eq!(opening.fingerprint_key.as_deref(), Some("abc"));
        assert_eq!(SegmentOpening::parse(&line, 7).unwrap_err(), BadOpening::Damaged);
        let newer = String::from_utf8(line).unwrap().replace("\"format\":1", "\"format\":2");
        assert_eq!(SegmentOpening::parse(newer.as_bytes(), 6).unwrap_err(), BadOpening::Newer(2));
    }

    #[test]
    fn open_writes_are_listed_as_every_version_lists_them() {
        let hash = "0123456789abcdef0123456789abcdef";
        let line = format!(
            r#"{{"seq":1,"time":"2026-07-01T12:00:00.000000Z","kind":"event","event":"segment","format":1,"tree_size":0,"frontier":[],"open":[{{"seq":3,"in_doubt":true,"request":"w-1","time":"2026-07-01T12:00:00.000001Z","caller":"billing","operation":"payments.create","organization":11,"path":"/p","fingerprint":"{hash}","idempotency":"?","marks":{{"name":"{hash}"}}}},{{"seq":4,"in_doubt":false,"request":"w-2","time":"2026-07-01T12:00:00Z","caller":"","operation":"","path":""}}],"refusal_bytes":0,"refusal_bytes_gone":0}}"#
        );
        let opening = SegmentOpening::parse(line.as_bytes(), 1).unwrap();
        assert_eq!((opening.open.in_doubt(), opening.open.under_way()), (1, 1));
        let [written, mut read] = [&*opening.render(), line.as_bytes()]
            .map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap());
        read["open"][0].as_object_mut().unwrap().remove("idempotency"); // no hash
        assert_eq!(written, read);
        let odd = line.replace("w-1", "w 1");
        assert_eq!(SegmentOpening::parse(odd.as_bytes(), 1).unwrap_err(), BadOpening::Damaged);
    }

    #[test]
    fn only_whole_names_are_segments() {
        let dir = tempfile::tempdir().unwrap();
        let others = ["00000000000000000000.jsonl", "1.jsonl", "99999999999999999999.jsonl"];
        let names = ["00000000000000000012.jsonl", "00000000000000000001.jsonl", "x.jsonl", "index.sqlite", "lock"];
        for name in names.iter().chain(&others) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(list(dir.path()).unwrap(), [1, 12]);
        assert_eq!(impostors(dir.path()).unwrap(), others);
        assert_eq!(path(dir.path(), 12).file_name().unwrap(), "00000000000000000012.jsonl");
    }
}
