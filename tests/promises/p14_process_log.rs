//! Promise 14. Nothing that a reader of output does stops the rest: process log lines are dropped and counted when
//! nobody reads them, and each change is logged once.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use futures_util::future::join_all;
use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind, Sandbox};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::Signal;

use crate::support::process::{Home, Process, free_addresses, is_open, own_ip};
use crate::support::{ALL, ORG, OTHER, Plan, Reply, VARIABLES, attempt, records_in, sandbox_at, send, with_key};

/// No answer in these tests waits for a reader, and neither does shutdown; a busy machine may take a while.
const AT_ONCE: Duration = Duration::from_secs(20);

/// What is wrong with the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Closed,
    Full,
    Stalled,
    Slow,
    Gone,
}

/// When it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Start,
    Run,
    Reload,
    Drain,
}

const PHASES: [Phase; 4] = [Phase::Start, Phase::Run, Phase::Reload, Phase::Drain];

const READS: u8 = 0;
const READS_SLOWLY: u8 = 1;
const STALLS: u8 = 2;
const LEAVES: u8 = 3;

/// A pipe and its reader.
struct Pipe {
    writer: PipeWriter,
    manner: Arc<AtomicU8>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Pipe {
    fn new() -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        fcntl_setfl(&reader, OFlags::NONBLOCK).unwrap();
        let manner = Arc::new(AtomicU8::new(READS));
        let for_thread = manner.clone();
        Self { writer, manner, reader: Some(thread::spawn(move || read(reader, &for_thread))) }
    }

    fn end(&self) -> Stdio {
        self.writer.try_clone().unwrap().into()
    }

    fn goes(&mut self, wrong: Wrong) {
        match wrong {
            Wrong::Closed | Wrong::Full => panic!("no pipe"),
            Wrong::Gone => {
                self.manner.store(LEAVES, Ordering::SeqCst);
                self.reader.take().unwrap().join().unwrap();
            }
            Wrong::Slow => {
                self.manner.store(READS_SLOWLY, Ordering::SeqCst);
                self.fill();
            }
            Wrong::Stalled => {
                self.manner.store(STALLS, Ordering::SeqCst);
                self.fill();
            }
        }
    }

    /// Fills the pipe completely. (Its open file description is separate from the child's, which stays a blocking
    /// one.)
    fn fill(&self) {
        let path = format!("/proc/self/fd/{}", self.writer.as_raw_fd());
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
        let mut writer = File::options().write(true).custom_flags(flags).open(path).unwrap();
        for block in [4096, 1] {
            while writer.write_all(&vec![b'.'; block]).is_ok() {}
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.manner.store(LEAVES, Ordering::SeqCst);
        self.reader.take().into_iter().for_each(|reader| reader.join().unwrap());
    }
}

fn read(mut pipe: PipeReader, manner: &AtomicU8) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (bytes, pause) = match manner.load(Ordering::SeqCst) {
            READS => (buffer.len(), 5),
            READS_SLOWLY => (32, 50),
            STALLS => (0, 5),
            _ => return,
        };
        // Finding nothing is an error too.
        let _read = pipe.read(&mut buffer[..bytes]);
        thread::sleep(Duration::from_millis(pause));
    }
}

/// A process's outputs: both are the same pipe or the same file.
struct Outputs {
    wrong: Wrong,
    from: Phase,
    pipe: Option<Pipe>,
}

impl Outputs {
    fn new(wrong: Wrong, from: Phase) -> Self {
        let pipe = matches!(wrong, Wrong::Stalled | Wrong::Slow | Wrong::Gone).then(Pipe::new);
        Self { wrong, from, pipe }
    }

    /// Starts this command with these outputs.
    fn start(&mut self, mut command: Command) -> Process {
        self.comes(Phase::Start);
        let file = || File::options().write(true).open("/dev/full").unwrap();
        match &self.pipe {
            Some(pipe) => Process::start(command.stdout(pipe.end()).stderr(pipe.end())),
            None if self.wrong == Wrong::Full => Process::start(command.stdout(file()).stderr(file())),
            None => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "exec \"$@\" >&- 2>&-", "sh"]).arg(command.get_program()).args(command.get_args());
                let envs = command.get_envs().filter_map(|(name, value)| value.map(|value| (name, value)));
                Process::start(shell.env_remove("MAKEGATE_LOG").envs(envs))
            }
        }
    }

    fn comes(&mut self, phase: Phase) {
        if phase == self.from
            && let Some(pipe) = &mut self.pipe
        {
            pipe.goes(self.wrong);
        }
    }
}

/// The gateway and its Make.
struct Scene {
    home: Home,
    sandbox: Sandbox,
}

impl Scene {
    async fn new() -> Self {
        let sandbox = sandbox_at(&format!("{}:0", own_ip())).await;
        let limits = "drain = \"60s\"\nbreaker_open = \"200ms\"\nbreaker_open_max = \"400ms\"";
        let plan = Plan::default()
            .set("limits", limits)
            .set("audit", "head = \"1s\"")
            .set("cache", "stale_if_error = \"0s\"\nsettle = \"10m\"");
        Self { home: Home::new(&plan, &format!("http://{}", sandbox.address())), sandbox }
    }

    /// Makes one request, whose answer must arrive at once.
    async fn ask(&self, method: &str, target: &str, body: &str) -> Reply {
        let before = Clock::system().now();
        let reply = send(self.home.gateway, method, target, &with_key(ALL, &[]), body).await;
        assert!(before.elapsed() < AT_ONCE, "{method} {target} took {:?}", before.elapsed());
        reply
    }

    async fn metrics(&self) -> String {
        send(self.home.operator, "GET", "/metrics", "", "").await.text().to_owned()
    }

    async fn polite(&self) {
        let before = Clock::system().now();
        send(self.home.operator, "GET", "/livez", "", "").await.expect(200);
        assert!(before.elapsed() < AT_ONCE, "/livez took {:?}", before.elapsed());
        self.ask("GET", ORG, "").await.expect(200);
    }

    /// Reads, writes, writes that Make refuses, and refused callers.
    async fn traffic(&self) {
        for number in 0..10 {
            self.polite().await;
            let body = format!("{{\"name\":\"n{number}\"}}");
            let reply = self.ask("PATCH", ORG, &body).await.expect(200);
            assert_eq!(reply.header("makegate-outcome"), Some("done"));
            send(self.home.gateway, "GET", ORG, "", "").await.expect(401);
        }
        for (status, passed) in [(422, 422), (401, 502)] {
            let kind = FaultKind::Answer {
                status,
                body: None,
                content_type: None,
                headers: std::collections::BTreeMap::new(),
                effect: false,
            };
            self.sandbox.fault(Fault::always("PATCH", OTHER, kind));
            let reply = self.ask("PATCH", OTHER, "{\"name\":\"x\"}").await.expect(passed);
            assert_eq!(reply.header("makegate-outcome"), Some("rejected"));
            self.sandbox.clear_faults();
        }
    }

    /// Make goes away and comes back.
    async fn outage(&mut self) {
        self.polite().await;
        let address = self.sandbox.address().to_string();
        self.sandbox.stop().await;
        for _ in 0..8 {
            let status = self.ask("GET", VARIABLES, "").await.status;
            assert!([502, 503].contains(&status), "{status}");
            self.polite().await;
        }
        self.sandbox = sandbox_at(&address).await;
        self.until_answered(VARIABLES, ALL).await;
    }

    async fn until_answered(&self, target: &str, key: &str) {
        for _ in 0..1_200 {
            if send(self.home.gateway, "GET", target, &with_key(key, &[]), "").await.status == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{key} gets no answer to {target}");
    }

    /// A configuration that cannot be read, then one with another caller.
    async fn reload(&self, process: &Process) {
        let file = self.home.path().join("makegate.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, "nonsense").unwrap();
        process.signal(Signal::HUP);
        self.until_metric("makegate_config_last_reload_successful 0").await;
        let caller = "[[caller]]\nname = \"new\"\ngrants = [\"*\"]\n";
        let hash = makegate::hash::hex(&makegate::hash::sha256(b"key-new"));
        std::fs::write(&file, format!("{text}{caller}keys = [\"sha256:{hash}\"]\n")).unwrap();
        process.signal(Signal::HUP);
        self.until_answered(ORG, "key-new").await;
        self.polite().await;
    }

    async fn until_metric(&self, line: &str) {
        for _ in 0..1_200 {
            if self.metrics().await.contains(line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("no {line}: {}", self.metrics().await);
    }

    /// Sends SIGTERM while a write is under way.
    async fn drain(&self, process: &mut Process) {
        self.sandbox.fault(Fault::always("PATCH", ORG, FaultKind::Latency { ms: 300 }));
        let headers = with_key(ALL, &[]);
        let before = self.sandbox.received_of("PATCH", ORG).len();
        let write = attempt(self.home.gateway, "PATCH", ORG, &headers, "{\"name\":\"last\"}");
        let end = async {
            while self.sandbox.received_of("PATCH", ORG).len() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            process.signal(Signal::TERM);
            process.ended(AT_ONCE).await
        };
        let (reply, code) = tokio::join!(write, end);
        reply.unwrap().expect(200);
        assert_eq!(code, Some(0));
    }

    /// The log is intact, and no write is in doubt.
    fn audit(&self) {
        let audit = self.home.path().join("audit");
        let mut verify = Command::new(crate::support::process::binary());
        let verified = verify.args(["audit", "verify"]).arg(&audit).output().unwrap();
        assert!(verified.status.success(), "{verified:?}");
        let records = records_in(&audit);
        let count = |kind: &str| records.iter().filter(|record| record["kind"] == kind).count();
        assert_eq!((count("intent"), count("outcome")), (13, 13));
        assert!(records.iter().all(|record| record["outcome"] != "in-doubt"));
        assert_eq!(records.last().unwrap()["event"], "stop");
    }
}

async fn served_through(wrong: Wrong, from: Phase) {
    println!("{wrong:?} from {from:?} on");
    let mut scene = Scene::new().await;
    let mut outputs = Outputs::new(wrong, from);
    let mut command = scene.home.command();
    command.env("MAKEGATE_LOG", "debug");
    let mut process = outputs.start(command);
    assert!(is_open(scene.home.gateway).await, "it does not start");
    outputs.comes(Phase::Run);
    scene.traffic().await;
    scene.outage().await;
    outputs.comes(Phase::Reload);
    scene.reload(&process).await;
    if from <= Phase::Run && matches!(wrong, Wrong::Full | Wrong::Gone) {
        let metrics = scene.metrics().await;
        let dropped = metrics.lines().find_map(|line| line.strip_prefix("makegate_log_lines_dropped_total "));
        assert!(dropped.unwrap().parse::<u64>().unwrap() > 5, "{dropped:?}");
    }
    outputs.comes(Phase::Drain);
    scene.drain(&mut process).await;
    scene.audit();
}

#[tokio::test]
async fn a_closed_output_stops_nothing() {
    served_through(Wrong::Closed, Phase::Start).await;
}

#[tokio::test]
async fn a_full_output_stops_nothing() {
    served_through(Wrong::Full, Phase::Start).await;
}

#[tokio::test]
async fn a_stalled_reader_stops_nothing() {
    join_all(PHASES.map(|phase| served_through(Wrong::Stalled, phase))).await;
}

#[tokio::test]
async fn a_slow_reader_stops_nothing() {
    join_all(PHASES.map(|phase| served_through(Wrong::Slow, phase))).await;
}

#[tokio::test]
async fn a_reader_that_left_stops_nothing() {
    join_all(PHASES.map(|phase| served_through(Wrong::Gone, phase))).await;
}

#[tokio::test]
async fn the_demo_and_the_sandbox_serve_whoever_reads_their_output() {
    let each = [Wrong::Closed, Wrong::Full, Wrong::Stalled, Wrong::Slow, Wrong::Gone];
    for wrong in each {
        told_to_nobody("demo", wrong).await;
        told_to_nobody("sandbox", wrong).await;
    }
}

async fn told_to_nobody(name: &str, wrong: Wrong) {
    println!("{name} {wrong:?}");
    let dir = tempfile::tempdir().unwrap();
    // Three ports in a row, which usually nobody else takes in the meantime.
    for _ in 0..20 {
        let [address, _] = free_addresses(Ipv4Addr::LOCALHOST);
        let port = address.port().min(65_533).to_string();
        let mut command = Command::new(crate::support::process::binary());
        command.env("TMPDIR", dir.path()).env_remove("MAKEGATE_LOG");
        match name {
            "demo" => command.args(["demo", "--json", "--port", &port]),
            _ => command.args(["sandbox", "--listen", &address.to_string()]),
        };
        let mut outputs = Outputs::new(wrong, Phase::Start);
        let mut process = outputs.start(command);
        let is_open = tokio::select! {
            is_open = is_open(address) => is_open,
            code = process.ended(Duration::from_secs(60)) => {
                println!("{name} ended with {code:?}: another port");
                false
            }
        };
        if is_open {
            let (target, status) = if name == "demo" { (ORG, 401) } else { ("/sandbox", 200) };
            let Some(reply) = attempt(address, "GET", target, "", "").await else {
                // Another process listened there, so ours could not.
                println!("{name} ended with {:?}: another port", process.ended(Duration::from_secs(60)).await);
                continue;
            };
            reply.expect(status);
            process.signal(Signal::TERM);
            return assert_eq!(process.ended(AT_ONCE).await, Some(0));
        }
    }
    panic!("{name} does not start");
}
