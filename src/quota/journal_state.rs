//! The content of the slot journal: its lines, and the state that they add up to.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write as _};
use std::sync::Arc;

use uuid::Uuid;

use super::fair_queue::FairQueue;
use super::throttle_gate::CloseReason;
use super::window::HOLD_MS;
use super::{ACCOUNT, BUCKETS_MAX, BucketId};
use crate::ids::write_decimal;

/// First word of the first line; the boot id follows.
const HEADER: &str = "makegate-slots-1";
const HOLD: i64 = HOLD_MS.cast_signed();
/// Ends this close together are written as one line.
const TICK_MS: i64 = 10;
/// Room for what a step's line has besides the caller, as numbers usually are.
const NUMBERS_BYTES: usize = 64;

/// A line. Times are milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JournalLine<'a> {
    /// Attempts were sent.
    Sent(JournalStep<'a>),
    /// Attempts noted as sent have ended.
    Ended(JournalStep<'a>),
    /// Attempts noted as sent were never sent after all.
    Unsent(JournalStep<'a>),
    /// Attempts ended whose sending is no longer in any line.
    Held(JournalStep<'a>),
    /// When an organization's limit was learned, and the limit.
    Learned(i64, u64, u32),
    /// The upstream closed a bucket until this time.
    Closed(i64, BucketId),
    /// Every bucket counts as full until this time.
    Full(i64),
    /// Which state, shared with other replicas, knows everything that was spent so far, if any does.
    Epoch(Option<Uuid>),
    /// The journal was closed; only as the last line.
    Shut(i64),
}

/// What happened to attempts of one caller at one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JournalStep<'a> {
    pub(super) at: i64,
    pub(super) bucket: BucketId,
    pub(super) count: u64,
    pub(super) caller: &'a str,
}

impl<'a> JournalLine<'a> {
    /// Appends its text and a line break.
    pub(super) fn append_to(&self, text: &mut Vec<u8>) {
        let _infallible = match *self {
            Self::Sent(sent) => sent.append_to(text, b"S "),
            Self::Ended(ended) => ended.append_to(text, b"E "),
            Self::Unsent(unsent) => unsent.append_to(text, b"U "),
            Self::Held(held) => held.append_to(text, b"H "),
            Self::Learned(at, organization, limit) => writeln!(text, "L {at} {organization} {limit}"),
            Self::Closed(until, bucket) => writeln!(text, "C {until} {bucket}"),
            Self::Full(until) => writeln!(text, "F {until}"),
            Self::Epoch(epoch) => writeln!(text, "P {}", epoch.unwrap_or_default()),
            Self::Shut(at) => writeln!(text, "X {at}"),
        };
    }

    /// Without this line a slot counts for longer, never for less.
    pub(super) fn can_wait(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Unsent(_))
    }

    /// Returns `None` if the line is torn or garbled.
    fn parse(text: &'a [u8]) -> Option<Self> {
        let (kind, rest) = str::from_utf8(text).ok()?.split_once(' ')?;
        Some(match kind {
            "S" => Self::Sent(JournalStep::parse(rest)?),
            "E" => Self::Ended(JournalStep::parse(rest)?),
            "U" => Self::Unsent(JournalStep::parse(rest)?),
            "H" => Self::Held(JournalStep::parse(rest)?),
            "L" => {
                let (at, rest) = rest.split_once(' ')?;
                let (organization, limit) = rest.split_once(' ')?;
                Self::Learned(
                    at.parse().ok()?,
                    organization.parse().ok()?,
                    limit.parse().ok().filter(|limit| *limit > 0)?,
                )
            }
            "C" => {
                let (until, bucket) = rest.split_once(' ')?;
                Self::Closed(until.parse().ok()?, BucketId::parse(bucket)?)
            }
            "F" => Self::Full(rest.parse().ok()?),
            "P" => Self::Epoch(Some(rest.parse().ok()?).filter(|epoch: &Uuid| !epoch.is_nil())),
            "X" => Self::Shut(rest.parse().ok()?),
            _ => return None,
        })
    }
}

impl<'a> JournalStep<'a> {
    /// Called twice per attempt, so it avoids the formatting machinery.
    fn append_to(&self, text: &mut Vec<u8>, kind: &[u8]) -> io::Result<()> {
        let mut digits = [0; 20];
        text.reserve(NUMBERS_BYTES + self.caller.len());
        text.extend_from_slice(kind);
        text.extend_from_slice(write_decimal(self.at.unsigned_abs(), &mut digits));
        text.push(b' ');
        text.extend_from_slice(match self.bucket {
            BucketId::Account => ACCOUNT.as_bytes(),
            BucketId::Organization(id) => write_decimal(id, &mut digits),
        });
        text.push(b' ');
        text.extend_from_slice(write_decimal(self.count, &mut digits));
        text.push(b' ');
        text.extend_from_slice(self.caller.as_bytes());
        text.push(b'\n');
        Ok(())
    }

    fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.splitn(4, ' ');
        let at = words.next()?.parse().ok()?;
        let bucket = BucketId::parse(words.next()?)?;
        let count = words.next()?.parse().ok().filter(|count| *count <= u64::from(u32::MAX))?;
        let caller = words.next().filter(|caller| !caller.is_empty())?;
        Some(Self { at, bucket, count, caller })
    }
}

/// What the first line says.
struct JournalHeader<'f> {
    boot: &'f str,
    /// When the file began, in milliseconds: by the wall clock, and since the machine started.
    began: Option<(i64, i64)>,
}

impl<'f> JournalHeader<'f> {
    fn of(file: &'f [u8]) -> Option<Self> {
        let mut words = str::from_utf8(file.split(|byte| *byte == b'\n').next()?).ok()?.split(' ');
        words.next().filter(|word| *word == HEADER)?;
        let boot = words.next()?;
        let mut number = || words.next()?.parse().ok();
        Some(Self { boot, began: number().zip(number()) })
    }

    /// Whether it was written since the machine was started this time.
    fn is_of(&self, boot: &str) -> bool {
        !boot.is_empty() && self.boot == boot
    }
}

/// The state that all lines add up to.
#[derive(Debug, Default)]
pub(super) struct JournalState {
    pub(super) buckets: HashMap<BucketId, JournalBucket>,
    /// Every bucket counts as full until then.
    pub(super) full_until: Option<i64>,
    /// The state shared with other replicas that knows all of this.
    pub(super) epoch: Option<Uuid>,
}

#[derive(Debug, Default)]
pub(super) struct JournalBucket {
    /// When the limit was learned, and the limit.
    pub(super) learned: Option<(i64, u32)>,
    pub(super) closed_until: Option<i64>,
    /// Number of ended attempts by time of end and caller.
    pub(super) held: BTreeMap<(i64, Arc<str>), u64>,
    under_way: HashMap<Arc<str>, u64>,
}

impl JournalState {
    /// What the wall clock would say now if nobody had set it since the file began, according to the time since the machine started;
    /// `now` if that cannot be known, or is earlier.
    pub(super) fn time_by_file(file: &[u8], boot: &str, now: i64, since_boot_ms: Option<i64>) -> i64 {
        let began = JournalHeader::of(file).filter(|header| header.is_of(boot)).and_then(|header| header.began);
        let by_file =
            began.zip(since_boot_ms).map(|((wall, before), since)| wall.saturating_add(since.saturating_sub(before)));
        by_file.map_or(now, |by_file| now.min(by_file))
    }

    /// Adds up a whole file, at time `now`, on a machine with this boot id.
    pub(super) fn read(file: &[u8], boot: &str, now: i64) -> Self {
        let mut lines = file.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.next(); // the header
        let same_boot = JournalHeader::of(file).is_some_and(|header| header.is_of(boot));
        let mut journal_state = Self::default();
        let mut shut = file.is_empty();
        for line in lines.filter_map(JournalLine::parse) {
            shut = matches!(line, JournalLine::Shut(_));
            journal_state.add(line, now);
        }
        // A last line without its end was cut, so nobody knows how much is missing.
        let is_cut = file.last().is_some_and(|byte| *byte != b'\n');
        if is_cut || (!same_boot && !shut) {
            journal_state.assume_full(now);
        }
        journal_state.forget(now);
        journal_state
    }

    /// Attempts that no line mentions may have been sent until now.
    pub(super) fn assume_full(&mut self, now: i64) {
        self.full_until = Some(now + HOLD);
    }

    /// Counts whatever is under way as ended now, because the process that sent it is gone.
    pub(super) fn end_all(&mut self, now: i64) {
        for bucket in self.buckets.values_mut() {
            for (caller, count) in bucket.under_way.drain() {
                *bucket.held.entry((now, caller)).or_default() += count;
            }
        }
    }

    /// Moves all times by this many milliseconds.
    pub(super) fn shift(&mut self, by: i64) {
        let moved = |time: i64| time.saturating_add(by);
        self.full_until = self.full_until.map(moved);
        for bucket in self.buckets.values_mut() {
            bucket.closed_until = bucket.closed_until.map(moved);
            bucket.learned = bucket.learned.map(|(at, limit)| (moved(at), limit));
            let held = std::mem::take(&mut bucket.held);
            bucket.held = held.into_iter().map(|((at, caller), count)| ((moved(at), caller), count)).collect();
        }
    }

    /// The shortest file with the same content. Its first line says when it began, by the wall clock and since the machine's start.
    pub(super) fn text(&self, boot: &str, now: i64, since_boot_ms: Option<i64>) -> Vec<u8> {
        let began = since_boot_ms.map_or_else(String::new, |since_boot| format!(" {now} {since_boot}"));
        let mut text = format!("{HEADER} {boot}{began}\n").into_bytes();
        let mut put = |line: JournalLine<'_>| line.append_to(&mut text);
        if let Some(until) = self.full_until {
            put(JournalLine::Full(until));
        }
        if self.epoch.is_some() {
            put(JournalLine::Epoch(self.epoch));
        }
        for (&bucket, known) in &self.buckets {
            if let (BucketId::Organization(id), Some((at, limit))) = (bucket, known.learned) {
                put(JournalLine::Learned(at, id, limit));
            }
            if let Some(until) = known.closed_until {
                put(JournalLine::Closed(until, bucket));
            }
            for ((at, caller), &count) in &known.held {
                put(JournalLine::Held(JournalStep { at: *at, bucket, count, caller }));
            }
            for (caller, &count) in known.under_way.iter().filter(|(_, count)| **count > 0) {
                put(JournalLine::Sent(JournalStep { at: now, bucket, count, caller }));
            }
        }
        text
    }

    fn add(&mut self, line: JournalLine<'_>, now: i64) {
        match line {
            JournalLine::Sent(sent) => self.change_under_way(sent, u64::saturating_add),
            JournalLine::Unsent(unsent) => self.change_under_way(unsent, u64::saturating_sub),
            JournalLine::Ended(ended) => {
                self.change_under_way(ended, u64::saturating_sub);
                self.hold(ended, now);
            }
            JournalLine::Held(held) => self.hold(held, now),
            JournalLine::Learned(at, organization, limit) => {
                self.buckets.entry(BucketId::Organization(organization)).or_default().learned =
                    Some((at.min(now), limit));
            }
            JournalLine::Closed(until, bucket) => self.buckets.entry(bucket).or_default().closed_until = Some(until),
            JournalLine::Full(until) => self.full_until = self.full_until.max(Some(until.min(now + HOLD))),
            JournalLine::Epoch(epoch) => self.epoch = epoch,
            JournalLine::Shut(_) => {}
        }
    }

    fn change_under_way(
        &mut self,
        JournalStep { bucket, count, caller, .. }: JournalStep<'_>,
        change: impl FnOnce(u64, u64) -> u64,
    ) {
        let under_way = &mut self.buckets.entry(bucket).or_default().under_way;
        if let Some(known) = under_way.get_mut(caller) {
            *known = change(*known, count);
        } else {
            under_way.insert(caller.into(), change(0, count));
        }
    }

    fn hold(&mut self, JournalStep { at, bucket, count, caller }: JournalStep<'_>, now: i64) {
        let at = at.min(now);
        if at + HOLD > now {
            let tick = at.div_euclid(TICK_MS) * TICK_MS + TICK_MS;
            *self.buckets.entry(bucket).or_default().held.entry((tick.min(now), caller.into())).or_default() += count;
        }
    }

    /// Drops what is over, and all learned limits but the newest.
    fn forget(&mut self, now: i64) {
        self.full_until = self.full_until.filter(|until| *until > now);
        for bucket in self.buckets.values_mut() {
            bucket.closed_until = bucket.closed_until.filter(|until| *until > now);
            bucket.under_way.retain(|_, count| *count > 0);
        }
        self.buckets.retain(|_, bucket| !bucket.is_empty());
        if self.buckets.len() > BUCKETS_MAX {
            let mut learned: Vec<_> =
                self.buckets.values().filter_map(|bucket| bucket.learned.map(|(at, _)| at)).collect();
            learned.sort_unstable_by(|a, b| b.cmp(a));
            let oldest = learned.get(BUCKETS_MAX).copied().unwrap_or(i64::MIN);
            self.buckets.retain(|_, bucket| {
                bucket.learned = bucket.learned.filter(|(at, _)| *at > oldest);
                !bucket.is_empty()
            });
        }
    }
}

impl JournalBucket {
    /// Passes the remembered slots to a bucket that replicas share, with the milliseconds since their attempts ended.
    pub(super) fn restore_shared(&self, now: i64, mut restore: impl FnMut(&Arc<str>, u64, u64)) {
        for ((ended, caller), count) in &self.held {
            restore(caller, *count, u64::try_from(now - ended).unwrap_or(0));
        }
    }

    /// Adds the remembered slots to `queue`, which was opened at `now`.
    pub(super) fn restore_into(&self, queue: &mut FairQueue, now: i64) {
        for ((ended, caller), count) in &self.held {
            let age = u64::try_from(now - ended).unwrap_or(0);
            queue.hold(HOLD_MS.saturating_sub(age), caller, *count);
        }
        if let Some(until) = self.closed_until {
            queue.close(0, u64::try_from(until - now).unwrap_or(0), CloseReason::ThrottledBefore);
        }
    }

    fn is_empty(&self) -> bool {
        self.learned.is_none() && self.closed_until.is_none() && self.held.is_empty() && self.under_way.is_empty()
    }
}
