//! A world for tests: the real service on real sockets, with the sandbox or a hostile origin as its upstream.

#![allow(dead_code, reason = "several test binaries share it, and not each uses all of it")]

#[cfg(target_os = "linux")]
pub(crate) mod disk;
pub(crate) mod fleet;
pub(crate) mod golden;
pub(crate) mod hostile;
pub(crate) mod issuer;
pub(crate) mod link;
pub(crate) mod otlp;
pub(crate) mod pooler;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod relay;
pub(crate) mod running;
pub(crate) mod schema;
pub(crate) mod tls;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use makegate::clock::Clock;
use makegate::sandbox::{FaultKind, Sandbox, SandboxSettings};
use makegate::{config, hash};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use running::{NotReloaded, Running, WorldClock};

pub(crate) const LIST: &str = "/api/v2/organizations";
pub(crate) const ORG: &str = "/api/v2/organizations/11";
pub(crate) const VARIABLES: &str = "/api/v2/organizations/11/variables";
pub(crate) const OTHER: &str = "/api/v2/organizations/12";
/// The sandbox handles the request when the test clears its faults, and all is well.
pub(crate) const HELD: FaultKind = FaultKind::Latency { ms: 600_000 };
/// The caller who may do everything.
pub(crate) const ALL: &str = "key-all";
/// A second one of that kind.
pub(crate) const TOO: &str = "key-too";
/// Reads organizations 11 and 12.
pub(crate) const READER: &str = "key-reader";
pub(crate) const OPERATOR: &str = "operator-key";
pub(crate) const TOKEN: &str = "9b2d7c1e-5a64-4f0b-8e3a-7d1c2b3a4f5e";

/// Times that are longer in tests than they are by default, by section and key; a test that is about one of them sets its own.
const PATIENT: [(&str, &str, &str); 10] = [
    ("upstream", "deadline = ", "\"60s\""),
    ("upstream", "write_deadline = ", "\"90s\""),
    ("upstream", "attempt = ", "\"50s\""),
    ("upstream", "write_attempt = ", "\"80s\""),
    ("audit", "disk_wait = ", "\"30s\""),
    ("limits", "handshake = ", "\"30s\""),
    ("limits", "first_byte = ", "\"30s\""),
    ("limits", "head = ", "\"30s\""),
    ("limits", "body_gap = ", "\"60s\""),
    ("limits", "body = ", "\"90s\""),
];

/// What a world is made of.
pub(crate) struct Plan {
    sections: Vec<(&'static str, String)>,
    callers: String,
    upstream: Option<String>,
    sandbox: SandboxSettings,
    clock: Clock,
    segment_bytes: Option<u64>,
}

impl Default for Plan {
    fn default() -> Self {
        let sandbox = SandboxSettings {
            token: TOKEN.to_owned(),
            api_limit: 100_000,
            account_limit: 100_000,
            ..SandboxSettings::default()
        };
        Self {
            sections: Vec::new(),
            callers: String::new(),
            upstream: None,
            sandbox,
            clock: Clock::movable(),
            segment_bytes: None,
        }
    }
}

impl Plan {
    /// Lines for a section of the configuration.
    pub(crate) fn set(mut self, section: &'static str, lines: &str) -> Self {
        self.sections.push((section, lines.to_owned()));
        self
    }

    /// A further caller: its key, and the lines of its `[[caller]]`.
    pub(crate) fn caller(mut self, key: &str, lines: &str) -> Self {
        let hash = hash::hex(&hash::sha256(key.as_bytes()));
        let _infallible = writeln!(self.callers, "[[caller]]\nname = \"{key}\"\nkeys = [\"sha256:{hash}\"]\n{lines}");
        self
    }

    /// Further tables, such as `[[operation]]`.
    pub(crate) fn tables(mut self, text: &str) -> Self {
        self.callers.push_str(text);
        self
    }

    /// Another upstream than the sandbox.
    pub(crate) fn upstream(mut self, url: impl Into<String>) -> Self {
        self.upstream = Some(url.into());
        self
    }

    pub(crate) fn sandbox(mut self, change: impl FnOnce(&mut SandboxSettings)) -> Self {
        change(&mut self.sandbox);
        self
    }

    /// Segments smaller than the configuration allows.
    pub(crate) fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = Some(bytes);
        self
    }

    /// Another clock than one that runs with the machine's.
    pub(crate) fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The wall time of its clock.
    pub(crate) fn now(&self) -> jiff::Timestamp {
        self.clock.wall()
    }

    pub(crate) fn text(&self, url: &str) -> String {
        let lines = |section: &str| -> String {
            self.sections.iter().filter(|(name, _)| *name == section).map(|(_, lines)| format!("{lines}\n")).collect()
        };
        // The machine may be slow: nothing ends because of that unless it is what a test is about.
        let patient = |section: &str| -> String {
            let own = lines(section);
            let is_set = |key: &str| own.lines().any(|line| line.starts_with(key));
            let keys = PATIENT.iter().filter(|(of, key, _)| *of == section && !is_set(key));
            keys.map(|(_, key, value)| format!("{key}{value}\n")).collect()
        };
        let listen = |section: &str| match lines(section).contains("listen =") {
            true => "",
            false => "listen = \"127.0.0.1:0\"\n",
        };
        let key = |key: &str| hash::hex(&hash::sha256(key.as_bytes()));
        let mut text = format!(
            "[gateway]\n{}{}\n[operator]\n{}key_file = \"operator\"\n{}\n\
             [upstream]\nurl = \"{url}\"\ntoken_file = \"token\"\n{}{}{}\n[cache]\n{}\n[cache.lifetime]\n{}\n[audit]\ndir = \"audit\"\n{}{}\n[limits]\n{}{}\n",
            listen("gateway"),
            lines("gateway"),
            listen("operator"),
            lines("operator"),
            if lines("upstream").contains("quota =") { "" } else { "quota = \"100000/min\"\n" },
            patient("upstream"),
            lines("upstream"),
            lines("cache"),
            lines("cache.lifetime"),
            patient("audit"),
            lines("audit"),
            patient("limits"),
            lines("limits"),
        );
        let fast = "rate = \"1000000/min\"\nburst = 100000\n";
        let _infallible =
            write!(text, "[[caller]]\nname = \"all\"\nkeys = [\"sha256:{}\"]\ngrants = [\"*\"]\n{fast}", key(ALL));
        let _infallible =
            write!(text, "[[caller]]\nname = \"too\"\nkeys = [\"sha256:{}\"]\ngrants = [\"*\"]\n{fast}", key(TOO));
        let _infallible = write!(
            text,
            "[[caller]]\nname = \"reader\"\nkeys = [\"sha256:{}\"]\ngrants = [\"organizations:read\", \"usage:read\"]\norganizations = [11, 12]\n{fast}",
            key(READER)
        );
        text + &self.callers
    }

    pub(crate) async fn start(self) -> World {
        self.start_in(new_dir()).await
    }

    /// In a folder that another world left: a restart.
    pub(crate) async fn start_in(self, dir: TempDir) -> World {
        let any = "127.0.0.1:0".parse().unwrap();
        let sandbox = Sandbox::start(any, self.sandbox.clone(), self.clock.clone()).await.unwrap();
        let url = self.upstream.clone().unwrap_or_else(|| format!("http://{}", sandbox.address()));
        let file = dir.path().join("makegate.toml");
        std::fs::write(&file, self.text(&url)).unwrap();
        let mut read = config::read(&file).unwrap_or_else(|failure| panic!("{failure}"));
        if let Some(bytes) = self.segment_bytes {
            read.config.audit.segment_bytes = bytes;
            running::must_be_here("has segments that are smaller than allowed");
        }
        let service = Running::start(dir.path(), read, self.clock.clone()).await;
        let gateway = service.gateway_addresses()[0];
        World { service, sandbox, clock: WorldClock(self.clock.clone()), dir, gateway, plan: self, url }
    }
}

/// A running world.
pub(crate) struct World {
    pub(crate) service: Running,
    pub(crate) sandbox: Sandbox,
    pub(crate) clock: WorldClock,
    pub(crate) dir: TempDir,
    pub(crate) gateway: SocketAddr,
    pub(crate) plan: Plan,
    url: String,
}

/// An answer as it came off the wire.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The refusal's code.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_else(|| panic!("no code: {self:?}")).to_owned()
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{} {}", self.head, String::from_utf8_lossy(&self.body));
        self
    }

    #[track_caller]
    pub(crate) fn refused(self, status: u16, code: &str) -> Self {
        let this = self.expect(status);
        assert_eq!(this.code(), code);
        this
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Plan::default().start().await
    }

    pub(crate) async fn get(&self, key: &str, target: &str) -> Reply {
        self.send(key, "GET", target, &[], "").await
    }

    pub(crate) async fn get_with(&self, key: &str, target: &str, headers: &[&str]) -> Reply {
        self.send(key, "GET", target, headers, "").await
    }

    pub(crate) async fn post(&self, key: &str, target: &str, body: &str) -> Reply {
        self.send(key, "POST", target, &[], body).await
    }

    pub(crate) async fn patch(&self, key: &str, target: &str, body: &str) -> Reply {
        self.send(key, "PATCH", target, &[], body).await
    }

    pub(crate) async fn delete(&self, key: &str, target: &str) -> Reply {
        self.send(key, "DELETE", target, &[], "").await
    }

    pub(crate) async fn send(&self, key: &str, method: &str, target: &str, headers: &[&str], body: &str) -> Reply {
        send(self.gateway, method, target, &with_key(key, headers), body).await
    }

    /// A request whose answer nobody waits for: the caller hangs up when `enough` says so.
    pub(crate) async fn send_until(&self, key: &str, method: &str, target: &str, body: &str, enough: impl Future) {
        let mut stream = TcpStream::connect(self.gateway).await.unwrap();
        stream.write_all(request(method, target, &with_key(key, &[]), body).as_bytes()).await.unwrap();
        enough.await;
    }

    /// The same: the caller hangs up after `after`.
    pub(crate) async fn send_and_leave(&self, key: &str, method: &str, target: &str, body: &str, after: Duration) {
        self.send_until(key, method, target, body, tokio::time::sleep(after)).await;
    }

    /// Puts in force what the files say now. On a machine that is stopped again and again they may not be read in time.
    pub(crate) async fn reload(&self) {
        for _ in 0..300 {
            match self.service.reload().await {
                Err(NotReloaded::Hangs) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                done => return done.unwrap(),
            }
        }
        panic!("the files are never read");
    }

    /// The configuration file.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("makegate.toml")
    }

    /// All lines of the log's files.
    pub(crate) async fn log(&self) -> Vec<Value> {
        self.service.flush().await;
        records_in(&self.dir.path().join("audit"))
    }

    /// The records of requests, without events.
    pub(crate) async fn records(&self) -> Vec<Value> {
        self.log().await.into_iter().filter(|record| record["kind"] != "event").collect()
    }

    pub(crate) async fn last_record(&self) -> Value {
        self.records().await.pop().unwrap()
    }

    /// How many requests of this kind the sandbox received.
    pub(crate) fn received(&self, method: &str, path: &str) -> usize {
        self.sandbox.received_of(method, path).len()
    }

    /// Stops it in order and starts it again on the same folder and upstream.
    pub(crate) async fn restart(self) -> Self {
        self.restart_after(|_| {}).await
    }

    /// The same; meanwhile this happens to the log's folder.
    pub(crate) async fn restart_after(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let Self { service, sandbox, dir, plan, url, .. } = self;
        assert!(service.shut_down().await, "it did not drain");
        meanwhile(&dir.path().join("audit"));
        let mut world = Plan { upstream: Some(url), ..plan }.start_in(dir).await;
        world.sandbox = sandbox;
        world
    }
}

/// A Make of its own at this address, with quota for everything.
pub(crate) async fn sandbox_at(address: &str) -> Sandbox {
    let settings = SandboxSettings {
        token: TOKEN.to_owned(),
        api_limit: 1_000_000,
        account_limit: 1_000_000,
        ..SandboxSettings::default()
    };
    Sandbox::start(address.parse().unwrap(), settings, Clock::system()).await.unwrap()
}

/// A folder with the secrets that a configuration names.
pub(crate) fn new_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), TOKEN).unwrap();
    std::fs::write(dir.path().join("operator"), OPERATOR).unwrap();
    dir
}

/// The files of a log's segments, in their order.
pub(crate) fn segments_in(audit: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(audit).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
    files.sort();
    files
}

/// Every line of a log's segments, each checked to be JSON.
pub(crate) fn records_in(audit: &Path) -> Vec<Value> {
    let text: String = segments_in(audit).iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

pub(crate) fn with_key(key: &str, headers: &[&str]) -> String {
    let mut text = format!("authorization: Token {key}\r\n");
    for header in headers {
        let _infallible = write!(text, "{header}\r\n");
    }
    text
}

fn request(method: &str, target: &str, headers: &str, body: &str) -> String {
    let lower = headers.to_ascii_lowercase();
    let kind =
        if body.is_empty() || lower.contains("content-type:") { "" } else { "content-type: application/json\r\n" };
    let length = if lower.contains("transfer-encoding:")
        || lower.contains("content-length:")
        || (body.is_empty() && method == "GET")
    {
        String::new()
    } else {
        format!("content-length: {}\r\n", body.len())
    };
    let close = if lower.contains("connection:") { "" } else { "connection: close\r\n" };
    format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\n{headers}{kind}{length}{close}\r\n{body}")
}

/// Waits for what another task does.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come true");
}

/// Sends one request on a connection of its own and reads the answer whole.
pub(crate) async fn send(to: SocketAddr, method: &str, target: &str, headers: &str, body: &str) -> Reply {
    raw(to, &request(method, target, headers, body)).await.unwrap_or_else(|| panic!("no answer to {method} {target}"))
}

/// The same to a gateway that may be killed at any moment; `None`: there was no answer.
pub(crate) async fn attempt(to: SocketAddr, method: &str, target: &str, headers: &str, body: &str) -> Option<Reply> {
    let mut stream = TcpStream::connect(to).await.ok()?;
    stream.write_all(request(method, target, headers, body).as_bytes()).await.ok()?;
    exchange(stream, "").await
}

/// Sends these very bytes; `None`: the connection ended without an answer.
pub(crate) async fn raw(to: SocketAddr, bytes: &str) -> Option<Reply> {
    let stream = TcpStream::connect(to).await.unwrap();
    exchange(stream, bytes).await
}

/// The same, and after them the end of this half of the connection.
pub(crate) async fn half_closed(to: SocketAddr, bytes: &str) -> Option<Reply> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    exchange(stream, "").await
}

pub(crate) async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &str) -> Option<Reply> {
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut all)).await;
    // A reset after the answer takes nothing away from it.
    let _ended = read.expect("the connection stays open");
    parse(&all)
}

fn parse(all: &[u8]) -> Option<Reply> {
    let end = all.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let rest = &all[end..];
    let lower = head.to_ascii_lowercase();
    let body = if lower.contains("transfer-encoding: chunked") { dechunk(rest) } else { rest.to_vec() };
    Some(Reply { status, head, body })
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap().trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[at + 2..at + 2 + size]);
        rest = &rest[at + 4 + size..];
    }
    body
}
