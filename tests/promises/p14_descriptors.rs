//! Promise 14. Callers' connections take no file descriptor that the log or upstream connections need.

use std::time::Duration;

use makegate::clock::Clock;
use makegate::sandbox::{Sandbox, SandboxSettings};
use tokio::net::TcpStream;

use crate::support::process::Home;
use crate::support::{ALL, ORG, Plan, TOKEN, attempt, records_in, with_key};

#[tokio::test]
async fn a_flood_of_connections_leaves_the_log_its_descriptors() {
    let settings = SandboxSettings { token: TOKEN.to_owned(), ..SandboxSettings::default() };
    let sandbox = Sandbox::start("127.0.0.1:0".parse().unwrap(), settings, Clock::system()).await.unwrap();
    let home = Home::new(&Plan::default(), &format!("http://{}", sandbox.address()));
    let _process = home.serve_with("ulimit -n 144").await;
    let told = std::fs::read_to_string(home.path().join("log")).unwrap();
    assert!(told.contains("too few file descriptors") && told.contains("\"granted\":144"), "{told}");
    let mut flood = Vec::new();
    for _ in 0..300 {
        flood.extend(TcpStream::connect(home.gateway).await);
    }
    let write = async |n: usize| {
        let body = format!("{{\"name\":\"n{n}\"}}");
        attempt(home.gateway, "PATCH", ORG, &with_key(ALL, &[]), &body).await
    };
    for n in 0..5 {
        let reply = tokio::time::timeout(Duration::from_secs(20), write(n)).await.expect("it waits forever");
        reply.expect("an answer").expect(200);
        for _ in 0..20 {
            flood.extend(TcpStream::connect(home.gateway).await);
        }
    }
    let outcomes = records_in(&home.path().join("audit")).into_iter().filter(|record| record["kind"] == "outcome");
    assert_eq!(outcomes.count(), 5);
    let told = std::fs::read_to_string(home.path().join("log")).unwrap();
    assert!(!told.contains("Too many open files"), "{told}");
}

#[tokio::test]
async fn with_too_few_descriptors_it_refuses_to_start_and_says_so() {
    let home = Home::new(&Plan::default(), "http://127.0.0.1:9");
    let told = home.fails_with("ulimit -n 64");
    assert!(told.contains("the system grants 64 file descriptors, but makegate needs at least 98"), "{told}");
}
