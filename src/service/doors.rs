//! The three doors of a running makegate: their certificates, their sockets and how many connections each takes.

use std::io;

use jiff::Timestamp;
use rustix::process::{Resource, getrlimit};

use super::StartError;
use crate::clock::Clock;
use crate::config::{Config, Limits};
use crate::door::{Certificate, CheckedCertificate, Door, DoorSockets, PassedSocket};
use crate::tasks::Tasks;
use crate::watched_files::Snapshot;

/// File descriptors reserved for everything but connections: the log, its index, the listeners, files read at run time.
const OTHER_FILES: usize = 64;
/// If descriptors are scarce, operators get one in this many of those left for connections.
const OPERATORS_DIVISOR: usize = 8;
/// Minimum number of connections to start with.
const CONNECTIONS_MIN: usize = 16;
/// Maximum number of connections of the door for scrapers.
const SCRAPERS_MAX: usize = 32;

/// The certificates that the doors present, by door.
pub(super) struct DoorCertificates<T> {
    pub(super) gateway: Option<T>,
    pub(super) operator: Option<T>,
}

impl DoorCertificates<CheckedCertificate> {
    /// Reads and checks the certificates of all doors.
    pub(super) fn read(config: &Config, files: &Snapshot) -> io::Result<Self> {
        let read = |tls: &Option<_>| tls.as_ref().map(|tls| CheckedCertificate::read(tls, files)).transpose();
        Ok(Self { gateway: read(&config.gateway.tls)?, operator: read(&config.operator.tls)? })
    }
}

impl DoorCertificates<Certificate> {
    /// Connections from now on use these. A door without a certificate stays without one.
    pub(super) fn replace(&self, checked: DoorCertificates<CheckedCertificate>, now: Timestamp) {
        let pairs = [(&self.gateway, checked.gateway), (&self.operator, checked.operator)];
        for (certificate, checked) in pairs.into_iter().filter_map(|(old, new)| Some((old.as_ref()?, new?))) {
            certificate.replace(checked, now);
        }
    }

    /// Tells the process log which of them expire soon, or have expired.
    pub(super) fn log_expiry(&self, now: Timestamp) {
        let named = [("gateway", &self.gateway), ("operator", &self.operator)];
        for (door, certificate) in named.into_iter().filter_map(|(door, own)| Some((door, own.as_ref()?))) {
            certificate.log_expiry(door, now);
        }
    }
}

/// Listening sockets that were passed to this process (systemd's socket activation). A door without any binds its own.
#[derive(Debug, Default)]
pub struct PassedSockets {
    /// For callers.
    pub gateway: Vec<PassedSocket>,
    /// For operators.
    pub operator: Vec<PassedSocket>,
}

/// The doors, bound but not served yet.
pub(super) struct BoundDoors {
    pub(super) gateway: Door,
    pub(super) operator: Door,
    /// The door for scrapers, if one is configured.
    pub(super) metrics: Option<Door>,
    /// How many connections the gateway door takes.
    pub(super) callers: usize,
}

impl BoundDoors {
    /// Binds all of them. The operator door comes first, so that whoever finds the gateway open can ask there whether it is ready.
    pub(super) fn bind(
        config: &Config,
        sockets: PassedSockets,
        certificates: DoorCertificates<CheckedCertificate>,
        clock: &Clock,
        [tasks, operator_tasks]: [&Tasks; 2],
    ) -> Result<Self, StartError> {
        let [callers, operators] = connections(config)?;
        let bind = |sockets: DoorSockets<'_>, certificate, connections, tasks| {
            let limits = Limits { connections, ..config.limits.clone() };
            Door::bind(sockets, certificate, &limits, clock, tasks).map_err(StartError::failed)
        };
        let (listen, access) = (&config.operator.listen, config.operator.socket.clone());
        let operator = DoorSockets { listen, access, passed: sockets.operator };
        let operator = bind(operator, certificates.operator, operators, operator_tasks)?;
        let (listen, access) = (&config.gateway.listen, config.gateway.socket.clone());
        let gateway = DoorSockets { listen, access, passed: sockets.gateway };
        let gateway = bind(gateway, certificates.gateway, callers, tasks)?;
        let listen = &config.metrics.listen;
        let metrics = DoorSockets { listen, ..DoorSockets::default() };
        let metrics = (!listen.is_empty()).then(|| bind(metrics, None, operators.min(SCRAPERS_MAX), operator_tasks));
        Ok(Self { gateway, operator, metrics: metrics.transpose()?, callers })
    }

    /// The certificates in use, which later ones replace.
    pub(super) fn certificates(&self) -> DoorCertificates<Certificate> {
        let of = |door: &Door| door.certificate().cloned();
        DoorCertificates { gateway: of(&self.gateway), operator: of(&self.operator) }
    }
}

/// The number of connections for the gateway door and the operator door. Fewer than configured if the system grants too
/// few file descriptors: the log and the upstream need theirs whatever callers do.
pub(super) fn connections(config: &Config) -> Result<[usize; 2], StartError> {
    let wanted = config.limits.connections;
    let scrapers = if config.metrics.listen.is_empty() { 0 } else { SCRAPERS_MAX };
    let kept = config.upstream.connections.saturating_add(OTHER_FILES + scrapers);
    let granted = getrlimit(Resource::Nofile).current.and_then(|granted| usize::try_from(granted).ok());
    let Some(granted) = granted.filter(|granted| *granted < wanted.saturating_mul(2).saturating_add(kept)) else {
        return Ok([wanted; 2]);
    };
    let help = "raise the limit (LimitNOFILE, ulimit -n), or lower limits.connections";
    let free = granted.saturating_sub(kept);
    if free < CONNECTIONS_MIN {
        let least = kept.saturating_add(CONNECTIONS_MIN);
        let what = format!("the system grants {granted} file descriptors, but makegate needs at least {least}: {help}");
        return Err(StartError::failed(what));
    }
    let operators = wanted.min(free / OPERATORS_DIVISOR);
    let callers = wanted.min(free - operators);
    let what = "the system grants too few file descriptors for all connections: the doors accept fewer";
    tracing::warn!(granted, kept, callers, operators, help, "{what}");
    Ok([callers, operators])
}
