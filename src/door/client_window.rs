//! A client's windows (RFC 9113 section 5.2), for answers that h2 does not know of.
//!
//! The body of such an answer uses up some of the connection's window, and h2 would later send more than the client takes. So h2 is told as
//! much less of what the client grants next, and until then none of its frames goes out that does not fit.

/// The windows of a connection and of a stream, before the client says another.
const INITIAL_BYTES: u32 = 65_535;
/// h2's own frames have this much room behind such a body, so that they hardly ever wait for the client.
const ROOM_BYTES: u64 = 16 << 10;
/// As much may be owed at a time: some problem bodies.
const OWED_BYTES_MAX: u32 = 4096;
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;
/// The bits of what WINDOW_UPDATE grants.
const GRANT_MASK: u32 = u32::MAX >> 1;

/// What a client takes, and which streams may have no body.
#[derive(Debug)]
pub(super) struct ClientWindow {
    /// What is left of the connection's window.
    left: u64,
    /// What h2 believes is left beyond that.
    owed: u32,
    /// The window of each new stream.
    stream: u32,
    /// The last streams that ask for a head alone, the oldest of which is replaced next.
    without_body: [u32; 16],
    next: usize,
}

impl Default for ClientWindow {
    fn default() -> Self {
        Self { left: INITIAL_BYTES.into(), owed: 0, stream: INITIAL_BYTES, without_body: [0; 16], next: 0 }
    }
}

impl ClientWindow {
    /// Reads what a WINDOW_UPDATE with this payload grants the connection, and takes what is owed from it.
    pub(super) fn on_grant(&mut self, payload: &mut [u8]) {
        let Ok(bytes) = <&mut [u8; 4]>::try_from(payload) else { return };
        let granted = u32::from_be_bytes(*bytes) & GRANT_MASK;
        self.left = self.left.saturating_add(granted.into());
        let taken = self.owed.min(granted.saturating_sub(1)); // a grant of nothing breaks the rules
        if taken > 0 {
            self.owed -= taken;
            *bytes = (granted - taken).to_be_bytes();
        }
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

    /// Counts a frame of h2's with so many bytes of a body. Returns false if the client does not take them yet.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if self.owed > 0 && bytes > self.left {
            return false;
        }
        self.left = self.left.saturating_sub(bytes);
        true
    }

    /// Spends so many bytes on the body of a new stream, which h2 does not learn. Returns false if the client's windows have too little room,
    /// or if the stream may have none.
    pub(super) fn spend(&mut self, stream: u32, bytes: usize) -> bool {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let owed = self.owed.saturating_add(bytes);
        let fits = bytes <= self.stream && owed <= OWED_BYTES_MAX && self.left >= u64::from(bytes) + ROOM_BYTES;
        if !fits || self.without_body.contains(&stream) {
            return false;
        }
        (self.left, self.owed) = (self.left - u64::from(bytes), owed);
        true
    }
}
