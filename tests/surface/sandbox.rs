//! The simulated Make API as its clients meet it: over a socket, byte by byte.

mod billing;
mod control;
mod faults;
mod operations;
mod quota;
mod variables;

use std::io;
use std::time::Duration;

use makegate::clock::Clock;
use makegate::sandbox::{Sandbox, SandboxSettings};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Where the demo's first organization is.
const ORG: &str = "/api/v2/organizations/11";
const LIST: &str = "/api/v2/organizations";

/// A sandbox on its own port, with a clock that the test moves.
struct World {
    sandbox: Sandbox,
    clock: Clock,
}

/// An answer as it came off the wire.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The body, if the status is this one.
    #[track_caller]
    fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }
}

impl World {
    async fn start() -> Self {
        Self::with(SandboxSettings::default()).await
    }

    async fn with(settings: SandboxSettings) -> Self {
        let clock = Clock::frozen();
        let sandbox = Sandbox::start("127.0.0.1:0".parse().unwrap(), settings, clock.clone()).await.unwrap();
        Self { sandbox, clock }
    }

    async fn get(&self, target: &str) -> Reply {
        self.send("GET", target, "").await
    }

    /// Sends with the right token; a body goes as JSON.
    async fn send(&self, method: &str, target: &str, body: &str) -> Reply {
        self.try_send(method, target, body).await.unwrap()
    }

    async fn try_send(&self, method: &str, target: &str, body: &str) -> io::Result<Reply> {
        let headers = "authorization: Token sandbox-token\r\ncontent-type: application/json\r\n";
        parse(&self.raw(method, target, headers, body).await?)
    }

    /// All bytes that come back on a connection of its own until it ends.
    async fn raw(&self, method: &str, target: &str, headers: &str, body: &str) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.sandbox.address()).await?;
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await??;
        Ok(answer)
    }
}

fn parse(answer: &[u8]) -> io::Result<Reply> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Reply { status, head: head.to_owned(), body: body.to_owned() })
}
