//! The folder that is shown: what the kernel asks, carried out on the files below.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Operation;
use super::wire::{self, Request};

const ROOT: u64 = 1;

type Done = Result<Vec<u8>, Errno>;

pub(super) struct Folder {
    root: Arc<Node>,
    /// What the kernel has asked for, by its number below, which cannot be given to another file while this is open.
    nodes: Mutex<HashMap<u64, Arc<Node>>>,
    handles: Mutex<HashMap<u64, Arc<Handle>>>,
    last: AtomicU64,
}

struct Node {
    file: OwnedFd,
    name: Mutex<String>,
}

enum Handle {
    File(File),
    List(Vec<(u64, FileType, String)>),
}

fn number(of: &Stat) -> u64 {
    #[expect(clippy::unnecessary_cast, reason = "the types differ among machines")]
    let number = of.st_ino as u64;
    number
}

fn failed(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Folder {
    pub(super) fn open(below: &Path) -> Self {
        let root = rustix::fs::open(below, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let root = Arc::new(Node { file: root, name: Mutex::new(".".to_owned()) });
        Self { root, nodes: Mutex::default(), handles: Mutex::default(), last: AtomicU64::new(0) }
    }

    fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        if id == ROOT {
            return Ok(self.root.clone());
        }
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned().ok_or(Errno::STALE)
    }

    fn name(&self, id: u64) -> String {
        let name = self.node(id).map(|node| node.name.lock().unwrap_or_else(PoisonError::into_inner).clone());
        name.unwrap_or_default()
    }

    fn handle(&self, id: u64) -> Result<Arc<Handle>, Errno> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned().ok_or(Errno::BADF)
    }

    fn file<T>(&self, id: u64, work: impl FnOnce(&File) -> std::io::Result<T>) -> Result<T, Errno> {
        match &*self.handle(id)? {
            Handle::File(file) => work(file).map_err(|error| failed(&error)),
            Handle::List(_) => Err(Errno::ISDIR),
        }
    }

    fn keep(&self, handle: Handle) -> u64 {
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(handle));
        id
    }

    /// What is asked, and of which file. `None`: nothing that goes wrong.
    pub(super) fn subject(&self, request: &Request) -> Option<(Operation, String)> {
        let this = || self.name(request.node());
        Some(match request.kind() {
            wire::LOOKUP => (Operation::Look, request.name(0)),
            wire::GETATTR => (Operation::Look, this()),
            wire::SETATTR if request.word(0) & wire::SET_SIZE != 0 => (Operation::Truncate, this()),
            wire::SETATTR => (Operation::Change, this()),
            wire::OPEN | wire::OPENDIR => (Operation::Open, this()),
            wire::MKDIR => (Operation::Create, request.name(8)),
            wire::CREATE => (Operation::Create, request.name(16)),
            wire::UNLINK | wire::RMDIR => (Operation::Unlink, request.name(0)),
            // Of the file that gets the new name.
            wire::RENAME => (Operation::Rename, request.names(8).swap_remove(1)),
            wire::RENAME2 => (Operation::Rename, request.names(16).swap_remove(1)),
            wire::READ => (Operation::Read, this()),
            wire::WRITE if request.is_of_cache() => return None,
            wire::WRITE | wire::FALLOCATE => (Operation::Write, this()),
            wire::FSYNC | wire::FSYNCDIR => (Operation::Sync, this()),
            wire::READDIR => (Operation::List, this()),
            _ => return None,
        })
    }

    pub(super) fn carry_out(&self, request: &Request) -> Done {
        match request.kind() {
            wire::INIT => Ok(wire::init()),
            wire::LOOKUP => Ok(wire::entry_out(&self.look_up(request.node(), &request.name(0))?)),
            wire::GETATTR => self.attributes(request.node()),
            wire::SETATTR => self.set_attributes(request),
            wire::OPEN => self.open_file(request),
            wire::OPENDIR => self.open_list(request.node()),
            wire::MKDIR => {
                let (node, name) = (self.node(request.node())?, request.name(8));
                rustix::fs::mkdirat(&node.file, &name, Mode::from_raw_mode(request.word(0)))?;
                Ok(wire::entry_out(&self.look_up(request.node(), &name)?))
            }
            wire::CREATE => self.create(request),
            wire::UNLINK => self.unlink(request, AtFlags::empty()),
            wire::RMDIR => self.unlink(request, AtFlags::REMOVEDIR),
            wire::RENAME => self.rename(request, &request.names(8)),
            wire::RENAME2 if request.word(8) == 0 => self.rename(request, &request.names(16)),
            wire::READ => self.read(request),
            wire::WRITE => {
                let data = request.rest(40);
                self.file(request.long(0), |file| file.write_all_at(data, request.long(8)))?;
                Ok(wire::bytes(&[u32::try_from(data.len()).unwrap(), 0]))
            }
            wire::FALLOCATE => self.file(request.long(0), |file| {
                let (offset, length) = (request.long(8), request.long(16));
                rustix::fs::fallocate(file, FallocateFlags::empty(), offset, length)?;
                Ok(Vec::new())
            }),
            wire::FSYNC | wire::FSYNCDIR => Ok(Vec::new()),
            wire::STATFS => Ok(wire::statfs_out()),
            wire::READDIR => self.list(request),
            wire::RELEASE | wire::RELEASEDIR => {
                self.handles.lock().unwrap_or_else(PoisonError::into_inner).remove(&request.long(0));
                Ok(Vec::new())
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn look_up(&self, parent: u64, name: &str) -> Result<Stat, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.node(parent)?.file, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let node = nodes.entry(number(&stat)).or_insert_with(|| Arc::new(Node { file, name: Mutex::default() }));
        name.clone_into(&mut node.name.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(stat)
    }

    fn attributes(&self, node: u64) -> Done {
        Ok(wire::attr_out(&rustix::fs::fstat(&self.node(node)?.file)?))
    }

    fn reopen(&self, node: u64, flags: OFlags) -> Result<File, Errno> {
        let node = self.node(node)?;
        let path = format!("/proc/self/fd/{}", node.file.as_fd().as_raw_fd());
        Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    fn set_attributes(&self, request: &Request) -> Done {
        let valid = request.word(0);
        if valid & wire::SET_SIZE != 0 {
            rustix::fs::ftruncate(self.reopen(request.node(), OFlags::WRONLY)?, request.long(16))?;
        }
        if valid & wire::SET_MODE != 0 {
            let mode = Mode::from_raw_mode(request.word(68));
            rustix::fs::fchmod(self.reopen(request.node(), OFlags::RDONLY)?, mode)?;
        }
        self.attributes(request.node())
    }

    /// The kernel itself sees to where is written and to what may be.
    fn open_file(&self, request: &Request) -> Done {
        let writes = request.word(0) & (OFlags::WRONLY | OFlags::RDWR).bits() != 0;
        let file = self.reopen(request.node(), if writes { OFlags::RDWR } else { OFlags::RDONLY })?;
        Ok(wire::open_out(self.keep(Handle::File(file))))
    }

    fn create(&self, request: &Request) -> Done {
        let (node, name) = (self.node(request.node())?, request.name(16));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&node.file, &name, flags, Mode::from_raw_mode(request.word(4)))?;
        let entry = wire::entry_out(&self.look_up(request.node(), &name)?);
        Ok([entry, wire::open_out(self.keep(Handle::File(file.into())))].concat())
    }

    fn unlink(&self, request: &Request, flags: AtFlags) -> Done {
        rustix::fs::unlinkat(&self.node(request.node())?.file, request.name(0), flags)?;
        Ok(Vec::new())
    }

    fn rename(&self, request: &Request, names: &[String]) -> Done {
        let (from, to) = (self.node(request.node())?, self.node(request.long(0))?);
        rustix::fs::renameat(&from.file, &names[0], &to.file, &names[1])?;
        self.look_up(request.long(0), &names[1])?;
        Ok(Vec::new())
    }

    fn read(&self, request: &Request) -> Done {
        let mut data = vec![0; usize::try_from(request.word(16)).unwrap()];
        let mut read = 0;
        while read < data.len() {
            let offset = request.long(8) + read as u64;
            match self.file(request.long(0), |file| file.read_at(&mut data[read..], offset))? {
                0 => break,
                more => read += more,
            }
        }
        data.truncate(read);
        Ok(data)
    }

    fn open_list(&self, node: u64) -> Done {
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::new(self.reopen(node, OFlags::RDONLY)?)? {
            let entry = entry?;
            entries.push((entry.ino(), entry.file_type(), entry.file_name().to_string_lossy().into_owned()));
        }
        Ok(wire::open_out(self.keep(Handle::List(entries))))
    }

    fn list(&self, request: &Request) -> Done {
        let handle = self.handle(request.long(0))?;
        let Handle::List(entries) = &*handle else { return Err(Errno::NOTDIR) };
        let mut page = Vec::new();
        for (next, (number, kind, name)) in (1..).zip(entries).skip(usize::try_from(request.long(8)).unwrap()) {
            let entry = wire::dirent(*number, next, *kind, name);
            if page.len() + entry.len() > usize::try_from(request.word(16)).unwrap() {
                break;
            }
            page.extend(entry);
        }
        Ok(page)
    }
}
