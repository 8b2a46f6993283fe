//! A link between two processes that a test cuts, holds, delays or makes half-open, for all its connections at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a link does to its connections, and to those that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    Open,
    /// They are reset.
    Cut,
    /// Nothing arrives, in either direction, until it opens again; then all of it does.
    Hold,
    /// What is sent arrives so much later.
    Delay(Duration),
    /// Requests arrive, and no answer does until it opens again.
    Deaf,
    /// The far side has lost them, and the near side is not told. When the link opens again, it is: they are reset.
    HalfOpen,
}

/// The link. Dropped, it is gone with its connections.
pub(crate) struct Link {
    address: SocketAddr,
    state: watch::Sender<(LinkState, SocketAddr)>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// A link to this address, with a thread of its own: it works while a test waits.
    pub(crate) fn to(far: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (state, changes) = watch::channel((LinkState::Open, far));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { carry_all(TcpListener::from_std(listener).unwrap(), changes).await });
        });
        Self { address, state, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn set(&self, state: LinkState) {
        self.state.send_modify(|(now, _)| *now = state);
    }

    /// Where connections lead from now on, as when an address moves to another machine.
    pub(crate) fn lead_to(&self, far: SocketAddr) {
        self.state.send_modify(|(_, now)| *now = far);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Without a sender, the thread ends.
        self.state = watch::channel((LinkState::Cut, self.address)).0;
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the link's thread panicked");
    }
}

type Changes = watch::Receiver<(LinkState, SocketAddr)>;

async fn carry_all(listener: TcpListener, mut changes: Changes) {
    let mut connections = JoinSet::new();
    let for_all = changes.clone();
    let over = async { while changes.changed().await.is_ok() {} };
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => return,
            accepted = listener.accept() => {
                if let Ok((near, _)) = accepted {
                    connections.spawn(carry(near, for_all.clone()));
                }
            }
            _ended = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Waits until this holds of the link's state; at its end, for ever: the connection is dropped with the thread.
async fn until(changes: &mut Changes, holds: impl Fn(LinkState) -> bool) {
    if changes.wait_for(|(state, _)| holds(*state)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn reset(stream: TcpStream) {
    // An error is a side that is gone.
    let _gone = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

fn loses(state: LinkState) -> bool {
    matches!(state, LinkState::Cut | LinkState::HalfOpen)
}

/// Carries one connection, to its end or the link's.
async fn carry(near: TcpStream, mut changes: Changes) {
    let whole = |state| !matches!(state, LinkState::Hold | LinkState::HalfOpen);
    until(&mut changes, whole).await;
    let (state, far) = *changes.borrow();
    let connected = if state == LinkState::Cut { None } else { TcpStream::connect(far).await.ok() };
    let Some(far) = connected else { return reset(near) };
    let _gone = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let mut lost = changes.clone();
    tokio::select! {
        ((), ()) = async { tokio::join!(
            pump(&mut near_read, &mut far_write, changes.clone(), |state| state == LinkState::Hold),
            pump(&mut far_read, &mut near_write, changes.clone(), |state| {
                matches!(state, LinkState::Hold | LinkState::Deaf)
            }),
        ) } => return,
        () = until(&mut lost, loses) => {}
    }
    reset(far_read.reunite(far_write).unwrap());
    // Half-open: the near side goes on speaking, and nobody hears it.
    let mut unheard = [0; 4096];
    tokio::select! {
        () = async { while near_read.read(&mut unheard).await.is_ok_and(|read| read > 0) {} } => {}
        () = until(&mut changes, |state| state != LinkState::HalfOpen) => {}
    }
    reset(near_read.reunite(near_write).unwrap());
}

/// Carries one direction to its end.
async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut changes: Changes,
    waits: impl Fn(LinkState) -> bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        until(&mut changes, |state| !waits(state)).await;
        let state = changes.borrow().0;
        if let LinkState::Delay(by) = state {
            tokio::time::sleep(by).await;
            until(&mut changes, |state| !waits(state)).await;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            let _gone = to.shutdown().await;
            return;
        }
    }
}
