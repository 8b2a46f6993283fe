//! The file of the newest signed head. A thread of its own writes it, so that neither the log nor whoever asks for a head waits.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::super::disk::replace;

/// Where heads are handed in. With it the thread ends.
#[derive(Debug)]
pub(super) struct HeadFile {
    shared: Arc<HeadFileShared>,
}

#[derive(Debug, Default)]
struct HeadFileShared {
    state: Mutex<HeadFileState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct HeadFileState {
    /// What is to be written next; an older one that was not yet begun is of no use.
    next: Option<NextHead>,
    is_writing: bool,
    /// Records that the stored head covers; `None`: this run has stored none that counts.
    stored: Option<u64>,
    is_over: bool,
}

#[derive(Debug)]
struct NextHead {
    /// Records that it covers.
    size: u64,
    /// What the file is to hold.
    text: String,
}

impl HeadFile {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(super) fn start(path: PathBuf) -> io::Result<Self> {
        let shared = Arc::new(HeadFileShared::default());
        let file = Self { shared: shared.clone() };
        std::thread::Builder::new().name("audit-head".to_owned()).spawn(move || shared.run(path))?;
        Ok(file)
    }

    /// Hands in a head that covers `size` records. `text`: what the file is to hold.
    pub(super) fn store(&self, size: u64, text: String) {
        self.shared.change(|state| state.next = Some(NextHead { size, text }));
    }

    /// How many records the stored head covers; `None`: this run has stored none that counts.
    pub(super) fn stored(&self) -> Option<u64> {
        self.shared.state().stored
    }

    /// The stored head does not count: the next one is due at once.
    pub(super) fn discount(&self) {
        self.shared.change(|state| state.stored = None);
    }

    /// Waits until everything that was handed in is stored, or could not be.
    pub(super) fn settle(&self) {
        let is_busy = |state: &mut HeadFileState| state.next.is_some() || state.is_writing;
        drop(self.shared.changed.wait_while(self.shared.state(), is_busy));
    }
}

impl Drop for HeadFile {
    fn drop(&mut self) {
        self.shared.change(|state| state.is_over = true);
    }
}

impl HeadFileShared {
    fn state(&self) -> MutexGuard<'_, HeadFileState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut HeadFileState)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn run(&self, path: PathBuf) {
        loop {
            let has_nothing = |state: &mut HeadFileState| state.next.is_none() && !state.is_over;
            let waited = self.changed.wait_while(self.state(), has_nothing);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            let Some(head) = state.next.take() else { return };
            state.is_writing = true;
            drop(state);
            let written = replace(&path, head.text.as_bytes(), 0o600);
            if let Err(error) = &written {
                tracing::warn!(%error, "the audit log's head could not be stored");
            }
            self.change(|state| {
                state.is_writing = false;
                state.stored = written.is_ok().then_some(head.size).or(state.stored);
            });
        }
    }
}
