//! The part of a client's windows (RFC 9113 section 5.2) that is kept for answers that h2 does not know of.
//!
//! Such an answer uses up some of the connection's window, and h2 would later send more than the client takes. So h2 is told a little less
//! than the client grants with a large WINDOW_UPDATE, and the difference is spent. A client that grants nothing large gets no such bodies.

/// As much as a problem body takes.
const SPARE_BYTES: u32 = 1024;
/// Only a client that grants this much at once gives something away.
const LARGE_BYTES: u32 = 16 << 10;
/// The window of a stream before the client says another.
const INITIAL_BYTES: u32 = 65_535;
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;

/// What is kept of a client's windows, and which streams may have no body.
#[derive(Debug)]
pub(super) struct SpareWindow {
    kept: u32,
    /// The window of each new stream.
    stream: u32,
    /// The last streams that ask for a head alone, the oldest of which is replaced next.
    without_body: [u32; 16],
    next: usize,
}

impl Default for SpareWindow {
    fn default() -> Self {
        Self { kept: 0, stream: INITIAL_BYTES, without_body: [0; 16], next: 0 }
    }
}

impl SpareWindow {
    /// Keeps a part of what a WINDOW_UPDATE with this payload grants the connection.
    pub(super) fn keep_of(&mut self, payload: &mut [u8]) {
        let Ok(bytes) = <&mut [u8; 4]>::try_from(payload) else { return };
        let granted = u32::from_be_bytes(*bytes);
        if granted < LARGE_BYTES {
            return;
        }
        let more = SPARE_BYTES.saturating_sub(self.kept);
        self.kept += more;
        *bytes = (granted - more).to_be_bytes();
    }

    /// Reads the window of new streams in the payload of SETTINGS.
    pub(super) fn on_settings(&mut self, payload: &[u8]) {
        for setting in payload.as_chunks::<6>().0 {
            let [n0, n1, v0, v1, v2, v3] = *setting;
            if u16::from_be_bytes([n0, n1]) == SETTINGS_INITIAL_WINDOW_SIZE {
                self.stream = u32::from_be_bytes([v0, v1, v2, v3]);
            }
        }
    }

    /// The request of this stream is answered without a body (HEAD).
    pub(super) fn forbid_body(&mut self, stream: u32) {
        self.without_body.iter_mut().skip(self.next).take(1).for_each(|last| *last = stream);
        self.next = (self.next + 1) % self.without_body.len();
    }

    /// Spends so many bytes on the body of a new stream. Returns false if the stream may have none, or if too little was kept.
    pub(super) fn spend(&mut self, stream: u32, bytes: usize) -> bool {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let may = bytes <= self.stream && !self.without_body.contains(&stream);
        match self.kept.checked_sub(bytes).filter(|_| may) {
            Some(left) => {
                self.kept = left;
                true
            }
            None => false,
        }
    }
}
