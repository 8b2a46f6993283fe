//! What `check` and `explain` say of credentials that end.

use std::fs;
use std::path::Path;

use makegate::clock::Clock;
use makegate::hash;
use rcgen::{BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair};
use serde_json::Value;

use super::{run, stdout};

/// The day that is this many days from now, as the configuration writes it.
fn day(days: i64) -> String {
    let then = Clock::system().wall() + jiff::SignedDuration::from_hours(24 * days);
    then.to_string()[..10].to_owned()
}

/// The same for certificates.
macro_rules! date {
    ($days:expr) => {{
        let day = day($days);
        rcgen::date_time_ymd(day[..4].parse().unwrap(), day[5..7].parse().unwrap(), day[8..].parse().unwrap())
    }};
}

fn entry(key: &str) -> String {
    format!("sha256:{}", hash::hex(&hash::sha256(key.as_bytes())))
}

/// Writes a certificate, its key, an authority and its revocation list, which end in this many days.
fn write_tls(dir: &Path, [cert, authority, list]: [i64; 3]) {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    (ca.is_ca, ca.not_after) = (IsCa::Ca(BasicConstraints::Unconstrained), date!(authority));
    fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = date!(cert);
    fs::write(dir.join("cert.pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    let list = CertificateRevocationListParams {
        this_update: date!(-100),
        next_update: date!(list),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    fs::write(dir.join("crl.pem"), list.signed_by(&issuer).unwrap().pem().unwrap()).unwrap();
}

/// What `check` says of this configuration beside who runs it, which secrets are missing and who may read them.
fn checked(dir: &Path, text: &str) -> Vec<Value> {
    fs::write(dir.join("m.toml"), text).unwrap();
    let told = stdout(0, &run(dir, &["check", "--config", "m.toml", "-o", "json"]));
    let told = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let usual = ["makegate runs as root", " is missing", "every user of this machine"];
    told.filter(|one| !usual.iter().any(|usual| one["message"].as_str().unwrap().contains(usual))).collect()
}

const LEAST: &str = "operator.key_env = \"K\"\nupstream.token_env = \"T\"\n";

#[test]
fn check_warns_of_keys_that_end_at_their_lines() {
    let dir = tempfile::tempdir().unwrap();
    let key = |name: &str, days| format!("  {{ hash = \"{}\", expires = \"{}\" }},\n", entry(name), day(days));
    let keys = key("past", -3) + &key("soon", 5) + &key("later", 40);
    let told = checked(dir.path(), &format!("{LEAST}[[caller]]\nname = \"ci\"\ngrants = [\"*\"]\nkeys = [\n{keys}]\n"));
    let told: Vec<_> =
        told.iter().map(|one| (one["line"].as_u64().unwrap(), one["message"].as_str().unwrap())).collect();
    let past = format!("a key of caller \"ci\" expired ({})", day(-3));
    let soon = format!("a key of caller \"ci\" expires soon ({})", day(5));
    assert_eq!(told, [(7, &*past), (8, &*soon)]);
}

#[test]
fn check_warns_of_certificates_and_issuers_that_end_or_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let tls = "tls = { cert = \"cert.pem\", key = \"key.pem\", client_ca = \"ca.pem\", crl = [\"crl.pem\"] }\n";
    let issuer =
        "[[issuer]]\nname = \"cluster\"\nissuer = \"https://c\"\naudience = \"m\"\njwks_file = \"jwks.json\"\n";
    let caller = "[[caller]]\nname = \"a\"\ngrants = [\"*\"]\n";
    let text = format!("{LEAST}[gateway]\n{tls}{issuer}{caller}");
    let messages = |text: &str| -> Vec<String> {
        checked(dir.path(), text).iter().map(|one| one["message"].as_str().unwrap().to_owned()).collect()
    };
    write_tls(dir.path(), [40, 40, 40]);
    fs::write(
        dir.path().join("jwks.json"),
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
    )
    .unwrap();
    assert_eq!(messages(&text), [""; 0]);
    write_tls(dir.path(), [-1, 5, -2]);
    fs::write(dir.path().join("jwks.json"), r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#).unwrap();
    let told = messages(&text);
    assert_eq!(told.len(), 4, "{told:#?}");
    for (at, parts) in [
        ["gateway.tls.cert: a certificate in ", "cert.pem\" expired ("],
        ["gateway.tls.client_ca: a certificate in ", "ca.pem\" expires soon ("],
        ["gateway.tls.crl: a revocation list in ", "crl.pem\" expired ("],
        ["the keys of the issuer cluster: ", "jwks.json: it has no key for RS256, ES256 or EdDSA"],
    ]
    .into_iter()
    .enumerate()
    {
        assert!(parts.iter().all(|part| told[at].contains(part)), "{parts:?}: {}", told[at]);
    }
    for file in ["cert.pem", "ca.pem", "crl.pem", "jwks.json"] {
        fs::write(dir.path().join(file), "nothing").unwrap();
    }
    assert_eq!(messages(&text).len(), 4, "{:#?}", messages(&text));
    for file in ["cert.pem", "ca.pem", "crl.pem", "jwks.json"] {
        fs::remove_file(dir.path().join(file)).unwrap();
    }
    assert_eq!(messages(&text), [""; 0], "that they are missing is said once");
}

#[test]
fn check_warns_of_a_certificate_that_nobody_accepts_yet_or_ever() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "{LEAST}[gateway]\ntls = {{ cert = \"cert.pem\", key = \"key.pem\" }}\n[[caller]]\nname = \"a\"\ngrants = [\"*\"]\nkeys = [\"{}\"]\n",
        entry("a")
    );
    let key = KeyPair::generate().unwrap();
    fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
    for (begin, end, told) in
        [(-2, 40, None), (50, 40, Some(") before it begins (")), (2, 40, Some("is not valid before"))]
    {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date!(begin), date!(end));
        fs::write(dir.path().join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let messages: Vec<_> = checked(dir.path(), &text).iter().map(|one| one["message"].to_string()).collect();
        assert_eq!(messages.len(), usize::from(told.is_some()), "{messages:?}");
        told.into_iter().for_each(|told| assert!(messages[0].contains(told), "{messages:?}"));
    }
}

#[test]
fn explain_says_by_what_a_caller_can_be_known_and_refuses_whose_keys_have_all_expired() {
    let dir = tempfile::tempdir().unwrap();
    let caller = |name: &str, lines: &str| format!("[[caller]]\nname = \"{name}\"\ngrants = [\"*\"]\n{lines}\n");
    let expired = |key: &str, days| format!("{{ hash = \"{}\", expires = \"{}\" }}", entry(key), day(days));
    let from = format!("{{ hash = \"{}\", expires = \"{}\", from = [\"10.0.0.0/8\"] }}", entry("a"), day(9));
    let identity = "identities = [{ issuer = \"cluster\", subject = \"system:sa\" }]";
    let text = [
        LEAST.to_owned(),
        "[[issuer]]\nname = \"cluster\"\nissuer = \"https://c\"\naudience = \"m\"\njwks_file = \"jwks.json\"\n"
            .to_owned(),
        caller("gone", &format!("keys = [{}, {}]", expired("x", -9), expired("y", -3))),
        caller("mixed", &format!("keys = [\"{}\", {from}, {}]\nuids = [1000]", entry("b"), expired("z", -3))),
        caller("token", &format!("keys = [{}]\n{identity}", expired("t", -3))),
        caller("none", "keys = []"),
    ];
    fs::write(dir.path().join("m.toml"), text.concat()).unwrap();
    let explain = |name: &str, code: i32| -> Value {
        let asked = ["explain", "--config", "m.toml", "--caller", name, "GET", "/api/v2/organizations", "-o", "json"];
        serde_json::from_str(&stdout(code, &run(dir.path(), &asked))).unwrap()
    };
    let why = |told: &Value| {
        let step = told["steps"].as_array().unwrap().iter().find(|step| step["step"] == "identify").unwrap().clone();
        step["why"].as_str().unwrap().to_owned()
    };
    let gone = explain("gone", 3);
    assert_eq!((&gone["verdict"], &gone["status"], &gone["code"]), (&"refuse".into(), &401.into(), &"MG113".into()));
    assert!(why(&gone).contains(&day(-2)), "the last one's end: {}", why(&gone));
    let id = |key: &str| entry(key)["sha256:".len()..][..8].to_owned();
    let expected = format!(
        "mixed is known by 2 keys ({}; {}, expires {}, only from 10.0.0.0/8), 1 user id (1000); expired: 1 key ({} on {})",
        id("b"),
        id("a"),
        day(9),
        id("z"),
        day(-3)
    );
    assert_eq!(why(&explain("mixed", 0)), expected);
    let token = why(&explain("token", 0));
    assert!(
        token.starts_with("token is known by 1 identity (system:sa of the issuer cluster); expired: 1 key ("),
        "{token}"
    );
    assert_eq!(explain("none", 3)["status"], 401);
}
