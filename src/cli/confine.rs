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
    /// The process reaches these folders and those of the system, and no others.
    Confined(ReachableFolders),
    /// `process.confine` is off.
    Off,
    /// The system cannot do it.
    Unavailable(String),
}

/// The folders that a confined process reaches, besides those of the system.
#[derive(Debug)]
pub(super) struct ReachableFolders {
    /// Where the configuration, secrets and certificates are: it reads there.
    read: BTreeSet<PathBuf>,
    /// Its data: it does everything there but run programs.
    data: PathBuf,
    /// The folder above the data folder, if it may do the same there: then it goes on in a data folder that was deleted and made anew.
    above: Option<PathBuf>,
    /// Where its sockets are: it makes and removes sockets there. It writes to no file, but can remove one.
    sockets: BTreeSet<PathBuf>,
}

impl ReachableFolders {
    fn of(loaded: &LoadedConfig) -> Self {
        let (read, data) = (loaded.folders(), loaded.config.data_folder());
        let own = std::env::current_exe().ok().and_then(|file| Some(file.parent()?.to_owned()));
        // What must stay as it is: the system's files, and the program itself.
        let kept: Vec<_> = SYSTEM.map(PathBuf::from).into_iter().chain(own).collect();
        let is_system = |folder: &Path| SYSTEM.iter().any(|system| folder.starts_with(system));
        let is_apart = |above: &&Path| !is_system(above) && !kept.iter().any(|folder| folder.starts_with(above));
        let above = data.parent().filter(is_apart).map(Path::to_owned);
        Self { read, data, above, sockets: loaded.config.socket_folders() }
    }

    fn log(&self) {
        let Self { read, data, above, sockets } = self;
        let write: Vec<_> = above.iter().chain([data]).collect();
        let renewal = match above {
            Some(_) => "if it is deleted and made anew, makegate goes on in the new one",
            None => "if it is deleted, restart makegate: the folder above has files that it may not change",
        };
        let is_beside = |above: &PathBuf| read.iter().any(|folder| folder.starts_with(above));
        let own_files = if above.as_ref().is_some_and(is_beside) {
            "makegate could change them: they are beneath the folder above its data folder"
        } else {
            "makegate cannot change them"
        };
        tracing::info!(
            target: ALWAYS, ?read, ?write, ?sockets, data_folder = renewal, configuration = own_files, "confined: other files are out of reach (Landlock)"
        );
        if let Some(inside) = read.iter().find(|folder| folder.starts_with(data)) {
            tracing::warn!(
                folder = %inside.display(),
                "files of the configuration are in the data folder, where makegate can change them: move them, or set another audit.dir"
            );
        }
    }
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
        let folders = ReachableFolders::of(loaded);
        match restrict(&folders) {
            Ok(()) => Self::Confined(folders),
            Err(why) => Self::Unavailable(why),
        }
    }

    pub(super) fn log(&self) {
        match self {
            Self::Confined(folders) => folders.log(),
            Self::Off => tracing::info!(target: ALWAYS, "not confined: process.confine is off"),
            Self::Unavailable(why) => {
                tracing::warn!(%why, "not confined: this system does not support it; other files are protected by permissions alone");
            }
        }
    }

    /// The folders that files of the configuration may be in, if they are limited.
    pub(super) fn into_readable(self) -> Option<BTreeSet<PathBuf>> {
        match self {
            Self::Confined(folders) => Some(folders.read.into_iter().chain(SYSTEM.map(PathBuf::from)).collect()),
            Self::Off | Self::Unavailable(_) => None,
        }
    }
}

/// What the libraries read: names and addresses (getaddrinfo loads libraries of its own), certificate authorities, what the kernel tells of
/// the process and of its share of the machine. All of /etc, because its files are replaced while makegate runs.
const SYSTEM: [&str; 13] = [
    "/etc", "/usr", "/lib", "/lib64", "/nix/store", "/var/ssl", "/opt/etc/ssl", "/run/systemd/resolve", "/proc/self",
    "/proc/sys/kernel/random", "/proc/uptime", "/sys/fs/cgroup", "/sys/devices/system/cpu",
];
/// Variables that name the files or folders of certificate authorities.
#[cfg(target_os = "linux")]
const AUTHORITIES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

#[cfg(target_os = "linux")]
fn restrict(folders: &ReachableFolders) -> Result<(), String> {
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
    let readable = folders.read.iter().cloned().chain(system);
    let readable = readable.filter_map(|path| rule(&path, AccessFs::ReadFile | AccessFs::ReadDir));
    let writable = folders.above.iter().chain([&folders.data]);
    let writable = writable.filter_map(|path| rule(path, all & !AccessFs::Execute));
    // A socket is made in a private folder and moved to its place; both are removed.
    let make = AccessFs::MakeSock | AccessFs::MakeDir | AccessFs::Refer;
    let bind = make | AccessFs::RemoveFile | AccessFs::RemoveDir | AccessFs::ReadDir;
    let bindable = folders.sockets.iter().filter_map(|path| rule(path, bind));
    let rules: Vec<_> = readable.chain(writable).chain(bindable).map(Ok::<_, landlock::RulesetError>).collect();
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
fn restrict(_: &ReachableFolders) -> Result<(), String> {
    Err("only Linux has Landlock".to_owned())
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Confines a thread to what this configuration needs, and does this in it. Landlock confines threads, so a test can confine one of
    /// its own.
    fn confined(loaded: LoadedConfig, what: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(move || match Confinement::begin(&loaded) {
            Confinement::Confined(_) => what(),
            Confinement::Off => panic!("it is off"),
            Confinement::Unavailable(why) => eprintln!("skipped: {why}"),
        });
        thread.join().unwrap();
    }

    #[track_caller]
    fn denied<T: std::fmt::Debug>(done: std::io::Result<T>) {
        assert_eq!(done.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    /// A folder with a configuration, a token and an operator's key, whose data is in `audit_dir`.
    fn configured(folder: &Path, audit_dir: &Path) -> LoadedConfig {
        let text = format!(
            "[gateway]\nlisten = \"unix:gate.sock\"\n[operator]\nkey_file = \"operator\"\n[upstream]\ntoken_file = \"token\"\n\
             [audit]\ndir = {audit_dir:?}\n"
        );
        for (file, text) in [("m.toml", &*text), ("operator", "key"), ("token", "token")] {
            fs::write(folder.join(file), text).unwrap();
        }
        crate::config::read(&folder.join("m.toml")).unwrap()
    }

    fn write(file: &Path) -> std::io::Result<fs::File> {
        fs::File::options().write(true).open(file)
    }

    #[test]
    fn a_confined_thread_reaches_what_it_was_given_and_nothing_else() {
        let [config, data, other] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let [config_dir, data_dir, other_dir] = [&config, &data, &other].map(|folder| folder.path().to_owned());
        let data_dir = data_dir.join("audit");
        fs::create_dir(&data_dir).unwrap();
        fs::write(other_dir.join("file"), "text").unwrap();
        fs::write(data_dir.join("file"), "text").unwrap();
        confined(configured(&config_dir, &data_dir), move || {
            fs::read(config_dir.join("token")).unwrap();
            denied(fs::remove_dir_all(&other_dir));
            denied(fs::read(other_dir.join("file")));
            denied(fs::read_dir(&other_dir));
            denied(fs::write(other_dir.join("new"), ""));
            denied(std::process::Command::new("/bin/true").status());
            // A link leads nowhere that its folder does not.
            std::os::unix::fs::symlink(other_dir.join("file"), data_dir.join("link")).unwrap();
            denied(fs::read(data_dir.join("link")));
            // What the log and the index do.
            fs::create_dir(data_dir.join("folder")).unwrap();
            fs::write(data_dir.join("folder/new"), "text").unwrap();
            fs::rename(data_dir.join("folder/new"), data_dir.join("file")).unwrap();
            write(&data_dir.join("file")).unwrap().set_len(0).unwrap();
            // What the libraries do.
            fs::read_to_string("/proc/self/status").unwrap();
            fs::read_dir("/proc/self/fd").unwrap();
            fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
            fs::read_to_string("/proc/uptime").unwrap();
            assert!(std::net::ToSocketAddrs::to_socket_addrs("localhost:1").unwrap().next().is_some());
        });
    }

    /// Whether the data folder is beneath a folder of its own, behind a link, or elsewhere, and the socket is beside the configuration.
    #[test]
    fn no_file_of_the_configuration_can_be_changed_unless_the_data_folder_is_beside_it() {
        for layout in ["state/audit", "link", "elsewhere"] {
            let [config, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let (folder, elsewhere) = (config.path().to_owned(), other.path().to_owned());
            let data = match layout {
                "elsewhere" => elsewhere.join("audit"),
                _ => folder.join(layout),
            };
            if layout == "link" {
                fs::create_dir(elsewhere.join("real")).unwrap();
                std::os::unix::fs::symlink(elsewhere.join("real"), &data).unwrap();
            }
            let goes_on = matches!(layout, "elsewhere" | "state/audit");
            confined(configured(&folder, &data), move || {
                for file in ["m.toml", "token", "operator"].map(|name| folder.join(name)) {
                    fs::read(&file).unwrap();
                    denied(write(&file));
                    fs::write(data.join("new"), "text").unwrap();
                    fs::rename(data.join("new"), &file).unwrap_err();
                    fs::hard_link(data.join("new"), folder.join("linked")).unwrap_err();
                    fs::rename(&file, data.join("taken")).unwrap_err();
                }
                denied(fs::write(folder.join("new"), ""));
                denied(std::os::unix::fs::symlink("m.toml", folder.join("new")));
                // What a door does.
                fs::create_dir(folder.join("private")).unwrap();
                drop(UnixListener::bind(folder.join("private/socket")).unwrap());
                fs::rename(folder.join("private/socket"), folder.join("gate.sock")).unwrap();
                fs::remove_dir(folder.join("private")).unwrap();
                fs::remove_file(folder.join("gate.sock")).unwrap();
                // Where the folder above has nothing of the kind, a new data folder is as good as the old one.
                if goes_on {
                    fs::remove_dir_all(&data).unwrap();
                    fs::create_dir(&data).unwrap();
                    fs::write(data.join("new"), "text").unwrap();
                }
            });
        }
    }
}
