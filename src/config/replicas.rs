//! The values of `[replicas]` that no other section has.

use std::sync::Arc;

use crate::toml_reader::{InvalidValue, ValueKind};

/// What becomes of a read that memory could answer while this replica has no lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WithoutLease {
    #[default]
    /// It goes to the upstream or is refused: another replica may have written meanwhile.
    Refuse,
    /// Memory answers it, and the answer says so.
    Memory,
}

/// Which records a replica ships to the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShippedRecords {
    #[default]
    /// All of them.
    All,
    /// All but those of answers from the cache.
    NoHits,
    /// Those of writes, and events.
    Writes,
    /// None.
    None,
}

/// The most of a quota that can be kept, in percent.
const RESERVE_PERCENT_MAX: u32 = 50;

pub(super) const WITHOUT: ValueKind<WithoutLease> = ValueKind::text("a word", "\"refuse\"", |text| match text {
    "refuse" => Ok(WithoutLease::Refuse),
    "memory" => Ok(WithoutLease::Memory),
    _ => Err(InvalidValue::quoting(text, "is neither refuse nor memory", "write \"refuse\" or \"memory\"")),
});

pub(super) const RECORDS: ValueKind<ShippedRecords> = ValueKind::text("a word", "\"all\"", |text| match text {
    "all" => Ok(ShippedRecords::All),
    "no-hits" => Ok(ShippedRecords::NoHits),
    "writes" => Ok(ShippedRecords::Writes),
    "none" => Ok(ShippedRecords::None),
    _ => {
        let help = "write \"all\", \"no-hits\", \"writes\" or \"none\"";
        Err(InvalidValue::quoting(text, "says nothing about records", help))
    }
});

pub(super) const RESERVE: ValueKind<u32> = ValueKind::text("a percentage", "\"0%\"", |text| {
    let help = "write \"0%\" to \"50%\"";
    let number = text.strip_suffix('%').and_then(|digits| digits.parse::<u32>().ok());
    number
        .filter(|percent| *percent <= RESERVE_PERCENT_MAX)
        .ok_or_else(|| InvalidValue::quoting(text, "is not a whole percentage up to 50", help))
});

/// As long as a host name may be.
const NAME_BYTES_MAX: usize = 63;

/// Whether this can be a replica's name: what host names and pod names are made of.
#[must_use]
pub fn is_replica_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain)
}

pub(super) const REPLICA: ValueKind<Arc<str>> = ValueKind::text("a replica's name", "\"makegate-0\"", |text| {
    let help = "write 1 to 63 letters, digits, dots, dashes and underscores, such as \"makegate-0\"";
    is_replica_name(text)
        .then(|| text.into())
        .ok_or_else(|| InvalidValue::quoting(text, "cannot be a replica's name", help))
});
