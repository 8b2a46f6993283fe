//! Promise 7, and with it 4 to 6, when a file of the data folder is damaged: every file, in every way, before the
//! start and while makegate runs.
//!
//! makegate either starts or says which file is at fault and what to do. Nothing ends the process. A key's write is
//! not carried out twice, a write in doubt holds its equal, each write has its intent and outcome in the log, and
//! only whoever damaged the log is accused of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt as _;
use makegate::audit::{AuditorInput, VerifyError, verify};
use makegate::sandbox::{Fault, FaultKind};

use crate::support::process::{Home, Process, is_open};
use crate::support::{ALL, LIST, ORG, Plan, READER, Reply, World, attempt, records_in, with_key};

const PAID: &str = r#"{"name":"paid","regionId":1,"timezoneId":1,"countryId":1}"#;
const DOUBTFUL: &str = r#"{"name":"doubtful","regionId":1,"timezoneId":1,"countryId":1}"#;
/// Number of concurrent cases.
const LANES: usize = 12;

const DAMAGES: [&str; 8] = ["deleted", "emptied", "cut", "flipped", "old", "folder", "pipe", "unreadable"];

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Returns false if this damage does not apply to this file.
fn damage(path: &Path, how: &str, old: &Path) -> bool {
    let bytes = fs::read(path).unwrap_or_default();
    match how {
        "deleted" => fs::remove_file(path).unwrap(),
        "emptied" if !bytes.is_empty() => fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap(),
        "cut" if bytes.len() > 1 => {
            let half = bytes.len() as u64 / 2;
            fs::File::options().write(true).open(path).unwrap().set_len(half).unwrap();
        }
        "flipped" if !bytes.is_empty() => {
            use std::os::unix::fs::FileExt as _;
            let at = bytes.len() / 2;
            fs::File::options().write(true).open(path).unwrap().write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
        }
        "old" => {
            let before = old.join(path.file_name().unwrap());
            if fs::read(&before).is_ok_and(|before| before != bytes) {
                fs::copy(before, path.with_extension("tmp")).unwrap();
                fs::rename(path.with_extension("tmp"), path).unwrap();
            } else {
                return false;
            }
        }
        "folder" => {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }
        "pipe" => {
            fs::remove_file(path).unwrap();
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::from(0o600), 0).unwrap();
        }
        "unreadable" => {
            if rustix::process::geteuid().is_root() {
                return false; // root can read everything
            }
            fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
        }
        _ => return false,
    }
    true
}

/// What is sent in every case, and what must not happen.
struct Case {
    home: Home,
    name: String,
    /// Whether this is a file of the log or its heads, whose damage `verify` must find.
    is_evidence: bool,
}

impl Case {
    fn audit(&self) -> PathBuf {
        self.home.path().join("audit")
    }

    async fn send(&self, method: &str, target: &str, headers: &[&str], body: &str) -> Reply {
        self.send_as(ALL, method, target, headers, body).await
    }

    async fn send_as(&self, key: &str, method: &str, target: &str, headers: &[&str], body: &str) -> Reply {
        let mut reply = None;
        for _ in 0..3 {
            reply = attempt(self.home.gateway, method, target, &with_key(key, headers), body).await;
            if reply.is_some() {
                break;
            }
        }
        reply.unwrap_or_else(|| panic!("{}: no answer: {}", self.name, self.home.process_log()))
    }

    /// Starts the gateway. Returns `None` if it refuses and says why.
    async fn start(&self) -> Option<Process> {
        let log = fs::File::options().create(true).append(true).open(self.home.path().join("log")).unwrap();
        let before = self.served();
        let mut process = Process::start(self.home.command().stdout(Stdio::null()).stderr(log));
        for _ in 0..12_000 {
            if let Some(status) = process.child().try_wait().unwrap() {
                assert_eq!(status.code(), Some(1), "{}: {status:?} {}", self.name, self.home.process_log());
                return None;
            }
            if self.served() > before {
                return Some(process);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{}: it neither starts nor exits: {}", self.name, self.home.process_log());
    }

    /// How often it has logged that its doors are open.
    fn served(&self) -> usize {
        self.home.process_log().matches("makegate started").count()
    }

    /// The key's write and the equal of the write in doubt are not carried out, other writes are carried out or
    /// refused, and reads are answered.
    async fn promises_hold(&self) {
        let name = &self.name;
        let again = self.send("POST", LIST, &["idempotency-key: paid"], PAID).await;
        let is_replayed = again.header("idempotent-replayed") == Some("true");
        assert!(is_replayed || again.status >= 400, "{name}: the payment was made twice: {again:?}");
        let equal = self.send("POST", LIST, &[], DOUBTFUL).await;
        assert!(
            equal.status == 409 || self.is_answered(&equal) && equal.status != 200,
            "{name}: the equal of a write in doubt: {equal:?}"
        );
        let write = self.send("PATCH", ORG, &[], r#"{"name":"after"}"#).await;
        assert!(self.is_answered(&write), "{name}: {write:?}");
        let read = self.send_as(READER, "GET", ORG, &[], "").await;
        assert!(self.is_answered(&read), "{name}: {read:?}");
    }

    /// Or refused, because the log cannot be written or because it is unknown what was sent before.
    fn is_answered(&self, reply: &Reply) -> bool {
        let is_unknown = self.name.starts_with("quota.slots") && reply.status == 429;
        is_unknown || matches!(reply.status, 200 | 503)
    }

    fn end(&self, process: Process) {
        assert_eq!(process.end(), Some(0), "{}: {}", self.name, self.home.process_log());
    }

    /// The start finds everything, or names the file that prevents it.
    async fn starts_or_says_why(&self, file: &str) {
        match self.start().await {
            None => {
                let log = self.home.process_log();
                assert!(log.contains(file), "{}: it does not say which file: {log}", self.name);
            }
            Some(process) => {
                self.promises_hold().await;
                self.end(process);
                self.log_is_whole();
                let is_lost = file == "head.key" && !self.name.contains(" old ");
                assert!(!is_lost || self.home.process_log().contains(file), "{}: the loss is not reported", self.name);
            }
        }
    }

    /// Every write with an intent in the log has an outcome there, and an unaltered log is not accused.
    fn log_is_whole(&self) {
        match verify(&self.audit(), &AuditorInput::default(), &mut |_, _| {}) {
            Ok(report) => {
                assert!(self.is_evidence || report.problems.is_empty(), "{}: {report:#?}", self.name);
                assert_eq!(report.under_way, 0, "{}: {report:#?}", self.name);
            }
            Err(VerifyError::NoLog) if self.is_evidence => {}
            Err(error) => panic!("{}: {error}", self.name),
        }
    }
}

/// What a gateway left behind, and what it had left at an earlier time.
struct Base {
    origin: World,
    dir: tempfile::TempDir,
}

impl Base {
    fn plan() -> Plan {
        Plan::default().set("audit", "segment = \"64KiB\"").set("upstream", "look = false")
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("now")
    }

    fn old(&self) -> PathBuf {
        self.dir.path().join("old")
    }

    async fn new() -> Self {
        let origin = World::start().await;
        let home = Home::new(&Self::plan(), &format!("http://{}", origin.sandbox.address()));
        let dir = tempfile::tempdir().unwrap();
        let base = Self { origin, dir };
        let send = async |method: &str, target: &str, headers: &[&str], body: &str| {
            attempt(home.gateway, method, target, &with_key(ALL, headers), body).await.unwrap()
        };
        let process = home.serve().await;
        send(
            "POST",
            LIST,
            &["idempotency-key: early"],
            r#"{"name":"early","regionId":1,"timezoneId":1,"countryId":1}"#,
        )
        .await
        .expect(200);
        assert_eq!(process.end(), Some(0));
        copy(&home.path().join("audit"), &base.old());
        let process = home.serve().await;
        send("POST", LIST, &["idempotency-key: paid"], PAID).await.expect(200);
        base.origin.sandbox.fault(Fault::once("POST", LIST, FaultKind::Reset { effect: true }));
        send("POST", LIST, &[], DOUBTFUL).await.refused(502, "MG222");
        for n in 0..250 {
            send("PATCH", ORG, &[], &format!(r#"{{"name":"n{n}"}}"#)).await.expect(200);
        }
        assert_eq!(process.end(), Some(0));
        copy(&home.path().join("audit"), &base.folder());
        base
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder()).unwrap();
        let mut files: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        files
    }

    fn case(&self, file: &str, how: &str, running: bool) -> Case {
        let home = Home::new(&Self::plan(), &format!("http://{}", self.origin.sandbox.address()));
        copy(&self.folder(), &home.path().join("audit"));
        let when = if running { "while running" } else { "at start" };
        let evidence = ["jsonl", "head", "keys", "head.pub", "head.key", "closed"];
        let is_evidence = evidence.iter().any(|end| file.ends_with(end));
        Case { home, name: format!("{file} {how} {when}"), is_evidence }
    }

    async fn at_start(&self, file: &str, how: &str) {
        let case = self.case(file, how, false);
        if !damage(&case.audit().join(file), how, &self.old()) {
            return;
        }
        case.starts_or_says_why(file).await;
    }

    async fn while_running(&self, file: &str, how: &str) {
        let case = self.case(file, how, true);
        let mut process = case.start().await.unwrap();
        let path = case.audit().join(file);
        if !path.exists() || !damage(&path, how, &self.old()) {
            return case.end(process);
        }
        for _ in 0..2 {
            case.promises_hold().await;
            tokio::time::sleep(Duration::from_millis(700)).await;
            assert!(process.child().try_wait().unwrap().is_none(), "{}: {}", case.name, case.home.process_log());
        }
        case.end(process);
        case.log_is_whole();
        case.starts_or_says_why(file).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_file_of_the_data_folder_can_be_damaged_so_that_a_promise_breaks() {
    let base = Base::new().await;
    let files = base.files();
    // Running all cases takes minutes: set `DAMAGE=all`, or words from their names, as in `DAMAGE="head.key cut"`.
    let wanted = std::env::var("DAMAGE").ok();
    let mut cases = Vec::new();
    for (at, file) in files.iter().enumerate() {
        for (nth, how) in DAMAGES.into_iter().enumerate() {
            for running in [false, true] {
                let is_wanted = match wanted.as_deref() {
                    Some("all") => true,
                    Some(part) => format!("{file} {how} {running}").contains(part),
                    None => (at + nth + 2 * usize::from(running)) % 5 == 0 || file.ends_with("473.jsonl"),
                };
                if is_wanted {
                    cases.push((file.as_str(), how, running));
                }
            }
        }
    }
    println!("{} cases of {files:?}", cases.len());
    let failed = std::sync::Mutex::new(Vec::new());
    let all = futures_util::stream::iter(cases).for_each_concurrent(LANES, |(file, how, running)| {
        let (base, failed) = (&base, &failed);
        async move {
            use futures_util::FutureExt as _;
            let work =
                async { if running { base.while_running(file, how).await } else { base.at_start(file, how).await } };
            if std::panic::AssertUnwindSafe(work).catch_unwind().await.is_err() {
                failed.lock().unwrap().push(format!("{file} {how} {running}"));
            }
        }
    });
    all.await;
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
    assert!(is_open(base.origin.gateway).await && !records_in(&base.folder()).is_empty());
}
