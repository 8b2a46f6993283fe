//! Terms: what a record can be found by, as numbers. Two terms may have the same number: who looks by it reads the records
//! all the same.

use std::ops::RangeInclusive;

use super::filter::{Filter, StatusFilter};
use super::record::{Answer, Kind};
use super::stored_record::StoredRecord;
use crate::ids::RequestId;

/// An id of the gateway's own is made when its record's time is taken: the record is found by that time, and needs no term.
const NEAR_MS: i64 = 2;
/// Intents are found by the block of so many (as a power of two) that they are in: most of what a block of records refers to has
/// the same term.
const INTENT_BITS: u32 = 8;

/// The columns, each with a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum TermColumn {
    Request,
    Caller,
    Organization,
    Operation,
    Status,
    Answer,
    Kind,
    Intent,
}

/// A term's number.
pub(crate) type Term = i64;

fn term(column: TermColumn, value: &[u8]) -> Term {
    // Any hash that spreads will do that never changes: indexes outlive the process.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ u64::from(column as u8);
    for byte in value {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash ^ (hash >> 32)).cast_signed()
}

/// What this record can be found by.
pub(crate) fn of(record: &StoredRecord<'_>, mut add: impl FnMut(Term)) {
    let mut text =
        |column, value: Option<&str>| value.into_iter().for_each(|value| add(term(column, value.as_bytes())));
    text(TermColumn::Caller, record.caller.as_deref());
    text(TermColumn::Operation, record.operation.as_deref());
    text(TermColumn::Answer, record.answer.as_deref());
    text(TermColumn::Kind, Some(&record.kind));
    let is_near = |id: &&str| made_ms(id).is_some_and(|ms| (ms - record.time.as_millisecond()).abs() <= NEAR_MS);
    text(TermColumn::Request, record.request.as_deref().filter(|id| !is_near(id)));
    if let Some(intent) = record.intent {
        add(intent_term(intent));
    }
    if let Some(organization) = record.organization {
        add(term(TermColumn::Organization, &organization.to_be_bytes()));
    }
    if let Some(status) = record.status {
        add(status_term(StatusFilter::Exact(status)));
        add(status_term(StatusFilter::Class(status / 100)));
    }
}

/// What every record has that the filter wants, but for the request's id: the rarest first, by experience.
pub(crate) fn wanted(filter: &Filter) -> Vec<Term> {
    let text = |column, value: Option<&str>| value.map(|value| term(column, value.as_bytes()));
    let organization = filter.organization.map(|id| term(TermColumn::Organization, &id.to_be_bytes()));
    let terms = [
        filter.intent.map(intent_term),
        text(TermColumn::Caller, filter.caller.as_deref()),
        organization,
        text(TermColumn::Operation, filter.operation.as_deref()),
        filter.status.map(status_term),
        text(TermColumn::Answer, filter.answer.map(Answer::as_str)),
        text(TermColumn::Kind, filter.kind.map(Kind::as_str)),
    ];
    terms.into_iter().flatten().collect()
}

/// Where the records of this request are: in blocks that have the term, or records of these times (in microseconds).
pub(crate) fn of_request(request: &RequestId) -> (Term, Option<RangeInclusive<i64>>) {
    let times = made_ms(request.as_str()).map(|ms| (ms - NEAR_MS) * 1000..=(ms + NEAR_MS + 1) * 1000);
    (term(TermColumn::Request, request.as_str().as_bytes()), times)
}

fn intent_term(intent: u64) -> Term {
    term(TermColumn::Intent, &(intent >> INTENT_BITS).to_be_bytes())
}

fn status_term(status: StatusFilter) -> Term {
    match status {
        StatusFilter::Exact(status) => term(TermColumn::Status, &status.to_be_bytes()),
        StatusFilter::Class(class) => term(TermColumn::Status, &[u8::try_from(class).unwrap_or(0)]),
    }
}

/// When an id of the gateway's own was made, in milliseconds since 1970 (RFC 9562, section 5.7); `None`: it is another's.
fn made_ms(id: &str) -> Option<i64> {
    let uuid = uuid::Uuid::try_parse(id).ok().filter(|uuid| id.len() == 36 && uuid.get_version_num() == 7)?;
    i64::try_from(uuid.as_u128() >> 80).ok()
}
