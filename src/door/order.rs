//! What a connection is told to do, and what its client has closed of it.

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
