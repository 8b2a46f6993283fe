//! Records as rows for PostgreSQL's `COPY` in its binary form: each text has its length before it, so that nothing in a record can end a
//! row, and nothing is escaped.

use std::borrow::Cow;
use std::collections::BTreeSet;

use bytes::{BufMut as _, Bytes, BytesMut};
use jiff::Timestamp;

/// What takes the rows.
pub(super) const COPY: &str =
    "copy mg.record (replica, seq, time, kind, caller, organization, operation, status, answer, request, line)
    from stdin (format binary)";
const COLUMNS: i16 = 11;
/// Signature, flags, and the length of what could follow them.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The length of an absent value, and what stands in place of a further row's number of columns.
const NULL: i32 = -1;
const END: i16 = -1;
/// 2000-01-01, from where PostgreSQL counts, in microseconds since 1970.
const EPOCH_US: i64 = 946_684_800_000_000;
/// The longest text of a column besides the line: an index has no room for much more.
const TEXT_BYTES_MAX: usize = 512;
const DAY_SECONDS: i64 = 24 * 3600;

/// A record with what it is found by.
#[derive(Clone, Copy, Debug)]
pub struct SharedRecord<'r> {
    /// Its number in its replica's log.
    pub seq: u64,
    /// When it happened.
    pub time: Timestamp,
    /// What it is about.
    pub kind: &'r str,
    /// The caller's name.
    pub caller: Option<&'r str>,
    /// The organization's id.
    pub organization: Option<u64>,
    /// The operation's id.
    pub operation: Option<&'r str>,
    /// The status that the caller got.
    pub status: Option<u16>,
    /// Where the answer came from.
    pub answer: Option<&'r str>,
    /// The request's id.
    pub request: Option<&'r str>,
    /// All of it, as it is in the log.
    pub line: &'r str,
}

/// Rows of one replica for one `COPY`.
#[derive(Clone, Debug)]
pub struct CopyRows {
    replica: Box<str>,
    bytes: BytesMut,
    count: u64,
    days: BTreeSet<i64>,
}

impl CopyRows {
    /// No rows yet, of this replica.
    #[must_use]
    pub fn new(replica: &str) -> Self {
        Self { replica: replica.into(), bytes: BytesMut::from(HEADER), count: 0, days: BTreeSet::new() }
    }

    /// Adds a record.
    pub fn add(&mut self, record: &SharedRecord<'_>) {
        self.count += 1;
        self.days.insert(day_of(record.time));
        self.bytes.put_i16(COLUMNS);
        let replica = std::mem::take(&mut self.replica);
        self.text(Some(&replica));
        self.replica = replica;
        self.value(Some(record.seq.cast_signed().to_be_bytes()));
        self.value(Some(record.time.as_microsecond().saturating_sub(EPOCH_US).to_be_bytes()));
        self.text(Some(record.kind));
        self.text(record.caller);
        self.value(record.organization.map(|id| id.cast_signed().to_be_bytes()));
        self.text(record.operation);
        self.value(record.status.map(|status| status.cast_signed().to_be_bytes()));
        self.text(record.answer);
        self.text(record.request);
        self.bytes_of(Some(without_nul(record.line).as_bytes()));
    }

    /// Number of rows.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of all rows.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The days that the records are of, counted from 1970.
    #[must_use]
    pub const fn days(&self) -> &BTreeSet<i64> {
        &self.days
    }

    /// What `COPY` reads.
    pub(super) fn finished(&self) -> Bytes {
        let mut bytes = self.bytes.clone();
        bytes.put_i16(END);
        bytes.freeze()
    }

    fn text(&mut self, text: Option<&str>) {
        let text = text.map(column_text);
        self.bytes_of(text.as_deref().map(str::as_bytes));
    }

    fn value<const N: usize>(&mut self, value: Option<[u8; N]>) {
        self.bytes_of(value.as_ref().map(<[u8; N]>::as_slice));
    }

    fn bytes_of(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => {
                self.bytes.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
                self.bytes.put_slice(value);
            }
            None => self.bytes.put_i32(NULL),
        }
    }
}

/// Which day this is, in UTC, counted from 1970.
#[must_use]
pub fn day_of(time: Timestamp) -> i64 {
    time.as_microsecond().div_euclid(DAY_SECONDS * 1_000_000)
}

/// When this day begins, in seconds since 1970.
pub(super) const fn begin_of_day(day: i64) -> i64 {
    day.saturating_mul(DAY_SECONDS)
}

/// A text as a column has it: short, and without what PostgreSQL cannot store. What is searched for is changed alike, and the line decides.
#[must_use]
pub(super) fn column_text(text: &str) -> Cow<'_, str> {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    without_nul(text.get(..end).unwrap_or_default())
}

fn without_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(line: &str) -> SharedRecord<'_> {
        SharedRecord {
            seq: 7,
            time: "2000-01-01T00:00:01.000002Z".parse().unwrap(),
            kind: "request",
            caller: Some("a"),
            organization: Some(11),
            operation: None,
            status: Some(200),
            answer: None,
            request: Some("r-1"),
            line,
        }
    }

    #[test]
    fn a_row_is_as_postgresql_documents_it() {
        let mut rows = CopyRows::new("m-0");
        rows.add(&record("{\"seq\":7}"));
        assert_eq!((rows.count(), rows.days().len()), (1, 1));
        let expected: Vec<u8> = [
            &b"PGCOPY\n\xff\r\n\0"[..],
            &[0; 8],
            &[0, 11],
            b"\0\0\0\x03m-0",
            b"\0\0\0\x08\0\0\0\0\0\0\0\x07",
            &[&[0, 0, 0, 8][..], &1_000_002_i64.to_be_bytes()].concat(),
            b"\0\0\0\x07request",
            b"\0\0\0\x01a",
            b"\0\0\0\x08\0\0\0\0\0\0\0\x0b",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x02\0\xc8",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x03r-1",
            b"\0\0\0\x09{\"seq\":7}",
            b"\xff\xff",
        ]
        .concat();
        assert_eq!(rows.finished(), expected);
    }

    #[test]
    fn no_text_breaks_a_row() {
        let mut rows = CopyRows::new("m-0");
        let long = "ä".repeat(TEXT_BYTES_MAX);
        rows.add(&SharedRecord { caller: Some("a\0b\n\t\\."), request: Some(&long), ..record("{\0}\n\\.") });
        let bytes = rows.finished();
        let has = |wanted: &[u8]| bytes.windows(wanted.len()).any(|part| part == wanted);
        assert!(has("\0\0\0\x09a\u{fffd}b\n\t\\.".as_bytes()) && has("\0\0\0\x08{\u{fffd}}\n\\.".as_bytes()));
        assert_eq!(column_text(&long).len(), TEXT_BYTES_MAX);
        assert_eq!(column_text("ab"), "ab");
        let odd = format!("a{long}");
        assert_eq!(column_text(&odd).len(), TEXT_BYTES_MAX - 1, "cut between two characters");
    }

    #[test]
    fn days_are_of_utc_also_before_1970() {
        let day = |text: &str| day_of(text.parse().unwrap());
        assert_eq!((day("1970-01-01T23:59:59.999999Z"), day("1970-01-02T00:00:00Z")), (0, 1));
        assert_eq!(day("1969-12-31T23:59:59.999999Z"), -1);
        assert_eq!(begin_of_day(2), 172_800);
    }
}
