//! The log's signed heads: the signing key and the newest head.
//!
//! Files: `head`, the newest head (`head.refuted`: one that startup found wrong); `head.key`, the private key, and
//! `head.pub`, its public half; `keys`, one head for each key ever used, which introduces the key and is signed by
//! the previous one (the first by itself). Once there is more than one key, the introductions also precede the newest
//! head: a copy of the folder may have `keys` from before a rotation and `head` from after it.

#![expect(clippy::disallowed_methods, reason = "at startup, and by `disk::wait` when a key is rotated")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::head_file::HeadFile;
use super::note::{self, Head, IntroducedHead, Signer, Verifier};
use crate::audit::recover::ResumePoint;
use crate::audit::segment::disk::{OpenError, replace, with_context};
use crate::audit::segment::tree::Tree;
use crate::hash;
use crate::private_files;
use crate::process_log::ALWAYS;

/// Number of new records after which a head is due regardless of time.
const RECORDS: u64 = 10_000;
/// Minimum time between two heads.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the last head is logged again while nothing is recorded.
const IDLE: Duration = Duration::from_secs(3600);

const HEAD: &str = "head";
const REFUTED: &str = "head.refuted";
const SECRET: &str = "head.key";
const NEXT_SECRET: &str = "head.key.new";
const PUBLIC: &str = "head.pub";
const KEYS: &str = "keys";
/// How often a rotation looks again at a file that cannot be read.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join(HEAD)
}

/// The file that introduces the keys.
pub(crate) fn keys_path(dir: &Path) -> PathBuf {
    dir.join(KEYS)
}

/// The file of a head that startup found wrong.
pub(crate) fn refuted_path(dir: &Path) -> PathBuf {
    dir.join(REFUTED)
}

/// The file of the public half of the signing key.
pub(crate) fn public_path(dir: &Path) -> PathBuf {
    dir.join(PUBLIC)
}

/// The newest head stored in this folder. Returns `None` if there is none that can be read.
#[must_use]
pub fn stored(dir: &Path) -> Option<Head> {
    read_optional(&path(dir)).ok().flatten().and_then(|text| IntroducedHead::parse(&text).head)
}

/// The signing key and the last head it signed. No lock is held while waiting for the disk.
#[derive(Debug)]
pub(crate) struct Heads {
    dir: PathBuf,
    every: Duration,
    state: Mutex<HeadsState>,
    file: HeadFile,
}

#[derive(Debug)]
struct HeadsState {
    signer: Signer,
    newest: Head,
    /// The introductions of all keys, in the format of the file `keys`; empty while the first key signs.
    introductions: String,
    /// When the last head was submitted to the file or logged.
    submitted: Option<Instant>,
    /// The same; a new key changes nothing in it.
    aged_since: Option<Instant>,
    /// A new key is being introduced, and nothing is signed until it signs.
    is_rotating: bool,
}

/// What opening found that deserves an event.
#[derive(Debug, Default)]
pub(crate) struct HeadsOpened {
    /// A new key was created.
    pub(crate) made: bool,
    /// An earlier key is gone and did not introduce the new one.
    pub(crate) lost: bool,
    /// How the log differs from its newest head.
    pub(crate) mismatch: Option<String>,
}

impl Heads {
    /// Reads the folder's key, or creates the first one, and compares the newest head with what `start` found.
    ///
    /// # Errors
    /// The key is damaged or cannot be created.
    pub(crate) fn open(dir: &Path, every: Duration, start: &ResumePoint) -> Result<(Self, HeadsOpened), OpenError> {
        let mut opened = HeadsOpened::default();
        let had_keys = keys_path(dir).exists();
        let signer = match finish_rotation(dir).and_then(|()| read_optional(&dir.join(SECRET))) {
            Ok(Some(secret)) => {
                Signer::parse(secret.trim_end()).ok_or_else(|| OpenError::HeadKey { path: dir.join(SECRET) })?
            }
            Ok(None) => {
                (opened.made, opened.lost) = (true, had_keys);
                make(dir, &start.tree).map_err(with_context("cannot create the key that signs heads in", dir))?
            }
            Err(error) => return Err(with_context("cannot read the key that signs heads", &dir.join(SECRET))(error)),
        };
        opened.mismatch = had_keys.then(|| mismatch(dir, start)).flatten();
        if opened.mismatch.is_some() && path(dir).exists() {
            // Keep it as evidence; the log continues under a head that matches what is there.
            let kept = fs::rename(path(dir), dir.join(REFUTED));
            kept.map_err(with_context("cannot keep the refuted head in", dir))?;
        }
        let public = format!("{}\n", signer.verifier());
        if read_optional(&dir.join(PUBLIC)).ok().flatten().as_ref() != Some(&public) {
            let written = replace(&dir.join(PUBLIC), public.as_bytes(), 0o644);
            written.map_err(with_context("cannot write the public key for signed heads in", dir))?;
        }
        let newest = signer.sign(&start.tree, None);
        let introductions =
            introductions(dir).map_err(with_context("cannot read the keys for signed heads in", dir))?;
        let introductions = if introductions.len() > 1 { to_text(&introductions) } else { String::new() };
        let heads = Self {
            dir: dir.to_owned(),
            every,
            state: Mutex::new(HeadsState {
                signer,
                newest,
                introductions,
                submitted: None,
                aged_since: None,
                is_rotating: false,
            }),
            file: HeadFile::start(path(dir)).map_err(with_context("cannot start a thread for", dir))?,
        };
        Ok((heads, opened))
    }

    fn state(&self) -> MutexGuard<'_, HeadsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The public half of the signing key.
    pub(crate) fn verifier(&self) -> Verifier {
        self.state().signer.verifier().clone()
    }

    /// The newest head, newly signed if the log has grown (unless a new key is being introduced).
    pub(crate) fn sign(&self, durable: &Tree) -> Head {
        self.state().sign(durable)
    }

    /// The head that was signed last.
    pub(crate) fn newest(&self) -> Head {
        self.state().newest.clone()
    }

    /// Time since a head was last submitted or logged; `None` before the first.
    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        self.state().aged_since.map(|then| now.saturating_duration_since(then))
    }

    /// Submits and logs the newest head when it is due. `now_due` means that a segment was sealed or the log ends.
    pub(crate) fn store_if_due(&self, durable: &Tree, now: Instant, now_due: bool) {
        let mut state = self.state();
        let since = state.submitted.map_or(Duration::MAX, |submitted| now.saturating_duration_since(submitted));
        let grown = self.file.stored().map_or(RECORDS, |stored| durable.size().saturating_sub(stored));
        let due = grown > 0 && (now_due || since >= self.every || (grown >= RECORDS && since >= PAUSE));
        if state.is_rotating || (!due && since < IDLE) {
            return;
        }
        let head = state.sign(durable);
        (state.submitted, state.aged_since) = (Some(now), Some(now));
        tracing::info!(target: ALWAYS, size = head.size, note = %head, "the audit log's signed head");
        self.file.store(head.size, IntroducedHead::render(&state.introductions, &head));
    }

    /// The content of the file `closed`: the head over all records, preceded by the introductions of its key.
    pub(crate) fn closing(&self, durable: &Tree) -> String {
        let mut state = self.state();
        let head = state.sign(durable);
        IntroducedHead::render(&state.introductions, &head)
    }

    /// Waits until the last submitted head has been stored or has failed. Needed before the folder is released.
    pub(crate) fn flush(&self) {
        self.file.flush();
    }

    /// Replaces the signing key. The old key introduces the new one and is then erased. `durable` returns the tree at
    /// that moment.
    ///
    /// # Errors
    /// A system error, in which case the old key stays in use, or another rotation is under way.
    pub(crate) fn rotate(&self, durable: impl FnOnce() -> Tree) -> io::Result<Verifier> {
        let (next, durable, introduction, secret) = {
            let mut state = self.state();
            if state.is_rotating {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another key rotation is under way"));
            }
            let next = new_signer(state.signer.verifier().name())?;
            let durable = durable();
            let introduction = state.signer.sign(&durable, Some(next.verifier()));
            state.is_rotating = true;
            (next, durable, introduction, state.signer.to_secret())
        };
        let introduced = self.introduce(&secret, &next, &introduction);
        let verifier = next.verifier().clone();
        {
            let mut state = self.state();
            state.is_rotating = false;
            state.introductions = introduced?;
            // From here on the new key signs, whatever fails.
            state.newest = next.sign(&durable, None);
            (state.signer, state.submitted) = (next, None);
        }
        self.file.forget_stored();
        fs::rename(self.dir.join(NEXT_SECRET), self.dir.join(SECRET))?;
        replace(&self.dir.join(PUBLIC), format!("{verifier}\n").as_bytes(), 0o644)?;
        Ok(verifier)
    }

    /// Returns the new content of `keys`. `secret` is the current signing key; if the previous rotation could not put
    /// it in place, that is done first, because startup must not find an older key there.
    fn introduce(&self, secret: &str, next: &Signer, introduction: &Head) -> io::Result<String> {
        let place = self.dir.join(SECRET);
        if read_optional(&place)?.is_none_or(|held| held.trim_end() != secret) {
            replace(&place, format!("{secret}\n").as_bytes(), 0o600)?;
        }
        let mut keys = read_optional(&keys_path(&self.dir))?.unwrap_or_default();
        keys.push_str(&introduction.to_string());
        replace(&self.dir.join(NEXT_SECRET), format!("{}\n", next.to_secret()).as_bytes(), 0o600)?;
        let Err(error) = replace(&keys_path(&self.dir), keys.as_bytes(), 0o644) else { return Ok(keys) };
        // The file may be in place although making it durable failed. The key is then introduced, so the old one must
        // sign nothing more. As long as the file cannot be read nobody can tell, and neither key signs.
        loop {
            match read_optional(&keys_path(&self.dir)) {
                Ok(held) if held.as_ref() == Some(&keys) => return Ok(keys),
                Err(unreadable) if unreadable.kind() != io::ErrorKind::InvalidData => std::thread::sleep(LOOK_AGAIN),
                Ok(_) | Err(_) => return Err(error),
            }
        }
    }
}

impl HeadsState {
    fn sign(&mut self, durable: &Tree) -> Head {
        if durable.size() > self.newest.size && !self.is_rotating {
            self.newest = self.signer.sign(durable, None);
        }
        self.newest.clone()
    }
}

fn read_optional(path: &Path) -> io::Result<Option<String>> {
    match private_files::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn to_text<'h>(introductions: impl IntoIterator<Item = &'h Head>) -> String {
    introductions.into_iter().map(ToString::to_string).collect()
}

fn introductions(dir: &Path) -> io::Result<Vec<Head>> {
    Ok(read_optional(&keys_path(dir))?.and_then(|text| note::heads(&text)).unwrap_or_default())
}

/// Completes an interrupted rotation: a key that was introduced takes over; any other is dropped.
fn finish_rotation(dir: &Path) -> io::Result<()> {
    let draft = dir.join(NEXT_SECRET);
    let Some(secret) = read_optional(&draft)? else { return Ok(()) };
    let introduced = introductions(dir)?.pop().and_then(|head| head.next);
    let is_next = Signer::parse(secret.trim_end()).is_some_and(|signer| Some(signer.verifier()) == introduced.as_ref());
    if is_next { fs::rename(&draft, dir.join(SECRET)) } else { fs::remove_file(&draft) }
}

fn new_signer(name: &str) -> io::Result<Signer> {
    Signer::new(name, hash::random()?).ok_or_else(|| io::Error::other("cannot create a key"))
}

/// Creates a key that introduces itself: the first one, or one after a loss, which nobody vouches for.
fn make(dir: &Path, tree: &Tree) -> io::Result<Signer> {
    let earlier = introductions(dir)?;
    let name = match earlier.first() {
        Some(first) => first.origin().to_owned(),
        None => format!("makegate/{}", hash::hex(&hash::random::<8>()?)),
    };
    let signer = new_signer(&name)?;
    let introduction = signer.sign(&Tree::default(), Some(signer.verifier()));
    let keys = to_text(earlier.iter().chain([&introduction]));
    // Write the key first: if startup is interrupted before the key is introduced, the next one makes another.
    replace(&dir.join(NEXT_SECRET), format!("{}\n", signer.to_secret()).as_bytes(), 0o600)?;
    if earlier.is_empty() {
        // Where there are keys there must be a head at any moment.
        replace(&path(dir), signer.sign(tree, None).to_string().as_bytes(), 0o600)?;
    }
    replace(&keys_path(dir), keys.as_bytes(), 0o644)?;
    fs::rename(dir.join(NEXT_SECRET), dir.join(SECRET))?;
    Ok(signer)
}

/// How the log's records contradict its newest head.
fn mismatch(dir: &Path, start: &ResumePoint) -> Option<String> {
    if !path(dir).exists() {
        return Some("the newest signed head is missing".to_owned());
    }
    let Some(head) = stored(dir) else { return Some("the newest signed head is damaged".to_owned()) };
    let keys = introductions(dir).unwrap_or_default();
    let signed = keys.iter().filter_map(|one| one.next.as_ref()).any(|key| head.is_signed_by(key));
    let size = head.size;
    match start.root_at_head {
        _ if !signed => Some(format!("the newest signed head ({size} records) is signed by an unknown key")),
        _ if start.tree.size() < size => {
            Some(format!("the newest signed head covers {size} records, but there are {}", start.tree.size()))
        }
        Some(root) if root != head.root => {
            Some(format!("the first {size} records do not match the newest signed head"))
        }
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::segment::tree::leaf;
    use crate::clock::Clock;

    fn tree(size: u8) -> Tree {
        let mut tree = Tree::default();
        (0..size).for_each(|n| tree.push(leaf(&[n])));
        tree
    }

    fn start(size: u8) -> ResumePoint {
        ResumePoint { tree: tree(size), ..ResumePoint::default() }
    }

    fn open(dir: &Path, start: &ResumePoint) -> (Heads, HeadsOpened) {
        Heads::open(dir, Duration::from_secs(60), start).unwrap()
    }

    fn chain(dir: &Path) -> Vec<Head> {
        introductions(dir).unwrap()
    }

    #[test]
    fn the_key_is_made_once_and_nobody_else_reads_it() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (heads, opened) = open(dir.path(), &start(3));
        assert!(opened.made && !opened.lost && opened.mismatch.is_none());
        let key = heads.verifier();
        assert_eq!(fs::metadata(dir.path().join(SECRET)).unwrap().mode() & 0o777, 0o600);
        assert!(chain(dir.path())[0].is_signed_by(&key));
        let (heads, opened) = open(dir.path(), &start(3));
        assert!(!opened.made && heads.verifier() == key);
        fs::write(dir.path().join(SECRET), "PRIVATE+KEY+x").unwrap();
        let words = Heads::open(dir.path(), IDLE, &start(3)).unwrap_err().to_string();
        assert!(words.contains("head.key is damaged"), "{words}");
        fs::remove_file(dir.path().join(SECRET)).unwrap();
        let (heads, opened) = open(dir.path(), &start(3));
        assert!(opened.made && opened.lost && heads.verifier() != key);
    }

    #[test]
    fn a_head_is_stored_when_it_is_due_and_when_a_segment_is_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let (heads, _) = open(dir.path(), &start(3));
        let now = Clock::system().now();
        heads.store_if_due(&tree(3), now, false);
        let size = || {
            heads.flush();
            stored(dir.path()).unwrap().size
        };
        assert_eq!(size(), 3, "at the start");
        heads.store_if_due(&tree(4), now + Duration::from_secs(59), false);
        assert_eq!(size(), 3);
        heads.store_if_due(&tree(5), now + Duration::from_secs(59), true);
        assert_eq!(size(), 5);
        heads.store_if_due(&tree(6), now + Duration::from_secs(119), false);
        assert_eq!(size(), 6);
        assert!(stored(dir.path()).unwrap().is_signed_by(&heads.verifier()));
        assert_eq!(heads.sign(&tree(7)).size, 7, "a newer one is signed on request");
        assert_eq!(heads.sign(&tree(6)).size, 7, "but no older one after it");
    }

    #[test]
    fn an_old_key_introduces_the_new_one_and_is_erased() {
        let dir = tempfile::tempdir().unwrap();
        let (heads, _) = open(dir.path(), &start(3));
        let old = heads.verifier();
        let secret = fs::read_to_string(dir.path().join(SECRET)).unwrap();
        let new = heads.rotate(|| tree(5)).unwrap();
        let keys = chain(dir.path());
        assert_eq!((keys.len(), keys[1].size, keys[1].next.as_ref()), (2, 5, Some(&new)));
        assert!(keys[1].is_signed_by(&old) && !keys[1].is_signed_by(&new));
        assert!(heads.sign(&tree(5)).is_signed_by(&new));
        assert!(!fs::read_to_string(dir.path().join(SECRET)).unwrap().contains(&secret));
        assert_eq!(fs::read_to_string(dir.path().join(PUBLIC)).unwrap().trim(), new.to_string());
        assert_eq!(open(dir.path(), &start(5)).0.verifier(), new);
    }

    #[test]
    fn an_interrupted_rotation_is_finished_or_undone() {
        let dir = tempfile::tempdir().unwrap();
        let (heads, _) = open(dir.path(), &start(3));
        let old = fs::read(dir.path().join(SECRET)).unwrap();
        let new = heads.rotate(|| tree(5)).unwrap();
        fs::rename(dir.path().join(SECRET), dir.path().join(NEXT_SECRET)).unwrap();
        fs::write(dir.path().join(SECRET), &old).unwrap();
        assert_eq!(open(dir.path(), &start(5)).0.verifier(), new, "it was introduced");
        let other = new_signer("makegate/other").unwrap();
        fs::write(dir.path().join(NEXT_SECRET), other.to_secret()).unwrap();
        assert_eq!(open(dir.path(), &start(5)).0.verifier(), new, "it was not introduced");
        assert!(!dir.path().join(NEXT_SECRET).exists());
    }

    #[test]
    fn startup_reports_a_log_that_does_not_match_its_head() {
        let dir = tempfile::tempdir().unwrap();
        let (heads, _) = open(dir.path(), &start(5));
        heads.store_if_due(&tree(5), Clock::system().now(), true);
        heads.flush();
        let note = fs::read(path(dir.path())).unwrap();
        let told = |start: &ResumePoint| {
            let told = open(dir.path(), start).1.mismatch.unwrap_or_default();
            assert_eq!(!told.is_empty(), !path(dir.path()).exists(), "{told}");
            fs::write(path(dir.path()), &note).unwrap();
            told
        };
        assert_eq!(told(&ResumePoint { root_at_head: Some(tree(5).root()), ..start(6) }), "");
        let other = ResumePoint { root_at_head: Some(tree(4).root()), ..start(6) };
        assert!(told(&other).contains("do not match the newest signed head"));
        assert!(told(&start(4)).contains("but there are 4"));
        fs::write(path(dir.path()), "head").unwrap();
        assert!(told(&start(5)).contains("damaged"));
        assert!(dir.path().join(REFUTED).exists());
        fs::remove_file(path(dir.path())).unwrap();
        assert!(told(&start(5)).contains("missing"));
    }
}
