//! Promise 2. An answer reaches only a caller whose grants and scope cover it at that moment, cached or not.

use crate::support::{ALL, LIST, ORG, READER, World};

#[tokio::test]
async fn a_cached_answer_reaches_only_who_may_have_it() {
    let world = World::start().await;
    let first = world.get(ALL, "/api/v2/organizations/13").await.expect(200);
    println!("{first:?}");
    let hit = world.get(ALL, "/api/v2/organizations/13").await.expect(200);
    assert!(hit.header("cache-status").unwrap().starts_with("makegate; hit; ttl="), "{hit:?}");
    assert_eq!(first.body, hit.body);
    world.get(READER, "/api/v2/organizations/13").await.refused(403, "MG132");
    world.get(READER, &format!("{ORG}/variables")).await.refused(403, "MG131");
    let list = world.get(READER, LIST).await.expect(200).json();
    println!("{list}");
    println!("{:#?}", world.records().await);
}
