//! The real binary, that tests start and kill.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use makegate::clock::Clock;
use rustix::process::{Pid, Signal, kill_process};

use super::{Plan, attempt, new_dir};

/// Runs a command to its end. One that goes on although it must not is ended after a minute.
pub(crate) fn output_of(command: &mut Command) -> Output {
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..1_200 {
        if process.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _has_ended = process.kill();
    process.wait_with_output().unwrap()
}

/// The binary that tests start: the one that Cargo built with them, or the one that `MAKEGATE_TEST_BINARY` names.
pub(crate) fn binary() -> PathBuf {
    given_binary().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_makegate")))
}

/// The one that `MAKEGATE_TEST_BINARY` names.
pub(crate) fn given_binary() -> Option<PathBuf> {
    let named = std::env::var_os("MAKEGATE_TEST_BINARY").filter(|name| !name.is_empty())?;
    Some(std::path::absolute(named).unwrap())
}

/// A running `makegate serve` of a folder; dropped, it is killed (SIGKILL).
pub(crate) struct Process(Child);

impl Process {
    /// Tells it to end, and waits until it has; its exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        self.0.wait().unwrap().code()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _gone = self.0.kill();
        self.0.wait().unwrap();
    }
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Its exit code, when it ends within this time; `None`: a signal killed it.
    pub(crate) async fn ended(&mut self, within: Duration) -> Option<i32> {
        let end = Clock::system().now() + within;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(Clock::system().now() < end, "it does not end within {within:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A folder with a configuration, whose doors stay the same over all its processes.
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) gateway: SocketAddr,
    pub(crate) operator: SocketAddr,
}

impl Home {
    /// The plan's configuration, with this upstream.
    pub(crate) fn new(plan: &Plan, upstream: &str) -> Self {
        let [gateway, operator] = free_addresses(own_ip());
        let home = Self { dir: new_dir(), gateway, operator };
        let doors = [home.gateway, home.operator];
        let text =
            doors.iter().fold(plan.text(upstream), |text, door| text.replacen("127.0.0.1:0", &door.to_string(), 1));
        std::fs::write(home.path().join("makegate.toml"), text).unwrap();
        home
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it with its process log in the file `log`, and waits until it lets callers in.
    pub(crate) async fn serve(&self) -> Process {
        self.serve_with(":").await
    }

    /// The same, after this line of a shell.
    pub(crate) async fn serve_with(&self, line: &str) -> Process {
        let log = std::fs::File::options().create(true).append(true).open(self.path().join("log")).unwrap();
        let child = Process::start(self.shell(line).stdout(Stdio::null()).stderr(log));
        // A door is open a while before somebody is behind it.
        let is_open = is_open(self.gateway).await;
        let lives = is_open && attempt(self.operator, "GET", "/livez", "", "").await.is_some();
        assert!(lives, "it does not start: {}", self.process_log());
        child
    }

    /// What starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.args(["serve", "--config"]).arg(self.path().join("makegate.toml")).env_remove("MAKEGATE_LOG");
        command
    }

    /// What is in the file `log`.
    pub(crate) fn process_log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap()
    }

    /// What it says when it does not start after this line of a shell.
    pub(crate) fn fails_with(&self, line: &str) -> String {
        let output = self.shell(line).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        told
    }

    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        let script = format!("{line}; exec \"$0\" serve --config \"$1\"");
        command.args(["-c", &script]).arg(binary()).arg(self.path().join("makegate.toml"));
        command
    }
}

/// Waits until somebody listens at this address; `false`: nobody does.
pub(crate) async fn is_open(address: SocketAddr) -> bool {
    for _ in 0..12_000 {
        // Whoever connects to a port where nobody listens may be given that very port for its own end, and then speaks with itself.
        let connected = tokio::net::TcpStream::connect(address).await;
        if connected.is_ok_and(|stream| stream.local_addr().is_ok_and(|own| own != address)) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

/// An address of this machine that no other test has, nor any client: whatever port is free there stays free.
pub(crate) fn own_ip() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::from(0x7f40_0000 | (std::process::id() & 0xfff) << 10 | number & 0x3ff)
}

/// Two addresses that nobody listens at: held at the same moment, or they could be the same one.
pub(crate) fn free_addresses(ip: Ipv4Addr) -> [SocketAddr; 2] {
    let held = [(); 2].map(|()| std::net::TcpListener::bind((ip, 0)).unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}
