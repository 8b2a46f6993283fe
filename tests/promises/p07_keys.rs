//! Promise 7, about whom to trust: keys that introduce each other, and what each may sign.

use std::fs;

use makegate::audit::{AuditorInput, Verifier, verify};

use super::p07_tampering::{assert_found, assert_untouched, some_traffic};
use crate::support::{Plan, World, new_dir};

/// Someone who can write to the folder but does not have the old key creates a new one, which no key introduces.
#[tokio::test]
async fn a_key_that_was_never_introduced_is_found_unless_the_auditor_knows_it() {
    let world = Plan::default().start().await;
    let before = some_traffic(&world, 0).await;
    let world = world.restart_after(|audit| fs::remove_file(audit.join("head.key")).unwrap()).await;
    some_traffic(&world, 1).await;
    let audit = world.dir.path().join("audit");
    let report = verify(&audit, &AuditorInput::default(), &mut |_, _| {}).unwrap();
    assert!(report.problems.iter().any(|problem| problem.what == "key"), "{report:#?}");
    let new = Verifier::parse(fs::read_to_string(audit.join("head.pub")).unwrap().trim()).unwrap();
    let brought = AuditorInput { heads: Vec::new(), keys: vec![new.clone()] };
    assert_untouched(&verify(&audit, &brought, &mut |_, _| {}).unwrap());
    // Everything is replaced, even the keys, but the exported head is signed by another key.
    fs::remove_file(audit.join("keys")).unwrap();
    let brought = AuditorInput { heads: vec![("exported".to_owned(), before)], keys: vec![new] };
    assert_found(&verify(&audit, &brought, &mut |_, _| {}).unwrap(), "made anew");
}

/// An old key is erased when the new one takes over, so a copy of it can sign nothing that came later.
#[tokio::test]
async fn a_rotated_key_signs_nothing_larger_than_the_log_was_then() {
    let world = Plan::default().start().await;
    some_traffic(&world, 0).await;
    let stolen = new_dir();
    let copy = stolen.path().join("audit");
    fs::create_dir(&copy).unwrap();
    let world = world
        .restart_after(|audit| {
            for entry in fs::read_dir(audit).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
            }
        })
        .await;
    world.service.gateway().log.rotate_head_key().await.unwrap();
    some_traffic(&world, 1).await;
    let other = Plan::default().start_in(stolen).await;
    let forged = some_traffic(&other, 1).await;
    let audit = world.dir.path().join("audit");
    let brought = AuditorInput { heads: vec![("forged".to_owned(), forged)], keys: Vec::new() };
    let report = verify(&audit, &brought, &mut |_, _| {}).unwrap();
    assert!(report.problems.iter().any(|problem| problem.detail.contains("its key was erased")), "{report:#?}");
}

/// A head that no key of the log signed proves nothing, and is reported.
#[tokio::test]
async fn a_head_of_another_log_is_found() {
    let (world, other) = (Plan::default().start().await, Plan::default().start().await);
    some_traffic(&world, 0).await;
    let foreign = some_traffic(&other, 0).await;
    let World { service, dir, .. } = world;
    assert!(service.shut_down().await);
    let audit = dir.path().join("audit");
    let brought = AuditorInput { heads: vec![("foreign".to_owned(), foreign)], keys: Vec::new() };
    let report = verify(&audit, &brought, &mut |_, _| {}).unwrap();
    assert!(
        report.problems.iter().any(|problem| problem.detail.contains("not signed by any key of this log")),
        "{report:#?}"
    );
    fs::copy(other.dir.path().join("audit/head"), audit.join("head")).unwrap();
    assert_found(
        &verify(&audit, &AuditorInput::default(), &mut |_, _| {}).unwrap(),
        "another log's head in the folder",
    );
}
