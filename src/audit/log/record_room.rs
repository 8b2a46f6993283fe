//! Reserved room for a future record: its holder can record without waiting and without failing.

use std::sync::Arc;

use super::AuditLog;
use super::buffer::{BufferCharge, CannotRecord, PendingRecord};
use super::shared::{outcome_charge, truncate_texts};
use crate::audit::record::Record;
use crate::shares::{HeldShare, ShareHolder, Shortage};

impl AuditLog {
    /// Reserves room for one record when a request arrives. Returns `None` if the buffer is full; the request must
    /// then be refused.
    #[must_use]
    pub fn reserve(self: &Arc<Self>) -> Option<RecordRoom> {
        let charge = outcome_charge(self.shared.record_bytes);
        if self.shared.buffer.take(charge) {
            return Some(RecordRoom { log: self.clone(), charge, share: None });
        }
        self.shared.refuse(CannotRecord::Full);
        None
    }
}

/// Buffer room for one record, released when dropped unused.
#[derive(Debug)]
#[must_use]
pub struct RecordRoom {
    log: Arc<AuditLog>,
    charge: BufferCharge,
    share: Option<HeldShare>,
}

impl RecordRoom {
    /// From now on, until its record is on disk, the room counts against this caller's share, so a caller who makes
    /// records faster than the disk takes them still leaves room for the others.
    ///
    /// # Errors
    /// The caller's share is used up.
    pub fn charge_to(&mut self, holder: &Arc<ShareHolder>) -> Result<(), Shortage> {
        self.share = Some(holder.take(self.log.shared.buffer.share_of(self.charge))?);
        Ok(())
    }

    /// Records lazily: never blocks, never fails. The record is on disk within a second if the disk works.
    pub fn fill(self, record: impl Into<Box<Record<'static>>>) {
        let mut record = record.into();
        truncate_texts(&mut record, self.log.shared.record_bytes);
        let bytes = record.weight().min(self.charge.bytes);
        self.put(record, BufferCharge { records: 1, bytes, refusal: false });
    }

    /// Records a refusal of an unidentified caller or of one over its rate.
    ///
    /// # Errors
    /// Returns the record if refusals have used up their part of the buffer.
    pub fn fill_refusal(self, mut record: Box<Record<'static>>) -> Result<(), Box<Record<'static>>> {
        truncate_texts(&mut record, self.log.shared.record_bytes);
        let charge = BufferCharge { records: 1, bytes: record.weight().min(self.charge.bytes), refusal: true };
        if !self.log.shared.buffer.convert_to_refusal(charge) {
            return Err(record);
        }
        self.put(record, charge);
        Ok(())
    }

    fn put(mut self, record: Box<Record<'static>>, charge: BufferCharge) {
        let shared = &self.log.shared;
        shared.buffer.release(BufferCharge { records: 0, bytes: self.charge.bytes - charge.bytes, refusal: false });
        let mut share = self.share.take();
        share.iter_mut().for_each(|share| share.shrink(shared.buffer.share_of(charge)));
        let turned_away = shared
            .buffer
            .push(PendingRecord { record, charge, _share: share, ack: None, name: None, doubt_room: None }, false);
        self.charge = turned_away.map(|entry| entry.charge).unwrap_or_default();
    }
}

impl Drop for RecordRoom {
    fn drop(&mut self) {
        self.log.shared.buffer.release(self.charge);
    }
}
