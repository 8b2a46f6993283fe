//! Promise 7. `audit verify` detects altered, removed and reordered records, and a cut tail against any exported
//! head. An untouched log is never accused, whatever it went through.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use makegate::audit::{AuditorInput, Filter, Head, VerifyError, VerifyReport, export, query_files, verify};
use makegate::sandbox::{Fault, FaultKind};
use tempfile::TempDir;

use crate::support::process::Home;
use crate::support::{ALL, LIST, OPERATOR, ORG, OTHER, Plan, READER, World, attempt, segments_in, send, with_key};

/// A log's folder as it was when the gateway ended, and what an auditor had exported earlier.
struct Evidence {
    dir: TempDir,
    files: BTreeMap<PathBuf, Vec<u8>>,
    exported: Head,
    early: Head,
    /// The stored head at the time when `early` was exported.
    early_file: Vec<u8>,
    records: u64,
}

/// A line of a segment's file.
type At = (PathBuf, usize);

impl Evidence {
    /// A log of several segments with reads, refusals, writes done, rejected and in doubt, a settlement, and a key
    /// rotation.
    async fn new() -> Self {
        let plan = Plan::default().segment_bytes(6000).set("upstream", "look = false");
        let world = plan.start().await;
        let early = some_traffic(&world, 0).await;
        let early_file = fs::read(world.dir.path().join("audit/head")).unwrap();
        world.service.gateway().log.rotate_head_key().await.unwrap();
        let exported = some_traffic(&world, 1).await;
        let World { service, dir, .. } = world;
        assert!(service.shut_down().await);
        let mut evidence = Self { files: BTreeMap::new(), exported, early, early_file, records: 0, dir };
        evidence.files = evidence.now();
        evidence.records = evidence.report().records;
        assert!(evidence.segments().len() > 5, "{:?}", evidence.segments());
        evidence
    }

    fn audit(&self) -> PathBuf {
        self.dir.path().join("audit")
    }

    fn now(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(self.audit()).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    fn segments(&self) -> Vec<PathBuf> {
        self.files.keys().filter(|path| path.extension().is_some_and(|end| end == "jsonl")).cloned().collect()
    }

    /// The positions of all records, in order.
    fn places(&self) -> Vec<At> {
        let lines = |path: &PathBuf| self.files[path].iter().filter(|byte| **byte == b'\n').count();
        self.segments().iter().flat_map(|path| (0..lines(path)).map(|line| (path.clone(), line))).collect()
    }

    fn report(&self) -> VerifyReport {
        self.report_of(&AuditorInput::default())
    }

    fn report_of(&self, brought: &AuditorInput) -> VerifyReport {
        verify(&self.audit(), brought, &mut |_, _| {}).unwrap()
    }

    fn against(&self, head: &Head) -> VerifyReport {
        self.report_of(&AuditorInput { heads: vec![("exported".to_owned(), head.clone())], keys: Vec::new() })
    }

    /// Puts everything back.
    fn restore(&self) {
        for path in self.now().keys().filter(|path| !self.files.contains_key(*path)) {
            fs::remove_file(path).unwrap();
        }
        self.files.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }

    fn without_leaves(&self) {
        let leaves = self.files.keys().filter(|path| path.extension().is_some_and(|end| end == "leaves"));
        leaves.for_each(|path| fs::remove_file(path).unwrap());
    }

    fn lines(&self, path: &Path) -> Vec<Vec<u8>> {
        self.files[path].split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    }

    /// Ends the log after this many records, leaf hashes included, as someone who knows the format would.
    fn cut_after(&self, records: usize) {
        let mut left = records;
        for path in self.segments() {
            let leaves = path.with_extension("leaves");
            let lines = self.lines(&path);
            let kept = left.min(lines.len());
            left -= kept;
            if kept == 0 {
                fs::remove_file(&path).unwrap();
                fs::remove_file(leaves).unwrap();
            } else {
                fs::write(&path, lines[..kept].concat()).unwrap();
                fs::write(&leaves, &self.files[&leaves][..kept * 32]).unwrap();
            }
        }
    }
}

/// Sends some traffic and returns the head after it.
pub(crate) async fn some_traffic(world: &World, round: usize) -> Head {
    for n in 0..12 {
        world.get(READER, if n % 3 == 0 { ORG } else { OTHER }).await.expect(200);
        world.get(READER, &format!("{ORG}/variables")).await.expect(403);
        world.patch(ALL, ORG, &format!(r#"{{"name":"Named {round} {n}"}}"#)).await.expect(200);
    }
    world.sandbox.fault(Fault::once("POST", LIST, FaultKind::status(422)));
    world.post(ALL, LIST, "{}").await.expect(422);
    for settled in [true, false] {
        world.sandbox.fault(Fault::once("POST", LIST, FaultKind::Reset { effect: true }));
        let body = format!(r#"{{"name":"doubt {round} {settled}","regionId":1,"timezoneId":1,"countryId":1}}"#);
        let reply = world.post(ALL, LIST, &body).await.refused(502, "MG222");
        if settled {
            let target = format!("/doubts/{}", reply.header("x-request-id").unwrap());
            let key = format!("authorization: Bearer {OPERATOR}\r\n");
            let operator = world.service.operator_addresses()[0];
            send(operator, "POST", &target, &key, r#"{"as":"done"}"#).await.expect(200);
        }
    }
    world.service.gateway().log.head().await
}

fn seq_of(line: &[u8]) -> u64 {
    serde_json::from_slice::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap()
}

#[track_caller]
pub(crate) fn assert_untouched(report: &VerifyReport) {
    assert!(report.problems.is_empty(), "{report:#?}");
}

/// Something is found that names this record or a range beginning with it.
#[track_caller]
fn assert_names(report: &VerifyReport, seq: u64, what: &str) {
    let named = report.problems.iter().any(|problem| problem.seq == Some(seq));
    assert!(named, "{what}: record {seq} was not named: {report:#?}");
}

#[track_caller]
pub(crate) fn assert_found(report: &VerifyReport, what: &str) {
    assert!(!report.problems.is_empty(), "{what}: not found: {report:#?}");
}

#[tokio::test]
async fn every_flipped_bit_of_a_record_is_found_and_names_the_record() {
    let evidence = Evidence::new().await;
    assert_untouched(&evidence.report());
    let places = evidence.places();
    // A record at the beginning, in the middle and at the end, and an opening.
    let sample = [1, places.len() / 2, places.len() - 1];
    let second = evidence.segments()[1].clone();
    for (path, at) in sample.iter().map(|at| places[*at].clone()).chain([(second, 0)]) {
        let lines = evidence.lines(&path);
        let (seq, before) = (seq_of(&lines[at]), lines[..at].concat().len());
        let mut bytes = evidence.files[&path].clone();
        for bit in 0..lines[at].len() * 8 {
            let mask = 1 << (bit % 8);
            bytes[before + bit / 8] ^= mask;
            fs::write(&path, &bytes).unwrap();
            assert_names(&evidence.report(), seq, &format!("bit {bit} of record {seq}"));
            bytes[before + bit / 8] ^= mask;
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert_untouched(&evidence.report());
}

/// Without the leaf hashes it is only known that it is one of a few records.
#[tokio::test]
async fn a_flipped_bit_is_found_in_every_record_even_without_leaf_hashes() {
    let evidence = Evidence::new().await;
    evidence.without_leaves();
    assert_untouched(&evidence.report());
    for (path, at) in evidence.places() {
        let lines = evidence.lines(&path);
        let before = lines[..at].concat().len();
        for byte in (0..lines[at].len()).step_by(29) {
            let mut bytes = evidence.files[&path].clone();
            bytes[before + byte] ^= 1 << (byte % 8);
            fs::write(&path, &bytes).unwrap();
            assert_found(&evidence.report(), &format!("byte {byte} of line {at} of {}", path.display()));
        }
        fs::write(&path, &evidence.files[&path]).unwrap();
    }
}

#[tokio::test]
async fn every_dropped_moved_or_repeated_record_is_found() {
    let evidence = Evidence::new().await;
    for leaves in [true, false] {
        if !leaves {
            evidence.without_leaves();
        }
        for (path, at) in evidence.places() {
            let lines = evidence.lines(&path);
            let seq = seq_of(&lines[at]);
            let mut dropped = lines.clone();
            dropped.remove(at);
            let mut repeated = lines.clone();
            repeated.insert(at, lines[at].clone());
            let mut swapped = lines.clone();
            if at + 1 < lines.len() {
                swapped.swap(at, at + 1);
            } else {
                swapped.pop();
            }
            for (what, altered) in [("dropped", dropped), ("repeated", repeated), ("swapped", swapped)] {
                fs::write(&path, altered.concat()).unwrap();
                let report = evidence.report();
                let last_of_the_log = seq == evidence.records && what != "repeated" && !leaves;
                if last_of_the_log { assert_found(&report, what) } else { assert_names(&report, seq, what) }
            }
            fs::write(&path, &evidence.files[&path]).unwrap();
        }
    }
}

#[tokio::test]
async fn every_cut_of_the_tail_is_found() {
    let evidence = Evidence::new().await;
    let (early, exported) = (evidence.early.size, evidence.exported.size);
    assert!(early < exported && exported < evidence.records);
    for records in 1..evidence.records {
        let seq = records + 1;
        evidence.cut_after(usize::try_from(records).unwrap());
        assert_names(&evidence.report(), seq, "its own head");
        fs::remove_file(evidence.audit().join("head")).unwrap();
        assert_found(&evidence.report(), "its head deleted");
        if records < exported {
            assert_names(&evidence.against(&evidence.exported), seq, "an exported head, and its own deleted");
        }
        // Its own head and keys are replaced by old ones, so only an exported head shows the cut.
        fs::write(evidence.audit().join("head"), &evidence.early_file).unwrap();
        if records < exported {
            assert_names(&evidence.against(&evidence.exported), seq, "an exported head, and its own an old one");
        }
        evidence.restore();
    }
}

#[tokio::test]
async fn an_old_copy_put_back_is_found_against_an_exported_head() {
    let world = Plan::default().start().await;
    some_traffic(&world, 0).await;
    let world = world.restart().await;
    let copy = tempfile::tempdir().unwrap();
    let audit = world.dir.path().join("audit");
    for entry in fs::read_dir(&audit).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let exported = some_traffic(&world, 1).await;
    assert_untouched(&verify(copy.path(), &AuditorInput::default(), &mut |_, _| {}).unwrap());
    let brought = AuditorInput { heads: vec![("exported".to_owned(), exported)], keys: Vec::new() };
    let report = verify(copy.path(), &brought, &mut |_, _| {}).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:#?}");
    assert_eq!(report.problems[0].what, "cut");
    assert_untouched(&verify(&audit, &brought, &mut |_, _| {}).unwrap());
}

#[tokio::test]
async fn a_removed_or_replaced_segment_is_found() {
    let evidence = Evidence::new().await;
    let segments = evidence.segments();
    for (at, path) in segments.iter().enumerate() {
        fs::remove_file(path).unwrap();
        let first = seq_of(&evidence.lines(path)[0]);
        assert_names(&evidence.report(), first, "a segment deleted");
        fs::remove_file(path.with_extension("leaves")).unwrap();
        assert_names(&evidence.report(), first, "a segment and its leaf hashes deleted");
        let other = &segments[(at + 1) % segments.len()];
        fs::write(path, &evidence.files[other]).unwrap();
        assert_found(&evidence.report(), "a segment replaced by another");
        evidence.restore();
    }
    segments[..segments.len() - 1].iter().for_each(|path| fs::remove_file(path).unwrap());
    assert_names(&evidence.report(), 1, "all but the last");
}

#[tokio::test]
async fn a_flipped_bit_in_heads_and_keys_is_found() {
    let evidence = Evidence::new().await;
    for name in ["head", "keys", "head.pub"] {
        let path = evidence.audit().join(name);
        let mut bytes = evidence.files[&path].clone();
        // The step is coprime to the alphabet's period, so every kind of byte is covered. Not every byte is tried,
        // because each report that finds a problem takes a second look.
        for byte in (0..bytes.len() - 1).step_by(5) {
            bytes[byte] ^= 1 << (byte % 8);
            fs::write(&path, &bytes).unwrap();
            assert_found(&evidence.report(), &format!("byte {byte} of {name}"));
            bytes[byte] ^= 1 << (byte % 8);
        }
        fs::remove_file(&path).unwrap();
        if name != "head.pub" {
            assert_found(&evidence.report(), name);
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert_untouched(&evidence.report());
}

/// A nineteen-digit number: nobody goes through all the records that it claims come before it.
#[tokio::test]
async fn a_record_that_claims_a_far_too_large_number_is_found() {
    let evidence = Evidence::new().await;
    for (path, line) in evidence.places() {
        let mut lines = evidence.lines(&path);
        let seq = seq_of(&lines[line]);
        let text = String::from_utf8(lines[line].clone()).unwrap();
        lines[line] = text.replacen(&format!("\"seq\":{seq}"), "\"seq\":9000000000000000000", 1).into_bytes();
        evidence.without_leaves();
        fs::write(&path, lines.concat()).unwrap();
        assert_names(&evidence.report(), seq, "a number far on");
        evidence.restore();
    }
}

#[tokio::test]
async fn altered_leaf_hashes_are_reported_and_accuse_no_record() {
    let evidence = Evidence::new().await;
    let path = evidence.segments()[1].with_extension("leaves");
    let mut bytes = evidence.files[&path].clone();
    bytes[40] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let report = evidence.report();
    assert_untouched(&report);
    assert!(report.notes.iter().any(|note| note.contains("leaf hash")), "{report:#?}");
}

#[tokio::test]
async fn a_start_on_an_altered_log_is_recorded_for_good() {
    let world = Plan::default().start().await;
    some_traffic(&world, 0).await;
    let world = world
        .restart_after(|audit| {
            let path = audit.join("00000000000000000001.jsonl");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replacen("Named 0 3", "Named 0 4", 1)).unwrap();
        })
        .await;
    some_traffic(&world, 1).await;
    let report = verify(&world.dir.path().join("audit"), &AuditorInput::default(), &mut |_, _| {}).unwrap();
    assert!(report.problems.iter().any(|problem| problem.what == "event"), "{report:#?}");
    assert!(world.log().await.iter().any(|record| record["event"] == "head-mismatch"));
}

/// While it is written to, after each kill, and after retention deleted its beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_untouched_log_is_never_accused() {
    let plan = Plan::default().set("audit", "segment = \"64KiB\"").set("upstream", "look = false");
    let origin = World::start().await;
    let home = Home::new(&plan, &format!("http://{}", origin.sandbox.address()));
    let audit = home.path().join("audit");
    let mut verifications = 0;
    for round in 0..4 {
        let process = home.serve().await;
        let tasks = makegate::tasks::Tasks::new();
        let gateway = home.gateway;
        let writer = tasks.spawn(async move {
            for n in 0..10_000 {
                let body = format!(r#"{{"name":"Named {round} {n}"}}"#);
                if attempt(gateway, "PATCH", ORG, &with_key(ALL, &[]), &body).await.is_none() {
                    return n;
                }
            }
            usize::MAX
        });
        while !writer.is_finished() {
            match verify(&audit, &AuditorInput::default(), &mut |_, _| {}) {
                Ok(report) => {
                    assert_untouched(&report);
                    verifications += 1;
                }
                Err(error) => assert!(matches!(error, VerifyError::NoLog), "{error}"),
            }
            if verifications > 40 * (round + 1) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(process);
        assert!(writer.await.unwrap() < usize::MAX, "the writer was killed while writing");
        assert_untouched(&verify(&audit, &AuditorInput::default(), &mut |_, _| {}).unwrap());
    }
    assert_untouched(&of_binary(&audit, &[]).1);
}

#[tokio::test]
async fn records_deleted_by_retention_are_not_missed_but_removed_ones_are() {
    let plan = Plan::default().segment_bytes(4000).set("audit", "retention = \"30d\"").set("upstream", "look = false");
    let world = plan.start().await;
    some_traffic(&world, 0).await;
    world.clock.advance(Duration::from_secs(31 * 24 * 3600));
    some_traffic(&world, 1).await;
    world.service.gateway().log.flush().await;
    let audit = world.dir.path().join("audit");
    let oldest = || verify(&audit, &AuditorInput::default(), &mut |_, _| {}).unwrap().oldest;
    while oldest() == 1 {
        world.get(ALL, LIST).await.expect(200);
        world.clock.advance(Duration::from_secs(3601));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let World { service, dir, .. } = world;
    assert!(service.shut_down().await);
    let report = verify(&audit, &AuditorInput::default(), &mut |_, _| {}).unwrap();
    assert_untouched(&report);
    assert_eq!(report.unproven, 0);
    fs::remove_file(&segments_in(&audit)[0]).unwrap();
    assert_found(&verify(&audit, &AuditorInput::default(), &mut |_, _| {}).unwrap(), "one more");
    drop(dir);
}

fn command(audit: &Path) -> Command {
    let mut command = Command::new(crate::support::process::binary());
    command.args(["audit", "verify"]).arg(audit);
    command
}

/// The command's exit code and report.
fn of_binary(audit: &Path, options: &[&str]) -> (i32, VerifyReport) {
    let binary = command(audit).args(["-o", "json"]).args(options).output().unwrap();
    let report = serde_json::from_slice(&binary.stdout).unwrap_or_else(|error| panic!("{error}: {binary:?}"));
    (binary.status.code().unwrap(), report)
}

#[tokio::test]
async fn the_command_reports_by_text_and_exit_code() {
    let evidence = Evidence::new().await;
    let audit = evidence.audit();
    let file = evidence.dir.path().join("exported.head");
    fs::write(&file, evidence.exported.to_string()).unwrap();
    let head = file.to_str().unwrap();
    let (code, report) = of_binary(&audit, &["--head", head, "--key", audit.join("head.pub").to_str().unwrap()]);
    assert_eq!((code, &*report.result), (0, "ok"), "{report:#?}");
    evidence.cut_after(20);
    let (code, report) = of_binary(&audit, &[]);
    assert_eq!((code, &*report.result), (1, "tampered"));
    assert_eq!(report.problems[0].seq, Some(21), "{report:#?}");
    let text = command(&audit).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("cut: ") && text.ends_with("TAMPERED: the log is not what was recorded\n"), "{text}");
    for wrong in [["--head", "/nowhere"], ["--key", head]] {
        let output = command(&audit).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(command(empty.path()).output().unwrap().status.code(), Some(1), "a missing log proves nothing");
}

/// Files that are named like segments but cannot be any: a forged record in one is found, and shown by nothing.
#[tokio::test]
async fn a_file_that_no_segment_can_be_is_found_and_never_read() {
    let evidence = Evidence::new().await;
    let records = |dir: &Path| {
        let mut lines = Vec::new();
        export(dir, &Filter::default(), &mut |line| {
            lines.push(line.to_owned());
            Ok(())
        })
        .unwrap();
        lines
    };
    let before = records(&evidence.audit());
    assert!(evidence.report().problems.is_empty());
    for name in ["00000000000000000000.jsonl", "99999999999999999999.jsonl", "7.jsonl"] {
        for seq in [0, 1, 7, 1_000_000] {
            let forged = format!(
                "{{\"seq\":{seq},\"time\":\"2026-07-01T12:00:00.000000Z\",\"kind\":\"request\",\"request\":\"zz\",\"caller\":\"forged\"}}\n"
            );
            fs::write(evidence.audit().join(name), forged).unwrap();
            let problems = evidence.report().problems;
            assert!(problems.iter().any(|one| one.file.as_deref() == Some(name)), "{name}, {seq}: {problems:?}");
            assert!(records(&evidence.audit()) == before, "{name}, {seq}: the export has changed");
            let filter = Filter { caller: Some("forged".into()), ..Filter::default() };
            assert!(query_files(&evidence.audit(), &filter).unwrap().records.is_empty(), "{name}, {seq}");
        }
        evidence.restore();
    }
}
