//! The protocol of fences over several replicas (promise 3), checked in every order of events. What is checked is the model in
//! `model.rs`; a rule of `src/replicas` that changes is changed there first.

#![expect(clippy::indexing_slicing, reason = "a place that the model names exists, or the test fails")]
#![expect(clippy::panic, reason = "a test that cannot go on fails")]

mod model;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

use self::model::{Bounds, Fences, LEASE, NO_OLD_BODY, Rules};

/// Without the readers that no write can harm any more, and without late beats.
const FEW: Bounds = Bounds { late_beats: false, safe_are_left_out: true };
const ALL: Bounds = Bounds { late_beats: true, safe_are_left_out: false };

/// Looks at every state that the rules allow.
fn hold<const R: usize, const W: usize>(rules: Rules, bounds: Bounds) {
    let checker = Fences::<R, W>(rules, bounds).checker().threads(2).spawn_bfs().join();
    eprintln!("{R} readers, {W} writes, {bounds:?}: {} states", checker.unique_state_count());
    if let Some(path) = checker.discovery(NO_OLD_BODY) {
        panic!("{R} readers, {W} writes: {NO_OLD_BODY}: {:?}", path.into_actions());
    }
    assert!(checker.is_done());
    if bounds.safe_are_left_out {
        return;
    }
    let possible = |property: &Property<Fences<R, W>>| matches!(property.expectation, Expectation::Sometimes);
    for Property { name, .. } in checker.model().properties().into_iter().filter(possible) {
        assert!(checker.discovery(name).is_some(), "{R} readers, {W} writes: never: {name}");
    }
}

/// How a variant of the rules lets an old body out, if it does.
fn harm<const R: usize, const W: usize>(rules: Rules) -> Option<String> {
    let harmed = HasDiscoveries::AnyFailures;
    let checker = Fences::<R, W>(rules, ALL).checker().finish_when(harmed).spawn_bfs().join();
    checker.discovery(NO_OLD_BODY).map(|path| format!("{:?}", path.into_actions()))
}

#[test]
fn one_reader_never_reads_what_a_write_made_old() {
    hold::<1, 1>(Rules::RIGHT, ALL);
    hold::<1, 2>(Rules::RIGHT, ALL);
}

#[test]
fn two_readers_never_read_what_a_write_made_old() {
    hold::<2, 1>(Rules::RIGHT, FEW);
}

#[test]
fn every_rule_is_needed() {
    const RIGHT: Rules = Rules::RIGHT;
    let variants = [
        ("no wait", Rules { wait: 0, ..RIGHT }),
        ("a wait that forgets that clocks differ", Rules { wait: LEASE, ..RIGHT }),
        ("a lease counted from the answer", Rules { lease_from_sending: false, ..RIGHT }),
        ("no raise on a new epoch", Rules { join_raises: false, ..RIGHT }),
        ("no wait in a young epoch", Rules { young: 0, ..RIGHT }),
        ("a young epoch that forgets that clocks differ", Rules { young: LEASE, ..RIGHT }),
        ("the epoch ignored", Rules { epoch_counts: false, ..RIGHT }),
        ("gone marked early", Rules { gone: LEASE - 1, ..RIGHT }),
        ("gone marked by a clock that runs fast", Rules { gone: LEASE, ..RIGHT }),
        ("a gone member's first beat gives a lease", Rules { return_without_lease: false, ..RIGHT }),
        ("a beat counts that a newer one overtook", Rules { late_beats_are_void: false, ..RIGHT }),
        ("fences dropped that a lease's holder lacks", Rules { fences_are_kept: false, ..RIGHT }),
        ("an old engine goes on", Rules { old_engine_is_fenced: false, ..RIGHT }),
    ];
    for (what, rules) in variants {
        let harm = harm::<1, 1>(rules).unwrap_or_else(|| panic!("{what}: nothing goes wrong"));
        eprintln!("{what}: {harm}");
    }
    // Its harm takes a fence in each epoch.
    let rules = Rules { notifications_have_epochs: false, ..RIGHT };
    let harm = harm::<1, 2>(rules).unwrap_or_else(|| panic!("notifications without epoch: nothing goes wrong"));
    eprintln!("a notification of another epoch counts: {harm}");
}
