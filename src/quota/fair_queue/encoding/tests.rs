//! A state that was encoded and decoded behaves as before, and garbage is told.

use proptest::prelude::*;

use super::super::{SPARE, SlotAnswer, SlotGrant, SlotRequest};
use super::*;

const START: Moment = 1_700_000_000_000;

/// Something that happens to a shared queue.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Ask(u8, u8),
    Spare,
    End(u8),
    Unsend(u8),
    Pump,
    Leave(u8),
    Close(u16),
    Limit(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (0_u8..6, 0_u8..3).prop_map(|(caller, owner)| Happening::Ask(caller, owner)),
        1 => Just(Happening::Spare),
        4 => any::<u8>().prop_map(Happening::End),
        1 => any::<u8>().prop_map(Happening::Unsend),
        4 => Just(Happening::Pump),
        1 => any::<u8>().prop_map(Happening::Leave),
        1 => (0_u16..30_000).prop_map(Happening::Close),
        1 => (1_u8..80).prop_map(Happening::Limit),
    ]
}

/// Does it and says what came of it.
fn happen(state: &mut SharedState, now: Moment, what: Happening, grants: &mut Vec<SlotGrant>) -> String {
    let queue = &mut state.queue;
    queue.lend_until(now + 100_000);
    let granted = |grant: Option<SlotGrant>, grants: &mut Vec<SlotGrant>| {
        let told = format!("{grant:?}");
        grants.extend(grant);
        told
    };
    let pick = |place: u8, len: usize| usize::from(place) % len.max(1);
    match what {
        Happening::Ask(caller, owner) => {
            let name: Arc<str> = format!("caller {caller}").into();
            let (wait_ms, latest, owner) = (5_000, now + 5_000, u128::from(owner) + 1);
            let request = SlotRequest { caller: &name, eligible: 5, wait_ms, latest, queue_max: 4, owner };
            match queue.ask(now, &request) {
                SlotAnswer::Granted(grant) => granted(Some(grant), grants),
                answer @ (SlotAnswer::Queued(_) | SlotAnswer::Full(_) | SlotAnswer::TooLong(_)) => {
                    format!("{answer:?}")
                }
            }
        }
        Happening::Spare => granted(queue.take_spare(now), grants),
        Happening::End(place) if !grants.is_empty() => {
            let grant = grants.remove(pick(place, grants.len()));
            format!("{}", queue.end_lent(now, now + 3, &grant))
        }
        Happening::Unsend(place) if !grants.is_empty() => {
            let grant = grants.remove(pick(place, grants.len()));
            format!("{}", queue.unsend_lent(now, &grant))
        }
        Happening::Pump => match queue.pump(now) {
            Some((grant, ticket)) => format!("{ticket} {}", granted(Some(grant), grants)),
            None => format!("{:?}", queue.next_wake(now)),
        },
        Happening::Leave(place) => {
            let id = u64::from(place);
            format!("{}", queue.retain_tickets(now, |ticket| ticket.id != id))
        }
        Happening::Close(ms) => {
            queue.close(now, now + u64::from(ms), CloseReason::Throttled(Some(Duration::from_secs(9))));
            String::new()
        }
        Happening::Limit(limit) => {
            queue.set_limit(limit.into());
            String::new()
        }
        Happening::End(_) | Happening::Unsend(_) => String::new(),
    }
}

fn sights(state: &SharedState, now: Moment) -> String {
    let queue = &state.queue;
    let mut spenders: Vec<_> = queue.spenders().collect();
    spenders.sort_unstable();
    format!(
        "{spenders:?} {} {} {} {:?} {:?} {:?}",
        queue.used(),
        queue.waiting(),
        queue.lent_count(),
        queue.next_turn(now),
        queue.closed_why(now),
        queue.gate,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_decoded_state_behaves_as_the_one_that_was_encoded(
        before in prop::collection::vec((happening(), 0_u64..4_000), 0..80),
        after in prop::collection::vec((happening(), 0_u64..9_000), 0..80),
    ) {
        let mut state = SharedState::new(20, LimitSource::Learned);
        let (mut now, mut grants) = (START, Vec::new());
        for (what, later) in before {
            now += later;
            happen(&mut state, now, what, &mut grants);
        }
        state.turn = Some((3, now));
        state.lend_ms = 96_000;
        let mut decoded = SharedState::decode(&state.encode()).unwrap();
        prop_assert_eq!((decoded.turn, decoded.lend_ms, decoded.limit, decoded.limit_from), (state.turn, 96_000, 20, LimitSource::Learned));
        let mut grants_of_decoded = grants.clone();
        prop_assert_eq!(sights(&decoded, now), sights(&state, now));
        for (what, later) in after {
            now += later;
            let (one, other) = (happen(&mut state, now, what, &mut grants), happen(&mut decoded, now, what, &mut grants_of_decoded));
            prop_assert_eq!(one, other, "{:?}", what);
            prop_assert_eq!(sights(&decoded, now), sights(&state, now));
        }
    }

    #[test]
    fn garbage_is_told_and_never_a_panic(
        happenings in prop::collection::vec((happening(), 0_u64..4_000), 0..40),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut state = SharedState::new(20, LimitSource::Assumed);
        let (mut now, mut grants) = (START, Vec::new());
        for (what, later) in &happenings {
            now += later;
            happen(&mut state, now, *what, &mut grants);
        }
        let mut bytes = state.encode();
        for (place, byte) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= byte;
        }
        let cut = bytes[..cut.index(bytes.len())].to_vec();
        for bytes in [bytes, cut, noise] {
            if let Ok(mut state) = SharedState::decode(&bytes) {
                for (what, later) in &happenings {
                    happen(&mut state, now + later, *what, &mut grants);
                    SharedState::decode(&state.encode()).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_newer_version_is_refused_and_says_so() {
    let newer = StateMessage { version: VERSION + 1, ..StateMessage::default() };
    assert_eq!(SharedState::decode(&newer.encode_to_vec()).unwrap_err(), StateFault::Newer(2));
    assert_eq!(SharedState::decode(&[]).unwrap_err(), StateFault::Garbled);
    assert_eq!(SharedState::decode(b"nonsense").unwrap_err(), StateFault::Garbled);
}

#[test]
fn a_busy_bucket_is_a_few_kilobytes() {
    let mut state = SharedState::new(240, LimitSource::Learned);
    let mut grants = Vec::new();
    for n in 0..240_u64 {
        let now = START + n * 250;
        let request = Happening::Ask(u8::try_from(n % 10).unwrap(), 0);
        happen(&mut state, now, request, &mut grants);
        happen(&mut state, now + 100, Happening::End(0), &mut grants);
    }
    assert!(state.queue.used() > 200, "{}", state.queue.used());
    let bytes = state.encode().len();
    assert!(bytes < 2_000, "{bytes} bytes");
}

#[test]
fn a_clock_that_was_set_back_holds_slots_no_longer_than_they_were_lent() {
    let mut state = SharedState::new(20, LimitSource::Learned);
    let mut grants = Vec::new();
    for _ in 0..10 {
        happen(&mut state, START + 3_600_000, Happening::Ask(1, 0), &mut grants);
    }
    happen(&mut state, START + 3_600_000, Happening::Spare, &mut grants);
    happen(&mut state, START + 3_600_000, Happening::End(0), &mut grants);
    state.queue.close(START + 3_600_000, START + 3_700_000, CloseReason::ThrottledBefore);
    assert!(!state.queue.clamp(START + 3_600_000, 100_000, 600_000), "nothing lies ahead");
    let used = state.queue.used();
    assert!(state.queue.clamp(START, 100_000, 600_000));
    state.queue.expire(START + 60_000);
    assert_eq!(state.queue.used(), used, "it comes back no earlier");
    state.queue.expire(START + 102_001);
    assert_eq!(state.queue.used(), 0);
    assert!(state.queue.closed_until(START + 602_001).is_none());
    assert!(state.queue.spenders().all(|(name, ..)| **name != *SPARE));
}

#[test]
fn an_end_that_is_told_twice_counts_once_and_one_that_nobody_tells_counts_as_long_as_it_was_lent() {
    let mut state = SharedState::new(20, LimitSource::Learned);
    let mut grants = Vec::new();
    happen(&mut state, START - 10, Happening::Ask(1, 0), &mut grants);
    happen(&mut state, START, Happening::Ask(1, 0), &mut grants);
    let queue = &mut state.queue;
    assert!(queue.end_lent(START + 500, START + 400, &grants[0]));
    assert!(!queue.end_lent(START + 900, START + 400, &grants[0]), "it is known");
    assert_eq!((queue.used(), queue.lent_count()), (2, 1));
    queue.expire(START + 61_400);
    assert_eq!(queue.used(), 1);
    queue.expire(START + 99_999);
    assert_eq!(queue.used(), 1, "lent until 100 s later");
    queue.expire(START + 100_000);
    assert_eq!((queue.used(), queue.spenders().count()), (0, 0));
    // The attempt took longer than anybody thought.
    assert!(queue.end_lent(START + 110_000, START + 110_000, &grants[1]));
    assert_eq!(queue.used(), 1);
}

#[test]
fn a_slot_whose_attempt_was_never_sent_comes_back_once() {
    let mut state = SharedState::new(20, LimitSource::Learned);
    let mut grants = Vec::new();
    for n in 0..3 {
        happen(&mut state, START - 30 + 10 * n, Happening::Ask(1, 0), &mut grants);
    }
    let spent = |state: &SharedState| state.queue.spenders().map(|(_, spent, _)| spent).sum::<u64>();
    assert!(state.queue.unsend_lent(START + 100, &grants[0]));
    assert_eq!((state.queue.used(), spent(&state)), (2, 2));
    assert!(!state.queue.unsend_lent(START + 200, &grants[0]), "it is back already");
    assert_eq!((state.queue.used(), spent(&state)), (2, 2));
    // Nobody said so in time, and another attempt has gone out since.
    state.queue.expire(START + 100_000);
    happen(&mut state, START + 100_000, Happening::Ask(1, 0), &mut grants);
    assert!(!state.queue.unsend_lent(START + 100_100, &grants[1]));
    assert_eq!((state.queue.used(), spent(&state)), (1, 1));
}
