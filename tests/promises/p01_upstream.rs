//! Promise 1. Requests go to the configured upstream and nowhere else, also those that were waiting when a reload put another in force.

use std::fs;

use tokio::time::{Duration, sleep};

use crate::support::hostile::{Gate, Origin, Step, repeated};
use crate::support::{ALL, ORG, OTHER, Plan, TOKEN, World, until};

const THIRD: &str = "/api/v2/organizations/13";
const NEW_TOKEN: &str = "brand-new-token-0123456789abcdef";

fn answer(name: &str) -> Step {
    let body = format!(r#"{{"organization":{{"name":"{name}"}}}}"#);
    Step::write(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// The new upstream, and the reload that puts it in force with a new token.
async fn replace(world: &World, old: &Origin) -> Origin {
    let new = Origin::start((0..9).map(|_| repeated(&[Step::Read, answer("new")], 9)).collect());
    let text = fs::read_to_string(world.file()).unwrap();
    fs::write(world.file(), text.replace(&old.address().to_string(), &new.address().to_string())).unwrap();
    fs::write(world.dir.path().join("token"), NEW_TOKEN).unwrap();
    world.reload().await;
    new
}

fn all_with_the_new_token(new: &Origin) -> bool {
    let expected = format!("Token {NEW_TOKEN}");
    new.received().iter().all(|received| received.header("authorization").as_ref() == Some(&expected))
}

#[tokio::test]
async fn what_waits_for_a_connection_during_a_reload_goes_to_the_new_upstream() {
    let gate = Gate::default();
    let held = vec![Step::Read, Step::Wait(gate.clone()), answer("old"), Step::Read, answer("old"), Step::Hang];
    let old = Origin::start((0..9).map(|_| held.clone()).collect());
    let world =
        Plan::default().upstream(format!("http://{}", old.address())).set("upstream", "connections = 1").start().await;
    let under_way = async { world.get(ALL, ORG).await.expect(200) };
    let read = async {
        until(|| old.received().len() == 1).await;
        world.get(ALL, OTHER).await.expect(200)
    };
    let write = async {
        until(|| old.received().len() == 1).await;
        world.patch(ALL, THIRD, r#"{"name":"a"}"#).await.expect(200)
    };
    let reload = async {
        until(|| old.received().len() == 1).await;
        sleep(Duration::from_millis(300)).await; // both wait for the connection now
        let new = replace(&world, &old).await;
        gate.open();
        new
    };
    let (under_way, read, write, new) = tokio::join!(under_way, read, write, reload);
    assert!(under_way.text().contains("old"), "what was sent before is answered");
    assert!(read.text().contains("new") && write.text().contains("new"), "{read:?} {write:?}");
    assert_eq!(old.received().len(), 1, "the old upstream gets nothing more");
    assert!(all_with_the_new_token(&new));
    for path in [ORG, OTHER] {
        let again = world.get(ALL, path).await.expect(200);
        assert!(again.text().contains("new"), "what the old upstream answered is not stored: {again:?}");
    }
    assert!(!new.received().is_empty() && !format!("{:?}", world.log().await).contains(TOKEN));
}

#[tokio::test]
async fn a_retry_goes_to_the_new_upstream() {
    let gate = Gate::default();
    let busy = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
    let first = vec![Step::Read, Step::Wait(gate.clone()), Step::write(busy), Step::Read, answer("old"), Step::Hang];
    let old = Origin::start((0..9).map(|_| first.clone()).collect());
    let world = Plan::default().upstream(format!("http://{}", old.address())).start().await;
    let read = async { world.get(ALL, ORG).await.expect(200) };
    let reload = async {
        until(|| old.received().len() == 1).await;
        gate.open(); // the pause before the retry begins
        sleep(Duration::from_millis(100)).await;
        replace(&world, &old).await
    };
    let (read, new) = tokio::join!(read, reload);
    assert!(read.text().contains("new"), "{read:?}");
    assert_eq!(old.received().len(), 1);
    assert!(all_with_the_new_token(&new));
    let again = world.get(ALL, ORG).await.expect(200);
    assert!(again.text().contains("new"), "{again:?}");
}
