//! Refusals of writes for their `Idempotency-Key`.

use makegate::sandbox::{Fault, FaultKind};

use super::{provoke, still};
use crate::support::{ALL, LIST, Reply, World};

const FIRST: &str = "x-request-id: the-first";
const KEY: &str = "idempotency-key: k";
const NEW: &str = r#"{"name":"n","regionId":1,"timezoneId":1,"countryId":1}"#;

async fn first(world: &World, fault: Option<FaultKind>) -> Reply {
    if let Some(kind) = fault {
        world.sandbox.fault(Fault::once("POST", LIST, kind));
    }
    world.send(ALL, "POST", LIST, &[FIRST, KEY], NEW).await
}

#[tokio::test]
async fn it_is_none() {
    let world = still().start().await;
    provoke(&world, "MG157", ALL, ("POST", LIST), &["idempotency-key: a b"], NEW).await.expect(400);
    assert_eq!(world.received("POST", LIST), 0);
}

#[tokio::test]
async fn its_write_is_under_way() {
    let world = still().start().await;
    let second = async {
        while world.received("POST", LIST) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        provoke(&world, "MG162", ALL, ("POST", LIST), &[KEY], NEW).await.expect(409);
        world.sandbox.clear_faults();
    };
    tokio::join!(first(&world, Some(FaultKind::Hang { effect: true })), second);
    assert_eq!(world.received("POST", LIST), 1);
}

#[tokio::test]
async fn it_is_another_requests() {
    let world = still().start().await;
    first(&world, None).await.expect(200);
    provoke(&world, "MG163", ALL, ("POST", LIST), &[KEY], "{}").await.expect(422);
}

#[tokio::test]
async fn its_write_is_in_doubt() {
    let world = still().start().await;
    first(&world, Some(FaultKind::Close { effect: true })).await.expect(502);
    provoke(&world, "MG164", ALL, ("POST", LIST), &[KEY], NEW).await.expect(409);
}

#[tokio::test]
async fn its_answer_was_lost() {
    let world = still().start().await;
    first(&world, Some(FaultKind::Cut { after_bytes: 10 })).await.expect(502);
    provoke(&world, "MG165", ALL, ("POST", LIST), &[KEY], NEW).await.expect(409);
}

#[tokio::test]
async fn its_caller_has_no_room_for_it() {
    let world = still().set("limits", "idempotency_keys = 1").start().await;
    first(&world, None).await.expect(200);
    provoke(&world, "MG166", ALL, ("POST", LIST), &["idempotency-key: another"], NEW).await.expect(503);
    assert_eq!(world.received("POST", LIST), 1);
}

#[tokio::test]
async fn it_cannot_be_looked_up() {
    let world = still().start().await;
    first(&world, None).await.expect(200);
    let answers = world.file().with_file_name("audit").join("answers.sqlite");
    // What would take its place cannot be made.
    std::fs::create_dir(answers.with_extension("sqlite.new")).unwrap();
    std::fs::remove_file(&answers).unwrap();
    provoke(&world, "MG167", ALL, ("POST", LIST), &[KEY], NEW).await.expect(503);
    assert_eq!(world.received("POST", LIST), 1);
    std::fs::remove_dir(answers.with_extension("sqlite.new")).unwrap();
}
