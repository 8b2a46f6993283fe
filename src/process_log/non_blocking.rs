//! A writer that never waits for whoever reads the stream.

#![expect(clippy::disallowed_methods, reason = "blocks only at the very end of the process, and for a bounded time")]

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

/// How much text may wait for the reader, in bytes.
const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// How often the thread wakes while there is nothing to write.
const TICK: Duration = Duration::from_secs(1);
/// How long to wait when the stream is full and another process made it non-blocking.
const FULL_RETRY_PAUSE: Duration = Duration::from_millis(10);

/// A stream with its own writer thread. Text that does not fit or cannot be written is dropped and counted.
#[derive(Clone, Debug, Default)]
pub struct NonBlockingWriter(Arc<WriterShared>);

#[derive(Debug, Default)]
struct WriterShared {
    waiting: Mutex<WaitingText>,
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct WaitingText {
    texts: VecDeque<String>,
    bytes: usize,
    is_writing: bool,
}

impl NonBlockingWriter {
    /// Starts the thread. Between texts, and every second, it calls `meanwhile`, passing whether the last write
    /// succeeded.
    #[must_use]
    pub fn begin(
        name: &str,
        stream: impl AsFd + Send + 'static,
        meanwhile: impl FnMut(&Self, bool) + Send + 'static,
    ) -> Self {
        let device = Self::default();
        let writer = device.clone();
        let started = thread::Builder::new().name(name.to_owned()).spawn(move || writer.run(stream, meanwhile));
        if started.is_err() {
            // Without the thread the queue fills up and the rest is dropped; that is no reason not to start.
            device.count_dropped();
        }
        device
    }

    /// Queues whole lines. Never waits and never fails.
    pub fn put(&self, text: String) {
        let mut waiting = self.waiting();
        if waiting.bytes + text.len() > WAITING_BYTES_MAX {
            drop(waiting);
            return self.count_dropped();
        }
        waiting.bytes += text.len();
        waiting.texts.push_back(text);
        drop(waiting);
        self.0.changed.notify_all();
    }

    /// Waits until everything queued so far is written or dropped, at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let is_busy = |waiting: &mut WaitingText| waiting.is_writing || !waiting.texts.is_empty();
        drop(self.0.changed.wait_timeout_while(self.waiting(), limit, is_busy));
    }

    /// The number of texts dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    fn count_dropped(&self) {
        self.0.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn waiting(&self) -> MutexGuard<'_, WaitingText> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, stream: impl AsFd, mut meanwhile: impl FnMut(&Self, bool)) {
        let mut out = OutputStream { stream, is_mid_line: false };
        let mut is_well = true;
        loop {
            if let Some(text) = self.take() {
                is_well = out.write(&text);
                if !is_well {
                    self.count_dropped();
                }
                self.waiting().is_writing = false;
                self.0.changed.notify_all();
            }
            meanwhile(self, is_well);
        }
    }

    /// The next text, if one arrives within a [`TICK`].
    fn take(&self) -> Option<String> {
        let is_empty = |waiting: &mut WaitingText| waiting.texts.is_empty();
        let taken = self.0.changed.wait_timeout_while(self.waiting(), TICK, is_empty);
        let (mut waiting, _timed_out) = taken.unwrap_or_else(PoisonError::into_inner);
        let text = waiting.texts.pop_front()?;
        waiting.bytes -= text.len();
        waiting.is_writing = true;
        Some(text)
    }
}

/// The stream, written to directly, so that a stuck thread holds no lock of the standard library.
struct OutputStream<S> {
    stream: S,
    /// Whether the last write stopped in the middle of a line.
    is_mid_line: bool,
}

impl<S: AsFd> OutputStream<S> {
    /// Returns `false` if not everything was written.
    fn write(&mut self, text: &str) -> bool {
        if self.is_mid_line && !self.write_all(b"\n") {
            return false;
        }
        self.write_all(text.as_bytes())
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match rustix::io::write(&self.stream, bytes) {
                Ok(0) => return false,
                Ok(written) => {
                    let (done, rest) = bytes.split_at(written.min(bytes.len()));
                    self.is_mid_line = done.last() != Some(&b'\n');
                    bytes = rest;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => thread::sleep(FULL_RETRY_PAUSE),
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead as _, BufReader, Read as _};

    use super::*;

    const GENEROUS: Duration = Duration::from_secs(60);

    fn quiet(_: &NonBlockingWriter, _: bool) {}

    #[test]
    fn what_is_put_is_read_in_its_order() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let device = NonBlockingWriter::begin("test", writer, quiet);
        for number in 0..100 {
            device.put(format!("{number}\n"));
        }
        device.flush(GENEROUS);
        let mut read = vec![0; 290];
        reader.read_exact(&mut read).unwrap();
        let expected: String = (0..100).map(|number| format!("{number}\n")).collect();
        assert_eq!((String::from_utf8(read).unwrap(), device.dropped()), (expected, 0));
    }

    #[test]
    fn a_reader_that_stalls_costs_what_does_not_fit_and_nobody_waits() {
        let (reader, writer) = std::io::pipe().unwrap();
        let device = NonBlockingWriter::begin("test", writer, quiet);
        let line = "x".repeat(1_023) + "\n";
        for _ in 0..3_000 {
            device.put(line.clone());
        }
        device.flush(Duration::from_millis(50));
        let dropped = device.dropped();
        assert!((1_800..=1_976).contains(&dropped), "1 MiB waits and 64 KiB are in the pipe: {dropped}");
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        for _ in 0..3_000 - dropped {
            assert_eq!(lines.next().unwrap().len(), 1_023);
        }
        device.put("the end\n".to_owned());
        assert_eq!(lines.next().unwrap(), "the end");
        assert_eq!(device.dropped(), dropped);
    }

    #[test]
    fn a_reader_that_left_and_a_full_disk_cost_each_line() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let devices = [NonBlockingWriter::begin("test", writer, quiet), NonBlockingWriter::begin("test", full, quiet)];
        for device in devices {
            for _ in 0..10 {
                device.put("lost\n".to_owned());
            }
            device.flush(GENEROUS);
            assert_eq!(device.dropped(), 10);
        }
    }

    #[test]
    fn a_line_after_one_that_was_cut_begins_anew() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut out = OutputStream { stream: writer, is_mid_line: false };
        assert!(out.write("cut") && out.write("whole\n") && out.write("next\n"));
        drop(out);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "cut\nwhole\nnext\n");
    }
}
