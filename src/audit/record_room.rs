//! Room for a record that is going to be made: whoever has it can record without waiting and without failing.

use std::sync::Arc;

use super::buffer::{BufferCharge, PendingRecord};
use super::log::{AuditLog, bound};
use super::record::Record;
use crate::shares::{HeldShare, ShareHolder, Shortage};

/// Room in the buffer for one record. Dropped unused, it is free again.
#[derive(Debug)]
#[must_use]
pub struct RecordRoom {
    log: Arc<AuditLog>,
    charge: BufferCharge,
    share: Option<HeldShare>,
}

impl RecordRoom {
    /// This much of the buffer, which was taken.
    pub(super) const fn of(log: Arc<AuditLog>, charge: BufferCharge) -> Self {
        Self { log, charge, share: None }
    }

    /// From now on, until its record is on disk, it counts against the share of this caller: whoever makes records faster than
    /// the disk takes them leaves room for the others.
    ///
    /// # Errors
    /// The share is used up.
    pub fn count_for(&mut self, holder: &Arc<ShareHolder>) -> Result<(), Shortage> {
        self.share = Some(holder.take(self.log.shared.buffer.share_of(self.charge))?);
        Ok(())
    }

    /// Records lazily: never blocks, never fails; on disk within a second while there is a disk.
    pub fn fill(self, record: impl Into<Box<Record>>) {
        let mut record = record.into();
        bound(&mut record, self.log.shared.record_bytes);
        let bytes = record.weight().min(self.charge.bytes);
        self.put(record, BufferCharge { records: 1, bytes, refusal: false });
    }

    /// Records the refusal of whoever is not known, or too fast.
    ///
    /// # Errors
    /// The record: refusals have got their part of the buffer.
    pub fn fill_refusal(self, mut record: Box<Record>) -> Result<(), Box<Record>> {
        bound(&mut record, self.log.shared.record_bytes);
        let charge = BufferCharge { records: 1, bytes: record.weight().min(self.charge.bytes), refusal: true };
        if !self.log.shared.buffer.is_refusals(charge) {
            return Err(record);
        }
        self.put(record, charge);
        Ok(())
    }

    fn put(mut self, record: Box<Record>, charge: BufferCharge) {
        let shared = &self.log.shared;
        shared.buffer.release(BufferCharge { records: 0, bytes: self.charge.bytes - charge.bytes, refusal: false });
        let mut share = self.share.take();
        share.iter_mut().for_each(|share| share.shrink(shared.buffer.share_of(charge)));
        let turned_away =
            shared.buffer.push(PendingRecord { record, charge, _share: share, ack: None, name: None }, false);
        self.charge = turned_away.map(|entry| entry.charge).unwrap_or_default();
    }
}

impl Drop for RecordRoom {
    fn drop(&mut self) {
        self.log.shared.buffer.release(self.charge);
    }
}
