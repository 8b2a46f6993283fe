use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;

use http::HeaderValue;
use tempfile::TempDir;

use super::*;

/// A log written by the test, with one end per record.
#[derive(Debug, Default)]
struct Script {
    ends: Mutex<Vec<LoggedEnd>>,
    events: Mutex<Vec<String>>,
}

impl Script {
    fn add(&self, key: &str, done: bool, time_ms: i64) {
        let keyed = keyed(key, "write", &format!("r-{key}"));
        self.ends.lock().unwrap().push(LoggedEnd { keyed, done, time_ms });
    }
}

fn root(ends: &[LoggedEnd]) -> [u8; 32] {
    crate::hash::sha256(format!("{ends:?}").as_bytes())
}

impl KeyLog for Script {
    fn mark(&self) -> LogMark {
        let ends = self.ends.lock().unwrap();
        LogMark { size: ends.len() as u64, root: root(&ends) }
    }

    fn for_each_end(
        &self,
        after: Option<LogMark>,
        oldest_ms: i64,
        each: &mut dyn FnMut(LoggedEnd),
    ) -> io::Result<bool> {
        let ends = self.ends.lock().unwrap();
        let size = after.and_then(|mark| {
            let size = usize::try_from(mark.size).unwrap();
            ends.get(..size).filter(|ends| root(ends) == mark.root).map(|_| size)
        });
        ends.iter().skip(size.unwrap_or(0)).filter(|told| told.time_ms >= oldest_ms).cloned().for_each(each);
        Ok(size.is_some())
    }

    fn record_event(&self, _: &'static str, detail: &str) {
        self.events.lock().unwrap().push(detail.to_owned());
    }
}

fn settings(dir: &Path, change: impl FnOnce(&mut Limits)) -> (AuditConfig, Limits) {
    let text = "[operator]\nkey_env = \"K\"\n[upstream]\ntoken_env = \"T\"\n";
    let config = crate::config::parse(text, Path::new("/nowhere/makegate.toml")).unwrap().config;
    let mut limits = config.limits;
    change(&mut limits);
    (AuditConfig { dir: dir.to_owned(), disk_wait: Duration::from_secs(60), ..config.audit }, limits)
}

fn keyed(key: &str, write: &str, request: &str) -> KeyedWrite {
    let of = |text: &str| Fingerprint::of(&crate::hash::hmac_key(b"secret"), &[text.as_bytes()]);
    KeyedWrite {
        key: of(key),
        write: of(write),
        request: RequestId::parse(request.as_bytes()).unwrap(),
        caller: "c".into(),
    }
}

fn ended(text: &str) -> WriteEnd {
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let answer = FirstAnswer { status: StatusCode::CREATED, headers, body: Bytes::from(text.to_owned()) };
    WriteEnd { done: true, answer: Some(answer) }
}

async fn claim(answers: &IdempotencyStore, keyed: KeyedWrite) -> KeyClaim {
    let known = answers.claim(keyed, 1).await.unwrap();
    let KeyStatus::New(claim) = known else { panic!("{known:?}") };
    claim
}

async fn keep(answers: &IdempotencyStore, key: &str, text: &str) {
    claim(answers, keyed(key, "write", key)).await.end(ended(text)).await;
}

/// The stored body of this key, if the key is known.
async fn kept(answers: &IdempotencyStore, key: &str) -> Option<Option<String>> {
    match answers.claim(keyed(key, "write", "again"), 1).await.unwrap() {
        KeyStatus::New(_) => None,
        KeyStatus::Before(EarlierUse::Ended { ended, .. }) => {
            Some(ended.answer.map(|answer| String::from_utf8(answer.body.to_vec()).unwrap()))
        }
        known @ KeyStatus::Before(_) => panic!("{known:?}"),
    }
}

async fn before(answers: &IdempotencyStore, keyed: KeyedWrite) -> EarlierUse {
    let known = answers.claim(keyed, 1).await.unwrap();
    let KeyStatus::Before(known) = known else { panic!("{known:?}") };
    known
}

fn id(text: &str) -> RequestId {
    RequestId::parse(text.as_bytes()).unwrap()
}

struct Bed {
    dir: TempDir,
    clock: Clock,
    log: Arc<Script>,
}

impl Bed {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), clock: Clock::movable(), log: Arc::default() }
    }

    fn try_open(&self, change: impl FnOnce(&mut Limits)) -> Result<IdempotencyStore, StoreError> {
        let (settings, limits) = settings(self.dir.path(), change);
        IdempotencyStore::open(&settings, &limits, self.clock.clone(), self.log.clone())
    }

    fn open(&self, change: impl FnOnce(&mut Limits)) -> IdempotencyStore {
        self.try_open(change).unwrap()
    }

    fn path(&self) -> PathBuf {
        database::path(self.dir.path())
    }

    /// Runs SQL on the file with SQLite itself, while no thread uses it.
    fn sql(&self, sql: &str) {
        rusqlite::Connection::open(self.path()).unwrap().execute_batch(sql).unwrap();
    }
}

#[tokio::test]
async fn a_key_runs_then_has_an_answer_also_after_a_restart() {
    let bed = Bed::new();
    let answers = bed.open(|_| {});
    let first = claim(&answers, keyed("k", "pay 1", "r-1")).await;
    assert_eq!(before(&answers, keyed("k", "pay 1", "r-2")).await, EarlierUse::Running { first: id("r-1") });
    assert_eq!(before(&answers, keyed("k", "pay 2", "r-3")).await, EarlierUse::Other { first: id("r-1") });
    first.end(ended("paid")).await;
    let mut answers = answers;
    for _ in 0..2 {
        let known = EarlierUse::Ended { first: id("r-1"), ended: ended("paid") };
        assert_eq!(before(&answers, keyed("k", "pay 1", "r-4")).await, known);
        assert_eq!(before(&answers, keyed("k", "pay 2", "r-5")).await, EarlierUse::Other { first: id("r-1") });
        assert_eq!(answers.kept(), 1);
        answers.close().await;
        answers = bed.open(|_| {});
    }
    assert!(bed.log.events.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_dropped_claim_frees_its_key() {
    let bed = Bed::new();
    let answers = bed.open(|_| {});
    drop(claim(&answers, keyed("k", "pay", "r-1")).await);
    let rejected = WriteEnd { done: false, answer: None };
    claim(&answers, keyed("k", "pay", "r-2")).await.end(rejected).await;
    drop(claim(&answers, keyed("k", "pay", "r-3")).await);
}

#[tokio::test]
async fn the_answers_are_readable_by_their_owner_alone() {
    let bed = Bed::new();
    let answers = bed.open(|_| {});
    keep(&answers, "k", "secret").await;
    for entry in std::fs::read_dir(bed.dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
}

#[test]
fn a_change_is_durable_when_it_returns() {
    let bed = Bed::new();
    let (store, _) = database::AnswerDatabase::open(&bed.path()).unwrap();
    assert_eq!(store.pragma_for_test("synchronous"), "2", "FULL: every commit is synced");
    assert_eq!(store.pragma_for_test("journal_mode"), "wal");
    assert!(!bed.dir.path().join("answers.sqlite-shm").exists(), "no mapped file that could be truncated");
}

#[tokio::test]
async fn stored_answers_are_bounded_and_never_dropped_early() {
    let bed = Bed::new();
    let answers = bed.open(|limits| limits.idempotency_keys = 3);
    for key in ["a", "b", "c"] {
        keep(&answers, key, key).await;
    }
    let refused = answers.claim(keyed("d", "write", "d"), 1).await.unwrap_err();
    assert_eq!((refused, answers.kept()), (ClaimRefused::NoRoom, 3));
    assert_eq!(kept(&answers, "a").await, Some(Some("a".to_owned())), "the oldest is still there");
    bed.clock.advance(Duration::from_secs(24 * 3600 + 1));
    assert_eq!(kept(&answers, "a").await, None, "its time is over");
    answers.maintain().await;
    keep(&answers, "d", "d").await;
    assert_eq!(answers.kept(), 1);
    answers.close().await;

    let answers = bed.open(|limits| limits.idempotency_answer_bytes = 100);
    keep(&answers, "large", &"x".repeat(200)).await;
    assert_eq!(kept(&answers, "large").await, Some(None), "known, without its answer");
}

#[tokio::test]
async fn room_for_an_answer_is_taken_before_the_write_and_the_rest_given_back() {
    let bed = Bed::new();
    let answers = bed.open(|limits| limits.idempotency_bytes = 8192);
    let mut claims = Vec::new();
    while let Ok(KeyStatus::New(claim)) = answers.claim(keyed(&claims.len().to_string(), "write", "r"), 1).await {
        claims.push(claim);
    }
    assert_eq!(claims.len(), 6, "8192 / (1024 + 192)");
    for claim in claims {
        claim.end(ended(&"x".repeat(900))).await;
    }
    keep(&answers, "one-more", "x").await;
    assert_eq!(answers.kept(), 7, "all keys, with their answers");
    assert_eq!(kept(&answers, "5").await, Some(Some("x".repeat(900))));
}

#[tokio::test]
async fn a_settled_doubt_takes_its_key_or_frees_it_and_never_overwrites_an_answer() {
    let bed = Bed::new();
    let answers = bed.open(|_| {});
    answers.settle_done(keyed("k", "write", "r-1"), None).await;
    assert_eq!(kept(&answers, "k").await, Some(None));
    keep(&answers, "l", "given").await;
    answers.settle_done(keyed("l", "write", "l"), None).await;
    assert_eq!(kept(&answers, "l").await, Some(Some("given".to_owned())));
    answers.settle_not_done(keyed("l", "write", "l").key, id("other")).await;
    assert_eq!(
        kept(&answers, "l").await,
        Some(Some("given".to_owned())),
        "settling another write does not affect the key"
    );
    answers.settle_not_done(keyed("l", "write", "l").key, id("l")).await;
    assert_eq!(kept(&answers, "l").await, None);
    answers.close().await;
    assert_eq!(kept(&bed.open(|_| {}), "l").await, None);
}

/// While the disk is failing, a given answer is still known, and no further write with a key goes on.
#[tokio::test]
async fn an_answer_that_cannot_be_stored_is_not_forgotten() {
    let bed = Bed::new();
    let answers = bed.open(|_| {});
    let (first, running) =
        (claim(&answers, keyed("k", "write", "r-1")).await, claim(&answers, keyed("l", "write", "r-2")).await);
    let query_only = async |on: bool| {
        let (reply, done) = tokio::sync::oneshot::channel();
        answers.handle.send(StoreJob::QueryOnly { on, reply }).unwrap();
        done.await.unwrap();
    };
    query_only(true).await;
    first.end(ended("paid")).await;
    assert!(matches!(answers.claim(keyed("m", "write", "r-3"), 1).await, Err(ClaimRefused::Unavailable)));
    running.end(ended("paid too")).await;
    answers.maintain().await;
    assert!(matches!(answers.claim(keyed("k", "write", "r-4"), 1).await, Err(ClaimRefused::Unavailable)));
    query_only(false).await;
    answers.maintain().await;
    assert_eq!(kept(&answers, "k").await, Some(Some("paid".to_owned())));
    answers.close().await;
    assert_eq!(kept(&bed.open(|_| {}), "l").await, Some(Some("paid too".to_owned())));
}

#[tokio::test]
async fn keys_missing_from_the_file_are_found_in_the_log() {
    let bed = Bed::new();
    let now = bed.clock.wall_ms();
    let answers = bed.open(|_| {});
    keep(&answers, "r-a", "a").await;
    bed.log.add("early", true, now);
    keep(&answers, "r-b", "b").await; // the mark comes after `early`
    answers.close().await;
    // Killed before its rows were stored; settled since; and one from long ago.
    bed.log.add("late", true, now);
    bed.log.add("old", true, now - 25 * 3_600_000);
    bed.log.ends.lock().unwrap().push(LoggedEnd { keyed: keyed("r-a", "write", "r-a"), done: false, time_ms: now });
    let answers = bed.open(|_| {});
    assert_eq!(kept(&answers, "late").await, Some(None));
    assert_eq!(kept(&answers, "early").await, None, "before the mark the file is trusted");
    assert_eq!(kept(&answers, "old").await, None);
    assert_eq!(kept(&answers, "r-a").await, None, "settled as not done");
    assert_eq!(kept(&answers, "r-b").await, Some(Some("b".to_owned())));
    answers.close().await;
    assert_eq!(bed.log.events.lock().unwrap().len(), 1);
    // A different log, or none of this log's records: everything is looked up.
    bed.log.ends.lock().unwrap().remove(0);
    bed.log.add("early", true, now);
    assert_eq!(kept(&bed.open(|_| {}), "early").await, Some(None));
}

/// Every kind of damage, before the start and while the store is running: keys stay known, and so do answers where
/// possible.
#[tokio::test]
async fn a_damaged_file_is_rebuilt() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 6] = [
        ("deleted", |path| std::fs::remove_file(path).unwrap()),
        ("emptied", |path| std::fs::write(path, "").unwrap()),
        ("cut", |path| std::fs::File::options().write(true).open(path).unwrap().set_len(5000).unwrap()),
        ("no database", |path| std::fs::write(path, "no database at all".repeat(1000)).unwrap()),
        ("a folder", |path| {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("file"), "").unwrap();
        }),
        ("flipped", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            let at = bytes.windows(4).position(|found| found == b"paid").unwrap();
            bytes[at] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }),
    ];
    for (damage, make) in damages {
        for running in [false, true] {
            let bed = Bed::new();
            let mut answers = bed.open(|_| {});
            keep(&answers, "k", "paid").await;
            answers.close().await;
            bed.log.ends.lock().unwrap().push(LoggedEnd {
                keyed: keyed("k", "write", "k"),
                done: true,
                time_ms: bed.clock.wall_ms(),
            });
            if running {
                answers = bed.open(|_| {});
            }
            make(&bed.path());
            if !running {
                answers = bed.open(|_| {});
            }
            answers.maintain().await;
            let known = kept(&answers, "k").await;
            assert!(known.is_some(), "{damage}, {running}: the key was forgotten");
            let events = bed.log.events.lock().unwrap().clone();
            assert!(events[0].contains("answers.sqlite") && events.len() == 1, "{damage}, {running}: {events:?}");
            keep(&answers, "l", "another").await;
            assert_eq!(kept(&answers, "l").await, Some(Some("another".to_owned())), "{damage}, {running}");
            answers.close().await;
            let answers = bed.open(|_| {});
            assert_eq!(kept(&answers, "l").await, Some(Some("another".to_owned())), "{damage}, {running}");
            assert_eq!(kept(&answers, "k").await, known, "{damage}, {running}");
            if damage == "deleted" && running {
                assert_eq!(known, Some(Some("paid".to_owned())), "the open file still had it");
            }
        }
    }
}

/// Flips a bit in every page: a key whose row is damaged is still known, and no key is given another key's answer.
#[tokio::test]
async fn no_flipped_bit_frees_a_key_or_swaps_an_answer() {
    let bed = Bed::new();
    let answers = bed.open(|_| {});
    for key in ["k", "l", "m"] {
        keep(&answers, key, &key.repeat(700)).await;
        bed.log.ends.lock().unwrap().push(LoggedEnd {
            keyed: keyed(key, "write", key),
            done: true,
            time_ms: bed.clock.wall_ms(),
        });
    }
    answers.close().await;
    let whole = std::fs::read(bed.path()).unwrap();
    let mut random = crate::hash::sha256(b"a seed");
    for round in 0..60 {
        random = crate::hash::sha256(&random);
        let at = usize::from(u16::from_be_bytes([random[0], random[1]])) % whole.len();
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (random[2] % 8);
        std::fs::write(bed.path(), &flipped).unwrap();
        match bed.try_open(|_| {}) {
            Ok(answers) => {
                for key in ["k", "l", "m"] {
                    let known = kept(&answers, key).await;
                    let right = [None, Some(key.repeat(700))];
                    assert!(known.is_some_and(|known| right.contains(&known)), "round {round}, byte {at}: {key}");
                }
                answers.close().await;
            }
            Err(error) => assert!(error.to_string().contains("a newer makegate"), "round {round}, byte {at}: {error}"),
        }
    }
}

#[tokio::test]
async fn answers_of_version_1_are_migrated_and_newer_ones_refused_with_an_explanation() {
    let bed = Bed::new();
    let answers = bed.open(|_| {});
    keep(&answers, "k", "paid").await;
    answers.close().await;
    bed.sql(
        "CREATE TABLE one (key BLOB PRIMARY KEY, write BLOB NOT NULL, request TEXT NOT NULL, time_ms INTEGER NOT NULL,
            done INTEGER NOT NULL, status INTEGER, headers BLOB, body BLOB, bytes INTEGER NOT NULL) WITHOUT ROWID;
        INSERT INTO one SELECT key, write, request, time_ms, done, status, headers, body, 7 FROM answers;
        DROP TABLE answers; DROP TABLE mark; ALTER TABLE one RENAME TO answers;
        CREATE INDEX by_time ON answers (time_ms);
        CREATE TABLE totals (rows INTEGER NOT NULL, bytes INTEGER NOT NULL);
        CREATE TRIGGER added AFTER INSERT ON answers BEGIN UPDATE totals SET rows = rows + 1; END;
        CREATE TRIGGER removed AFTER DELETE ON answers BEGIN UPDATE totals SET rows = rows - 1; END;
        PRAGMA user_version = 1;",
    );
    let answers = bed.open(|_| {});
    assert_eq!(kept(&answers, "k").await, Some(Some("paid".to_owned())));
    answers.close().await;
    assert!(bed.log.events.lock().unwrap().is_empty(), "an old version is not damage");
    bed.sql("PRAGMA user_version = 3");
    let error = bed.try_open(|_| {}).unwrap_err().to_string();
    assert!(error.contains("a newer makegate") && error.contains("move the file away"), "{error}");
}
