//! What a start needs: all that it reads from files, and what it needs of the machine. `makegate check` asks for the same.

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use super::StartError;
use super::doors::{self, DoorCertificates};
use crate::audit;
use crate::clock::Clock;
use crate::config::{Config, Listen, OperatorKey, SocketAccess, TlsFiles};
use crate::door::{self, CheckedCertificate, DoorSockets};
use crate::issuers::Issuer;
use crate::otel::{OtelSettings, ReadSettings};
use crate::replicas::ReplicasSettings;
use crate::upstream::{Token, Upstream};
use crate::watched_files::Snapshot;

/// What was read from the files of a configuration, and everything that is wrong with them.
pub struct Preparation {
    /// Make. `None` if something is wrong with it or with its token.
    pub upstream: Option<Upstream>,
    /// The issuers of tokens that are as they should be.
    pub issuers: Vec<Arc<Issuer>>,
    pub(super) operators: Vec<OperatorKey>,
    pub(super) otel: Option<OtelSettings>,
    pub(super) replicas: Option<ReplicasSettings>,
    pub(super) certificates: DoorCertificates<CheckedCertificate>,
    /// What is wrong with the environment: it counts as unset.
    pub warnings: Vec<String>,
    /// Why a start would fail, in the order in which it would find out.
    pub faults: Vec<StartError>,
}

impl Preparation {
    /// Reads everything, whatever is wrong with some of it.
    #[must_use]
    pub fn read(config: &Config, files: &Snapshot, clock: &Clock) -> Self {
        let mut faults = Vec::new();
        let token = good(&mut faults, "the Make token", Token::read(files, &config.upstream.token));
        let operators = good(&mut faults, "the operator key", config.operator.operators(files)).unwrap_or_default();
        let upstream = token.and_then(|token| {
            let made = Upstream::new(&config.upstream, &config.limits, token, clock.clone(), files);
            good(&mut faults, "upstream", made)
        });
        let mut certificate = |name: &str, tls: &Option<TlsFiles>| {
            good(&mut faults, name, CheckedCertificate::read(tls.as_ref()?, files))
        };
        let gateway = certificate("gateway.tls", &config.gateway.tls);
        let certificates = DoorCertificates { gateway, operator: certificate("operator.tls", &config.operator.tls) };
        let issuers = config.issuers.iter().filter_map(|issuer| {
            let what = format!("the keys of the issuer {}", issuer.name);
            good(&mut faults, &what, Issuer::read(issuer, files, &[])).map(Arc::new)
        });
        let issuers = issuers.collect();
        let otel = OtelSettings::read(&config.otel, files).map_err(|why| faults.push(StartError::configuration(why)));
        let ReadSettings { settings: otel, warnings } = otel.unwrap_or_default();
        let replicas = config
            .replicas
            .as_ref()
            .and_then(|replicas| good(&mut faults, "replicas", ReplicasSettings::read(replicas, files)));
        Self { upstream, issuers, operators, certificates, otel, replicas, warnings, faults }
    }

    /// Everything, or all faults.
    pub(super) fn complete(self) -> Result<(Upstream, Self), StartError> {
        let Self { upstream, faults, .. } = self;
        match (upstream, faults.is_empty()) {
            (Some(upstream), true) => Ok((upstream, Self { upstream: None, faults, ..self })),
            (None, true) => Err(StartError::configuration("the upstream is missing")),
            (_, false) => {
                let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
                Err(StartError::configuration(faults.join("; ")))
            }
        }
    }
}

/// What was read, unless it was faulty.
fn good<T, E: fmt::Display>(faults: &mut Vec<StartError>, what: &str, read: Result<T, E>) -> Option<T> {
    read.map_err(|why| faults.push(StartError::configuration(format!("{what}: {why}")))).ok()
}

/// Something that a start needs of the machine and would not get.
#[derive(Debug)]
pub struct MachineFault {
    /// What is wrong.
    pub what: String,
    /// Why it may be otherwise when makegate starts.
    pub kind: MachineFaultKind,
}

/// Whether a fault of the machine will still be there when makegate starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineFaultKind {
    /// It will, on this machine.
    Lasting,
    /// For this user and in this moment it is so; another user may have more rights.
    Now,
    /// Somebody listens there: makegate itself, if it is running.
    InUse,
}

impl MachineFault {
    fn of(setting: &str, error: &io::Error) -> Self {
        let kind = if error.kind() == ErrorKind::AddrInUse {
            MachineFaultKind::InUse
        } else if matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::PermissionDenied) {
            MachineFaultKind::Now
        } else {
            MachineFaultKind::Lasting
        };
        Self { what: format!("{setting}: {error}"), kind }
    }
}

/// What a start needs of the machine and would not get: its data folder, the folders and owners of its sockets, and, if `binds`, its
/// addresses and enough descriptors. Changes nothing.
#[must_use]
pub fn machine_faults(config: &Config, binds: bool) -> Vec<MachineFault> {
    let data = audit::check_folder(&config.audit.dir).err();
    let mut faults: Vec<_> = data.iter().map(|error| MachineFault::of("audit.dir", error)).collect();
    let doors = [
        ("gateway", &config.gateway.listen, config.gateway.socket.clone()),
        ("operator", &config.operator.listen, config.operator.socket.clone()),
        ("metrics", &config.metrics.listen, SocketAccess::default()),
    ];
    for (section, listen, access) in doors {
        let listen: Vec<_> = listen.iter().filter(|one| binds || matches!(one, Listen::Unix(_))).cloned().collect();
        let errors = door::check_sockets(&DoorSockets { listen: &listen, access, passed: Vec::new() });
        faults.extend(errors.iter().map(|error| MachineFault::of(section, error)));
    }
    if binds && let Err(error) = doors::connections(config) {
        faults.push(MachineFault { what: error.to_string(), kind: MachineFaultKind::Now });
    }
    faults
}
