//! Promise 2 (and 1, 10, 14), for callers that are known by a platform's token.

use std::time::Duration;

use makegate::clock::Clock;
use makegate::quota::BucketId;
use makegate::sandbox::Fault;
use makegate::tasks::Tasks;
use serde_json::{Value, json};

use crate::support::issuer::{ALGORITHMS, AUDIENCE, Answering, ISSUER, KeyServer, Platform, SUBJECT, claims, text};
use crate::support::{ALL, HELD, LIST, OPERATOR, ORG, Plan, World, new_dir, send, until, with_key};

const KEYS: &str = "jwks_file = \"jwks.json\"";

/// An issuer with these keys, and a caller `dashboard` that its tokens identify.
fn tables(keys: &str) -> String {
    format!(
        "[[caller]]\nname = \"dashboard\"\nidentities = [{{ issuer = \"cluster\", subject = \"{SUBJECT}\" }}]\ngrants = [\"*\"]\n\
         organizations = [11]\nrate = \"1000000/min\"\nburst = 100000\n\
         [[issuer]]\nname = \"cluster\"\nissuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\n{keys}\n"
    )
}

/// A world that has the platform's keys in a file.
async fn world(plan: Plan, platform: &Platform) -> World {
    let dir = new_dir();
    std::fs::write(dir.path().join("jwks.json"), platform.jwks()).unwrap();
    plan.tables(&tables(KEYS)).start_in(dir).await
}

fn now(clock: &Clock) -> i64 {
    clock.wall().as_second()
}

#[tokio::test]
async fn a_token_identifies_its_caller_and_is_neither_sent_nor_recorded() {
    let platform = Platform::new("a");
    let world = world(Plan::default(), &platform).await;
    for algorithm in ALGORITHMS {
        let token = platform.token(algorithm, &claims(now(&world.clock), 600));
        for _ in 0..2 {
            world.get(&token, ORG).await.expect(200);
        }
        world.get(&token, "/api/v2/organizations/12").await.refused(403, "MG132");
        let record = world.last_record().await;
        assert_eq!((&record["caller"], &record["credential"]), (&"dashboard".into(), &"token".into()), "{record}");
        let hash = makegate::hash::hex(&makegate::hash::sha256(token.as_bytes()));
        assert_eq!(record["key"], hash[..8], "{record}");
        let key = format!("authorization: Bearer {OPERATOR}\r\n");
        let found = format!("/audit.json?key={}", &hash[..8]);
        let found = send(world.service.operator_addresses()[0], "GET", &found, &key, "").await.expect(200).json();
        assert_eq!(found["records"].as_array().unwrap().len(), 3, "{found}");
        // In a query it is the request's own credential.
        world.get(&token, &format!("{ORG}?x={token}")).await.refused(400, "MG106");
        let (log, sent) = (format!("{:?}", world.log().await), format!("{:?}", world.sandbox.received()));
        for part in token.split('.') {
            assert!(!log.contains(part) && !sent.contains(part), "{part}");
        }
    }
}

/// The claims of a token, changed.
fn with(claims: &Value, name: &str, value: Value) -> Value {
    let mut changed = claims.clone();
    changed[name] = value;
    changed
}

#[tokio::test]
async fn a_token_with_anything_wrong_is_refused() {
    let (platform, other) = (Platform::new("a"), Platform::new("a"));
    let world = world(Plan::default(), &platform).await;
    let at = now(&world.clock);
    let good = claims(at, 600);
    let header = |algorithm: &str, id: &str| json!({"alg": algorithm, "kid": id});
    let es = platform.key_id("ES256");
    let unsigned = format!("{}.{}.", text(json!({"alg": "none"}).to_string()), text(good.to_string()));
    let tampered = {
        let token = platform.token("ES256", &good);
        let parts: Vec<&str> = token.split('.').collect();
        format!("{}.{}.{}", parts[0], text(with(&good, "sub", "x".into()).to_string()), parts[2])
    };
    let mut cases: Vec<(String, &str)> = vec![
        (unsigned, "MG116"),
        (tampered, "MG116"),
        (platform.signed("RS256", &header("HS256", &es), &good), "MG116"),
        (platform.signed("ES256", &header("RS256", &es), &good), "MG116"),
        (platform.signed("ES256", &header("RS384", &es), &good), "MG116"),
        (platform.signed("ES256", &header("ES256", "another"), &good), "MG116"),
        (platform.signed("ES256", &json!({"alg": "ES256", "kid": es, "crit": ["exp"]}), &good), "MG116"),
        (format!("{}=", platform.token("ES256", &good)), "MG116"),
        ("eyJ..".to_owned(), "MG116"),
        ("eyJ.a".to_owned(), "MG112"),
        (format!("eyJ{}.a.b", "x".repeat(9000)), "MG112"),
        (platform.token("ES256", &with(&good, "iss", "https://other.test".into())), "MG115"),
        (platform.token("ES256", &with(&good, "iss", Value::Null)), "MG115"),
        (platform.token("ES256", &with(&good, "sub", "system:serviceaccount:finance:other".into())), "MG117"),
        (platform.token("ES256", &with(&good, "sub", Value::Null)), "MG116"),
        (platform.token("ES256", &with(&good, "aud", "other".into())), "MG116"),
        (platform.token("ES256", &with(&good, "aud", json!([]))), "MG116"),
        (platform.token("ES256", &with(&good, "aud", Value::Null)), "MG116"),
        (platform.token("ES256", &with(&good, "exp", (at - 31).into())), "MG116"),
        (platform.token("ES256", &with(&good, "exp", Value::Null)), "MG116"),
        (platform.token("ES256", &with(&good, "exp", json!("soon"))), "MG116"),
        (platform.token("ES256", &with(&good, "nbf", (at + 90).into())), "MG116"),
    ];
    cases.extend(ALGORITHMS.map(|algorithm| (other.token(algorithm, &good), "MG116")));
    for (token, code) in &cases {
        let reply = world.get(token, ORG).await.refused(401, code);
        assert!(reply.header("www-authenticate").is_some(), "{token}");
        assert!(world.last_record().await.get("caller").is_none());
    }
    assert_eq!(world.sandbox.received().len(), 0);
    // Within the leeway, with several audiences, without a key id, as Bearer: all good.
    let spaced = {
        let header = format!("{{\r\n \"alg\": \"EdDSA\", \"kid\": \"{}\"}}", platform.key_id("EdDSA"));
        platform.signed_text("EdDSA", &header, &good.to_string())
    };
    let id_less = platform.signed("EdDSA", &json!({"alg": "EdDSA"}), &good);
    let fine = [
        platform.token("RS256", &with(&good, "exp", (at - 20).into())),
        platform.token("ES256", &with(&good, "nbf", (at + 20).into())),
        platform.token("ES256", &with(&good, "aud", json!(["other", AUDIENCE]))),
        platform.token("ES256", &with(&good, "exp", json!(f64::from(i32::MAX) + 0.5))),
        id_less,
        spaced,
    ];
    for token in &fine {
        let headers = format!("authorization: Bearer {token}\r\n");
        send(world.gateway, "GET", ORG, &headers, "").await.expect(200);
    }
    let twice = format!("authorization: Bearer {}\r\nauthorization: Token {ALL}\r\n", fine[0]);
    send(world.gateway, "GET", ORG, &twice, "").await.refused(400, "MG104");
}

#[tokio::test]
async fn a_token_that_ends_while_its_request_waits_is_of_no_use() {
    let platform = Platform::new("a");
    let times = "quota = \"1/min\"\nquota_wait = \"90s\"\ndeadline = \"100s\"";
    let world = world(Plan::default().set("upstream", times), &platform).await;
    let token = platform.token("ES256", &claims(now(&world.clock), 10));
    world.get(ALL, "/api/v2/organizations/11/usage").await.expect(200);
    let (gateway, headers) = (world.gateway, with_key(&token, &[]));
    let waits = Tasks::new().spawn(async move { send(gateway, "GET", ORG, &headers, "").await });
    until(|| world.service.gateway().quota.view(BucketId::Organization(11)).waiting == 1).await;
    world.clock.advance(Duration::from_secs(61));
    waits.await.unwrap().refused(401, "MG116");
    assert_eq!(world.received("GET", ORG), 0, "it was sent");
    world.get(&token, ORG).await.refused(401, "MG116");
}

/// What is taken away, as a change to the configuration's text, and the code of the refusal.
const TAKEN: [(&str, &str, &str); 4] = [
    (SUBJECT, "system:serviceaccount:finance:other", "MG117"),
    ("audience = \"makegate\"", "audience = \"other\"", "MG116"),
    ("issuer = \"https://issuer.test\"", "issuer = \"https://other.test\"", "MG115"),
    ("name = \"cluster\"\nissuer", "name = \"other\"\nissuer", "MG117"),
];

#[tokio::test]
async fn an_identity_or_an_issuer_that_is_taken_away_identifies_nobody_from_then_on() {
    let platform = Platform::new("a");
    for (from, to, code) in TAKEN {
        let world = world(Plan::default(), &platform).await;
        let token = platform.token("EdDSA", &claims(now(&world.clock), 600));
        world.get(&token, ORG).await.expect(200);
        world.sandbox.fault(Fault::once("GET", LIST, HELD));
        let (gateway, headers) = (world.gateway, with_key(&token, &[]));
        let waits = Tasks::new().spawn(async move { send(gateway, "GET", LIST, &headers, "").await });
        until(|| world.received("GET", LIST) == 1).await;
        let text = std::fs::read_to_string(world.file()).unwrap();
        let mut changed = text.replacen(from, to, 1);
        if to.contains("name = \"other\"") {
            changed = changed.replace("issuer = \"cluster\", subject", "issuer = \"other\", subject");
            changed = changed.replace(SUBJECT, "nobody");
        }
        assert_ne!(changed, text, "{from}");
        std::fs::write(world.file(), changed).unwrap();
        world.reload().await;
        world.get(&token, ORG).await.refused(401, code);
        world.sandbox.clear_faults();
        waits.await.unwrap().refused(401, "MG117");
    }
}

#[tokio::test]
async fn keys_that_are_replaced_in_their_file_count_at_once_and_a_bad_file_changes_nothing() {
    let (platform, next) = (Platform::new("a"), Platform::new("b"));
    let world = world(Plan::default(), &platform).await;
    let claims = claims(now(&world.clock), 600);
    let (token, later) = (platform.token("RS256", &claims), next.token("RS256", &claims));
    world.get(&token, ORG).await.expect(200);
    world.get(&later, ORG).await.refused(401, "MG116");
    let file = world.dir.path().join("jwks.json");
    let private = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AA", "d": "AA"}]}"#;
    for bad in ["", "{}", r#"{"keys": []}"#, private] {
        std::fs::write(&file, bad).unwrap();
        let told = world.service.reload().await.unwrap_err().to_string();
        assert!(told.contains("jwks.json"), "{told}");
        world.get(&token, ORG).await.expect(200);
    }
    std::fs::write(&file, next.jwks()).unwrap();
    world.reload().await;
    world.get(&token, ORG).await.refused(401, "MG116");
    world.get(&later, ORG).await.expect(200);
}

/// A world that fetches the platform's keys.
async fn fetching(platform: &Platform) -> (World, KeyServer) {
    let server = KeyServer::start(&platform.jwks()).await;
    let keys = format!("jwks_url = \"http://{}/jwks.json\"", server.address);
    let world = Plan::default().tables(&tables(&keys)).start().await;
    until(|| server.asked() == 1).await;
    (world, server)
}

#[tokio::test]
async fn an_unknown_key_is_fetched_once_a_minute_whoever_asks() {
    let (platform, next, wrong) = (Platform::new("a"), Platform::new("b"), Platform::new("c"));
    let (world, server) = fetching(&platform).await;
    let token = |platform: &Platform| platform.token("ES256", &claims(now(&world.clock), 600));
    // Also a request that comes before the first fetch has ended.
    world.get(&token(&platform), ORG).await.expect(200);
    server.answer(Answering::With(200, next.jwks()));
    for _ in 0..20 {
        world.get(&token(&wrong), ORG).await.refused(401, "MG116");
    }
    assert_eq!(server.asked(), 1, "less than a minute has passed");
    world.clock.advance(Duration::from_secs(61));
    world.get(&token(&next), ORG).await.expect(200);
    assert_eq!(server.asked(), 2);
    world.get(&token(&platform), ORG).await.refused(401, "MG116");
    world.clock.advance(Duration::from_secs(61));
    until(|| server.asked() == 3).await;
    // A bad answer keeps the keys, and so does none.
    for answering in [Answering::With(500, next.jwks()), Answering::With(200, "{}".to_owned())] {
        server.answer(answering);
        let before = server.asked();
        world.clock.advance(Duration::from_secs(1000));
        until(|| server.asked() > before).await;
        world.get(&token(&next), ORG).await.expect(200);
    }
}

#[tokio::test]
async fn a_server_of_keys_that_hangs_holds_up_nobody_else() {
    let (platform, wrong) = (Platform::new("a"), Platform::new("b"));
    let (world, server) = fetching(&platform).await;
    let token = |platform: &Platform| platform.token("ES256", &claims(now(&world.clock), 3000));
    world.get(&token(&platform), ORG).await.expect(200);
    world.get(ALL, ORG).await.expect(200);
    server.answer(Answering::Never);
    world.clock.advance(Duration::from_secs(61));
    let (gateway, clock) = (world.gateway, Clock::system());
    let began = clock.now();
    let ask = || {
        let headers = with_key(&token(&wrong), &[]);
        Tasks::new().spawn(async move { send(gateway, "GET", ORG, &headers, "").await })
    };
    let waits: Vec<_> = (0..80).map(|_| ask()).collect();
    until(|| server.asked() == 2).await;
    // Keys, remembered tokens and new tokens of known keys go on, many times over while the others wait.
    for _ in 0..50 {
        world.get(ALL, ORG).await.expect(200);
        world.get(&token(&platform), ORG).await.expect(200);
    }
    for wait in waits {
        wait.await.unwrap().refused(401, "MG116");
    }
    assert!(clock.now() - began < Duration::from_secs(30), "they waited for the server");
    assert_eq!(server.asked(), 2);
}
