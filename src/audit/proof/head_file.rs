//! The file of the newest signed head. A separate thread writes it, so that neither the log nor anyone who asks for a
//! head waits.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::audit::segment::disk::replace;

/// Where heads are submitted. Dropping it ends the thread.
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
    /// The next head to write. A newer head replaces one that the thread has not begun to write.
    next: Option<NextHead>,
    is_writing: bool,
    /// Number of records that the stored head covers. `None` if this run has stored none that counts.
    stored: Option<u64>,
    is_over: bool,
}

#[derive(Debug)]
struct NextHead {
    /// Number of records that it covers.
    size: u64,
    /// The file's new content.
    text: String,
}

impl HeadFile {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub(super) fn start(path: PathBuf) -> io::Result<Self> {
        let shared = Arc::new(HeadFileShared::default());
        let file = Self { shared: shared.clone() };
        std::thread::Builder::new().name("audit-head".to_owned()).spawn(move || shared.run(path))?;
        Ok(file)
    }

    /// Submits a head that covers `size` records. `text` is the file's new content.
    pub(super) fn store(&self, size: u64, text: String) {
        self.shared.change(|state| state.next = Some(NextHead { size, text }));
    }

    /// Number of records that the stored head covers. `None` if this run has stored none that counts.
    pub(super) fn stored(&self) -> Option<u64> {
        self.shared.state().stored
    }

    /// Makes the stored head not count, so that the next one is due at once.
    pub(super) fn forget_stored(&self) {
        self.shared.change(|state| state.stored = None);
    }

    /// Waits until everything submitted has been stored or has failed.
    pub(super) fn flush(&self) {
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
                tracing::warn!(%error, "cannot store the audit log's head");
            }
            self.change(|state| {
                state.is_writing = false;
                state.stored = written.is_ok().then_some(head.size).or(state.stored);
            });
        }
    }
}
