//! The connection below HTTP, which faults can order to cut a response body short or to reset.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The end of an HTTP head.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// What a connection is to do. Only one request is in progress at a time, so one order is enough.
#[derive(Debug, Default)]
enum WireOrder {
    #[default]
    Serve,
    /// Send the head, then this many bytes, then nothing. `head_seen`: how much of [`HEAD_END`] went out last.
    Cut { head_seen: usize, body_left: usize },
    /// Close with RST.
    Reset,
}

/// The handle through which a request's handler gives orders.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders(Arc<Mutex<WireOrder>>);

impl Orders {
    pub(super) fn cut_after(&self, body_bytes: usize) {
        self.give(WireOrder::Cut { head_seen: 0, body_left: body_bytes });
    }

    pub(super) fn reset(&self) {
        self.give(WireOrder::Reset);
    }

    fn give(&self, order: WireOrder) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = order;
    }

    /// How many of these bytes may be sent now.
    fn allowed(&self, bytes: &[u8]) -> usize {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            WireOrder::Serve => bytes.len(),
            WireOrder::Reset => 0,
            WireOrder::Cut { head_seen, body_left } => {
                let (head, _) = head_bytes(*head_seen, bytes);
                bytes.len().min(head.saturating_add(*body_left))
            }
        }
    }

    /// Records what was sent.
    fn sent(&self, bytes: &[u8]) {
        if let WireOrder::Cut { head_seen, body_left } = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            let (head, seen) = head_bytes(*head_seen, bytes);
            *head_seen = seen;
            *body_left -= (*body_left).min(bytes.len() - head);
        }
    }

    fn is_reset(&self) -> bool {
        matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), WireOrder::Reset)
    }
}

/// How many of `bytes` belong to the head, and how much of [`HEAD_END`] has been seen after them.
fn head_bytes(mut seen: usize, bytes: &[u8]) -> (usize, usize) {
    for (place, byte) in bytes.iter().enumerate() {
        if seen == HEAD_END.len() {
            return (place, seen);
        }
        seen = match HEAD_END.get(seen) {
            Some(wanted) if wanted == byte => seen + 1,
            _ => usize::from(*byte == b'\r'),
        };
    }
    (bytes.len(), seen)
}

/// A TCP connection that follows [`Orders`].
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    orders: Orders,
}

impl Wire {
    pub(super) const fn new(stream: TcpStream, orders: Orders) -> Self {
        Self { stream, orders }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.orders.is_reset() {
            // With a linger time of zero, the following close sends RST. If setting it fails, the close sends FIN.
            let _as_good_as_closed = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let allowed = bytes.get(..self.orders.allowed(bytes)).unwrap_or_default();
        if allowed.is_empty() && !bytes.is_empty() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by a fault")));
        }
        let sent = Pin::new(&mut self.stream).poll_write(cx, allowed);
        if let Poll::Ready(Ok(count)) = &sent {
            self.orders.sent(allowed.get(..*count).unwrap_or_default());
        }
        sent
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent of a head and a body, written in pieces of `piece` bytes, with a cut after two bytes of the body.
    fn cut(piece: usize) -> Vec<u8> {
        let orders = Orders::default();
        orders.cut_after(2);
        let mut out = Vec::new();
        for bytes in b"HTTP/1.1 200 OK\r\na: b\r\n\r\nbody".chunks(piece) {
            let allowed = &bytes[..orders.allowed(bytes)];
            orders.sent(allowed);
            out.extend_from_slice(allowed);
        }
        out
    }

    #[test]
    fn a_cut_counts_body_bytes_however_they_are_written() {
        for piece in [1, 2, 3, 5, 7, 25, 26, 100] {
            assert_eq!(cut(piece), b"HTTP/1.1 200 OK\r\na: b\r\n\r\nbo", "pieces of {piece}");
        }
    }
}
