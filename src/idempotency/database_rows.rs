//! Converts a key's row to its database form and back.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rusqlite::{Connection, params};

use super::key_table::KeyRow;
use super::{FirstAnswer, KeyedWrite, WriteEnd};
use crate::hash;
use crate::ids::{Fingerprint, RequestId};

/// Size of an answer in bytes.
pub(super) fn weight(answer: &FirstAnswer) -> usize {
    let headers = answer.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    headers + answer.body.len()
}

/// Inserts the row unless its key already has one.
pub(super) fn insert(connection: &Connection, row: &KeyRow) -> rusqlite::Result<()> {
    let answer = row.ended.answer.as_ref();
    let sum = sum(row);
    let values = params![
        row.keyed.key.as_bytes().as_slice(),
        row.keyed.write.as_bytes().as_slice(),
        row.keyed.request.as_str(),
        &*row.keyed.caller,
        row.time_ms,
        row.ended.done,
        answer.map(|answer| answer.status.as_u16()),
        answer.map(|answer| head(&answer.headers)),
        answer.map(|answer| answer.body.as_ref()),
        sum.as_slice(),
    ];
    let sql = "INSERT OR IGNORE INTO answers VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

/// A truncated hash over the whole row.
fn sum(row: &KeyRow) -> [u8; 8] {
    let answer = row.ended.answer.as_ref();
    let (status, lines) = answer.map(|answer| (answer.status.as_u16(), head(&answer.headers))).unwrap_or_default();
    let numbers = [row.time_ms, row.ended.done.into(), status.into(), answer.is_some().into()].map(i64::to_be_bytes);
    let texts: [&[u8]; 6] = [
        row.keyed.key.as_bytes(),
        row.keyed.write.as_bytes(),
        row.keyed.request.as_str().as_bytes(),
        row.keyed.caller.as_bytes(),
        &lines,
        answer.map_or(&[], |answer| answer.body.as_ref()),
    ];
    let lengths = texts.map(|text| (text.len() as u64).to_be_bytes());
    let parts: Vec<&[u8]> = numbers.iter().chain(&lengths).map(<[u8; 8]>::as_slice).chain(texts).collect();
    let mut sum = [0; 8];
    sum.iter_mut().zip(hash::sha256_parts(&parts)).for_each(|(to, from)| *to = from);
    sum
}

fn wrong(at: usize, what: &str) -> rusqlite::Error {
    let kind = rusqlite::types::Type::Blob;
    rusqlite::Error::FromSqlConversionFailure(at, kind, format!("{what} of a stored answer is damaged").into())
}

/// Reads a row and checks its sum.
pub(super) fn row_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<KeyRow> {
    let read = unchecked(row)?;
    if row.get::<_, Vec<u8>>(9)? == sum(&read) { Ok(read) } else { Err(wrong(9, "the sum")) }
}

/// Reads a row of version 1, which has no sum, or one whose sum is not checked yet.
pub(super) fn unchecked(row: &rusqlite::Row<'_>) -> rusqlite::Result<KeyRow> {
    let hash = |at: usize, what: &str| {
        let bytes: Vec<u8> = row.get(at)?;
        bytes.try_into().map(Fingerprint::from_bytes).map_err(|_| wrong(at, what))
    };
    let (key, write) = (hash(0, "the key")?, hash(1, "the write")?);
    let request: String = row.get(2)?;
    let request = RequestId::parse(request.as_bytes()).ok_or_else(|| wrong(2, "the request"))?;
    let caller: String = row.get(3)?;
    let answer = match row.get::<_, Option<u16>>(6)? {
        None => None,
        Some(status) => Some(FirstAnswer {
            status: StatusCode::from_u16(status).map_err(|_| wrong(6, "the status"))?,
            headers: headers(&row.get::<_, Vec<u8>>(7)?).ok_or_else(|| wrong(7, "the headers"))?,
            body: Bytes::from(row.get::<_, Vec<u8>>(8)?),
        }),
    };
    let keyed = KeyedWrite { key, write, request, caller: caller.into() };
    Ok(KeyRow { keyed, ended: WriteEnd { done: row.get(5)?, answer }, time_ms: row.get(4)? })
}

/// Header fields as `name: value` lines. A value contains no line break (RFC 9110, section 5.5).
pub(super) fn head(headers: &HeaderMap) -> Vec<u8> {
    headers.iter().fold(Vec::new(), |mut lines, (name, value)| {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.push(b'\n');
        lines
    })
}

pub(super) fn headers(lines: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let colon = line.windows(2).position(|pair| pair == b": ")?;
        let (name, value) = (line.get(..colon)?, line.get(colon + 2..)?);
        headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
    }
    Some(headers)
}
