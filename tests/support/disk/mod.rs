//! A disk that fails, stalls or hangs on demand: a FUSE file system that shows another folder.
//!
//! It is the kernel's own interface, so that whatever the binary calls (through SQLite, through raw system calls) meets the
//! fault. An operation that hangs ends when the disk is healed, or when the process that waits for it is killed, as on a network
//! mount that can be interrupted: a test can always end what it started.

mod folder;
mod wire;

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use makegate::clock::Clock;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use folder::Folder;
use wire::{Request, answer};

/// What is asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Of a name or an open file: is it there, how long is it? Every path that is opened is looked at first.
    Look,
    /// Opens what is there.
    Open,
    /// Makes a file or a folder.
    Create,
    Read,
    Write,
    /// fsync, fdatasync.
    Sync,
    Rename,
    Unlink,
    Truncate,
    /// Other attributes: mode, owner, times.
    Change,
    /// Lists a folder.
    List,
}

impl Operation {
    pub(crate) const ALL: [Self; 11] = [
        Self::Look,
        Self::Open,
        Self::Create,
        Self::Read,
        Self::Write,
        Self::Sync,
        Self::Rename,
        Self::Unlink,
        Self::Truncate,
        Self::Change,
        Self::List,
    ];
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Effect {
    /// It fails at once, with nothing done.
    Fail(Errno),
    /// It is carried out so much later.
    Delay(Duration),
    /// It is carried out when the disk is healed.
    Hang,
}

/// What goes wrong from now on, until the disk is healed.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// The file's name, where one `*` may stand for anything. The folder that is shown is `.`.
    pub(crate) file: String,
    pub(crate) operations: Vec<Operation>,
    pub(crate) effect: Effect,
    /// How many of these operations go well before the first one that does not.
    pub(crate) spares: u64,
}

impl Fault {
    /// Everything that is asked of these files.
    pub(crate) fn every(file: &str, effect: Effect) -> Self {
        Self { file: file.to_owned(), operations: Operation::ALL.to_vec(), effect, spares: 0 }
    }

    /// One kind of operation on these files.
    pub(crate) fn of(file: &str, operation: Operation, effect: Effect) -> Self {
        Self { file: file.to_owned(), operations: vec![operation], effect, spares: 0 }
    }

    /// The same, after so many operations that go well.
    pub(crate) fn after(self, spares: u64) -> Self {
        Self { spares, ..self }
    }

    fn meets(&self, operation: Operation, file: &str) -> bool {
        let named = match self.file.split_once('*') {
            Some((head, tail)) => {
                file.len() >= head.len() + tail.len() && file.starts_with(head) && file.ends_with(tail)
            }
            None => self.file == file,
        };
        named && self.operations.contains(&operation)
    }
}

/// The mounted disk. Dropped, it is healed and unmounted, whoever still uses it.
pub(crate) struct Disk {
    at: PathBuf,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<()>>,
}

struct Shared {
    /// What speaks with the kernel.
    device: File,
    folder: Folder,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    healed: u64,
    /// Operations that met a fault.
    met: u64,
    /// Operations that wait now.
    waiting: usize,
    /// Requests whose process was signalled.
    interrupted: HashSet<u64>,
}

impl Disk {
    /// Shows the folder `below` at the folder `at`. `None`: this machine does not let us mount, which is said.
    pub(crate) fn mount(below: &Path, at: &Path) -> Option<Self> {
        let device = match File::options().read(true).write(true).open("/dev/fuse") {
            Ok(device) if rustix::process::geteuid().is_root() => device,
            opened => {
                eprintln!("SKIPPED: no disk to break: it takes root and /dev/fuse ({:?})", opened.err());
                return None;
            }
        };
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions\0", device.as_raw_fd());
        let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        if let Err(error) = mount("makegate-test", at, "fuse.makegate-test", flags, options) {
            eprintln!("SKIPPED: no disk to break: it cannot be mounted ({error})");
            return None;
        }
        let folder = Folder::open(below);
        let shared = Arc::new(Shared { device, folder, state: Mutex::default(), changed: Condvar::new() });
        let serving = std::thread::spawn({
            let shared = shared.clone();
            move || shared.serve()
        });
        Some(Self { at: at.to_owned(), shared, serving: Some(serving) })
    }

    /// From now on this goes wrong, too.
    pub(crate) fn fault(&self, fault: Fault) {
        self.shared.state().faults.push(fault);
    }

    /// Nothing goes wrong any more, and what waits goes on.
    pub(crate) fn heal(&self) {
        let mut state = self.shared.state();
        state.faults.clear();
        state.healed += 1;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// How many operations have met a fault.
    pub(crate) fn met(&self) -> u64 {
        self.shared.state().met
    }

    /// How many operations wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.state().waiting
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.heal();
        let unmounted = unmount(&self.at, UnmountFlags::FORCE | UnmountFlags::DETACH);
        if let (Ok(()), Some(serving)) = (unmounted, self.serving.take()) {
            let _ended = serving.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the kernel's requests until it is unmounted.
    fn serve(self: &Arc<Self>) {
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = match (&self.device).read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => return,
                // A request that was taken back.
                Err(_) => continue,
            };
            let request = Request::new(buffer[..read].to_vec());
            if request.is_interrupt() {
                self.state().interrupted.insert(request.interrupted());
                self.changed.notify_all();
            } else if request.wants_answer() {
                self.take(request);
            }
        }
    }

    fn take(self: &Arc<Self>, request: Request) {
        let met = self.folder.subject(&request).and_then(|(operation, file)| {
            let mut state = self.state();
            let fault = state.faults.iter_mut().find(|fault| fault.meets(operation, &file))?;
            if fault.spares > 0 {
                fault.spares -= 1;
                return None;
            }
            let effect = fault.effect;
            state.met += 1;
            Some((effect, state.healed))
        });
        match met {
            None => self.answer(&request, self.folder.carry_out(&request)),
            Some((Effect::Fail(error), _)) => self.answer(&request, Err(error)),
            Some((Effect::Delay(delay), healed)) => self.later(request, healed, Some(Clock::system().now() + delay)),
            Some((Effect::Hang, healed)) => self.later(request, healed, None),
        }
    }

    fn later(self: &Arc<Self>, request: Request, healed: u64, until: Option<Instant>) {
        let shared = self.clone();
        self.state().waiting += 1;
        std::thread::spawn(move || {
            let mut state = shared.state();
            let interrupted = loop {
                let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Clock::system().now()));
                if state.interrupted.remove(&request.unique()) {
                    break true;
                }
                if state.healed > healed || left.is_zero() {
                    break false;
                }
                let left = left.min(Duration::from_secs(3600));
                state = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            };
            state.waiting -= 1;
            drop(state);
            let done = if interrupted { Err(Errno::INTR) } else { shared.folder.carry_out(&request) };
            shared.answer(&request, done);
        });
    }

    fn answer(&self, request: &Request, done: Result<Vec<u8>, Errno>) {
        // The kernel may not want it any more.
        let _unwanted = (&self.device).write(&answer(request.unique(), done));
    }
}
