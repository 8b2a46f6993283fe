//! Pages that may become long.

use super::*;

/// Entries of one page of `/cache/entries`.
const ENTRIES: usize = 100;

#[tokio::test]
async fn entries_come_a_hundred_at_a_time_and_each_once() {
    let world = World::new();
    let total = 2 * ENTRIES + 3;
    for number in 0..total {
        world.store(&format!("/api/v2/organizations/{number}"), &["organizations"]);
    }
    let mut seen = Vec::new();
    for (page, (count, next)) in [(ENTRIES, Some(2)), (ENTRIES, Some(3)), (3, None), (0, None)].into_iter().enumerate()
    {
        let target = format!("/cache/entries.json?page={}", page + 1);
        let told = world.get(&target).await.json();
        let entries = told["entries"].as_array().unwrap();
        assert_eq!((entries.len(), told["next"].as_u64(), told["total"].as_u64()), (count, next, Some(total as u64)));
        seen.extend(entries.iter().map(|entry| entry["id"].as_str().unwrap().to_owned()));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), total);
    world.get("/cache/entries.json?page=18446744073709551615").await.json();
}
