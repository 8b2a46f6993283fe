//! Callers' certificates: whom they name, from which pages browsers may use them, and what ends them.

use std::sync::Arc;

use makegate::door::HandshakeFailure;
use makegate::sandbox::Fault;
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::still;
use crate::support::tls::{self, Authority, Identity};
use crate::support::{ALL, HELD, OPERATOR, ORG, OTHER, Plan, READER, Reply, World, send, until};

#[tokio::test]
async fn a_certificate_names_its_caller() {
    let (authority, other) = (Authority::new(), Authority::new());
    let files = [("callers.pem", &*authority.pem)];
    let (world, roots) = tls::world(still(), ", client_ca = \"callers.pem\"", &files).await;
    let get = async |identity: &tls::Identity, target, headers: &[&str]| {
        tls::get(&world, &roots, Some(identity), target, headers).await
    };
    // By a DNS name, whatever its common name is, and with that caller's scope alone.
    for identity in [authority.identity("all", &["reader"]), authority.identity("a tool", &["tool.internal", "reader"])]
    {
        get(&identity, ORG, &[]).await.unwrap().expect(200);
        get(&identity, "/api/v2/organizations/13", &[]).await.unwrap().refused(403, "MG132");
    }
    for record in world.log().await.iter().filter(|record| record["kind"] == "request") {
        assert_eq!(record["caller"], "reader", "{record}");
        assert!(record.get("key").is_none(), "{record}");
        assert_eq!(record["credential"], "certificate", "{record}");
    }
    // Two credentials: a certificate and a key, even of one caller; a certificate that names two.
    let token = format!("authorization: Token {READER}");
    let reader = authority.identity("a tool", &["reader"]);
    get(&reader, ORG, &[&token]).await.unwrap().refused(400, "MG104");
    get(&authority.identity("a tool", &["reader", "all"]), ORG, &[]).await.unwrap().refused(400, "MG104");
    // One that names nobody is no credential: a key is needed. Its common name does not count.
    let nobody = authority.identity("reader", &["nowhere.internal"]);
    let unnamed = get(&authority.identity("reader", &[]), ORG, &[]).await.unwrap().refused(401, "MG118");
    assert!(unnamed.text().contains("no DNS name, URI or e-mail address"), "{unnamed:?}");
    let refused = get(&nobody, ORG, &[]).await.unwrap().refused(401, "MG118");
    assert!(refused.text().contains("`nowhere.internal`"), "{refused:?}");
    get(&nobody, ORG, &[&token]).await.unwrap().expect(200);
    tls::get(&world, &roots, None, OTHER, &[&token]).await.unwrap().expect(200);
    tls::get(&world, &roots, None, OTHER, &[]).await.unwrap().refused(401, "MG111");
    // Who is believed by another authority does not come in, not even with a key.
    assert!(get(&other.identity("a tool", &["reader"]), ORG, &[&token]).await.is_none());
}

const REPORT: &str = "[[caller]]\nname = \"report\"\n\
    certificates = [\"spiffe://td/ns/finance/sa/dashboard\", \"Report.Internal\", \"Ann@example.com\"]\n\
    grants = [\"*\"]\norganizations = [11]\n";

#[tokio::test]
async fn a_certificate_identifies_the_caller_that_lists_one_of_its_names() {
    let authority = Authority::new();
    let files = [("callers.pem", &*authority.pem)];
    let plan = still().tables(REPORT);
    let (world, roots) = tls::world(plan, ", client_ca = \"callers.pem\"", &files).await;
    let get = async |names: &[&str]| {
        tls::get(&world, &roots, Some(&authority.identity("a tool", names)), ORG, &[]).await.unwrap()
    };
    for names in [
        &["spiffe://td/ns/finance/sa/dashboard"][..],
        &["SPIFFE://TD/ns/finance/sa/dashboard"],
        &["report.INTERNAL"],
        &["Ann@EXAMPLE.com"],
        &["REPORT"],
        &["tool.internal", "bob@example.com", "spiffe://td/ns/finance/sa/dashboard"],
        &["report", "report.internal", "spiffe://td/ns/finance/sa/dashboard"],
    ] {
        get(names).await.expect(200);
        let record = world.last_record().await;
        assert_eq!((&record["caller"], &record["credential"]), (&"report".into(), &"certificate".into()), "{names:?}");
    }
    for name in [
        "spiffe://td/ns/finance/sa/Dashboard",
        "spiffe://td/ns/finance/sa/dashboard/",
        "spiffe://td/ns/finance",
        "spiffe://report.internal",
        "ann@example.com",
        "example.com",
        "x.report.internal",
    ] {
        let refused = get(&[name]).await.refused(401, "MG118");
        assert!(refused.text().contains(&format!("`{name}`")), "{refused:?}");
    }
    get(&["report.internal", "reader"]).await.refused(400, "MG104");
    // Operators see them.
    let operator = world.service.operator_addresses()[0];
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    let page = async |target: &str| send(operator, "GET", target, &key, "").await.expect(200).json();
    let callers = page("/callers.json").await;
    let report = callers["callers"].as_array().unwrap().iter().find(|caller| caller["name"] == "report").unwrap();
    let names = ["spiffe://td/ns/finance/sa/dashboard", "report.internal", "Ann@example.com"];
    assert_eq!(report["certificates"], serde_json::json!(names));
    let explained = page(&format!("/explain.json?caller=report&target={ORG}")).await.to_string();
    let by =
        format!("report is known by a client certificate with its name, 3 certificate names ({})", names.join("; "));
    assert!(explained.contains(&by), "{explained}");
    // A reload takes one away.
    let text = std::fs::read_to_string(world.file()).unwrap();
    std::fs::write(world.file(), text.replace("spiffe://td/ns/finance/sa/dashboard", "spiffe://td/new")).unwrap();
    world.reload().await;
    get(&["spiffe://td/ns/finance/sa/dashboard"]).await.refused(401, "MG118");
    get(&["spiffe://td/new"]).await.expect(200);
    let log = world.log().await;
    let told = log.iter().rfind(|record| record["event"] == "reload").unwrap()["detail"].as_str().unwrap();
    let change = "; caller report: +certificate spiffe://td/new, -certificate spiffe://td/ns/finance/sa/dashboard";
    assert!(told.ends_with(change), "{told}");
}

/// What a browser adds to a request of a page, as header lines, and whether the request is the door's own.
const PAGES: [(&[&str], bool); 9] = [
    (&[], true),
    (&["origin: https://localhost", "sec-fetch-site: same-origin"], true),
    (&["origin: https://LOCALHOST:443"], true),
    (&["sec-fetch-site: none"], true),
    (&["origin: https://localhost:8443"], false),
    (&["origin: http://localhost"], false),
    (&["origin: null"], false),
    (&["origin: https://evil.example"], false),
    (&["sec-fetch-site: same-site"], false),
];

#[tokio::test]
async fn a_browser_may_use_a_certificate_from_the_doors_own_pages_alone() {
    let authority = Authority::new();
    let files = [("callers.pem", &*authority.pem)];
    let (world, roots) = tls::world(still(), ", client_ca = \"callers.pem\"", &files).await;
    let all = authority.identity("", &["all"]);
    for (headers, is_own) in PAGES {
        let reply = tls::get(&world, &roots, Some(&all), ORG, headers).await.unwrap();
        if is_own {
            reply.expect(200)
        } else {
            reply.refused(403, "MG134")
        };
        // A key is nothing that a browser adds by itself.
        let key = format!("authorization: Token {ALL}");
        let keyed = [&[&*key], headers].concat();
        tls::get(&world, &roots, None, ORG, &keyed).await.unwrap().expect(200);
    }
    for (kind, status) in [("application/json", 200), ("text/plain", 403), ("application/x-www-form-urlencoded", 403)] {
        let mut stream = tls::connect(&world, &roots, &[], Some(&all)).await.unwrap();
        let reply = exchange(&mut stream, "PATCH", ORG, &format!("content-type: {kind}\r\n"), "{}").await;
        assert_eq!(reply.unwrap().status, status, "{kind}");
    }
    assert_eq!(world.received("PATCH", ORG), 1);
}

/// One request on a connection that stays open. `None`: the connection ended instead.
async fn exchange(
    stream: &mut TlsStream<TcpStream>,
    method: &str,
    target: &str,
    lines: &str,
    body: &str,
) -> Option<Reply> {
    let length = body.len();
    let head = format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\n{lines}content-length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).await.ok()?;
    read_reply(stream).await
}

async fn read_reply(stream: &mut TlsStream<TcpStream>) -> Option<Reply> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if body.len() >= length.unwrap_or(0) {
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return Some(Reply { status, head: head.to_owned(), body: body.as_bytes().to_vec() });
            }
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// A world that trusts an authority, a caller's certificate from it, and a connection that has used the certificate.
struct Certified {
    world: World,
    roots: Arc<RootCertStore>,
    authority: Authority,
    caller: Identity,
    stream: TlsStream<TcpStream>,
}

async fn certified(more: &str, files: &[(&str, &str)]) -> Certified {
    let authority = Authority::new();
    let files = [&[("callers.pem", &*authority.pem)], files].concat();
    let more = format!(", client_ca = \"callers.pem\"{more}");
    let (world, roots) = tls::world(Plan::default(), &more, &files).await;
    let caller = authority.numbered(7, &["all"]);
    let mut stream = tls::connect(&world, &roots, &[], Some(&caller)).await.unwrap();
    exchange(&mut stream, "GET", ORG, "", "").await.unwrap().expect(200);
    Certified { world, roots, authority, caller, stream }
}

impl Certified {
    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.world.dir.path().join(file), text).unwrap();
    }

    fn failures(&self, why: HandshakeFailure) -> String {
        let reason = why.as_str();
        format!("makegate_tls_handshake_failures_total{{door=\"gateway\",reason=\"{reason}\"}} 1\n")
    }

    async fn metrics(&self) -> String {
        let operator = self.world.service.operator_addresses()[0];
        let key = format!("authorization: Bearer {OPERATOR}\r\n");
        send(operator, "GET", "/metrics", &key, "").await.expect(200).text().to_owned()
    }

    /// Neither the open connection nor a new one is served any more.
    async fn expect_ended(mut self, why: HandshakeFailure) {
        assert!(exchange(&mut self.stream, "GET", ORG, "", "").await.is_none(), "it is still served");
        assert!(tls::get(&self.world, &self.roots, Some(&self.caller), ORG, &[]).await.is_none());
        // The client may see the end of a handshake before the door has counted it.
        for _ in 0..500 {
            if self.metrics().await.contains(&self.failures(why)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{}", self.metrics().await);
    }
}

#[tokio::test]
async fn an_authority_that_is_taken_away_ends_its_open_connections() {
    let certified = certified("", &[]).await;
    let keyed = format!("authorization: Token {READER}\r\n");
    let mut with_key = tls::connect(&certified.world, &certified.roots, &[], None).await.unwrap();
    exchange(&mut with_key, "GET", ORG, &keyed, "").await.unwrap().expect(200);
    certified.write("callers.pem", &Authority::new().pem);
    certified.world.reload().await;
    certified.expect_ended(HandshakeFailure::UnknownAuthority).await;
    exchange(&mut with_key, "GET", ORG, &keyed, "").await.unwrap().expect(200);
}

#[tokio::test]
async fn an_authority_that_is_taken_away_ends_requests_that_wait() {
    let mut certified = certified("", &[]).await;
    certified.world.sandbox.fault(Fault::once("GET", OTHER, HELD));
    let head = format!("GET {OTHER} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    certified.stream.write_all(head.as_bytes()).await.unwrap();
    until(|| certified.world.received("GET", OTHER) == 1).await;
    certified.write("callers.pem", &Authority::new().pem);
    certified.world.reload().await;
    certified.world.sandbox.clear_faults();
    assert!(read_reply(&mut certified.stream).await.is_none(), "it was answered");
}

#[tokio::test]
async fn a_reload_that_keeps_the_authority_keeps_its_connections() {
    let mut certified = certified("", &[]).await;
    let both = format!("{}{}", Authority::new().pem, certified.authority.pem);
    certified.write("callers.pem", &both);
    certified.world.reload().await;
    exchange(&mut certified.stream, "GET", ORG, "", "").await.unwrap().expect(200);
}

#[tokio::test]
async fn a_revoked_certificate_ends_and_a_bad_list_changes_nothing() {
    let other = Authority::new().revoked(7);
    let mut certified = certified(", crl = [\"crl.pem\"]", &[("crl.pem", &other)]).await;
    for bad in ["", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "no list"] {
        certified.write("crl.pem", bad);
        let told = certified.world.service.reload().await.unwrap_err().to_string();
        assert!(told.contains("crl.pem"), "{told}");
        exchange(&mut certified.stream, "GET", ORG, "", "").await.unwrap().expect(200);
    }
    certified.write("crl.pem", &certified.authority.revoked(8));
    certified.world.reload().await;
    exchange(&mut certified.stream, "GET", ORG, "", "").await.unwrap().expect(200);
    certified.write("crl.pem", &certified.authority.revoked(7));
    certified.world.reload().await;
    certified.expect_ended(HandshakeFailure::CertificateRevoked).await;
}

#[tokio::test]
async fn an_expired_certificate_ends_its_connection() {
    let mut certified = certified("", &[]).await;
    // The certificates of tests expire in the year 4096.
    certified.world.clock.step(jiff::SignedDuration::from_hours(24 * 366 * 2200));
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), certified.stream.read_u8()).await;
    assert!(ended.expect("it stays open").is_err());
}

#[tokio::test]
async fn failed_handshakes_are_counted_by_their_reason() {
    let certified = certified("", &[]).await;
    assert!(crate::support::raw(certified.world.gateway, "GET / HTTP/1.1\r\n\r\n").await.is_none());
    let nobody = Arc::new(RootCertStore::empty());
    assert!(tls::connect(&certified.world, &nobody, &[], None).await.is_err());
    let stranger = Authority::new().identity("", &["all"]);
    assert!(tls::get(&certified.world, &certified.roots, Some(&stranger), ORG, &[]).await.is_none());
    drop(TcpStream::connect(certified.world.gateway).await.unwrap());
    for why in [
        HandshakeFailure::NotTls,
        HandshakeFailure::RefusedByClient,
        HandshakeFailure::UnknownAuthority,
        HandshakeFailure::Closed,
    ] {
        let expected = certified.failures(why);
        for attempt in 0.. {
            let metrics = certified.metrics().await;
            if metrics.contains(&expected) {
                break;
            }
            assert!(attempt < 500, "{why:?}: {metrics}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}
