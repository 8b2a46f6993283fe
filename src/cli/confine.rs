//! Confinement: from here on the process opens only the files that it needs, whatever a weakness lets an attacker do (Landlock), and it
//! gains no rights by running programs. Threads inherit this, so it happens before the runtime makes its own.

#![expect(clippy::disallowed_methods, reason = "runs before the service starts")]

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::config::LoadedConfig;
use crate::process_log::ALWAYS;

/// What was put in force, to be logged once there is a process log.
#[derive(Debug)]
pub(super) enum Confinement {
    /// The process reads only in these folders and in those of the system, and writes only in the folders of its data and sockets.
    Confined {
        /// Where the configuration, secrets and certificates are.
        read: BTreeSet<PathBuf>,
        /// Where the data and the sockets are.
        write: BTreeSet<PathBuf>,
    },
    /// `process.confine` is off.
    Off,
    /// The system cannot do it.
    Unavailable(String),
}

impl Confinement {
    /// Confines this thread and those that it will make, as far as the system can.
    pub(super) fn begin(loaded: &LoadedConfig) -> Self {
        if !loaded.config.process.confine {
            return Self::Off;
        }
        // The rules name folders that exist.
        let _made_or_reported_when_it_is_opened =
            DirBuilder::new().recursive(true).mode(0o700).create(&loaded.config.audit.dir);
        let (read, write) = (loaded.folders(), loaded.config.written_folders());
        match restrict(&read, &write) {
            Ok(()) => Self::Confined { read, write },
            Err(why) => Self::Unavailable(why),
        }
    }

    pub(super) fn log(&self) {
        match self {
            Self::Confined { read, write } => {
                tracing::info!(target: ALWAYS, ?read, ?write, "confined: other files are out of reach (Landlock)");
            }
            Self::Off => tracing::info!(target: ALWAYS, "not confined: process.confine is off"),
            Self::Unavailable(why) => {
                tracing::warn!(%why, "not confined: this system does not support it; other files are protected by permissions alone");
            }
        }
    }

    /// The folders that files of the configuration may be in, if they are limited.
    pub(super) fn into_readable(self) -> Option<BTreeSet<PathBuf>> {
        match self {
            Self::Confined { read, .. } => Some(read.into_iter().chain(SYSTEM.map(PathBuf::from)).collect()),
            Self::Off | Self::Unavailable(_) => None,
        }
    }
}

/// What the libraries read: names and addresses (getaddrinfo loads libraries of its own), certificate authorities, what the kernel tells of
/// the process and of its share of the machine. All of /etc, because its files are replaced while makegate runs.
const SYSTEM: [&str; 12] = [
    "/etc", "/usr", "/lib", "/lib64", "/nix/store", "/var/ssl", "/opt/etc/ssl", "/run/systemd/resolve", "/proc/self",
    "/proc/sys/kernel/random", "/sys/fs/cgroup", "/sys/devices/system/cpu",
];
/// Variables that name the files or folders of certificate authorities.
#[cfg(target_os = "linux")]
const AUTHORITIES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

#[cfg(target_os = "linux")]
fn restrict(read: &BTreeSet<PathBuf>, write: &BTreeSet<PathBuf>) -> Result<(), String> {
    use landlock::{
        ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, RestrictionStatus, Ruleset,
        RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus,
    };
    let authorities = AUTHORITIES.iter().filter_map(std::env::var_os).map(PathBuf::from);
    let resolver = Path::new("/etc/resolv.conf").canonicalize().ok();
    let system = SYSTEM
        .iter()
        .map(PathBuf::from)
        .chain(authorities)
        .chain(resolver.and_then(|file| Some(file.parent()?.to_owned())));
    let all = AccessFs::from_all(ABI::V5);
    let rule = |path: &Path, access| PathFd::new(path).map(|folder| PathBeneath::new(folder, access)).ok();
    let readable =
        read.iter().cloned().chain(system).filter_map(|path| rule(&path, AccessFs::ReadFile | AccessFs::ReadDir));
    let writable = write.iter().filter_map(|path| rule(path, all & !AccessFs::Execute));
    let rules: Vec<_> = readable.chain(writable).map(Ok::<_, landlock::RulesetError>).collect();
    // A socket is moved to its place from a folder of its own, which the first version of Landlock always forbids.
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)
        .map(|ruleset| ruleset.set_compatibility(CompatLevel::BestEffort))
        .and_then(|ruleset| ruleset.handle_access(all))
        .and_then(Ruleset::create)
        .and_then(|created| created.add_rules(rules))
        .and_then(landlock::RulesetCreated::restrict_self);
    match restricted {
        Ok(RestrictionStatus { ruleset: RulesetStatus::NotEnforced, .. }) => {
            Err("the kernel has no Landlock".to_owned())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(not(target_os = "linux"))]
fn restrict(_: &BTreeSet<PathBuf>, _: &BTreeSet<PathBuf>) -> Result<(), String> {
    Err("only Linux has Landlock".to_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Landlock confines a thread, so a test can confine one of its own.
    #[test]
    fn a_confined_thread_reaches_what_it_was_given_and_nothing_else() {
        let [config, data, other] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        for folder in [&config, &data, &other] {
            fs::write(folder.path().join("file"), "text").unwrap();
        }
        let [config_dir, data_dir, other_dir] = [&config, &data, &other].map(|folder| folder.path().to_owned());
        let confined = std::thread::spawn(move || {
            let set = |folder: &Path| BTreeSet::from([folder.to_owned()]);
            if let Err(why) = restrict(&set(&config_dir), &set(&data_dir)) {
                eprintln!("skipped: {why}");
                return;
            }
            let denied = |done: std::io::Result<()>| assert_eq!(done.unwrap_err().kind(), ErrorKind::PermissionDenied);
            fs::read(config_dir.join("file")).unwrap();
            denied(fs::write(config_dir.join("file"), "other"));
            denied(fs::remove_file(config_dir.join("file")));
            denied(fs::read(other_dir.join("file")).map(drop));
            denied(fs::read_dir(&other_dir).map(drop));
            denied(fs::write(other_dir.join("new"), ""));
            denied(std::process::Command::new("/bin/true").status().map(drop));
            // A link leads nowhere that its folder does not.
            std::os::unix::fs::symlink(other_dir.join("file"), data_dir.join("link")).unwrap();
            denied(fs::read(data_dir.join("link")).map(drop));
            // What the log, the index and the doors do.
            fs::create_dir(data_dir.join("folder")).unwrap();
            fs::write(data_dir.join("folder/new"), "text").unwrap();
            fs::rename(data_dir.join("folder/new"), data_dir.join("file")).unwrap();
            drop(UnixListener::bind(data_dir.join("folder/socket")).unwrap());
            fs::rename(data_dir.join("folder/socket"), data_dir.join("socket")).unwrap();
            fs::remove_file(data_dir.join("socket")).unwrap();
            fs::File::options().write(true).open(data_dir.join("file")).unwrap().set_len(0).unwrap();
            // What the libraries do.
            fs::read_to_string("/proc/self/status").unwrap();
            fs::read_dir("/proc/self/fd").unwrap();
            fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
            assert!(std::net::ToSocketAddrs::to_socket_addrs("localhost:1").unwrap().next().is_some());
        });
        confined.join().unwrap();
    }
}
