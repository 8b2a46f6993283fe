//! Shows this log's signed heads to the other replicas, and writes theirs into this log: whoever cuts a log would have to cut them all.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::audit::log::AuditLog;
use crate::audit::proof::note::Head;
use crate::audit::record::{Record, line};
use crate::replicas::engine::{Engine, EngineError};
use crate::replicas::heads::{self, SharedHead};
use crate::replicas::shipping::ShippedLog;

/// At most so often a new head is shown.
const SHOW: Duration = Duration::from_secs(10);
/// At most so often the others' heads are noted.
const NOTE: Duration = Duration::from_secs(300);
/// The most bytes of notes in one record; more go into further ones. A line of the usual length holds them.
const NOTES_BYTES_MAX: usize = 4_096;
/// The event's name.
pub(super) const HEADS: &str = "heads";

/// What was shown and noted so far.
#[derive(Debug)]
pub(super) struct HeadExchange {
    place: ShippedLog,
    shown: u64,
    shown_at: Option<Instant>,
    /// By replica and log: the size of the head that was noted last.
    noted: HashMap<(Arc<str>, Arc<str>), u64>,
    noted_at: Option<Instant>,
}

impl HeadExchange {
    pub(super) fn new(place: ShippedLog) -> Self {
        Self { place, shown: 0, shown_at: None, noted: HashMap::new(), noted_at: None }
    }

    /// Shows and notes what is due. The last head is shown at once: nobody else may ever come to do so.
    pub(super) async fn exchange(
        &mut self,
        log: &Arc<AuditLog>,
        engine: &Engine,
        is_last: bool,
    ) -> Result<(), EngineError> {
        let now = log.shared.clock.now();
        let is_due = |at: Option<Instant>, every| at.is_none_or(|at| now.saturating_duration_since(at) >= every);
        if is_last || is_due(self.shown_at, SHOW) {
            self.shown_at = Some(now);
            let head = log.shared.heads.newest();
            if head.size > self.shown {
                heads::put(engine, &self.place, head.size, &head.to_string()).await?;
                self.shown = head.size;
            }
        }
        if !is_last && is_due(self.noted_at, NOTE) {
            let others = heads::of_others(engine, &self.place.replica).await?;
            self.noted_at = Some(now);
            self.note(log, others);
        }
        Ok(())
    }

    /// Records the heads that are new. Best effort: the next ones say the same.
    fn note(&mut self, log: &Arc<AuditLog>, others: Vec<SharedHead>) {
        let is_new = |head: &SharedHead| {
            let noted = self.noted.get(&(head.replica.clone(), head.log.clone()));
            noted.is_none_or(|noted| *noted < head.size) && is_head(head)
        };
        let new: Vec<SharedHead> = others.into_iter().filter(is_new).collect();
        for record in records(&new, log.shared.clock.wall()) {
            let Some(room) = log.reserve() else { return };
            room.fill(record);
        }
        self.noted.extend(new.into_iter().map(|head| ((head.replica, head.log), head.size)));
    }
}

/// Whether the note is one, and says what the engine says of it.
fn is_head(head: &SharedHead) -> bool {
    Head::parse(&head.note).is_some_and(|note| note.size == head.size && note.origin() == &*head.log)
}

/// The events that name these heads, each by its replica.
fn records(new: &[SharedHead], now: jiff::Timestamp) -> Vec<Record<'static>> {
    let mut records = Vec::new();
    let (mut notes, mut sizes, mut bytes) = (Map::new(), Vec::new(), 0);
    let mut rest = new.iter().peekable();
    while let Some(head) = rest.next() {
        bytes += head.replica.len() + head.note.len();
        sizes.push(format!("{} {}", head.replica, head.size));
        notes.insert(head.replica.to_string(), Value::from(head.note.as_str()));
        let is_full = rest.peek().is_none_or(|next| {
            // A replica whose folder was lost has two logs.
            bytes + next.note.len() > NOTES_BYTES_MAX || notes.contains_key(&*next.replica)
        });
        if is_full {
            let detail =
                format!("other replicas' logs have so many records: {}", std::mem::take(&mut sizes).join(", "));
            let fields = line::object(&std::mem::take(&mut notes));
            bytes = 0;
            records.push(Record { fields: Some(Cow::Owned(fields)), ..Record::event(now, HEADS, detail) });
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::proof::note::Signer;
    use crate::audit::segment::tree::{Tree, leaf};

    pub(super) fn head(replica: &str, size: u8) -> SharedHead {
        let signer = Signer::new(&format!("makegate/{replica}"), [7; 32]).unwrap();
        let mut tree = Tree::default();
        (0..size).for_each(|n| tree.push(leaf(&[n])));
        let note = signer.sign(&tree, None).to_string();
        SharedHead { replica: replica.into(), log: format!("makegate/{replica}").into(), size: size.into(), note }
    }

    #[test]
    fn many_heads_go_into_several_records_of_usual_length() {
        let all: Vec<SharedHead> = (0..100).map(|n| head(&format!("makegate-{n}"), 3)).collect();
        let records = records(&all, jiff::Timestamp::UNIX_EPOCH);
        let mut found = Vec::new();
        for record in &records {
            let mut text = Vec::new();
            line::render(record, 8 << 10, &mut text);
            let record: Value = serde_json::from_slice(&text).unwrap();
            let notes = record["fields"].as_object().unwrap();
            found.extend(notes.values().map(|note| Head::parse(note.as_str().unwrap()).unwrap()));
        }
        assert!(found.len() == 100 && (2..=12).contains(&records.len()), "{} in {}", found.len(), records.len());
        assert!(records[0].detail.as_deref().unwrap().contains("makegate-0 3, makegate-1 3"));
    }

    #[test]
    fn a_note_that_is_none_or_says_something_else_is_not_noted() {
        let good = head("makegate-1", 5);
        assert!(is_head(&good));
        assert!(!is_head(&SharedHead { size: 6, ..good.clone() }));
        assert!(!is_head(&SharedHead { log: "makegate/other".into(), ..good.clone() }));
        assert!(!is_head(&SharedHead { note: "hello".to_owned(), ..good }));
    }
}
