//! What a connection is told to do, what its client has closed of it, and what it waits for.

/// What a connection is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum ConnectionOrder {
    KeepOpen = 0,
    /// Finish the requests in progress and close.
    Close = 1,
    /// Drop the connection now.
    Drop = 2,
}

/// Which directions of a connection its client has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClientEnd {
    Open,
    /// The client sends nothing more. One that still waits for its answer looks like one that closed its TCP socket.
    HalfClosed,
    /// Nothing written to it arrives any more: the connection was reset, or a Unix socket was closed.
    Closed,
}

/// State of a connection with no request in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum IdlePhase {
    /// Nothing was received yet.
    Silent = 0,
    /// The first bytes of a head were received.
    Head = 1,
    /// Between two requests.
    Idle = 2,
    /// In the TLS handshake, which has a limit of its own.
    Handshake = 3,
}
