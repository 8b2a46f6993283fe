//! What this replica shares with others. Without `[replicas]` none of it has a sample.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::state::OperatorState;
use super::writer::MetricsWriter;
use crate::replicas::engine::Line;
use crate::replicas::{ListedReplica, Replicas, TakesPart};

pub(super) fn replicas(writer: &mut MetricsWriter<'_>, state: &OperatorState) -> fmt::Result {
    let replicas = state.gateway.replicas.as_deref();
    members(writer, replicas)?;
    engine(writer, replicas)?;
    let counted = |count: fn(&Replicas) -> &AtomicU64| replicas.map(|one| ([], count(one).load(Ordering::Relaxed)));
    let waits = replicas.map(|one| ([], one.counters().fence_waits.read()));
    writer.durations("makegate_replicas_fence_wait", "Time until every replica knew of a fence", waits)?;
    let by = replicas.into_iter().flat_map(|one| {
        let counters = one.counters();
        [("ack", &counters.fence_acks), ("lease", &counters.fence_leases)]
    });
    let by = by.map(|(by, count)| ([("by", by.to_owned())], count.load(Ordering::Relaxed)));
    let help = "Fences that every replica knew of, by how that was known: all had said so, or a lease had passed";
    writer.counters("makegate_replicas_fence_waits", help, by)?;
    let swaps = replicas.into_iter().flat_map(|one| {
        let counters = one.counters();
        [("won", &counters.swaps_won), ("lost", &counters.swaps_lost)]
    });
    let swaps = swaps.map(|(result, count)| ([("result", result.to_owned())], count.load(Ordering::Relaxed)));
    let help = "Changes of a quota's shared state, by result; lost: another replica was faster, and it was tried again";
    writer.counters("makegate_replicas_swaps", help, swaps)?;
    let help =
        "Epochs of the shared soft state that this replica has joined; one more than its starts: the database lost it";
    writer.counters("makegate_replicas_epochs", help, counted(|one| &one.counters().epochs))?;
    let help = "Times that the database's clock was found to be set";
    writer.counters("makegate_replicas_engine_clock_steps", help, counted(|one| &one.counters().clock_steps))?;
    let help = "Records of this replica's log that the database does not have yet";
    let behind = state.gateway.log.ship_state().map(|shipping| ([], shipping.behind));
    writer.gauges("makegate_replicas_ship_behind_records", help, behind)
}

fn members(writer: &mut MetricsWriter<'_>, replicas: Option<&Replicas>) -> fmt::Result {
    let lease = replicas.map(|one| ([], one.lease().left().as_secs_f64()));
    let help = "What is left of this replica's lease; 0: it has none, and its memory answers nothing, or unfenced";
    writer.gauges("makegate_replicas_lease_seconds", help, lease)?;
    let roster = replicas.and_then(Replicas::roster);
    let listed = roster.as_ref().map(|roster| &*roster.replicas);
    let count = |listed: &[ListedReplica], state| listed.iter().filter(|one| one.state == state).count() as u64;
    let states =
        listed.into_iter().flat_map(|listed| TakesPart::ALL.map(|state| (state.as_str(), count(listed, state))));
    let states = states.map(|(state, count)| ([("state", state.to_owned())], count));
    let help = "Replicas, by state: live; gone (ended, or silent for a lease); left";
    writer.gauges("makegate_replicas_members", help, states)?;
    let unlike = replicas.zip(listed).map(|(one, listed)| one.unlike(listed).map(|names| names.len() as u64));
    let unlike = unlike.into_iter().flat_map(|[version, configuration]| {
        [("version", version), ("configuration", configuration)].map(|(what, n)| ([("what", what.to_owned())], n))
    });
    let help = "Live replicas whose version or configuration is not this one's";
    writer.gauges("makegate_replicas_unlike", help, unlike)
}

fn engine(writer: &mut MetricsWriter<'_>, replicas: Option<&Replicas>) -> fmt::Result {
    let up = replicas.map(|one| ([], u64::from(one.is_engine_up())));
    writer.gauges("makegate_replicas_engine_up", "1: the replicas' database can be used", up)?;
    let durations = replicas.into_iter().flat_map(|one| {
        let counters = one.engine().counters();
        Line::ALL.map(|line| ([("line", line.as_str().to_owned())], counters.durations(line).read()))
    });
    let help = "Time that statements took in the replicas' database, by connection";
    writer.durations("makegate_replicas_engine", help, durations)
}
