//! `100 Continue` over HTTP/2: which streams of a connection ask for their bodies. hyper gives a server no way to say so.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::connections::ConnectionState;
use super::request_frames::{END_HEADERS, FrameHead, HEADERS};

/// `:status: 100`: a literal field that stays out of the tables, and takes its name from the static one (RFC 7541 section 6.2.2).
const CONTINUE: [u8; 5] = [0x08, 3, b'1', b'0', b'0'];

/// The streams of a connection whose bodies were asked for, until that is written.
#[derive(Debug)]
pub(super) struct Continues {
    is_any: AtomicBool,
    asked: Mutex<Vec<u32>>,
    state: Arc<ConnectionState>,
}

impl Continues {
    pub(super) fn new(state: &Arc<ConnectionState>) -> Arc<Self> {
        Arc::new(Self { is_any: AtomicBool::new(false), asked: Mutex::default(), state: state.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_any_asked(&self) -> bool {
        self.is_any.load(Ordering::Acquire)
    }

    /// The frames that ask for the bodies.
    pub(super) fn take_frames(&self) -> Bytes {
        let mut asked = self.lock();
        self.is_any.store(false, Ordering::Release);
        let frame = |stream| {
            let head = FrameHead { length: CONTINUE.len(), kind: HEADERS, flags: END_HEADERS, stream };
            head.bytes().into_iter().chain(CONTINUE)
        };
        asked.drain(..).flat_map(frame).collect()
    }
}

/// Asks for the body of one stream.
#[derive(Debug)]
pub(super) struct ContinueAsker {
    continues: Arc<Continues>,
    stream: u32,
}

impl ContinueAsker {
    pub(super) fn new(continues: &Arc<Continues>, stream: u32) -> Self {
        Self { continues: continues.clone(), stream }
    }

    /// Has the body asked for, unless this is dropped before that is written.
    pub(super) fn ask(&self) {
        let mut asked = self.continues.lock();
        asked.push(self.stream);
        self.continues.is_any.store(true, Ordering::Release);
        drop(asked);
        self.continues.state.driver.wake();
    }
}

impl Drop for ContinueAsker {
    fn drop(&mut self) {
        if self.continues.is_any_asked() {
            self.continues.lock().retain(|stream| *stream != self.stream);
        }
    }
}
