//! A real PostgreSQL in a temporary folder: started, crashed, paused, promoted, and gone with the test, however the test ends.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, getuid, kill_process};

use super::process::{Process, own_ip};

/// The role that owns everything.
pub(super) const ROLE: &str = "makegate";
/// What each server is started with: small, and quick to start.
const SETTINGS: [&str; 4] = ["fsync=off", "shared_buffers=32MB", "max_connections=100", "unix_socket_directories="];
/// Below the ports that the system hands out.
pub(super) const FIRST_PORT: u16 = 15_432;
const PROGRAMS: [&str; 5] = ["initdb", "postgres", "psql", "pg_ctl", "pg_basebackup"];
/// Waits until whoever started it is gone, in whatever way; then nothing is left of what it keeps.
const KEEPER: &str = r#"
trap '' INT TERM HUP
cat > /dev/null
for file in "$0/data/postmaster.pid" "$0/pid"; do
    [ -s "$file" ] || continue
    pid=$(head -n 1 "$file")
    kill -CONT "$pid"
    kill -QUIT "$pid"
    tries=0
    while kill -0 "$pid" && [ $tries -lt 200 ]; do sleep 0.05; tries=$((tries + 1)); done
    kill -KILL "$pid"
done 2> /dev/null
rm -rf "$0"
"#;

/// How a server is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shutdown {
    /// In order: unlogged tables keep their rows.
    Fast,
    /// At once, as in a crash: unlogged tables are empty afterwards.
    Immediate,
}

/// What a standby's primary waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replication {
    /// A commit is acknowledged when the standby has it.
    Synchronous,
    /// A commit is acknowledged when the primary has it; a failover may forget it.
    Asynchronous,
}

/// A folder that is owned by whoever may run PostgreSQL, and the process that removes it.
pub(super) struct Keep {
    pub(super) dir: PathBuf,
    watcher: Child,
    pipe: Option<ChildStdin>,
}

impl Keep {
    pub(super) fn new(name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix(name).tempdir().unwrap().keep();
        if let Some((user, group)) = unprivileged() {
            chown(&dir, Some(user), Some(group)).unwrap();
        }
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER]).arg(&dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut watcher = command.process_group(0).spawn().unwrap();
        let pipe = watcher.stdin.take();
        Self { dir, watcher, pipe }
    }

    /// Ends what runs in the folder, and removes it. The process is waited for by whoever started it.
    pub(super) fn end(&mut self, process: Option<&mut Child>) {
        drop(self.pipe.take());
        // Errors are of processes that are gone already.
        let _ended = process.map(Child::wait);
        let _removed = self.watcher.wait();
    }
}

/// The user and group to run PostgreSQL as, which refuses to be root; `None`: whoever runs the test.
fn unprivileged() -> Option<(u32, u32)> {
    if !getuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let ids = |name: &str| {
        let line = users.lines().find(|line| line.starts_with(&format!("{name}:")))?;
        let mut numbers = line.split(':').skip(2).map(|number| number.parse().unwrap());
        Some((numbers.next()?, numbers.next()?))
    };
    Some(ids("postgres").or_else(|| ids("nobody")).expect("an unprivileged user"))
}

/// A command that runs as that user, and that no signal for the test reaches.
pub(super) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).stdin(Stdio::null()).env_remove("PGOPTIONS").env("LC_ALL", "C").current_dir("/");
    if let Some((user, group)) = unprivileged() {
        command.uid(user).gid(group);
    }
    command
}

/// Runs it; what it wrote.
fn run(mut command: Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The folder of PostgreSQL's programs, the newest one.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut installed: Vec<_> = installed.map(|entry| entry.path().join("bin")).collect();
    installed.sort();
    folders.extend(installed.into_iter().rev());
    folders.into_iter().find(|folder| PROGRAMS.iter().all(|program| folder.join(program).is_file()))
}

pub(super) fn program_in(folders: &[&str], name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).chain(folders.iter().map(PathBuf::from));
    all.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The library that gives a process another clock.
fn faketime() -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime"];
    folders.iter().map(|folder| Path::new(folder).join("libfaketime.so.1")).find(|file| file.is_file())
}

pub(super) fn free_address(ip: Ipv4Addr, first: u16) -> SocketAddr {
    let free = |port: &u16| std::net::TcpListener::bind((ip, *port)).is_ok();
    SocketAddrV4::new(ip, (first..32_768).find(free).expect("a free port")).into()
}

/// A server. Dropped, it is gone, and its folder.
pub(crate) struct Postgres {
    keep: Keep,
    bin: PathBuf,
    address: SocketAddr,
    settings: Vec<String>,
    /// The clock of another time, if it has one.
    clock: Option<PathBuf>,
    server: Option<Child>,
    paused: Vec<Pid>,
}

impl Postgres {
    /// Is PostgreSQL installed here? A test without it says so, and passes.
    pub(crate) fn available() -> bool {
        let found = programs().is_some();
        if !found {
            eprintln!("skipped: no PostgreSQL here");
        }
        found
    }

    /// Can its clock be stepped here?
    pub(crate) fn clock_available() -> bool {
        let found = faketime().is_some();
        if !found {
            eprintln!("skipped: no faketime here");
        }
        found
    }

    /// Starts one with these settings, each `name=value`.
    pub(crate) fn start(settings: &[&str]) -> Self {
        Self::start_with(settings, false)
    }

    /// The same, with a clock that [`Postgres::step_clock`] moves.
    pub(crate) fn start_with_clock(settings: &[&str]) -> Self {
        Self::start_with(settings, true)
    }

    fn start_with(settings: &[&str], clocked: bool) -> Self {
        let mut postgres = Self::new(settings, clocked);
        let mut initdb = command(&postgres.bin.join("initdb"));
        initdb
            .arg("-D")
            .arg(postgres.data())
            .args(["-A", "trust", "-U", ROLE, "-E", "UTF8", "--no-locale", "--no-sync"]);
        run(initdb).unwrap();
        postgres.start_again();
        postgres
    }

    fn new(settings: &[&str], clocked: bool) -> Self {
        let keep = Keep::new("makegate-postgres-");
        let clock = clocked.then(|| keep.dir.join("clock"));
        if let Some(clock) = &clock {
            std::fs::write(clock, "+0").unwrap();
        }
        Self {
            keep,
            bin: programs().expect("PostgreSQL"),
            address: free_address(own_ip(), FIRST_PORT),
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
            clock,
            server: None,
            paused: Vec::new(),
        }
    }

    fn data(&self) -> PathBuf {
        self.keep.dir.join("data")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a database, reached at these addresses.
    pub(crate) fn url_at(addresses: &[SocketAddr], database: &str) -> String {
        let hosts: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
        let state = if hosts.len() > 1 { "?target_session_attrs=read-write" } else { "" };
        format!("postgresql://{ROLE}@{}/{database}{state}", hosts.join(","))
    }

    pub(crate) fn url(&self, database: &str) -> String {
        Self::url_at(&[self.address], database)
    }

    /// Makes a database.
    pub(crate) fn database(&self, name: &str) {
        self.sql("postgres", &format!("create database {name}"));
    }

    /// What a statement gives: a line a row, with `|` between the columns.
    #[track_caller]
    pub(crate) fn sql(&self, database: &str, text: &str) -> String {
        self.try_sql(database, text).unwrap_or_else(|why| panic!("{text}: {why}\n{}", self.log()))
    }

    pub(crate) fn try_sql(&self, database: &str, text: &str) -> Result<String, String> {
        let mut psql = self.psql(database);
        psql.args(["-c", text]);
        run(psql)
    }

    fn psql(&self, database: &str) -> Command {
        let mut psql = command(&self.bin.join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", ROLE, "-d", database]);
        psql.args(["-h", &self.address.ip().to_string(), "-p", &self.address.port().to_string()]);
        psql.env("PGCONNECT_TIMEOUT", "10");
        psql
    }

    /// What the server wrote into its log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.keep.dir.join("log")).unwrap_or_default()
    }

    /// Shows this certificate from its next start on.
    pub(crate) fn use_tls(&mut self, certificate: &[u8], key: &[u8]) {
        for (setting, name, bytes) in
            [("ssl_cert_file", "server.crt", certificate), ("ssl_key_file", "server.key", key)]
        {
            let file = self.keep.dir.join(name);
            std::fs::write(&file, bytes).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            if let Some((user, group)) = unprivileged() {
                chown(&file, Some(user), Some(group)).unwrap();
            }
            self.settings.push(format!("{setting}={}", file.display()));
        }
        self.settings.push("ssl=on".to_owned());
    }

    /// Starts it where it was stopped, and waits until it answers.
    pub(crate) fn start_again(&mut self) {
        assert!(self.server.is_none(), "it runs");
        let log = std::fs::File::options().create(true).append(true).open(self.keep.dir.join("log")).unwrap();
        let mut server = command(&self.bin.join("postgres"));
        server.arg("-D").arg(self.data()).stdout(log.try_clone().unwrap()).stderr(log);
        let place = [format!("listen_addresses={}", self.address.ip()), format!("port={}", self.address.port())];
        let settings = SETTINGS.iter().map(|&setting| setting.to_owned()).chain(place).chain(self.settings.clone());
        settings.for_each(|setting| {
            server.args(["-c", &setting]);
        });
        if let Some(clock) = &self.clock {
            server.env("LD_PRELOAD", faketime().expect("faketime")).env("FAKETIME_TIMESTAMP_FILE", clock);
            server.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        self.server = Some(server.spawn().unwrap());
        self.wait_until_ready();
    }

    /// Waits until it answers.
    pub(crate) fn wait_until_ready(&mut self) {
        for _ in 0..1_200 {
            if self.try_sql("postgres", "select 1").is_ok() {
                return;
            }
            let ended = self.server.as_mut().and_then(|server| server.try_wait().unwrap());
            assert!(ended.is_none(), "the server ended: {}", self.log());
            sleep(Duration::from_millis(50));
        }
        panic!("the server does not answer: {}", self.log());
    }

    /// Ends it, and waits until it has ended.
    pub(crate) fn stop(&mut self, how: Shutdown) {
        self.resume();
        let mut server = self.server.take().expect("it runs");
        let signal = match how {
            Shutdown::Fast => Signal::INT,
            Shutdown::Immediate => Signal::QUIT,
        };
        kill_process(Pid::from_child(&server), signal).unwrap();
        server.wait().unwrap();
    }

    pub(crate) fn restart(&mut self, how: Shutdown) {
        self.stop(how);
        self.start_again();
    }

    /// `kill -9` of one backend: all others end, too, and what is not logged is gone. Waits until it answers again.
    pub(crate) fn kill_backend(&self) {
        let backends = "select pid from pg_stat_activity where pid <> pg_backend_pid() \
                        order by (backend_type = 'client backend') desc, random() limit 1";
        let backend = pid(&self.sql("postgres", backends));
        let begun = |log: &str| log.matches("database system is ready to accept connections").count();
        let before = begun(&self.log());
        kill_process(backend, Signal::KILL).unwrap();
        for _ in 0..1_200 {
            if begun(&self.log()) > before && self.try_sql("postgres", "select 1").is_ok() {
                return;
            }
            sleep(Duration::from_millis(50));
        }
        panic!("the server does not begin again: {}", self.log());
    }

    /// Stops all its processes (SIGSTOP): connections stay open, and nothing is answered.
    pub(crate) fn pause(&mut self) {
        let server = Pid::from_child(self.server.as_ref().expect("it runs"));
        kill_process(server, Signal::STOP).unwrap();
        self.paused.push(server);
        // The postmaster's children: no further ones are made now.
        let server = server.as_raw_nonzero().to_string();
        let list = std::fs::read_dir("/proc").unwrap().flatten();
        for entry in list.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<i32>().is_ok())) {
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
            if parent == Some(&server) {
                let child = pid(entry.file_name().to_str().unwrap());
                // It may have ended in between.
                if kill_process(child, Signal::STOP).is_ok() {
                    self.paused.push(child);
                }
            }
        }
    }

    /// Stops the processes that serve this database's connections now. Further connections are served.
    pub(crate) fn pause_backends(&mut self, database: &str) {
        for pid in self.backends(database) {
            kill_process(pid, Signal::STOP).unwrap();
            self.paused.push(pid);
        }
    }

    /// The processes that serve this database's connections.
    pub(crate) fn backends(&self, database: &str) -> Vec<Pid> {
        let text = format!(
            "select pid from pg_stat_activity where datname = '{database}' and backend_type = 'client backend' order by pid"
        );
        self.sql("postgres", &text).lines().map(pid).collect()
    }

    /// Ends a pause.
    pub(crate) fn resume(&mut self) {
        for pid in self.paused.drain(..) {
            // It may have ended in between.
            let _gone = kill_process(pid, Signal::CONT);
        }
    }

    /// A streaming standby of it, which has everything so far.
    pub(crate) fn standby(&self, replication: Replication) -> Self {
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        let mut standby = Self::new(&settings, false);
        let mut copy = command(&self.bin.join("pg_basebackup"));
        copy.args(["-U", ROLE, "-h", &self.address.ip().to_string(), "-p", &self.address.port().to_string()]);
        run({
            copy.args(["-R", "-c", "fast", "--no-sync", "-X", "stream", "-D"]).arg(standby.data());
            copy
        })
        .unwrap();
        standby.start_again();
        let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
        self.wait_for(streams, "1");
        if replication == Replication::Synchronous {
            self.sql("postgres", "alter system set synchronous_standby_names = '*'");
            self.sql("postgres", "select pg_reload_conf()");
            self.wait_for("select sync_state from pg_stat_replication", "sync");
        }
        standby
    }

    /// Waits until a statement gives this.
    pub(crate) fn wait_for(&self, text: &str, wanted: &str) {
        for _ in 0..1_200 {
            if self.sql("postgres", text) == wanted {
                return;
            }
            sleep(Duration::from_millis(50));
        }
        panic!("{text}: {}", self.sql("postgres", text));
    }

    /// Makes a standby the primary.
    pub(crate) fn promote(&self) {
        let mut promote = command(&self.bin.join("pg_ctl"));
        promote.arg("promote").args(["-w", "-t", "120", "-D"]).arg(self.data());
        run(promote).unwrap();
        // It inherits whom it waits for: nobody, now.
        self.sql("postgres", "alter system set synchronous_standby_names = ''");
        self.sql("postgres", "select pg_reload_conf()");
    }

    /// Sets its clock so many seconds away from the machine's.
    pub(crate) fn step_clock(&self, seconds: i64) {
        let clock = self.clock.as_ref().expect("a clock of its own");
        // At once: a server that reads half of it has no time.
        let next = clock.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}")).unwrap();
        std::fs::rename(&next, clock).unwrap();
    }

    /// A session that pins a snapshot of a database until it is dropped.
    pub(crate) fn pin_snapshot(&self, database: &str) -> Process {
        self.transaction(database, "begin isolation level repeatable read; select pg_current_snapshot()")
    }

    /// A session in which these statements began a transaction. It goes on with what is written to its standard input, and is rolled back
    /// when it is dropped.
    pub(crate) fn transaction(&self, database: &str, statements: &str) -> Process {
        let mut session = Process::start(self.psql(database).stdin(Stdio::piped()).stdout(Stdio::null()));
        say(&mut session, statements);
        let begun = "select count(*) from pg_stat_activity where state = 'idle in transaction'";
        self.wait_for(begun, "1");
        session
    }
}

/// Carries out statements in a session.
pub(crate) fn say(session: &mut Process, statements: &str) {
    let stdin = session.child().stdin.as_mut().unwrap();
    stdin.write_all(format!("{statements};\n").as_bytes()).unwrap();
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap()).unwrap()
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.resume();
        self.keep.end(self.server.as_mut());
    }
}
