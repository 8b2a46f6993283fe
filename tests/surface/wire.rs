//! What goes over the wire, byte by byte: headers of answers, headers that go upstream, targets, bodies, TLS.

mod bodies;
mod certificates;
mod connections;
mod expectations;
mod fragments;
mod headers;
mod hosts;
mod limits;
mod lingering;
mod memory;
mod node;
mod odd_answers;
mod outcomes;
mod preconditions;
mod streams;
mod tags;
mod targets;
mod tls;
mod unix;
mod unread;

use makegate::clock::Clock;

use crate::support::{Plan, Reply};

const USAGE: &str = "/api/v2/organizations/11/usage";
const APPS: &str = "/api/v2/organizations/11/apps";

fn still() -> Plan {
    Plan::default().clock(Clock::frozen())
}

/// A header that has to be there.
#[track_caller]
fn header<'r>(reply: &'r Reply, name: &str) -> &'r str {
    reply.header(name).unwrap_or_else(|| panic!("no {name}: {reply:?}"))
}
