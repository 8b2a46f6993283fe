//! Several replicas: real processes that share a real PostgreSQL and one simulated Make, with a link to each from each.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use makegate::clock::Clock;
use makegate::sandbox::{Sandbox, SandboxSettings};
use rustix::process::Signal;
use serde_json::Value;

use super::link::{Link, LinkState};
use super::postgres::Postgres;
use super::process::{Home, Process, binary, output_of};
use super::{ALL, OPERATOR, Plan, Reply, TOKEN, attempt, records_in, with_key};

/// The database that the replicas share.
pub(crate) const DATABASE: &str = "makegate";
/// The lease of a fleet's replicas, unless its plan says another. Short: tests wait for it to pass.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// An organization that tests leave alone.
const SPARE: &str = "/api/v2/organizations/13";

/// What a fleet is made of.
pub(crate) struct FleetPlan {
    pub(crate) replicas: usize,
    /// What each replica's configuration says besides `[replicas]`.
    pub(crate) plan: fn() -> Plan,
    /// Further lines of `[replicas]`.
    pub(crate) section: &'static str,
    pub(crate) lease: Duration,
    pub(crate) engine_settings: &'static [&'static str],
    /// Does the engine have a clock that is stepped?
    pub(crate) is_clocked: bool,
    pub(crate) sandbox: fn(&mut SandboxSettings),
}

impl Default for FleetPlan {
    fn default() -> Self {
        Self {
            replicas: 3,
            plan: Plan::default,
            section: "",
            lease: LEASE,
            engine_settings: &[],
            is_clocked: false,
            sandbox: |_| {},
        }
    }
}

impl FleetPlan {
    /// Starts everything, and waits until each replica has a lease.
    pub(crate) async fn start(self) -> Fleet {
        let engine = match self.is_clocked {
            true => Postgres::start_with_clock(self.engine_settings),
            false => Postgres::start(self.engine_settings),
        };
        self.start_on(engine).await
    }

    /// The same, on this engine.
    pub(crate) async fn start_on(self, engine: Postgres) -> Fleet {
        engine.database(DATABASE);
        let mut fleet = self.prepare(engine).await;
        fleet.init();
        for replica in &mut fleet.replicas {
            replica.start().await;
        }
        fleet.settled().await;
        fleet.open().await;
        fleet
    }

    /// Everything but the schema, with no replica started.
    pub(crate) async fn prepare(self, engine: Postgres) -> Fleet {
        let mut settings = SandboxSettings {
            token: TOKEN.to_owned(),
            api_limit: 100_000,
            account_limit: 100_000,
            ..SandboxSettings::default()
        };
        (self.sandbox)(&mut settings);
        let sandbox = Sandbox::start("127.0.0.1:0".parse().unwrap(), settings, Clock::system()).await.unwrap();
        let replicas =
            (0..self.replicas).map(|number| Replica::new(number, &self, engine.address(), sandbox.address())).collect();
        Fleet { replicas, sandbox, engine, lease: self.lease }
    }
}

/// One of them. Dropped, it is killed.
pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) home: Home,
    /// To the engine.
    pub(crate) engine: Link,
    /// To the simulated Make.
    pub(crate) upstream: Link,
    process: Option<Process>,
}

impl Replica {
    fn new(number: usize, plan: &FleetPlan, engine: SocketAddr, sandbox: SocketAddr) -> Self {
        let name = format!("replica-{number}");
        let (engine, upstream) = (Link::to(engine), Link::to(sandbox));
        let section = format!(
            "[replicas]\nurl_file = \"engine\"\nname = \"{name}\"\nkey_file = \"replicas.key\"\nlease = \"{}ms\"\n{}\n",
            plan.lease.as_millis(),
            plan.section
        );
        let home = Home::new(&(plan.plan)().tables(&section), &format!("http://{}", upstream.address()));
        let replica = Self { name, home, engine, upstream, process: None };
        replica.engine_at(&[replica.engine.address()]);
        replica
    }

    /// Where its configuration says the engine is.
    pub(crate) fn engine_at(&self, addresses: &[SocketAddr]) {
        std::fs::write(self.home.path().join("engine"), Postgres::url_at(addresses, DATABASE)).unwrap();
    }

    pub(crate) async fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.name);
        self.process = Some(self.home.serve().await);
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        drop(self.process.take().expect("it runs"));
    }

    /// Ends it in order; its exit code.
    pub(crate) fn end(&mut self) -> Option<i32> {
        self.process.take().expect("it runs").end()
    }

    /// Stops it (SIGSTOP): whoever is connected waits.
    pub(crate) fn pause(&self) {
        self.process.as_ref().expect("it runs").signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.process.as_ref().expect("it runs").signal(Signal::CONT);
    }

    /// Sends it a request; `None`: there was no answer.
    pub(crate) async fn send(
        &self,
        key: &str,
        method: &str,
        target: &str,
        headers: &[&str],
        body: &str,
    ) -> Option<Reply> {
        attempt(self.home.gateway, method, target, &with_key(key, headers), body).await
    }

    /// The same, which is answered.
    #[track_caller]
    pub(crate) fn get(&self, key: &str, target: &str) -> impl Future<Output = Reply> {
        let name = &self.name;
        let sent = self.send(key, "GET", target, &[], "");
        async move { sent.await.unwrap_or_else(|| panic!("no answer from {name}")) }
    }

    /// A page of its operator door.
    pub(crate) async fn page(&self, path: &str) -> Option<Reply> {
        self.operate("GET", path, "").await
    }

    pub(crate) async fn operate(&self, method: &str, path: &str, body: &str) -> Option<Reply> {
        let headers = format!("authorization: Bearer {OPERATOR}\r\n");
        attempt(self.home.operator, method, path, &headers, body).await
    }

    /// The value of a metric of its own, with this name and these labels as `/metrics` writes them; `None`: it says nothing.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let page = attempt(self.home.operator, "GET", "/metrics", "", "").await?;
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        String::from_utf8_lossy(&page.body).lines().find_map(value)
    }

    pub(crate) async fn has_lease(&self) -> bool {
        self.metric("makegate_replicas_lease_seconds").await.is_some_and(|seconds| seconds > 0.0)
    }

    /// The requests whose writes it calls in doubt.
    pub(crate) async fn doubts(&self) -> Vec<String> {
        let page = self.page("/doubts.json").await.expect("it answers").expect(200).json();
        page["doubts"].as_array().unwrap().iter().map(|doubt| doubt["request"].as_str().unwrap().to_owned()).collect()
    }

    /// All lines of its own log.
    pub(crate) fn log(&self) -> Vec<Value> {
        records_in(&self.home.path().join("audit"))
    }

    /// Waits until all its records are in its log.
    pub(crate) async fn flushed(&self) {
        wait(&format!("{} writes its log", self.name), async || {
            self.metric("makegate_audit_backlog").await == Some(0.0)
        })
        .await;
    }

    pub(crate) fn config_text(&self) -> String {
        std::fs::read_to_string(self.config()).unwrap()
    }

    pub(crate) fn set_config_text(&self, text: &str) {
        std::fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.home.path().join("makegate.toml")
    }

    /// What it says when it does not start.
    pub(crate) fn refuses_to_start(&self) -> String {
        let output = output_of(&mut self.home.command());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{told}");
        told
    }

    /// Runs `makegate replicas COMMAND` for it; what it said, if it succeeded.
    pub(crate) fn command(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(binary());
        let output = output_of(command.arg("replicas").args(words).arg("--config").arg(self.config()));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

/// All of it.
pub(crate) struct Fleet {
    pub(crate) replicas: Vec<Replica>,
    pub(crate) sandbox: Sandbox,
    pub(crate) engine: Postgres,
    pub(crate) lease: Duration,
}

impl Fleet {
    /// Makes the schema and the key, and gives the key to all.
    pub(crate) fn init(&self) {
        let [first, others @ ..] = &self.replicas[..] else { panic!("no replicas") };
        first.command(&["init"]).unwrap_or_else(|why| panic!("{why}"));
        for other in others {
            std::fs::copy(first.home.path().join("replicas.key"), other.home.path().join("replicas.key")).unwrap();
        }
    }

    /// Waits until each replica that runs is a member, knows the others, and has a lease.
    pub(crate) async fn settled(&self) {
        let running: Vec<&Replica> = self.replicas.iter().filter(|replica| replica.runs()).collect();
        for replica in &running {
            wait(&format!("{} has a lease", replica.name), async || replica.has_lease().await).await;
        }
        wait(&format!("{} are members", running.len()), async || {
            let alive = "select count(*) from mg.member where not gone";
            self.engine.try_sql(DATABASE, alive).is_ok_and(|count| count == running.len().to_string())
        })
        .await;
    }

    /// Waits until each replica that runs sends reads and writes: in a young epoch it does neither at first.
    pub(crate) async fn open(&self) {
        for replica in self.replicas.iter().filter(|replica| replica.runs()) {
            wait(&format!("{} reads", replica.name), async || {
                let read = replica.send(ALL, "GET", SPARE, &["cache-control: no-store"], "").await;
                read.is_some_and(|reply| reply.status == 200)
            })
            .await;
            wait(&format!("{} writes", replica.name), async || {
                let body = format!(r#"{{"name":"by {}"}}"#, replica.name);
                let write = replica.send(ALL, "PATCH", SPARE, &[], &body).await;
                write.is_some_and(|reply| reply.status == 200)
            })
            .await;
        }
    }

    pub(crate) fn sql(&self, text: &str) -> String {
        self.engine.sql(DATABASE, text)
    }

    /// Opens every link again.
    pub(crate) fn heal(&self) {
        for replica in &self.replicas {
            replica.engine.set(LinkState::Open);
            replica.upstream.set(LinkState::Open);
        }
    }

    /// What each replica told of itself, for a test that fails.
    pub(crate) fn logs(&self) -> String {
        let logs = self.replicas.iter().map(|replica| format!("== {}\n{}\n", replica.name, replica.home.process_log()));
        logs.collect()
    }
}

/// Waits for what others do, however slow the machine is.
#[track_caller]
pub(crate) fn wait(what: &str, mut holds: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        // Each look takes a while by itself.
        for _ in 0..2_400 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{place}: it did not come true: {what}");
    }
}
