use std::os::unix::fs::PermissionsExt as _;

use http::HeaderValue;
use tempfile::TempDir;

use super::*;

fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
    let text = "[operator]\nkey_env = \"K\"\n[upstream]\ntoken_env = \"T\"\n";
    let mut limits = crate::config::parse(text, Path::new("/nowhere/makegate.toml")).unwrap().config.limits;
    change(&mut limits);
    limits
}

fn keyed(key: &str, write: &str, request: &str) -> Keyed {
    let of = |text: &str| Fingerprint::of(b"secret", &[text.as_bytes()]);
    Keyed { key: of(key), write: of(write), request: RequestId::parse(request.as_bytes()).unwrap() }
}

fn ended(text: &str) -> Ended {
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let answer = Answer { status: StatusCode::CREATED, headers, body: Bytes::from(text.to_owned()) };
    Ended { done: true, answer: Some(answer) }
}

async fn claim(answers: &Answers, keyed: Keyed) -> Claim {
    let known = answers.claim(keyed).await.unwrap();
    let Known::New(claim) = known else { panic!("{known:?}") };
    claim
}

async fn keep(answers: &Answers, key: &str, text: &str) {
    claim(answers, keyed(key, "write", key)).await.end(ended(text)).await;
}

/// The body that is kept of this key, if the key is known.
async fn kept(answers: &Answers, key: &str) -> Option<Option<String>> {
    match answers.claim(keyed(key, "write", "again")).await.unwrap() {
        Known::New(_) => None,
        Known::Ended { ended, .. } => Some(ended.answer.map(|answer| String::from_utf8(answer.body.to_vec()).unwrap())),
        known @ (Known::Running { .. } | Known::Other { .. }) => panic!("{known:?}"),
    }
}

struct Bed {
    dir: TempDir,
    clock: Clock,
}

impl Bed {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), clock: Clock::movable() }
    }

    fn open(&self, change: impl FnOnce(&mut Limits)) -> Answers {
        Answers::open(self.dir.path(), &limits(change), self.clock.clone()).unwrap()
    }
}

#[tokio::test]
async fn a_key_runs_then_has_an_answer_also_after_a_restart() {
    let bed = Bed::new();
    let answers = bed.open(|_| {});
    let first = claim(&answers, keyed("k", "pay 1", "r-1")).await;
    let again = answers.claim(keyed("k", "pay 1", "r-2")).await.unwrap();
    assert!(matches!(again, Known::Running { first } if first.as_str() == "r-1"), "{again:?}");
    let other = answers.claim(keyed("k", "pay 2", "r-3")).await.unwrap();
    assert!(matches!(other, Known::Other { first } if first.as_str() == "r-1"), "{other:?}");
    first.end(ended("paid")).await;
    for answers in [answers, bed.open(|_| {})] {
        let known = answers.claim(keyed("k", "pay 1", "r-4")).await.unwrap();
        let Known::Ended { first, ended: found } = known else { panic!("{known:?}") };
        assert_eq!((first.as_str(), found), ("r-1", ended("paid")));
        let other = answers.claim(keyed("k", "pay 2", "r-5")).await.unwrap();
        assert!(matches!(other, Known::Other { first } if first.as_str() == "r-1"), "{other:?}");
        assert_eq!(answers.kept(), 1);
    }
}

#[tokio::test]
async fn a_dropped_claim_frees_its_key() {
    let bed = Bed::new();
    let answers = bed.open(|_| {});
    drop(claim(&answers, keyed("k", "pay", "r-1")).await);
    let rejected = Ended { done: false, answer: None };
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
    let answers = bed.open(|_| {});
    let writer = answers.shared.writer.lock().unwrap();
    assert_eq!(writer.pragma_for_test("synchronous"), "2", "FULL: every commit is synced");
    assert_eq!(writer.pragma_for_test("journal_mode"), "wal");
}

#[tokio::test]
async fn what_is_kept_is_bounded_in_count_age_and_size() {
    let bed = Bed::new();
    let answers = bed.open(|limits| limits.idempotency_keys = 3);
    for key in ["a", "b", "c", "d"] {
        bed.clock.advance(Duration::from_millis(5));
        keep(&answers, key, key).await;
    }
    assert_eq!((answers.kept(), kept(&answers, "a").await), (3, None), "the oldest went");
    assert_eq!(kept(&answers, "b").await, Some(Some("b".to_owned())));
    drop(answers);

    let answers = bed.open(|limits| limits.idempotency_bytes = 700);
    for key in ["e", "f", "g"] {
        bed.clock.advance(Duration::from_millis(5));
        keep(&answers, key, &key.repeat(150)).await;
    }
    assert_eq!(answers.kept(), 2);
    assert_eq!(kept(&answers, "g").await, Some(Some("g".repeat(150))));
    drop(answers);

    let answers = bed.open(|limits| limits.idempotency_answer_bytes = 100);
    keep(&answers, "large", &"x".repeat(200)).await;
    assert_eq!(kept(&answers, "large").await, Some(None), "known, without its answer");
    bed.clock.advance(Duration::from_secs(24 * 3600 + 1));
    assert_eq!(kept(&answers, "large").await, None);
    answers.maintain();
    assert_eq!(answers.kept(), 0);
}

#[tokio::test]
async fn a_settled_doubt_takes_its_key_or_frees_it_and_never_overwrites_an_answer() {
    let bed = Bed::new();
    let answers = bed.open(|_| {});
    answers.settle_done(keyed("k", "write", "r-1")).await.unwrap();
    assert_eq!(kept(&answers, "k").await, Some(None));
    keep(&answers, "l", "given").await;
    answers.settle_done(keyed("l", "write", "r-2")).await.unwrap();
    assert_eq!(kept(&answers, "l").await, Some(Some("given".to_owned())));
    answers.settle_not_done(keyed("l", "write", "r-2").key).await;
    assert_eq!(kept(&answers, "l").await, None);
}

/// While the disk fails, what was answered is known all the same, and no further write with a key goes on.
#[tokio::test]
async fn an_answer_that_cannot_be_stored_is_not_forgotten() {
    let bed = Bed::new();
    let answers = bed.open(|_| {});
    let (first, running) =
        (claim(&answers, keyed("k", "write", "r-1")).await, claim(&answers, keyed("l", "write", "r-2")).await);
    let only = |sql: &str| answers.shared.writer.lock().unwrap().execute_for_test(sql);
    only("PRAGMA query_only = 1");
    first.end(ended("paid")).await;
    assert!(matches!(answers.claim(keyed("m", "write", "r-3")).await, Err(Unavailable)));
    running.end(ended("paid too")).await;
    answers.maintain();
    assert!(matches!(answers.claim(keyed("k", "write", "r-4")).await, Err(Unavailable)));
    only("PRAGMA query_only = 0");
    answers.maintain();
    assert_eq!(kept(&answers, "k").await, Some(Some("paid".to_owned())));
    assert_eq!(kept(&bed.open(|_| {}), "l").await, Some(Some("paid too".to_owned())));
}

#[test]
fn answers_of_a_newer_version_and_damaged_ones_are_refused_with_words() {
    let bed = Bed::new();
    drop(bed.open(|_| {}));
    let path = bed.dir.path().join("answers.sqlite");
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 2").unwrap();
    let error = Answers::open(bed.dir.path(), &limits(|_| {}), bed.clock.clone()).unwrap_err().to_string();
    assert!(error.contains("a newer makegate"), "{error}");
    std::fs::write(&path, "no database, but long enough to be read as one".repeat(100)).unwrap();
    let error = Answers::open(bed.dir.path(), &limits(|_| {}), bed.clock.clone()).unwrap_err().to_string();
    assert!(error.contains("answers.sqlite") && error.contains("move the file away"), "{error}");
}
