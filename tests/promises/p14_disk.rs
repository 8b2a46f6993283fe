//! Promise 14. Nothing that one file or one disk does stops the rest: only a write waits for a disk.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use makegate::clock::Clock;
use makegate::sandbox::Sandbox;
use rustix::io::Errno;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::disk::{Disk, Effect, Fault, Operation};
use crate::support::process::{Home, Process, is_open};
use crate::support::random::seeds;
use crate::support::{ALL, OPERATOR, ORG, OTHER, Plan, Reply, TOO, VARIABLES, attempt, sandbox_at, with_key};

#[test]
fn the_test_disk_does_as_told() {
    let dir = tempfile::tempdir().unwrap();
    let (below, at) = (dir.path().join("below"), dir.path().join("at"));
    fs::create_dir(&below).unwrap();
    fs::create_dir(&at).unwrap();
    let Some(disk) = Disk::mount(&below, &at) else { return };
    fs::write(at.join("one"), "first").unwrap();
    fs::File::options().append(true).open(at.join("one")).unwrap().write_all(b", second").unwrap();
    fs::rename(at.join("one"), at.join("two")).unwrap();
    assert_eq!(fs::read_to_string(below.join("two")).unwrap(), "first, second");
    assert_eq!(fs::metadata(at.join("two")).unwrap().ino(), fs::metadata(below.join("two")).unwrap().ino());
    fs::create_dir(at.join("three")).unwrap();
    let mut names: Vec<_> = fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["three", "two"]);

    disk.fault(Fault::of("t*o", Operation::Write, Effect::Fail(Errno::NOSPC)));
    let full = fs::File::options().append(true).open(at.join("two")).unwrap().write_all(b"!").unwrap_err();
    assert_eq!(full.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
    assert_eq!((disk.met(), fs::read_to_string(at.join("two")).unwrap().len()), (1, 13));
    disk.heal();
    disk.fault(Fault::of("two", Operation::Look, Effect::Delay(Duration::from_millis(200))));
    let before = Clock::system().now();
    fs::metadata(at.join("two")).unwrap();
    assert!(before.elapsed() >= Duration::from_millis(200));
    disk.heal();

    disk.fault(Fault::every("two", Effect::Hang));
    let mut hangs = std::process::Command::new("cat").arg(at.join("two")).spawn().unwrap();
    while disk.waiting() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(hangs.try_wait().unwrap().is_none());
    // A hanging process can be killed, so no test leaves one behind.
    hangs.kill().unwrap();
    hangs.wait().unwrap();
    let reading = std::thread::spawn({
        let file = at.join("two");
        move || fs::read_to_string(file)
    });
    while disk.waiting() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    disk.heal();
    assert_eq!(reading.join().unwrap().unwrap(), "first, second");
    drop(disk);
    assert!(fs::read_dir(&at).unwrap().next().is_none(), "it is still mounted");
}

/// What the process has on its disk: the data folder and its files, files that come and go next to them, and watched
/// files.
const FILES: [&str; 13] = [
    ".", "*.jsonl", "*.leaves", "quota.slots*", "head*", "keys*", "fingerprint.key*", "index.sqlite*",
    "answers.sqlite*", "makegate.toml", "token", "operator", "*",
];
/// On an idle machine, a hit and `/livez` take at most 100 ms and a write is refused within a second. On a busy one
/// they are still far faster than the disk.
const AT_ONCE: Duration = Duration::from_secs(15);
const DRAIN: Duration = Duration::from_secs(1);
/// How much longer shutdown may take: the promised second, and room for a busy machine.
const END: Duration = Duration::from_secs(14);
/// How long it may take to notice that a disk works again.
const RECOVERY: Duration = Duration::from_secs(60);
/// Number of concurrent processes, which mostly wait.
const AT_A_TIME: usize = 13;

/// A gateway with all its files on a disk that can fail.
struct Scene {
    disk: Disk,
    home: Home,
    /// The disk's files.
    _below: TempDir,
    log: TempDir,
}

impl Scene {
    fn new(upstream: &str) -> Option<Self> {
        let limits = format!("drain = \"{}ms\"", DRAIN.as_millis());
        let plan = Plan::default().set("limits", &limits).set("audit", "head = \"1s\"\ndisk_wait = \"700ms\"");
        let home = Home::new(&plan, upstream);
        let (below, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for file in fs::read_dir(home.path()).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), below.path().join(file.file_name())).unwrap();
        }
        fs::create_dir(below.path().join("audit")).unwrap();
        Some(Self { disk: Disk::mount(below.path(), home.path())?, home, _below: below, log })
    }

    async fn serve(&self) -> Process {
        let log = fs::File::options().create(true).append(true).open(self.log.path().join("log")).unwrap();
        let process = Process::start(self.home.command().stdout(Stdio::null()).stderr(log));
        assert!(is_open(self.home.gateway).await, "it does not start: {}", self.told());
        process
    }

    fn told(&self) -> String {
        fs::read_to_string(self.log.path().join("log")).unwrap()
    }

    async fn ask(&self, key: &str, method: &str, target: &str, headers: &[&str], body: &str) -> Reply {
        let headers = with_key(key, headers);
        let asked = attempt(self.home.gateway, method, target, &headers, body);
        let answered = tokio::time::timeout(AT_ONCE, asked).await;
        answered.unwrap_or_else(|_| panic!("{method} {target} waits for a disk")).expect("an answer")
    }

    async fn operator(&self, method: &str, target: &str) -> Option<Reply> {
        let headers = format!("authorization: Bearer {OPERATOR}\r\n");
        tokio::time::timeout(AT_ONCE, attempt(self.home.operator, method, target, &headers, "")).await.ok()?
    }

    /// What waits for nothing: a hit, and whether the process is alive.
    async fn polite(&self) {
        let hit = self.ask(TOO, "GET", OTHER, &[], "").await;
        assert_eq!(hit.status, 200, "{}", hit.text());
        assert!(hit.header("cache-status").unwrap().contains("hit"), "{}", hit.head);
        for target in ["/livez", "/readyz"] {
            let well = self.operator("GET", target).await.unwrap_or_else(|| panic!("{target} waits for a disk"));
            assert_eq!(well.status, 200, "{target}: {}", well.text());
        }
    }

    /// Everything that touches a file: a read that goes upstream, writes, records, heads, a query, a reload.
    async fn touch(&self, process: &Process, number: usize) {
        process.signal(Signal::HUP);
        let variable = format!("{{\"name\":\"v{number}\",\"typeId\":1,\"value\":\"1\"}}");
        let key = format!("idempotency-key: {number}-{}", self.home.gateway.port());
        let headers = [key.as_str()];
        let (read, write, keyed, _, _, _, ()) = tokio::join!(
            self.ask(ALL, "GET", VARIABLES, &[], ""),
            self.ask(ALL, "POST", VARIABLES, &[], &variable),
            self.ask(ALL, "POST", VARIABLES, &headers, &variable),
            self.operator("GET", "/audit/head"),
            self.operator("POST", "/audit/rotate"),
            self.operator("GET", "/audit.json?limit=5"),
            self.polite(),
        );
        assert_eq!(read.status, 200, "{}", read.text());
        for write in [write, keyed] {
            // The sandbox's own answers for a name that is taken are not the disk's fault.
            assert!([200, 201, 400, 409, 422, 503].contains(&write.status), "{}", write.text());
        }
        self.polite().await;
    }

    /// Once the disk works again, everything works.
    async fn recovers(&self, number: usize) {
        let until = Clock::system().now() + RECOVERY;
        loop {
            let key = format!("idempotency-key: again-{number}-{}", self.home.gateway.port());
            let body = "{\"name\":\"x\"}";
            let write = self.ask(ALL, "PATCH", ORG, &[&key], body).await;
            self.ask(TOO, "GET", OTHER, &[], "").await;
            if write.status == 200 {
                return self.polite().await;
            }
            assert!(Clock::system().now() < until, "it does not recover: {}\n{}", write.text(), self.told());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Shutdown is on time, and the next start finds everything.
    async fn ends(&self, mut process: Process) {
        process.signal(Signal::TERM);
        process.ended(DRAIN + END).await;
        self.disk.heal();
        assert_eq!(self.serve().await.end(), Some(0));
        let mut verify = Command::new(crate::support::process::binary());
        let verified = verify.args(["audit", "verify"]).arg(self.home.path().join("audit")).output().unwrap();
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    }
}

/// Does everything to one kind of file, in its own process. Returns how many operations met a fault.
async fn break_all(file: &str, upstream: &str, mut random: Rng) -> Option<u64> {
    let scene = Scene::new(upstream)?;
    let fails = [Effect::Fail(Errno::IO), Effect::Fail(Errno::NOSPC)];
    let waits = [Effect::Delay(Duration::from_secs(60)), Effect::Hang];
    let process = scene.serve().await;
    scene.recovers(0).await;
    let mut number = 0;
    for operation in Operation::ALL {
        for effect in [*random.choice(&fails).unwrap(), *random.choice(&waits).unwrap()] {
            let before = scene.disk.met();
            scene.disk.fault(Fault::of(file, operation, effect));
            number += 1;
            scene.touch(&process, number).await;
            if file.starts_with("fingerprint") {
                // Nobody asks for it; it is checked every second.
                tokio::time::sleep(Duration::from_millis(1500)).await;
                scene.polite().await;
            }
            let met = scene.disk.met() - before;
            scene.disk.heal();
            if met == 0 {
                break; // nobody does that to this file
            }
            scene.recovers(number).await;
        }
    }
    scene.disk.fault(Fault::every(file, Effect::Hang));
    scene.touch(&process, number + 1).await;
    scene.ends(process).await;
    Some(scene.disk.met())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_writes_wait_for_a_disk_whichever_file_and_operation_hangs() {
    let seed = seeds(1).last().unwrap();
    println!("MAKEGATE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let sandbox: Sandbox = sandbox_at("127.0.0.1:0").await;
    let upstream = format!("http://{}", sandbox.address());
    let turns = Arc::new(tokio::sync::Semaphore::new(AT_A_TIME));
    let met = Arc::new(Mutex::new(Vec::new()));
    let mut all = tokio::task::JoinSet::new();
    for file in FILES {
        let (turns, upstream, met, random) = (turns.clone(), upstream.clone(), met.clone(), random.fork());
        all.spawn(async move {
            let _turn = turns.acquire_owned().await.unwrap();
            let count = break_all(file, &upstream, random).await;
            met.lock().unwrap().push((file, count));
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    let met = std::mem::take(&mut *met.lock().unwrap());
    println!("operations that met a fault: {met:?}");
    assert!(met.iter().all(|(_, count)| *count != Some(0)), "some file is never touched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_whose_disk_hangs_is_refused_and_may_be_retried() {
    let sandbox: Sandbox = sandbox_at("127.0.0.1:0").await;
    let Some(scene) = Scene::new(&format!("http://{}", sandbox.address())) else { return };
    let process = scene.serve().await;
    scene.recovers(0).await;
    scene.disk.fault(Fault::of("*.jsonl", Operation::Read, Effect::Hang));
    let (page, proof) =
        tokio::join!(scene.operator("GET", "/audit.json?limit=5"), scene.operator("GET", "/audit/proof.json?seq=1"));
    let mut slow = 0;
    for (what, reply) in [("/audit", page), ("/audit/proof", proof)] {
        let reply = reply.unwrap_or_else(|| panic!("{what} waits for a disk"));
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")), "{what}: {}", reply.text());
        // Two queries run at a time, and one from before the fault may still be among them.
        let (is_slow, is_busy) = (reply.text().contains(":disk-slow"), reply.text().contains(":query-busy"));
        assert!(is_slow || is_busy, "{what}: {}", reply.text());
        slow += usize::from(is_slow);
    }
    assert!(slow > 0, "no query met the disk");
    scene.ends(process).await;
}

/// The folder's entries cannot be made durable after `keys` was replaced, so a start may find the old or the new
/// file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_introduction_may_not_be_durable_signs_a_log_that_verifies() {
    a_rotation_that_fails_late("audit", Operation::Sync, 0..5).await;
}

/// Nor can `keys` be looked at, to see which of both it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nobody_can_tell_whether_a_key_was_introduced_none_signs() {
    a_rotation_that_fails_late("*", Operation::Look, 0..300).await;
}

/// Rotates the key while these operations fail after some that go well, until one fails after the introduction.
async fn a_rotation_that_fails_late(files: &str, operation: Operation, spares: std::ops::Range<u64>) {
    let sandbox: Sandbox = sandbox_at("127.0.0.1:0").await;
    let Some(scene) = Scene::new(&format!("http://{}", sandbox.address())) else { return };
    let process = scene.serve().await;
    scene.recovers(0).await;
    let keys = || fs::read_to_string(scene.home.path().join("audit/keys")).unwrap();
    let mut uncertain = 0;
    for spares in spares {
        let before = keys();
        scene.disk.fault(Fault::of(files, operation, Effect::Fail(Errno::IO)).after(spares));
        let met = scene.disk.met();
        let heals = async {
            while scene.disk.met() == met {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            scene.disk.heal();
            std::future::pending::<()>().await;
        };
        let rotated = tokio::select! {
            rotated = scene.operator("POST", "/audit/rotate") => rotated.expect("an answer"),
            () = heals => unreachable!("it never ends"),
        };
        scene.disk.heal();
        println!("{spares} go well: {}; keys {} -> {} bytes", rotated.status, before.len(), keys().len());
        uncertain += usize::from(scene.disk.met() > met && before != keys());
        scene.recovers(usize::try_from(spares).unwrap()).await;
        if uncertain > 2 {
            break;
        }
    }
    assert!(uncertain > 0, "no fault came after the introduction");
    let rotated = scene.operator("POST", "/audit/rotate").await.expect("an answer");
    assert_eq!(rotated.status, 200, "{}", rotated.text());
    scene.recovers(100).await;
    scene.ends(process).await;
}
