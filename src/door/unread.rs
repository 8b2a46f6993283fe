//! Requests that never reach the service: hyper cannot read them, or they do not arrive. They are counted by kind and leave no record.
//! hyper answers an unreadable HTTP/1.1 request with a bare status line; the client is sent a whole answer in its place.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::config::Limits;
use crate::vocabulary::word_enum;

word_enum! {
    /// Why a request never reached the service.
    UnreadKind {
        /// It is not HTTP.
        Syntax = "syntax",
        /// Its head is larger than `limits.head_bytes`, or has more than `limits.head_fields` fields.
        HeadTooLarge = "head-too-large",
        /// Its target is longer than hyper reads.
        TargetTooLong = "target-too-long",
        /// The connection ended within its head.
        Cut = "cut",
        /// Nothing came within `limits.first_byte`.
        Silent = "silent",
        /// Its head was not complete within `limits.head`.
        Slow = "slow",
        /// HTTP/2 where the door speaks only HTTP/1.1.
        Http2Preface = "http2-preface",
        /// The client broke HTTP/2's rules: its connection ended.
        Http2Protocol = "http2-protocol",
        /// The client sent too many HTTP/2 frames of a kind: its connection ended.
        Http2Flood = "http2-flood",
        /// The client broke HTTP/2's rules on a stream: the stream was reset.
        Http2Stream = "http2-stream",
        /// The client sent more of a body than it may: the stream was reset.
        Http2Window = "http2-window",
        /// The client opened more than `limits.h2_streams` streams: this one was reset.
        Http2Streams = "http2-streams",
    }
}

/// What is wrong with a request that arrived and could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It is not HTTP.
    NotHttp,
    /// Its head is too large, or has too many fields.
    HeadTooLarge,
    /// Its target is too long.
    TargetTooLong,
}

impl Unreadable {
    pub(super) const fn kind(self) -> UnreadKind {
        match self {
            Self::NotHttp => UnreadKind::Syntax,
            Self::HeadTooLarge => UnreadKind::HeadTooLarge,
            Self::TargetTooLong => UnreadKind::TargetTooLong,
        }
    }
}

/// Makes the answer to a request that could not be read.
pub type AnswerUnread = dyn Fn(Unreadable) -> Response<Bytes> + Send + Sync;

/// Counts a door's unread requests, and answers them.
pub(super) struct UnreadRequests {
    counts: [AtomicU64; UnreadKind::ALL.len()],
    answer: Box<AnswerUnread>,
}

impl UnreadRequests {
    pub(super) fn new(answer: Box<AnswerUnread>) -> Self {
        Self { counts: Default::default(), answer }
    }

    pub(super) fn count(&self, kind: UnreadKind) {
        if let Some(count) = self.counts.get(kind as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // The process log writes a line of one place once a minute.
        tracing::info!(kind = kind.as_str(), "a request could not be read; makegate_unread_requests counts them");
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = (UnreadKind, u64)> {
        UnreadKind::ALL.iter().copied().zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Counts how an HTTP/1.1 connection ended, if it did so within a request's head and without an answer.
    pub(super) fn on_http1_end(&self, error: &hyper::Error) {
        if error.is_incomplete_message() {
            self.count(UnreadKind::Cut);
        } else if error.is_parse_version_h2() {
            self.count(UnreadKind::Http2Preface);
        }
    }

    /// Counts how an HTTP/2 connection ended.
    pub(super) fn on_http2_end(&self, error: &hyper::Error) {
        let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
        let Some(error) = source.filter(|error| error.is_go_away() && error.is_library()) else { return };
        let is_flood = error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
        self.count(if is_flood { UnreadKind::Http2Flood } else { UnreadKind::Http2Protocol });
    }

    pub(super) fn answer(&self, why: Unreadable) -> Response<Bytes> {
        (self.answer)(why)
    }

    /// The bytes of the answer over HTTP/1.1, with hyper's date.
    fn http1_answer(&self, why: Unreadable, date: &[u8]) -> Bytes {
        let (mut head, body) = self.answer(why).into_parts();
        HeaderValue::from_bytes(date).into_iter().for_each(|date| drop(head.headers.insert(header::DATE, date)));
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        let mut bytes = BytesMut::with_capacity(1024);
        bytes.extend_from_slice(format!("HTTP/1.1 {}\r\n", head.status).as_bytes());
        for (name, value) in &head.headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                bytes.extend_from_slice(part);
            }
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&body);
        bytes.freeze()
    }
}

/// What hyper's own answers end with, and have about this length. The service's answers carry further headers.
const HEAD_END: &[u8] = b"\r\n\r\n";
const OWN_FIELDS: &[u8] = b"\r\nconnection: close\r\ncontent-length: 0\r\ndate: ";
const OWN_BYTES_MIN: usize = 100;
const OWN_BYTES_MAX: usize = 140;

/// If these bytes end with an answer of hyper's own: where it begins, why hyper gave it, and its date.
fn own_answer(bytes: &[u8]) -> Option<(usize, Unreadable, &[u8])> {
    if bytes.len() < OWN_BYTES_MIN || !bytes.ends_with(HEAD_END) {
        return None;
    }
    let last = bytes.get(bytes.len().saturating_sub(OWN_BYTES_MAX)..)?;
    let begins = bytes.len() - last.len() + memchr::memmem::rfind(last, b"HTTP/1.")?;
    let answer = bytes.get(begins..)?;
    let status = answer.get(b"HTTP/1.1 ".len()..)?.get(..3)?;
    let fields = memchr::memchr(b'\r', answer)?;
    let date = answer.get(fields..)?.strip_prefix(OWN_FIELDS)?.strip_suffix(HEAD_END)?;
    let why = match StatusCode::from_bytes(status).ok()? {
        StatusCode::BAD_REQUEST => Unreadable::NotHttp,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Unreadable::HeadTooLarge,
        StatusCode::URI_TOO_LONG => Unreadable::TargetTooLong,
        _ => return None,
    };
    (!date.contains(&b'\r')).then_some((begins, why, date))
}

/// Puts the whole answer in the place of hyper's bare one, and then keeps the connection open for a client that is still sending.
pub(super) struct UnreadWriter {
    requests: Arc<UnreadRequests>,
    limits: Arc<Limits>,
    /// What is left to write of the answer that takes the place of hyper's.
    instead: Option<Bytes>,
    /// Until the client pauses for too long, and when it must have ended.
    lingering: Option<(Pin<Box<Sleep>>, Instant)>,
    linger_bytes: usize,
}

impl UnreadWriter {
    pub(super) fn new(requests: Arc<UnreadRequests>, limits: Arc<Limits>) -> Self {
        let linger_bytes = limits.linger_bytes;
        Self { requests, limits, instead: None, lingering: None, linger_bytes }
    }

    /// Writes these bytes if they end with an answer of hyper's own; else `None`.
    pub(super) fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut T,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Option<Poll<io::Result<usize>>> {
        let (begins, why, date) = own_answer(bytes)?;
        if let Some(before) = bytes.get(..begins).filter(|before| !before.is_empty()) {
            return Some(Pin::new(stream).poll_write(cx, before));
        }
        let requests = &self.requests;
        let instead = self.instead.get_or_insert_with(|| {
            requests.count(why.kind());
            requests.http1_answer(why, date)
        });
        while !instead.is_empty() {
            match Pin::new(&mut *stream).poll_write(cx, instead) {
                Poll::Ready(Ok(written)) if written > 0 => instead.advance(written),
                ended @ (Poll::Ready(_) | Poll::Pending) => return Some(ended),
            }
        }
        Some(Poll::Ready(Ok(bytes.len())))
    }

    /// After such an answer: reads what the client still sends and throws it away, within `limits.linger`, `limits.body` and
    /// `limits.linger_bytes`. Else the kernel would reset the connection, and the client might lose the answer.
    pub(super) fn poll_linger<T: AsyncRead + Unpin>(&mut self, stream: &mut T, cx: &mut Context<'_>) -> Poll<()> {
        if self.instead.is_none() {
            return Poll::Ready(());
        }
        let Limits { linger, body, .. } = *self.limits;
        let start = || (Box::pin(sleep(linger)), sleep(body).deadline());
        let (end, latest) = self.lingering.get_or_insert_with(start);
        if end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut scratch = [0; 4096];
        while self.linger_bytes > 0 {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            self.linger_bytes = self.linger_bytes.saturating_sub(buffer.filled().len());
            end.as_mut().reset(sleep(linger).deadline().min(*latest));
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(text: &str) -> Option<(usize, Unreadable)> {
        own_answer(text.as_bytes()).map(|(begins, why, date)| {
            assert_eq!(date, b"Sun, 29 Nov 2026 22:07:42 GMT");
            (begins, why)
        })
    }

    #[test]
    fn only_hypers_own_answers_are_taken_for_them() {
        let own = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\
                   date: Sun, 29 Nov 2026 22:07:42 GMT\r\n\r\n";
        assert_eq!(kind_of(own), Some((0, Unreadable::NotHttp)));
        let large = own.replace("400 Bad Request", "431 Request Header Fields Too Large");
        assert_eq!(kind_of(&large), Some((0, Unreadable::HeadTooLarge)));
        let long = own.replace("400 Bad Request", "414 URI Too Long").replace("HTTP/1.1", "HTTP/1.0");
        assert_eq!(kind_of(&long), Some((0, Unreadable::TargetTooLong)));
        assert_eq!(kind_of(&format!("the end of an answer{own}")), Some((20, Unreadable::NotHttp)));
        for other in [
            String::new(),
            own[..own.len() - 1].to_owned(),
            format!("{own}x"),
            own.replace("400", "404"),
            own.replace("date:", "x-request-id: a\r\ndate:"),
            own.replace("\r\n\r\n", "\r\nx-request-id: a\r\n\r\n"),
            own.replace("connection: close\r\n", ""),
        ] {
            assert_eq!(kind_of(&other), None, "{other}");
        }
    }
}
