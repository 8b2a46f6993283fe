//! The real binary, that tests start and kill.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{Plan, new_dir};

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

/// A folder with a configuration, whose doors stay the same over all its processes.
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) gateway: SocketAddr,
    pub(crate) operator: SocketAddr,
}

impl Home {
    /// The plan's configuration, with this upstream.
    pub(crate) fn new(plan: &Plan, upstream: &str) -> Self {
        let [gateway, operator] = free_ports();
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

    /// Starts it, and waits until it lets callers in.
    pub(crate) async fn serve(&self) -> Process {
        self.serve_with(":").await
    }

    /// The same, after this line of a shell.
    pub(crate) async fn serve_with(&self, line: &str) -> Process {
        let log = std::fs::File::options().create(true).append(true).open(self.path().join("log")).unwrap();
        let child = Process(self.command(line).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        for _ in 0..1000 {
            if tokio::net::TcpStream::connect(self.gateway).await.is_ok() {
                return child;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it does not start: {}", std::fs::read_to_string(self.path().join("log")).unwrap());
    }

    /// What it says when it does not start after this line of a shell.
    pub(crate) fn fails_with(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        told
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        let script = format!("{line}; exec \"$0\" serve --config \"$1\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_makegate")]).arg(self.path().join("makegate.toml"));
        command
    }
}

/// Two addresses that nobody listens at: held at the same moment, or they could be the same one.
fn free_ports() -> [SocketAddr; 2] {
    let held = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}
