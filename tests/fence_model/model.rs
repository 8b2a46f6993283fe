//! The model: one engine, readers and writers with clocks of their own, and messages that are late or lost.
//!
//! It is as bad as the protocol allows, so that it stays small: a reader holds the oldest body that it may hold (one whose fetch began right
//! after its last raise), a writer sees a new epoch at once, an observer sees each beat at once, and an ack takes no time. Whoever is later
//! than that waits longer.

use stateright::{Model, Property};

/// Ticks of a lease.
pub(crate) const LEASE: u8 = 2;
/// A span that takes so many ticks more on the writers' clock may be one lease on a reader's: their rates differ a little.
pub(crate) const DRIFT: u8 = 1;
/// The epoch before the crash, and the one after it; 0: none is known.
const FIRST: u8 = 1;
const SECOND: u8 = 2;

/// The protocol's rules, each of which a variant breaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Ticks from a raise until a write is answered without acks.
    pub(crate) wait: u8,
    /// Ticks from an epoch's first sight until acks count.
    pub(crate) young: u8,
    /// Ticks without a beat until a member is gone.
    pub(crate) gone: u8,
    /// A lease is counted from before its beat was sent, not from its answer.
    pub(crate) lease_from_sending: bool,
    /// Whoever joins raises the fence of everything.
    pub(crate) join_raises: bool,
    /// The engine tells a member of another epoch that it joins.
    pub(crate) epoch_counts: bool,
    /// The beat with which a gone member returns gives no lease.
    pub(crate) return_without_lease: bool,
    /// A beat that a newer one overtook does nothing.
    pub(crate) late_beats_are_void: bool,
    /// A notification of another epoch is no fence of this one.
    pub(crate) notifications_have_epochs: bool,
    /// Fences stay in the engine until whoever lacks them has no lease any more.
    pub(crate) fences_are_kept: bool,
    /// No engine of an older epoch answers any more.
    pub(crate) old_engine_is_fenced: bool,
}

impl Rules {
    /// The rules as they are meant.
    pub(crate) const RIGHT: Self = Self {
        wait: LEASE + DRIFT,
        young: LEASE + DRIFT,
        gone: LEASE + DRIFT,
        lease_from_sending: true,
        join_raises: true,
        epoch_counts: true,
        return_without_lease: true,
        late_beats_are_void: true,
        notifications_have_epochs: true,
        fences_are_kept: true,
        old_engine_is_fenced: true,
    };
}

/// `R` readers, and a replica with `W` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World<const R: usize, const W: usize> {
    epoch: u8,
    /// The newest fence of each epoch.
    heads: [u8; 2],
    /// How many writes are settled.
    settled: u8,
    readers: [Reader; R],
    /// The writing replica's clock has ticked once more than the slowest reader's.
    ahead: bool,
    /// Ticks since the writing replica first saw the epoch.
    young: u8,
    writes: [Write; W],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Reader {
    /// Its clock has ticked as often as the writing replica's.
    ahead: bool,
    epoch: u8,
    applied: u8,
    /// Ticks left.
    lease: u8,
    /// How many writes were settled when it last raised its fences: its oldest body.
    body: u8,
    beat: Beat,
    /// A beat that it gave up, which may still arrive, with the epoch that it named.
    late: Option<u8>,
    /// Its row in the engine.
    row: Option<Row>,
}

/// A member as the engine knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Row {
    acked: u8,
    /// Ticks of the observer's clock without a beat; `None`: it is gone.
    quiet: Option<u8>,
}

impl Row {
    fn beaten(acked: u8) -> Option<Self> {
        Some(Self { acked, quiet: Some(0) })
    }
}

/// A beat, with what is left of the lease that it may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Beat {
    None,
    /// The engine has read what it answers; nobody sees yet what it wrote.
    Open(u8, Answer),
    Answered(u8, Answer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Answer {
    kind: AnswerKind,
    epoch: u8,
    head: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum AnswerKind {
    Beaten,
    /// It was gone.
    Returned,
    Joined,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Write {
    Before,
    /// Settled as the `nth`; its fence is `seq` of an epoch, and was first raised so many ticks ago.
    Raised {
        nth: u8,
        epoch: u8,
        seq: u8,
        since: u8,
    },
    Answered {
        nth: u8,
        by_acks: bool,
    },
}

/// One thing that happens. Numbers are those of readers and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    ReaderTicks(usize),
    WriterTicks,
    /// A reader sends a beat, and the engine begins to carry it out.
    Beats(usize),
    EngineCommits(usize),
    AnswerIsLost(usize),
    /// A reader sends a beat and gives it up; it may still arrive.
    BeatIsLate(usize),
    LateBeatArrives(usize),
    /// An engine of the first epoch answers as if there were no second.
    OldEngineAnswers(usize),
    Receives(usize),
    /// The next fence of this epoch arrives at a reader.
    Notified(usize, u8),
    MarkedGone(usize),
    Raises(usize),
    Answers(usize),
    EngineCrashes,
}

/// What happens in a world besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Beats that were given up may arrive; one at a time.
    pub(crate) late_beats: bool,
    /// Whom no write can harm any more is left out.
    pub(crate) safe_are_left_out: bool,
}

/// The rules that hold, in a world of this size.
pub(crate) struct Fences<const R: usize, const W: usize>(pub(crate) Rules, pub(crate) Bounds);

impl<const R: usize, const W: usize> Model for Fences<R, W> {
    type State = World<R, W>;
    type Action = Event;

    fn init_states(&self) -> Vec<Self::State> {
        let world = World {
            epoch: FIRST,
            heads: [0; 2],
            settled: 0,
            readers: [Reader::NEW; R],
            ahead: false,
            young: 0,
            writes: [Write::Before; W],
        };
        vec![world]
    }

    fn actions(&self, world: &Self::State, events: &mut Vec<Event>) {
        for (at, reader) in world.readers.iter().enumerate() {
            world.events_of_reader(at, reader, self, events);
        }
        if !world.ahead {
            events.push(Event::WriterTicks);
        }
        for (at, write) in world.writes.iter().enumerate() {
            match *write {
                Write::Before => events.push(Event::Raises(at)),
                Write::Raised { epoch, .. } if epoch != world.epoch => events.push(Event::Raises(at)),
                Write::Raised { .. } | Write::Answered { .. } => {}
            }
            if world.answer_of(*write, self.0).is_some() {
                events.push(Event::Answers(at));
            }
        }
        if world.epoch == FIRST {
            events.push(Event::EngineCrashes);
        }
    }

    fn next_state(&self, world: &Self::State, event: Event) -> Option<Self::State> {
        let mut next = *world;
        next.happen(event, self.0);
        if self.1.safe_are_left_out {
            next.leave_out_the_safe();
        }
        if next.ahead && next.readers.iter().all(|reader| reader.ahead) {
            next.ahead = false;
            next.readers.iter_mut().filter(|reader| **reader != Reader::SAFE).for_each(|reader| reader.ahead = false);
        }
        // Readers are alike, and so are writes: which is which does not matter.
        next.readers.sort_unstable();
        next.writes.sort_unstable();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_OLD_BODY, |_, world: &Self::State| !world.has_old_body()),
            Property::sometimes("a write is answered by acks, and read", |_, world: &Self::State| {
                world.is_read_after(true)
            }),
            Property::sometimes("a write is answered by a lease's end, and read", |_, world: &Self::State| {
                world.is_read_after(false)
            }),
            Property::sometimes("a gone member returns", |_, world: &Self::State| world.has_returned()),
            Property::sometimes("all read in the second epoch", |_, world: &Self::State| {
                world.readers.iter().all(|reader| reader.lease > 0 && reader.epoch == SECOND)
            }),
        ]
    }
}

/// The promise.
pub(crate) const NO_OLD_BODY: &str =
    "no read that begins after a write's answer returns a body from before the write was settled";

impl<const R: usize, const W: usize> World<R, W> {
    fn events_of_reader(&self, at: usize, reader: &Reader, fences: &Fences<R, W>, events: &mut Vec<Event>) {
        let Fences(rules, bounds) = fences;
        if *reader == Reader::SAFE {
            return;
        }
        if self.ahead && !reader.ahead {
            events.push(Event::ReaderTicks(at));
        }
        match reader.beat {
            Beat::None => {
                events.push(Event::Beats(at));
                if bounds.late_beats && self.readers.iter().all(|reader| reader.late.is_none()) {
                    events.push(Event::BeatIsLate(at));
                }
                if !rules.old_engine_is_fenced && self.epoch == SECOND && reader.epoch == FIRST {
                    events.push(Event::OldEngineAnswers(at));
                }
            }
            Beat::Open(..) => events.push(Event::EngineCommits(at)),
            Beat::Answered(..) => events.extend([Event::AnswerIsLost(at), Event::Receives(at)]),
        }
        if reader.late.is_some() {
            events.push(Event::LateBeatArrives(at));
        }
        for epoch in [FIRST, SECOND] {
            let counts = reader.epoch == epoch || !rules.notifications_have_epochs && reader.epoch != 0;
            if counts && self.head_of(epoch) > reader.applied {
                events.push(Event::Notified(at, epoch));
            }
        }
        // A transaction that is open has the row's lock, and then its beat is another.
        let is_locked = matches!(reader.beat, Beat::Open(..));
        if !is_locked && reader.row.and_then(|row| row.quiet).is_some_and(|quiet| quiet >= rules.gone) {
            events.push(Event::MarkedGone(at));
        }
    }

    fn happen(&mut self, event: Event, rules: Rules) {
        match event {
            Event::ReaderTicks(at) => self.readers[at].tick(),
            Event::WriterTicks => self.writer_ticks(rules),
            Event::Beats(at) => self.engine_reads(at, rules),
            Event::EngineCommits(at) => self.engine_commits(at),
            Event::AnswerIsLost(at) => self.readers[at].beat = Beat::None,
            Event::BeatIsLate(at) => self.readers[at].late = Some(self.readers[at].epoch),
            Event::LateBeatArrives(at) => self.late_beat_arrives(at, rules),
            Event::OldEngineAnswers(at) => {
                let answer = Answer { kind: AnswerKind::Beaten, epoch: FIRST, head: self.head_of(FIRST) };
                self.readers[at].beat = Beat::Answered(LEASE, answer);
            }
            Event::Receives(at) => self.receives(at, rules),
            Event::Notified(at, _) => self.apply(at, self.readers[at].applied + 1),
            Event::MarkedGone(at) => {
                if let Some(row) = &mut self.readers[at].row {
                    row.quiet = None;
                }
            }
            Event::Raises(at) => self.raises(at),
            Event::Answers(at) => {
                if let Some(answered) = self.answer_of(self.writes[at], rules) {
                    self.writes[at] = answered;
                }
            }
            Event::EngineCrashes => self.crash(),
        }
    }

    /// Once all writes are settled, a reader that raised its fences after the last of them has no old body. Neither its clock holds up those
    /// of others, then, nor do writers wait for it.
    fn leave_out_the_safe(&mut self) {
        let settled = self.settled;
        if usize::from(settled) == W {
            self.readers.iter_mut().filter(|reader| reader.body == settled).for_each(|reader| *reader = Reader::SAFE);
        }
    }

    fn writer_ticks(&mut self, rules: Rules) {
        self.ahead = true;
        self.young = (self.young + 1).min(rules.young);
        for write in &mut self.writes {
            if let Write::Raised { since, .. } = write {
                *since = (*since + 1).min(rules.wait);
            }
        }
        // It is the observer of all members, too.
        let quiets = self.readers.iter_mut().filter_map(|reader| reader.row.as_mut()?.quiet.as_mut());
        quiets.for_each(|quiet| *quiet = (*quiet + 1).min(rules.gone));
    }

    fn engine_reads(&mut self, at: usize, rules: Rules) {
        let head = self.head_of(self.epoch);
        let reader = &mut self.readers[at];
        let kind = match reader.row {
            Some(row) if reader.epoch == self.epoch && row.quiet.is_none() => AnswerKind::Returned,
            Some(_) if reader.epoch == self.epoch && (rules.fences_are_kept || reader.applied == head) => {
                AnswerKind::Beaten
            }
            _ if !rules.epoch_counts && reader.epoch != 0 => AnswerKind::Beaten,
            None | Some(_) => AnswerKind::Joined,
        };
        reader.beat = Beat::Open(LEASE, Answer { kind, epoch: self.epoch, head });
    }

    fn engine_commits(&mut self, at: usize) {
        let reader = &mut self.readers[at];
        let Beat::Open(left, answer) = reader.beat else { return };
        let acked = if answer.kind == AnswerKind::Joined { answer.head } else { reader.applied };
        reader.row = Row::beaten(acked);
        reader.beat = Beat::Answered(left, answer);
    }

    fn late_beat_arrives(&mut self, at: usize, rules: Rules) {
        let head = self.head_of(self.epoch);
        let reader = &mut self.readers[at];
        let Some(epoch) = reader.late.take() else { return };
        if matches!(reader.beat, Beat::Open(..)) {
            // The newer one has the row's lock, and wins.
            return;
        }
        let joins = reader.row.is_none() || epoch != self.epoch && !rules.late_beats_are_void;
        if joins {
            reader.row = Row::beaten(head);
        }
    }

    fn receives(&mut self, at: usize, rules: Rules) {
        let reader = &mut self.readers[at];
        let Beat::Answered(left, answer) = reader.beat else { return };
        reader.beat = Beat::None;
        reader.epoch = answer.epoch;
        match answer.kind {
            AnswerKind::Joined => {
                reader.applied = answer.head;
                if rules.join_raises {
                    reader.body = self.settled;
                }
            }
            AnswerKind::Beaten | AnswerKind::Returned if answer.head > reader.applied => self.apply(at, answer.head),
            AnswerKind::Beaten | AnswerKind::Returned => {}
        }
        let reader = &mut self.readers[at];
        if answer.kind != AnswerKind::Returned || !rules.return_without_lease {
            let left = if rules.lease_from_sending { left } else { LEASE };
            reader.lease = reader.lease.max(left);
        }
    }

    /// The reader raises what it has not yet, up to `seq`, and acks it.
    fn apply(&mut self, at: usize, seq: u8) {
        let reader = &mut self.readers[at];
        reader.body = self.settled;
        reader.applied = seq;
        if let Some(row) = reader.row.as_mut().filter(|_| reader.epoch == self.epoch) {
            row.acked = seq;
        }
    }

    /// Settles the write and raises its fence, or raises that again in another epoch.
    fn raises(&mut self, at: usize) {
        let head = &mut self.heads[usize::from(self.epoch) - 1];
        *head += 1;
        let (epoch, seq) = (self.epoch, *head);
        self.writes[at] = match self.writes[at] {
            Write::Before => {
                self.settled += 1;
                Write::Raised { nth: self.settled, epoch, seq, since: 0 }
            }
            Write::Raised { nth, since, .. } => Write::Raised { nth, epoch, seq, since },
            answered @ Write::Answered { .. } => answered,
        };
    }

    /// The write as answered, if it may be answered now.
    fn answer_of(&self, write: Write, rules: Rules) -> Option<Write> {
        let Write::Raised { nth, epoch, seq, since } = write else { return None };
        let rows = self.readers.iter().filter_map(|reader| reader.row);
        let all_acked = rows.filter(|row| row.quiet.is_some()).all(|row| row.acked >= seq);
        let by_acks = epoch == self.epoch && self.young >= rules.young && all_acked;
        (by_acks || since >= rules.wait).then_some(Write::Answered { nth, by_acks })
    }

    /// The engine's soft state is lost; a promoted standby has none either.
    fn crash(&mut self) {
        self.epoch = SECOND;
        for reader in &mut self.readers {
            reader.row = None;
            if matches!(reader.beat, Beat::Open(..)) {
                reader.beat = Beat::None;
            }
        }
        self.young = 0;
    }

    fn head_of(&self, epoch: u8) -> u8 {
        self.heads[usize::from(epoch) - 1]
    }

    fn newest_answered(&self) -> Option<(u8, bool)> {
        let answered = self.writes.iter().filter_map(|write| match *write {
            Write::Answered { nth, by_acks } => Some((nth, by_acks)),
            Write::Before | Write::Raised { .. } => None,
        });
        answered.max()
    }

    fn has_old_body(&self) -> bool {
        let newest = self.newest_answered().map_or(0, |(nth, _)| nth);
        self.readers.iter().any(|reader| reader.lease > 0 && reader.body < newest)
    }

    fn is_read_after(&self, by_acks: bool) -> bool {
        self.newest_answered().is_some_and(|(nth, by)| {
            by == by_acks && self.readers.iter().any(|reader| reader.lease > 0 && reader.body >= nth)
        })
    }

    fn has_returned(&self) -> bool {
        let returned =
            |reader: &Reader| matches!(reader.beat, Beat::Answered(_, answer) if answer.kind == AnswerKind::Returned);
        self.readers.iter().any(returned)
    }
}

impl Reader {
    const NEW: Self =
        Self { ahead: false, epoch: 0, applied: 0, lease: 0, body: 0, beat: Beat::None, late: None, row: None };
    const SAFE: Self = Self { ahead: true, body: u8::MAX, ..Self::NEW };

    fn tick(&mut self) {
        self.ahead = true;
        self.lease = self.lease.saturating_sub(1);
        if let Beat::Open(left, _) | Beat::Answered(left, _) = &mut self.beat {
            *left = left.saturating_sub(1);
        }
    }
}
