//! Promise 14. Work on large bodies, which takes longer than a hit may wait, holds up no other caller.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use makegate::clock::Clock;

use crate::support::hostile::{Origin, Step};
use crate::support::process::Home;
use crate::support::{ALL, LIST, ORG, Plan, READER, send, with_key};

const HITS: usize = 21;

fn json(body: &str) -> Step {
    Step::write(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_list_that_is_narrowed_again_and_again_holds_up_no_other_callers_hit() {
    let pad = "x".repeat(400);
    let rows: Vec<String> = (1..9_000).map(|n| format!(r#"{{"id":{n},"name":"{n:05}","pad":"{pad}"}}"#)).collect();
    let list = json(&format!(r#"{{"organizations":[{}]}}"#, rows.join(",")));
    let first = [Step::Read, json(r#"{"organization":{"id":11}}"#)];
    let lists: Vec<Step> = (0..4).flat_map(|_| [Step::Read, list.clone()]).collect();
    let origin = Origin::start(vec![first.into_iter().chain(lists.clone()).collect(), lists]);
    let home = Home::new(&Plan::default(), &format!("http://{}", origin.address()));
    let _process = home.serve().await;
    let get = async |key, target| send(home.gateway, "GET", target, &with_key(key, &[]), "").await.expect(200);
    get(ALL, ORG).await;
    let narrowed = get(READER, LIST).await;
    assert!(narrowed.text().len() < 1_000 && narrowed.text().contains(r#""id":11"#), "{narrowed:?}");
    let (is_over, narrowings) = (AtomicBool::new(false), AtomicUsize::new(0));
    let greedy = async || {
        while !is_over.load(Ordering::Relaxed) {
            let page = get(READER, LIST).await;
            assert!(page.header("cache-status").unwrap().contains("hit"), "{page:?}");
            narrowings.fetch_add(1, Ordering::Relaxed);
        }
    };
    let polite = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (clock, mut waits) = (Clock::system(), Vec::new());
        for _ in 0..HITS {
            let began = clock.now();
            get(ALL, ORG).await;
            waits.push(clock.now().duration_since(began));
        }
        is_over.store(true, Ordering::Relaxed);
        waits.sort_unstable();
        waits[HITS / 2]
    };
    let (median, _) = tokio::join!(polite, join_all((0..32).map(|_| greedy())));
    assert!(narrowings.into_inner() > 0);
    assert!(median < Duration::from_millis(100), "half of the other caller's hits took longer than {median:?}");
}
