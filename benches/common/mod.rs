//! Shared by several benchmarks.

use std::error::Error;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

pub(crate) type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Reads one whole HTTP message with a Content-Length and returns its head; `None` if the peer closed the connection.
pub(crate) async fn message(stream: &mut TcpStream) -> Fallible<Option<String>> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).to_ascii_lowercase();
            let lengths = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = lengths.map_or(Ok(0), str::parse)?;
            if bytes.len() >= end + 4 + length {
                return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}
