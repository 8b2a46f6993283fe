//! The commands that stay: demo, serve and sandbox, from their first word to their orderly end, and what asks them.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{command, run, stderr, stdout};

/// How long a process may say nothing where a test waits for its next line.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A process that ends with the test.
pub(super) struct Running {
    child: Child,
    /// Its lines on stdout, until that ends.
    lines: Mutex<Receiver<String>>,
}

impl Running {
    pub(super) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        // Of a process whose test has failed nobody takes the rest.
        thread::spawn(move || {
            let mut line = String::new();
            while stdout.read_line(&mut line).unwrap() > 0 && sender.send(std::mem::take(&mut line)).is_ok() {}
        });
        Self { child, lines: Mutex::new(lines) }
    }

    /// The next line; empty at the end.
    pub(super) fn line(&mut self) -> String {
        match self.lines.get_mut().unwrap().recv_timeout(SILENCE_MAX) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => String::new(),
            Err(RecvTimeoutError::Timeout) => panic!("neither a line nor an end"),
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its exit code, when it has ended by itself.
    pub(super) fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Ends it by this signal: exit code, and all that it said since on stdout and ever on stderr.
    pub(super) fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        self.signal(signal);
        let mut told = self.lines.get_mut().unwrap().iter().collect::<String>();
        self.child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        (self.child.wait().unwrap().code(), told)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already in a test that went well.
        let (_gone, _reaped) = (self.child.kill(), self.child.wait());
    }
}

/// A running demo and what its line of JSON says.
pub(super) struct Demo {
    running: Running,
    told: Value,
}

impl Demo {
    pub(super) fn start(temporary: &Path) -> Self {
        let arguments = ["demo", "--json", "--port", "0"];
        let mut running = Running::start(command(temporary, &arguments).env("TMPDIR", temporary));
        let told = serde_json::from_str(&running.line()).unwrap();
        Self { running, told }
    }

    pub(super) fn text(&self, pointer: &str) -> &str {
        self.told.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer}: {}", self.told))
    }

    /// Asks the gateway as the demo's caller number `caller`: the whole answer.
    pub(super) fn get(&self, caller: usize, path: &str) -> String {
        let key = self.text(&format!("/callers/{caller}/key"));
        self.exchange(&format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Token {key}\r\nconnection: close\r\n\r\n"
        ))
    }

    fn exchange(&self, requests: &str) -> String {
        let mut reading = TcpStream::connect(self.text("/gateway").strip_prefix("http://").unwrap()).unwrap();
        reading.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (mut writing, requests) = (reading.try_clone().unwrap(), requests.to_owned());
        let writer = thread::spawn(move || writing.write_all(requests.as_bytes()));
        let mut answers = String::new();
        reading.read_to_string(&mut answers).unwrap();
        writer.join().unwrap().unwrap();
        answers
    }

    /// Runs a command that asks the demo's operator door.
    fn ask(&self, arguments: &[&str]) -> std::process::Output {
        let mut asking = command(Path::new("."), arguments);
        asking.env("MAKEGATE_OPERATOR_URL", self.text("/operator"));
        asking.env("MAKEGATE_OPERATOR_KEY", self.text("/operator_key")).output().unwrap()
    }
}

#[test]
fn the_demo_shows_a_hit_a_403_and_a_429_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let demo = Demo::start(temporary.path());
    assert!(demo.get(0, "/api/v2/organizations/11").starts_with("HTTP/1.1 200 "));
    assert!(demo.get(0, "/api/v2/organizations/11").contains("\r\ncache-status: makegate; hit; ttl="));
    assert_eq!(demo.told.pointer("/callers/1/organizations"), Some(&serde_json::json!([11, 12])));
    assert!(demo.get(1, "/api/v2/organizations/12").starts_with("HTTP/1.1 200 "));
    assert!(demo.get(1, "/api/v2/organizations/13").starts_with("HTTP/1.1 403 "));
    let [_, _, last] = [(); 3].map(|()| demo.get(2, "/api/v2/organizations"));
    assert!(last.starts_with("HTTP/1.1 429 ") && last.contains("\r\nretry-after: "), "{last}");

    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1);
    assert_eq!(demo.running.end(Signal::TERM), (Some(0), String::new()));
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn the_demo_speaks_tls_if_asked_and_says_whom_to_trust() {
    let temporary = tempfile::tempdir().unwrap();
    let arguments = ["demo", "--json", "--tls", "--port", "0"];
    let mut running = Running::start(command(temporary.path(), &arguments).env("TMPDIR", temporary.path()));
    let told: Value = serde_json::from_str(&running.line()).unwrap();
    let text = |name: &str| told[name].as_str().unwrap_or_else(|| panic!("{name}: {told}"));
    let mut roots = rustls::RootCertStore::empty();
    let pem = fs::read(text("ca_file")).unwrap();
    let authority = <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(&pem);
    roots.add(authority.unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let address = text("gateway").strip_prefix("https://").unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let client = rustls::ClientConnection::new(std::sync::Arc::new(client), name).unwrap();
    let mut stream = rustls::StreamOwned::new(client, TcpStream::connect(address).unwrap());
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(running.end(Signal::TERM), (Some(0), String::new()));
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn the_demo_says_what_to_do_when_its_ports_are_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().min(65_533).to_string();
    let told = stderr(1, &run(Path::new("."), &["demo", "--port", &port]));
    assert!(told.contains("cannot listen on port") && told.contains("--port"), "{told}");
}

#[test]
fn the_log_reads_the_same_from_its_files_and_from_the_running_gateway() {
    let temporary = tempfile::tempdir().unwrap();
    let demo = Demo::start(temporary.path());
    stdout(0, &demo.ask(&["healthcheck"]));
    // More than one page, and a last request that closes the connection.
    let head = format!("GET /nowhere HTTP/1.1\r\nhost: x\r\nauthorization: Token {}\r\n", demo.text("/callers/0/key"));
    let last = format!("{head}x-request-id: the-last\r\nconnection: close\r\n\r\n");
    demo.exchange(&(format!("{head}\r\n").repeat(1_200) + &last));
    let newest = demo.ask(&["audit", "query", "--limit", "1", "-o", "json"]);
    assert!(stdout(0, &newest).contains("\"request\":\"the-last\""), "{newest:?}");
    assert!(stderr(0, &newest).contains("--after "), "{newest:?}");

    let exported = stdout(0, &demo.ask(&["audit", "export", "--status", "404"]));
    assert_eq!(exported.lines().count(), 1_201);
    let folder = fs::read_dir(temporary.path()).unwrap().next().unwrap().unwrap().path();
    let of_files = ["audit", "export", "--config", "makegate.toml", "--status", "404"];
    assert_eq!(stdout(0, &run(&folder, &of_files)), exported);
    let all: Vec<_> = exported.lines().collect();
    let seq = |line: &str| serde_json::from_str::<Value>(line).unwrap()["seq"].to_string();
    let before = seq(all[1_190]);
    for (part, expected) in [
        (&["--limit", "3"][..], &all[1_198..]),
        (&["--limit", "1100"], &all[101..]),
        (&["--limit", "5", "--after", &before], &all[1_185..1_190]),
        (&["--after", &before], &all[..1_190]),
    ] {
        let of_door = demo.ask(&[&["audit", "export", "--status", "404"], part].concat());
        assert_eq!(stdout(0, &of_door).lines().collect::<Vec<_>>(), expected, "{part:?}");
        let of_files = stdout(0, &run(&folder, &[&of_files[..], part].concat()));
        assert_eq!(of_files.lines().collect::<Vec<_>>(), expected, "{part:?}");
    }
    stdout(0, &run(&folder, &[&of_files[..], &["-o", "csv", "--output", "export.csv"]].concat()));
    let written = fs::read_to_string(folder.join("export.csv")).unwrap();
    assert!(written.starts_with("seq,time,kind,") && written.lines().count() == 1_202);
    let table = stdout(0, &run(&folder, &["audit", "query", "--config", "makegate.toml", "--request", "the-last"]));
    assert!(
        table.trim_start().starts_with("SEQ ") && table.contains(" MG121") && table.lines().count() == 2,
        "{table}"
    );

    let refused = demo.ask(&["explain", "--caller", "dashboard", "GET", "/api/v2/organizations/13"]);
    assert!(stdout(3, &refused).ends_with("verdict: refuse with 403 MG132\n"));
    fs::write(folder.join("wrong.key"), "not-the-key").unwrap();
    let wrong = folder.join("wrong.key");
    let refused = demo.ask(&["audit", "query", "--key-file", &wrong.to_string_lossy()]);
    assert!(stderr(1, &refused).contains("the operator key is missing or wrong"), "{refused:?}");
}

#[test]
fn the_healthcheck_asks_the_door_that_the_configuration_opens() {
    let temporary = tempfile::tempdir().unwrap();
    let demo = Demo::start(temporary.path());
    let door = demo.text("/operator").strip_prefix("http://").unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let check = |text: String| {
        fs::write(temporary.path().join("makegate.toml"), text).unwrap();
        run(temporary.path(), &["healthcheck", "--config", "makegate.toml"])
    };
    stdout(0, &check(format!("operator.listen = \"{door}\"\n")));
    // The door for scrapers comes first: it needs no certificate.
    stdout(0, &check(format!("operator.listen = \"{nobody}\"\nmetrics.listen = \"{door}\"\n")));
    let told = stderr(1, &check(format!("operator.listen = \"{nobody}\"\n")));
    assert!(told.contains(&format!("http://{nobody}: ")), "{told}");
    // A makegate that runs goes on when its file gets a mistake.
    for mistake in ["operator.lisen = 1", "upstream.deadline = 15", "gateway"] {
        stdout(0, &check(format!("metrics.listen = \"{door}\"\n{mistake}\n")));
    }
}

#[test]
fn new_records_are_followed_from_files_and_from_the_running_gateway() {
    let temporary = tempfile::tempdir().unwrap();
    let demo = Demo::start(temporary.path());
    let folder = fs::read_dir(temporary.path()).unwrap().next().unwrap().unwrap().path();
    let files = ["audit", "follow", "--config", "makegate.toml", "--kind", "request", "-o", "csv"];
    let (operator, only) = (demo.text("/operator"), ["--kind", "request"]);
    let url = ["audit", "follow", "--url", operator, "--key-file", "operator.key", only[0], only[1], "-o", "csv"];
    let mut followers = [&files[..], &url].map(|arguments| Running::start(&mut command(&folder, arguments)));
    for follower in &mut followers {
        assert!(follower.line().starts_with("seq,time,kind,"));
    }
    // The header says that the files are followed; that the gateway is, the first record says.
    let following = std::sync::atomic::AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            while following.load(std::sync::atomic::Ordering::Relaxed) {
                demo.get(0, "/api/v2/organizations/11");
                thread::sleep(Duration::from_millis(50));
            }
        });
        let lines = followers.each_mut().map(Running::line);
        following.store(false, std::sync::atomic::Ordering::Relaxed);
        for line in lines {
            assert!(line.contains(",provisioning,"), "{line}");
        }
    });
}

const SERVED: &str = "gateway.listen = \"127.0.0.1:0\"\noperator = { listen = \"127.0.0.1:0\", key_file = \"key\" }\n\
                      upstream = { url = \"http://127.0.0.1:1\", token_file = \"token\" }\n";

/// A folder in which `serve --config makegate.toml` works.
fn served() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in [("makegate.toml", SERVED), ("key", "operator-key"), ("token", "a-token-of-make")] {
        fs::write(folder.path().join(file), text).unwrap();
    }
    folder
}

#[test]
fn the_service_logs_json_reads_again_on_hangup_and_ends_in_order() {
    let folder = served();
    let mut serving = Running::start(&mut command(folder.path(), &["serve", "--config", "makegate.toml"]));
    let mut log = BufReader::new(serving.child.stderr.take().unwrap());
    let mut until = |message: &str| loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "the log ended before {message:?}");
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["ts"].is_string() && line["level"].is_string(), "{line}");
        if line["msg"].as_str().unwrap().contains(message) {
            return line;
        }
    };
    let serves = until("makegate started");
    assert!(serves["gateway"][0].as_str().unwrap().starts_with("127.0.0.1:"), "{serves}");
    serving.signal(Signal::HUP);
    until("the configuration was reloaded");
    fs::write(folder.path().join("makegate.toml"), "nonsense").unwrap();
    serving.signal(Signal::HUP);
    assert_eq!(until("the configuration was not reloaded")["level"], "error");
    serving.signal(Signal::INT);
    until("makegate is shutting down");
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_service_takes_all_descriptors_that_it_may_have() {
    let folder = served();
    for (hard, warned) in [("4096", false), ("512", true)] {
        let script = format!("ulimit -Sn 128; ulimit -Hn {hard}; exec \"$0\" serve --config makegate.toml");
        let made = command(folder.path(), &[]);
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).arg(made.get_program()).current_dir(folder.path());
        let mut serving = shell.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(serving.stderr.take().unwrap()).lines().map(Result::unwrap);
        let told: Vec<String> = log.by_ref().take_while(|line| !line.contains("makegate started")).collect();
        kill_process(Pid::from_child(&serving), Signal::TERM).unwrap();
        assert_eq!(serving.wait().unwrap().code(), Some(0));
        let line = told.iter().find(|line| line.contains("too few file descriptors"));
        assert_eq!(line.is_some(), warned, "{told:?}");
        assert!(line.is_none_or(|line| line.contains(&format!("\"granted\":{hard}"))), "{line:?}");
    }
}

#[test]
fn the_service_does_not_start_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("makegate.toml"), SERVED).unwrap();
    fs::write(folder.path().join("key"), "operator-key").unwrap();
    let told = stderr(2, &run(folder.path(), &["serve", "--config", "makegate.toml"]));
    let last: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    assert_eq!((&last["level"], &last["exit_code"]), (&"error".into(), &2.into()), "{told}");
    let message = last["msg"].as_str().unwrap();
    assert!(
        message.ends_with("does not exist, and $CREDENTIALS_DIRECTORY has no file of that name: create it"),
        "{message}"
    );
}

#[test]
fn a_level_that_is_none_is_told_instead_of_logging_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (filters, wrong) in [
        ("loud", "`loud` is not a level"),
        ("info,makegate", "`makegate` is not a level"),
        ("makegate=loud", "MAKEGATE_LOG: "),
    ] {
        let mut command = command(folder.path(), &["serve", "--config", "makegate.toml"]);
        let told = stderr(2, &command.env("MAKEGATE_LOG", filters).output().unwrap());
        assert!(told.contains(wrong) && told.contains("filters such as makegate=debug,info"), "{filters}: {told}");
    }
}

#[test]
fn the_sandbox_alone_says_where_it_is_and_ends_in_order() {
    let mut sandbox = Running::start(&mut command(Path::new("."), &["sandbox", "--listen", "127.0.0.1:0"]));
    let url = sandbox.line();
    let mut stream = TcpStream::connect(url.trim().strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(b"GET /sandbox HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(sandbox.end(Signal::TERM), (Some(0), String::new()));
}
