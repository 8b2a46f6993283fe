//! Targets: one reading or none.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Duration, sleep};

use super::still;
use crate::support::{ALL, LIST, ORG, READER, VARIABLES, raw, send, with_key};

#[tokio::test]
async fn what_could_be_read_two_ways_is_refused() {
    let world = still().start().await;
    for rest in [
        "/", "/11/", "//11", "/11//apps", "/./11", "/11/.", "/../organizations/11", "/12/../11", "/%2e%2e/11",
        "/.%2E/11", "/%2e/11", "/11%2fapps", "/11%2Fapps", "/11%5capps", "/11\\apps", "/11;v=1", "/11;", "/11%3bv",
        "/11%00", "/%0a11", "/11%7f", "/%", "/%1", "/%zz", "/%c0%ae%c0%ae/11", "/%ff", "/11%252fapps", "/1{1}", "/11|",
        "/11^", "/11?a=%00", "/11?%00=a", "/11?a=%", "/11?a=%1", "/11?a=%xy",
    ] {
        let reply = world.get(ALL, &format!("{LIST}{rest}")).await;
        let code = if reply.body.is_empty() { String::new() } else { reply.code() };
        assert_eq!((reply.status, &*code), (400, "MG101"), "{rest}");
    }
    for target in ["*", "?a"] {
        let reply = send(world.gateway, "GET", target, &with_key(ALL, &[]), "").await;
        assert_eq!(reply.status, 400, "{target}");
    }
    assert_eq!(world.sandbox.received().len(), 0);
}

/// hyper itself does not take these for HTTP: there is no request to record.
#[tokio::test]
async fn what_is_no_request_line_is_no_request() {
    let world = still().start().await;
    for target in [
        "/api/v2/organizations/ä",
        "/api/v2/organizations/1 1",
        "/api/v2/organizations/<11>",
        "/api/v2/organizations/`11`",
        "/api/v2/organizations?a=\u{1}",
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nhost: a\r\n{}\r\n", with_key(ALL, &["connection: close"]));
        let answered = raw(world.gateway, &text).await;
        assert!(answered.is_none_or(|reply| reply.status == 400), "{target}");
    }
    assert_eq!(world.sandbox.received().len(), 0);
}

#[tokio::test]
async fn an_id_is_a_plain_decimal_or_no_id() {
    let world = still().start().await;
    for id in [
        "011", "+11", "%2B11", "-11", "11.0", "1e1", "0x0b", "11%20", "%2011", "eleven", "%D9%A1%D9%A1",
        "18446744073709551616",
    ] {
        for key in [ALL, READER] {
            let reply = world.get(key, &format!("{LIST}/{id}/usage")).await;
            assert_eq!((reply.status, reply.code()), (404, "MG121".to_owned()), "{id}");
        }
    }
    assert_eq!(world.sandbox.received().len(), 0);
    world.get(READER, &format!("{LIST}/%31%31")).await.expect(200);
    assert_eq!(world.sandbox.received()[0].path, format!("{LIST}/11"), "rendered anew, never copied");
}

#[tokio::test]
async fn what_is_in_no_row_is_refused() {
    let world = still().start().await;
    for target in [
        "/api/v2",
        "/api/v2/organizationsx",
        "/API/v2/organizations",
        "/api/v2/Organizations",
        "/api/v2/organizations/11/users",
        "/metrics",
        "/healthz",
        "/",
        "/sandbox",
        "/doubts",
    ] {
        world.get(ALL, target).await.refused(404, "MG121");
    }
    for (method, target, allow) in [
        ("PUT", LIST, "GET, HEAD, POST"),
        ("OPTIONS", LIST, "GET, HEAD, POST"),
        ("TRACES", LIST, "GET, HEAD, POST"),
        ("get", LIST, "GET, HEAD, POST"),
        ("HEAD", "/api/v2/organizations/11/invite", "POST"),
        ("GET", "/api/v2/organizations/accept-invitation", "POST"),
        ("DELETE", "/api/v2/organizations/11/usage", "GET, HEAD"),
    ] {
        let reply = world.send(ALL, method, target, &[], "").await.expect(405);
        assert_eq!(reply.header("allow"), Some(allow), "{method} {target}");
    }
    assert_eq!(world.sandbox.received().len(), 0);
}

/// Who is not known learns nothing of what there is.
#[tokio::test]
async fn without_a_key_every_path_is_the_same() {
    let world = still().start().await;
    for (method, target) in
        [("GET", LIST), ("GET", "/api/v2/scenarios"), ("PUT", LIST), ("GET", "/api/v2/organizations/011")]
    {
        world.send("unknown", method, target, &[], "").await.refused(401, "MG112");
        send(world.gateway, method, target, "", "").await.refused(401, "MG111");
    }
}

#[tokio::test]
async fn single_valued_parameters_are_given_once() {
    let world = still().start().await;
    for target in [
        "?pg[limit]=1&pg[limit]=1",
        "?pg%5Boffset%5D=1&pg[offset]=2",
        "/11?wait=true&wait=false",
        "/11?wait&wait=true",
        "/11/usage?organizationTimezone=true&organizationTimezone=true",
        "/invitation?hash=a&hash=b",
        "/11/feature-controls?featureControlName=a&%66eatureControlName=b",
    ] {
        world.get(ALL, &format!("{LIST}{target}")).await.refused(400, "MG103");
    }
    world.get(ALL, &format!("{LIST}?cols[]=id&cols[]=id&zone=a&zone=b")).await.expect(200);
    assert_eq!(world.sandbox.received().len(), 1);
}

#[tokio::test]
async fn queries_arrive_upstream_in_their_one_form() {
    let world = still().start().await;
    for (sent, arrived) in [
        ("cols[]=name&cols%5B%5D=id", "cols[]=id&cols[]=name"),
        ("cols%5b%5d=*", "cols[]=*"),
        ("cols=id&cols=name", "cols=id&cols=name"),
        ("cols[0]=id", "cols[0]=id"),
        ("pg[sortBy]=id&pg[limit]=2&pg[offset]=0", "pg[limit]=2&pg[sortBy]=id"),
        ("pg[limit]=2&x=a+b%20c%2fd&y&z=", "pg[limit]=2&x=a+b%20c%2Fd&y&z="),
        ("%78=%79&pg[limit]=2", "x=y&pg[limit]=2"),
        ("x=%26%3D%23%25%2B", "x=%26%3D%23%25%2B"),
    ] {
        world.get(ALL, &format!("{LIST}?{sent}")).await.expect(200);
        assert_eq!(world.sandbox.received().pop().unwrap().query, arrived, "{sent}");
    }
}

/// As Make's Go client asks, and as its CLI does.
#[tokio::test]
async fn bare_columns_and_the_star_work_for_scoped_callers_too() {
    let world = still().start().await;
    let direct = |query: &str| format!("{LIST}?{query}");
    for query in ["cols=id&cols=name", "cols[]=id&cols[]=name", "cols[0]=id&cols[1]=name", "cols%5B%5D=name&cols=id"] {
        let all = world.get(ALL, &direct(query)).await.expect(200).json();
        let own = world.get(READER, &direct(query)).await.expect(200).json();
        assert_eq!(
            own["organizations"].as_array().unwrap()[..],
            all["organizations"].as_array().unwrap()[..2],
            "{query}"
        );
    }
    let star = world.get(READER, &direct("cols%5B%5D=*")).await.expect(200).json();
    assert_eq!(star["organizations"][0]["license"]["transfer"], 1_099_511_627_776_u64);
}

#[tokio::test]
async fn keys_come_as_token_or_bearer_in_one_header() {
    let world = still().start().await;
    for (value, status) in [
        (format!("Token {ALL}"), 200),
        (format!("Bearer {ALL}"), 200),
        (format!("bearer {ALL}"), 200),
        (format!("TOKEN   {ALL}"), 200),
        (ALL.to_owned(), 401),
        (format!("Basic {ALL}"), 401),
        ("Token".to_owned(), 401),
        ("Token ".to_owned(), 401),
        (format!("Token {ALL} {ALL}"), 401),
        (format!("Token {}", "k".repeat(600)), 401),
        (format!("Token {ALL}, Token {ALL}"), 401),
    ] {
        let reply = send(world.gateway, "GET", LIST, &format!("authorization: {value}\r\n"), "").await;
        assert_eq!(reply.status, status, "{value}: {reply:?}");
    }
    let twice = format!("authorization: Token {ALL}\r\nauthorization: Token {ALL}\r\n");
    send(world.gateway, "GET", LIST, &twice, "").await.refused(400, "MG104");
}

/// `http::Uri` cuts off what follows a `#`, and so would another operation's target be carried out. Every place in which a request line can
/// stand among other requests: alone, behind bodies of both kinds, in one segment with them or split anywhere.
#[tokio::test]
async fn a_fragment_is_refused_wherever_its_request_line_stands() {
    let world = still().start().await;
    let key = with_key(ALL, &[]);
    let fragment = format!("DELETE {VARIABLES}/prod#old HTTP/1.1\r\nhost: a\r\n{key}connection: close\r\n\r\n");
    let update = format!("PATCH {ORG} HTTP/1.1\r\nhost: a\r\n{key}content-type: application/json\r\n");
    let chunked =
        format!("{update}transfer-encoding: chunked\r\n\r\n6;x=#\r\n{{\"name\r\n6\r\n\":\"#\"}}\r\n0\r\nx: #\r\n\r\n");
    let sized = format!("{update}content-length: 12\r\n\r\n{{\"name\":\"#\"}}");
    let get = format!("GET {ORG} HTTP/1.1\r\nhost: a\r\n{key}x: #\r\n\r\n");
    for before in ["", &chunked, &sized, &get, &format!("{get}{chunked}{sized}")] {
        let whole = format!("{before}{fragment}");
        let ends = before.len().saturating_sub(2)..(before.len() + 60).min(whole.len());
        let near = ends.step_by(if before.is_empty() { 60 } else { 17 });
        let in_body = [before.len().saturating_sub(9), before.len() / 2];
        for cut in near.chain(in_body) {
            let (first, second) = whole.split_at(cut);
            let mut connection = TcpStream::connect(world.gateway).await.unwrap();
            connection.set_nodelay(true).unwrap();
            connection.write_all(first.as_bytes()).await.unwrap();
            sleep(Duration::from_millis(50)).await;
            connection.write_all(second.as_bytes()).await.unwrap();
            let mut all = String::new();
            connection.read_to_string(&mut all).await.unwrap();
            let last = all.rsplit("HTTP/1.1 ").next().unwrap();
            assert!(last.starts_with("400 ") && last.contains("MG1"), "cut at {cut} behind {before:?}: {all}");
            assert_eq!(world.received("DELETE", &format!("{VARIABLES}/prod")), 0, "cut at {cut} behind {before:?}");
        }
    }
    assert!(world.sandbox.received().iter().all(|received| !received.body.contains('^')), "bodies stay as they are");
}

/// Only one `chunked` is undone, so nothing else may be taken for a body (RFC 9112 section 6.1). At both doors.
#[tokio::test]
async fn an_unknown_transfer_coding_ends_the_connection() {
    let world = still().start().await;
    let key = with_key(ALL, &["content-type: application/json"]);
    let body = "2\r\n{}\r\n0\r\n\r\n";
    for (door, line) in [
        (world.gateway, format!("PATCH {ORG}")),
        (world.gateway, "GET /livez".to_owned()),
        (world.service.operator_addresses()[0], "POST /cache/purge".to_owned()),
    ] {
        for codings in [
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked, chunked",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "transfer-encoding: identity, chunked",
        ] {
            let text = format!("{line} HTTP/1.1\r\nhost: localhost\r\n{key}{codings}\r\n\r\n{body}");
            let mut refused = raw(door, &text).await.unwrap().expect(501);
            if door == world.gateway {
                refused = refused.refused(501, "MG124");
            }
            assert_eq!(refused.header("connection"), Some("close"), "{line} {codings}");
        }
        for (version, codings) in [
            ("1.1", "transfer-encoding: gzip"),
            ("1.0", "transfer-encoding: chunked"),
            ("1.1", "transfer-encoding: chunked, gzip"),
        ] {
            let text = format!("{line} HTTP/{version}\r\nhost: localhost\r\n{key}{codings}\r\n\r\n{body}");
            raw(door, &text).await.unwrap().expect(400);
        }
        // hyper reads the chunks and ends the connection behind them, so that nothing else can be taken for a request.
        let both = format!(
            "{line} HTTP/1.1\r\nhost: localhost\r\n{key}content-length: 3\r\ntransfer-encoding: Chunked\r\n\r\n{body}"
        );
        let answered = raw(door, &format!("{both}{both}")).await.unwrap();
        assert_eq!(
            (answered.header("connection"), answered.text().matches("HTTP/1.1").count()),
            (Some("close"), 0),
            "{line}"
        );
    }
    assert_eq!(world.received("PATCH", ORG), 1);
}
