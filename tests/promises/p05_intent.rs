//! Promise 5. No write goes upstream before its intent is on disk. After a crash at any point each write is settled or in
//! doubt, never forgotten.

use makegate::sandbox::{Fault, FaultKind};
use serde_json::Value;

use crate::support::{ALL, HELD, ORG, World, until};

/// Reads the log on disk without asking the service to flush.
fn on_disk(world: &World) -> Vec<Value> {
    let mut files: Vec<_> =
        std::fs::read_dir(world.dir.path().join("audit")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "jsonl"));
    files.sort();
    let text: String = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn the_intent_is_on_disk_when_the_upstream_sees_the_write() {
    let world = World::start().await;
    world.sandbox.fault(Fault::once("PATCH", ORG, HELD));
    let write = world.patch(ALL, ORG, r#"{"name":"x"}"#);
    let look = async {
        until(|| world.received("PATCH", ORG) == 1).await;
        let records = on_disk(&world);
        let kinds: Vec<&str> =
            records.iter().filter(|r| r["path"] == ORG).map(|r| r["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["intent"], "the upstream has the write, the disk has {kinds:?}");
        world.sandbox.clear_faults();
    };
    let (answer, ()) = tokio::join!(write, look);
    answer.expect(200);
    let kinds: Vec<String> =
        on_disk(&world).iter().filter(|r| r["path"] == ORG).map(|r| r["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["intent", "outcome"], "the answer came before its outcome was on disk");
}

#[tokio::test]
async fn an_intent_without_an_outcome_is_in_doubt_after_the_start() {
    let world = World::start().await;
    let target = format!("{ORG}/subscription-free");
    world.sandbox.fault(Fault::once("POST", &target, FaultKind::Hang { effect: true }));
    let write = world.post(ALL, &target, "");
    let copied = async {
        until(|| world.received("POST", &target) == 1).await;
        // The folder as a crash at this very moment would leave it.
        let copy = tempfile::tempdir().unwrap();
        let audit = copy.path().join("audit");
        std::fs::create_dir(&audit).unwrap();
        std::fs::set_permissions(&audit, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        for entry in std::fs::read_dir(world.dir.path().join("audit")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), audit.join(entry.file_name())).unwrap();
            }
        }
        copy
    };
    let copy = tokio::select! { _ = write => panic!("the write was answered"), copy = copied => copy };
    std::fs::write(copy.path().join("token"), crate::support::TOKEN).unwrap();
    std::fs::write(copy.path().join("operator"), crate::support::OPERATOR).unwrap();
    let after = crate::support::Plan::default().start_in(copy).await;
    let doubts = after.service.gateway().log.doubts().list();
    assert_eq!(doubts.len(), 1, "{doubts:?}");
    assert_eq!(&*doubts[0].operation, "subscription.free");
    after.post(ALL, &target, "").await.refused(409, "MG161");
}
