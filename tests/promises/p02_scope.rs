//! Promise 2. An answer reaches only a caller whose grants and scope cover it at that moment, cached or not.

use serde_json::Value;

use crate::support::{ALL, LIST, ORG, READER, World};

#[tokio::test]
async fn a_cached_answer_reaches_only_callers_who_may_have_it() {
    let world = World::start().await;
    let first = world.get(ALL, "/api/v2/organizations/13").await.expect(200);
    let hit = world.get(ALL, "/api/v2/organizations/13").await.expect(200);
    assert!(hit.header("cache-status").unwrap().starts_with("makegate; hit; ttl="), "{hit:?}");
    assert_eq!(first.body, hit.body);
    world.get(READER, "/api/v2/organizations/13").await.refused(403, "MG132");
    world.get(READER, &format!("{ORG}/variables")).await.refused(403, "MG131");
    world.get("nobody", "/api/v2/organizations/13").await.refused(401, "MG112");
    assert_eq!(world.received("GET", "/api/v2/organizations/13"), 1);
}

#[tokio::test]
async fn a_scope_narrowed_between_two_hits_is_refused_at_once() {
    let world = World::start().await;
    world.get(READER, ORG).await.expect(200);
    world.get(READER, ORG).await.expect(200);
    let text =
        std::fs::read_to_string(world.file()).unwrap().replace("organizations = [11, 12]", "organizations = [12]");
    std::fs::write(world.file(), text).unwrap();
    world.reload().await;
    world.get(READER, ORG).await.refused(403, "MG132");
}

fn ids(list: &Value) -> Vec<u64> {
    list["organizations"].as_array().unwrap().iter().map(|o| o["id"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_scoped_list_shows_only_its_organizations_with_their_own_paging() {
    let world = World::start().await;
    let whole = world.get(ALL, LIST).await.expect(200).json();
    assert!(ids(&whole).len() > 3);
    let own = world.get(READER, LIST).await.expect(200).json();
    assert_eq!(ids(&own), [11, 12]);
    let page = world.get(READER, &format!("{LIST}?pg[limit]=1&pg[offset]=1")).await.expect(200).json();
    assert_eq!(ids(&page), [12]);
    assert_eq!(page["pg"]["limit"], 1);
    assert_eq!(page["pg"]["offset"], 1);
    let down = world.get(READER, &format!("{LIST}?pg%5BsortBy%5D=id&pg%5BsortDir%5D=desc")).await.expect(200).json();
    assert_eq!(ids(&down), [12, 11]);
    // Columns without `id`: the list is still narrowed by it, and `id` is removed again.
    let names = world.get(READER, &format!("{LIST}?cols[]=name")).await.expect(200).json();
    assert_eq!(names["organizations"].as_array().unwrap().len(), 2);
    assert!(
        names["organizations"].as_array().unwrap().iter().all(|o| o.get("id").is_none() && o.get("name").is_some())
    );
    for answer in [own, page, down, names] {
        assert!(!answer.to_string().contains("Cobalt"), "another organization is visible: {answer}");
    }
}

#[tokio::test]
async fn scoped_callers_of_all_scopes_share_one_entry() {
    let world = World::start().await;
    world.get(READER, LIST).await.expect(200);
    world.get(READER, &format!("{LIST}?pg[limit]=1")).await.expect(200);
    world.get(READER, &format!("{LIST}?pg[offset]=1")).await.expect(200);
    let seen = world.sandbox.received_of("GET", LIST);
    assert_eq!(seen.len(), 1, "{seen:#?}");
}

#[tokio::test]
async fn operations_without_an_organization_are_for_unscoped_callers() {
    let world = World::start().await;
    world.get(READER, "/api/v2/organizations/invitation?hash=x").await.refused(403, "MG133");
    assert_eq!(world.sandbox.received().len(), 0);
}
