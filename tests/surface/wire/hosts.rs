//! The host that a request names, and what may not stand in a target beside it.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{header, still};
use crate::support::{ALL, LIST, OPERATOR, ORG, Reply, World, raw, send, with_key};

/// Sends a GET with these very header lines instead of `Host`.
async fn get(world: &World, target: &str, lines: &str) -> Reply {
    let text = format!("GET {target} HTTP/1.1\r\n{lines}{}\r\n", with_key(ALL, &["connection: close"]));
    raw(world.gateway, &text).await.unwrap()
}

/// Sends this on a connection that goes on, and reads one answer with its body.
async fn exchange(connection: &mut TcpStream, bytes: &str) -> String {
    connection.write_all(bytes.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    loop {
        assert!(connection.read_buf(&mut all).await.unwrap() > 0, "the connection ended: {all:?}");
        let text = String::from_utf8_lossy(&all);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() >= length.parse().unwrap() {
            return text.into_owned();
        }
    }
}

#[tokio::test]
async fn a_request_names_exactly_one_host() {
    let world = still().start().await;
    let own = world.gateway;
    for good in [&*format!("host: {own}\r\n"), "host: localhost\r\n", "HOST: any.example:1\r\n", "host: [::1]:80\r\n"] {
        get(&world, ORG, good).await.expect(200);
    }
    get(&world, &format!("http://{own}{ORG}"), &format!("host: {own}\r\n")).await.expect(200);
    get(&world, &format!("http://{own}{ORG}"), "").await.expect(200);
    for bad in
        ["", "host:\r\n", "host: a\r\nhost: a\r\n", "host: a, b\r\n", "host: u@a\r\n", "host: a/b\r\n", "host: a:x\r\n"]
    {
        get(&world, ORG, bad).await.refused(400, "MG105");
    }
    get(&world, &format!("http://other.example{ORG}"), &format!("host: {own}\r\n")).await.refused(400, "MG105");
    let last = world.last_record().await;
    assert_eq!((&last["refusal"], &last["caller"]), (&"MG105".into(), &serde_json::Value::Null), "{last}");
}

#[tokio::test]
async fn a_door_with_names_answers_to_them_and_to_its_addresses_alone() {
    let world = still().set("gateway", "names = [\"gate.internal\", \"203.0.113.7\"]").start().await;
    for own in ["203.0.113.7:80", "gate.internal", "GATE.internal.:8080", "localhost:1", "127.0.0.1", "[::1]"] {
        get(&world, ORG, &format!("host: {own}\r\n")).await.expect(200);
    }
    for foreign in ["evil.example", "gate.internal.evil.example", "10.1.2.3", "xn--gate.internal"] {
        get(&world, ORG, &format!("host: {foreign}\r\n")).await.refused(400, "MG105");
    }
}

/// `http::Uri` cuts off what follows a `#`: a DELETE of `…/prod#old` would delete `prod`.
/// At every door and for every kind of path: open ones, pages in each form, actions, and what is not there, with a key and without.
#[tokio::test]
async fn a_fragment_is_refused_whatever_is_asked_for() {
    let world = still().tables("[metrics]\nlisten = \"127.0.0.1:0\"\n").start().await;
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    let (operator, metrics) = (world.service.operator_addresses()[0], world.service.metrics_addresses()[0]);
    let paths = [
        "/", "/livez", "/readyz?verbose", "/healthz", "/metrics", "/audit", "/audit.csv?limit=1", "/audit/follow",
        "/callers.json", "/quota.json?wait=true", "/style.css", "/openapi.json", "/cache/purge", "/audit/rotate",
        "/doubts/x", "/nothing",
    ];
    for (door, path) in [operator, metrics].into_iter().flat_map(|door| paths.map(|path| (door, path))) {
        for (method, rest, headers) in [
            ("GET", "#", &*key),
            ("GET", "#old", ""),
            ("POST", "#x?y", &key),
            ("GET", "/#", &key),
            ("DELETE", "?#", &key),
        ] {
            let headers = format!("{headers}content-type: application/json\r\n");
            let reply = send(door, method, &format!("{path}{rest}"), &headers, "{\"all\": true}").await.expect(400);
            let told = reply.json();
            assert_eq!(told["type"], "urn:makegate:operator:ambiguous-target", "{method} {path}{rest}");
            assert!(told["detail"].as_str().unwrap().contains("`#`"), "{told}");
        }
    }
    for path in ["/livez", "/readyz", "/openapi.json", "/nothing"] {
        send(world.gateway, "GET", &format!("{path}#x"), "", "").await.refused(400, "MG101");
    }
}

#[tokio::test]
async fn a_fragment_is_refused_not_cut_off() {
    let world = still().start().await;
    for target in [
        format!("{ORG}#"),
        format!("{ORG}/variables/prod#old"),
        format!("{LIST}?cols[]=id#x"),
        format!("{LIST}?#"),
        format!("{LIST}#?cols[]=id"),
    ] {
        for method in ["GET", "DELETE"] {
            world.send(ALL, method, &target, &[], "").await.refused(400, "MG101");
        }
    }
    assert_eq!(world.sandbox.received().len(), 0);
    // Also where requests come together.
    let (two, one) = (with_key(ALL, &[]), with_key(ALL, &["connection: close"]));
    let together = format!(
        "GET {ORG}/apps HTTP/1.1\r\nhost: a\r\n{two}\r\nDELETE {ORG}/variables/prod#old HTTP/1.1\r\nhost: a\r\n{one}\r\n"
    );
    let answers = raw(world.gateway, &together).await.unwrap();
    assert!(answers.status == 200 && answers.text().contains("MG101"), "{answers:?}");
    assert_eq!(world.sandbox.received().len(), 1);
    // On a connection that goes on, too; a `#` elsewhere is nothing special.
    let key = with_key(ALL, &[]);
    let body = r##"{"name": "#1"}"##;
    let first = format!(
        "PATCH {ORG} HTTP/1.1\r\nhost: a\r\n{key}content-type: application/json\r\nx: #\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = TcpStream::connect(world.gateway).await.unwrap();
    connection.write_all(first.as_bytes()).await.unwrap();
    assert!(exchange(&mut connection, body).await.starts_with("HTTP/1.1 200 "));
    let refused = exchange(&mut connection, &format!("GET {ORG}#x HTTP/1.1\r\nhost: a\r\n{key}\r\n")).await;
    assert!(refused.starts_with("HTTP/1.1 400 ") && refused.contains("MG101"), "{refused}");
    let answered = exchange(&mut connection, &format!("GET {ORG} HTTP/1.1\r\nhost: a\r\n{key}\r\n")).await;
    assert!(answered.starts_with("HTTP/1.1 200 ") && answered.contains("\"name\":\"#1\""), "{answered}");
}

#[tokio::test]
async fn a_key_in_the_target_is_refused_and_kept_nowhere() {
    const OTHER_KEY: &str = "the-key-of-another-caller";
    let world = still().caller(OTHER_KEY, "grants = [\"*\"]").start().await;
    for query in [
        "token=secret-of-mine",
        "cols[]=id&api_key=secret-of-mine",
        "Access_Token=secret-of-mine",
        &format!("token={ALL}"),
        &format!("x={ALL}"),
        &format!("x={OTHER_KEY}"),
        &format!("cols[]={}", OTHER_KEY.replace('-', "%2D")),
    ] {
        let answered = world.get(ALL, &format!("{LIST}?{query}")).await;
        assert!(answered.status == 400 && answered.code() == "MG106", "{query}: {answered:?}");
        let record = world.last_record().await.to_string();
        assert!(
            record.contains("MG106") && !record.contains("secret-of-mine") && !record.contains(OTHER_KEY),
            "{record}"
        );
    }
    for target in [
        format!("{LIST}?{OTHER_KEY}"),
        format!("{LIST}?pg[sortBy]=x{OTHER_KEY}"),
        format!("{LIST}?x{OTHER_KEY}y=1"),
        format!("/api/v2/{OTHER_KEY}"),
        format!("{ORG}/variables/{OTHER_KEY}/history"),
    ] {
        let headers = format!("authorization: Bearer {OTHER_KEY}\r\nx-request-id: {OTHER_KEY}\r\n");
        let answered = send(world.gateway, "GET", &target, &headers, "").await;
        assert!(answered.status == 400 && answered.code() == "MG106", "{target}: {answered:?}");
        let record = world.last_record().await.to_string();
        assert!(record.contains("MG106") && !record.contains(OTHER_KEY), "{record}");
        assert_ne!(answered.header("x-request-id"), Some(OTHER_KEY));
    }
    assert_eq!(world.sandbox.received().len(), 0);
}

#[tokio::test]
async fn probes_are_answered_by_status_alone_and_leave_no_record() {
    let world = still().set("gateway", "names = [\"gate.internal\"]").start().await;
    let records = world.records().await.len();
    for head in ["HTTP/1.1\r\nhost: 10.9.8.7\r\nconnection: close", "HTTP/1.0"] {
        for method in ["GET", "HEAD"] {
            for path in ["/livez", "/readyz", "/readyz?verbose"] {
                let reply = raw(world.gateway, &format!("{method} {path} {head}\r\n\r\n")).await.unwrap().expect(200);
                assert!(reply.body.is_empty() && reply.header("content-type").is_none(), "{path}: {reply:?}");
                assert!(!header(&reply, "x-request-id").is_empty());
            }
        }
    }
    assert_eq!(world.records().await.len(), records);
    world.send(ALL, "POST", "/livez", &[], "").await.refused(404, "MG121");
    world.get(ALL, "/").await.refused(404, "MG121");
}
