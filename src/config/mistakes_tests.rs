//! Tests: the message for each mistake.

use std::fmt::Write as _;
use std::path::Path;

use super::{ConfigError, Diagnostic, LoadedConfig, Severity, parse, read};

const LEAST: &str = "[operator]\nkey_env = \"K\"\n[upstream]\ntoken_env = \"T\"\n";
const CALLER: &str = "[[caller]]\nname = \"a\"\nkeys = []\ngrants = [\"*\"]\n";

fn failure(text: &str) -> ConfigError {
    parse(text, Path::new("m.toml")).expect_err(text)
}

fn each(read: &Result<LoadedConfig, ConfigError>, render: impl Fn(&Diagnostic, &Path, &str) -> String) -> String {
    let (file, text, mistakes) = match read {
        Ok(read) => (&read.origins.file, &read.origins.text, &read.warnings),
        Err(failure) => (&failure.file, &failure.text, &failure.mistakes),
    };
    mistakes.iter().map(|mistake| render(mistake, file, text) + "\n").collect()
}

fn for_people(read: &Result<LoadedConfig, ConfigError>) -> String {
    each(read, |mistake, file, text| mistake.render(file, text, false) + "\n")
}

fn for_programs(read: &Result<LoadedConfig, ConfigError>) -> String {
    each(read, |mistake, file, _| mistake.to_json(file))
}

fn errors(text: &str) -> Vec<Diagnostic> {
    let all = failure(text).mistakes;
    all.into_iter().filter(|mistake| mistake.severity == Severity::Error).collect()
}

/// `LINE: MESSAGE; HELP` of each error.
fn told(text: &str) -> String {
    errors(text).iter().fold(String::new(), |mut told, Diagnostic { line, message, help, .. }| {
        writeln!(told, "{line}: {message}; {}", help.as_deref().unwrap_or("-")).unwrap();
        told
    })
}

fn warnings(text: &str) -> Vec<String> {
    let read = parse(text, Path::new("m.toml")).unwrap_or_else(|failure| panic!("{failure}"));
    let warnings = read.warnings.into_iter().map(|warning| format!("{}: {}", warning.line, warning.message));
    warnings.filter(|warning| !warning.ends_with("is missing")).collect()
}

/// Asserts that `setting`, in this section of an otherwise valid file, is the only mistake, and what its message is.
fn assert_told(section: &str, setting: &str, expected: &str) {
    let text = match section {
        "operator" => format!("[operator]\nkey_env = \"K\"\n{setting}\n[upstream]\ntoken_env = \"T\"\n"),
        "upstream" => format!("{LEAST}{setting}\n"),
        "replicas" => format!("{LEAST}[replicas]\nurl_env = \"U\"\n{setting}\n"),
        "caller" => format!("{LEAST}{CALLER}{setting}\n"),
        other => format!("{LEAST}[{other}]\n{setting}\n"),
    };
    let told: Vec<_> =
        errors(&text).iter().map(|m| format!("{}; {}", m.message, m.help.as_deref().unwrap_or("-"))).collect();
    assert_eq!(told, [expected], "[{section}] {setting}");
}

#[rustfmt::skip]
const SETTINGS: &[(&str, &str, &str)] = &[
    ("cache", "capacity = \"64MB\"", "\"64MB\" is not a size; write \"64MiB\" (the units are B, KiB, MiB, GiB)"),
    ("cache", "capacity = \"64 MiB\"", "\"64 MiB\" is not a size; write \"64MiB\" (the units are B, KiB, MiB, GiB)"),
    ("cache", "capacity = 64", "capacity must be a size, not an integer; write capacity = \"64MiB\""),
    ("cache", "capacity = \"0B\"", "\"0B\" is too small; write at least \"1B\""),
    ("cache", "capacity = \"99999999999GiB\"", "\"99999999999GiB\" is too large; write a smaller size"),
    ("cache", "capactiy = \"1MiB\"", "unknown key \"capactiy\" in cache; did you mean \"capacity\"?"),
    ("cache", "drain = \"1s\"", "unknown key \"drain\" in cache; drain belongs under [limits]"),
    ("cache", "doubt = \"0s\"", "\"0s\" is too short; write a number and ms, s, m, h, d or w: \"500ms\", \"1h30m\", \"400d\""),
    ("cache", "doubt = \"soon\"", "\"soon\" is not a duration; write a number and ms, s, m, h, d or w: \"500ms\", \"1h30m\", \"400d\""),
    ("cache", "doubt = \"90\"", "\"90\" has no unit; write \"90s\" for seconds"),
    ("cache", "doubt = \"-1s\"", "\"-1s\" is negative; write a number and ms, s, m, h, d or w: \"500ms\", \"1h30m\", \"400d\""),
    ("cache", "doubt = \"1mo\"", "\"1mo\" has no fixed length; write it in days, such as \"365d\""),
    ("cache", "doubt = \"9999w\"", "\"9999w\" is too long; write at most 100 years"),
    ("otel", "endpoint = \"collector:4318\"", "\"collector:4318\" begins neither with http:// nor with https://; write the receiver's base URL, such as \"http://127.0.0.1:4318\""),
    ("otel", "endpoint = \"https://me:pw@collector\"", "the URL contains a user, a query or a fragment; write only scheme, host, port and path: what proves who makegate is belongs in headers_file or headers_env"),
    ("otel", "headers_file = \"x\"\nheaders_env = \"Y\"", "both headers_file and headers_env are set; remove one"),
    ("otel", "headers = \"a=b\"", "unknown key \"headers\" in otel; this file must not contain secrets; use headers_file or headers_env"),
    ("otel", "sample = \"101%\"", "\"101%\" is not a percentage; write \"0%\" to \"100%\", such as \"10%\" or \"0.5%\""),
    ("otel", "interval = \"10ms\"", "interval is out of range; write \"1s\" or more"),
    ("replicas", "name = \"a b\"", "\"a b\" cannot be a replica's name; write 1 to 63 letters, digits, dots, dashes and underscores, such as \"makegate-0\""),
    ("replicas", "without = \"serve\"", "\"serve\" is neither refuse nor memory; write \"refuse\" or \"memory\""),
    ("replicas", "records = \"hits\"", "\"hits\" says nothing about records; write \"all\", \"no-hits\", \"writes\" or \"none\""),
    ("replicas", "reserve = \"60%\"", "\"60%\" is not a whole percentage up to 50; write \"0%\" to \"50%\""),
    ("replicas", "lease = \"100ms\"", "lease is out of range; write \"1s\" or more"),
    ("replicas", "lease = \"30s\"", "lease is out of range; write half of upstream.write_deadline or less: the answer to a write may wait for a lease"),
    ("replicas", "keep = \"1h\"", "keep is out of range; write \"1d\" or more: records are dropped by days"),
    ("replicas", "url = \"postgresql://a/b\"", "unknown key \"url\" in replicas; this file must not contain secrets; use url_file or url_env"),
    ("upstream", "quota = \"60/s\"", "\"60/s\" is not a quota; write \"auto\", or Make's limit per organization and minute: \"240/min\""),
    ("upstream", "token = \"abc\"", "unknown key \"token\" in upstream; this file must not contain secrets; use token_file or token_env"),
    ("upstream", "token_file = \"x\"", "both token_file and token_env are set; remove one"),
    ("upstream", "url = \"eu1.make.com\"", "\"eu1.make.com\" does not begin with https://; write only your zone's URL, such as \"https://eu1.make.com\""),
    ("upstream", "url = \"http://eu1.make.com\"", "http is allowed only for this machine; write \"https://eu1.make.com\": the token must not be sent unencrypted"),
    ("upstream", "url = \"https://eu1.make.com/api/v2\"", "\"https://eu1.make.com/api/v2\" has a path, which makegate adds itself; write only your zone's URL, such as \"https://eu1.make.com\""),
    ("upstream", "url = \"https://me:pw@eu1.make.com\"", "the URL contains a user; remove it: the token belongs in token_file or token_env"),
    ("upstream", "connections = 0", "0 is out of range; write 1 to 1000000000"),
    ("upstream", "connections = 1.5", "connections must be an integer, not a float; write connections = 18"),
    ("operator", "listen = []", "listen is empty; write listen = \"127.0.0.1:8081\", or leave it out"),
    ("operator", "listen = \"127.0.0.1:8080\"", "the gateway already listens on this address; give the operator door another address"),
    ("operator", "listen = \"nowhere\"", "\"nowhere\" is not a valid listen address; write an IP address and a port, or unix: and a path: \"127.0.0.1:8081\""),
    ("operator", "listen = 8081", "listen must be an address, not an integer; write listen = \"127.0.0.1:8081\""),
    ("operator", "listen = \"8081\"", "\"8081\" is not a valid listen address; write \"127.0.0.1:8081\" for this machine only, \"0.0.0.0:8081\" for all addresses"),
    ("operator", "listen = \"::1\"", "\"::1\" is not a valid listen address; write \"[::1]:8081\", with a port"),
    ("operator", "listen = [\"::1\"]", "\"::1\" is not a valid listen address; write \"[::1]:8081\", with a port"),
    ("operator", "listen = \"10.0.0.1\"", "\"10.0.0.1\" is not a valid listen address; write \"10.0.0.1:8081\", with a port"),
    ("gateway", "listen = \"::1\"", "\"::1\" is not a valid listen address; write \"[::1]:8080\", with a port"),
    ("metrics", "listen = \"::\"", "\"::\" is not a valid listen address; write \"[::]:9464\", with a port"),
    ("operator", "listen = [\"[::1]:1\", \"[::1]:1\"]", "this address appears twice; remove one"),
    ("operator", "names = [\"https://x\"]", "\"https://x\" is not a host name; write only the name, without scheme or port: \"makegate.internal\""),
    ("operator", "key = \"a-secret\"", "key must be a list of tables; write [[operator.key]]"),
    ("operator", "key = [{ name = \"a\", hash = \"x\", role = \"read\" }]", "write only the SHA-256 of a key here, never the key itself; run `makegate key new --caller NAME` and write the sha256: line it prints; if this was a real key, stop using it"),
    ("metrics", "listen = \"127.0.0.1:8081\"", "the operator door already listens on this address; give the door for scrapers another address"),
    ("audit", "retention = 400", "retention must be a duration, not an integer; write retention = \"400d\""),
    ("upstream", "look = 1", "look must be true or false, not an integer; write look = true"),
    ("audit", "retention_bytes = \"100MiB\"", "retention_bytes is too small; write at least twice `segment`: segments are deleted whole"),
    ("limits", "head_bytes = \"4KiB\"", "head_bytes is out of range; write \"8KiB\" or more: HTTP needs that much"),
    ("limits", "retry_percent = 101", "retry_percent is out of range; write 100 or less"),
    ("limits", "retry_floor = -1", "-1 is negative; write 0 or more"),
    ("gateway.tls", "cert = \"c\"", "key is missing in gateway.tls; add key = \"tls/key.pem\""),
    ("gateway.tls", "cert = \"c\"\nkey = \"k\"\ncrl = [\"l\"]", "crl is set, but client_ca is not; add client_ca, or leave crl out: without client_ca no client certificate is accepted"),
    ("gateway.socket", "mode = \"888\"", "\"888\" is not the mode of a socket; write three octal digits: \"660\" (owner and group) or \"666\" (everybody)"),
    ("gateway.socket", "mode = 660", "mode must be a mode in quotes, not an integer; write mode = \"660\""),
    ("gateway.socket", "group = \"a b\"", "\"a b\" is not the name of a user or group; write its name or its number"),
    ("caller", "identities = [{ issuer = \"x\", subject = \"s\" }]", "no issuer is named \"x\"; add it as [[issuer]]"),
    ("caller", "identities = [{ issuer = \"x\" }]", "subject is missing in caller.a.identities.x; add subject = \"makegate\""),
    ("[issuer]", "name = \"x\"\nissuer = \"i\"\naudience = \"a\"", "neither jwks_file nor jwks_url says where the issuer's public keys are; add jwks_url = \"https://…\", or jwks_file = \"jwks.json\""),
    ("[issuer]", "name = \"x\"\nissuer = \"i\"\naudience = \"a\"\njwks_url = \"http://issuer.example/k\"", "\"http://issuer.example/k\" is not encrypted: anybody on the way could replace the keys; write the platform's jwks_uri: \"https://…\""),
    ("[issuer]", "name = \"x\"\nissuer = \"i\"\naudience = \"a\"\njwks_url = \"https://u:p@h/k\"", "the URL contains a user; remove it: public keys need no password"),
    ("[issuer]", "name = \"x\"\nissuer = \"i\"\naudience = \"a\"\njwks_url = \"https://h/k\"\njwks_file = \"f\"", "both jwks_file and jwks_url are set; remove one"),
    ("[issuer]", "name = \"x\"\nissuer = \"i\"\njwks_file = \"f\"", "audience is missing in issuer.x; add audience = \"makegate\""),
    ("caller", "certificates = [\"10.0.0.1\"]", "\"10.0.0.1\" is not a name that identifies by a certificate; write a whole DNS name, URI or e-mail address: \"report.internal\", \"spiffe://example.org/report\""),
    ("caller", "certificates = [\"a.b\", \"A.B\"]", "\"a.b\" appears twice; remove one"),
    ("caller", "uids = [-1]", "-1 is not a user id; write a number, as `id -u` prints it"),
    ("caller", "uids = [5, 5]", "the user id 5 already identifies caller \"a\"; give each caller its own user"),
    ("caller", "rate = \"10\"", "\"10\" is not a rate; write a number and /s, /min or /h: \"600/min\""),
    ("caller", "rate = \"0/min\"", "\"0/min\" allows no requests; write 1 or more"),
    ("caller", "rate = \"2000000000/s\"", "\"2000000000/s\" is too fast; write at most 1000000000/s: one request per nanosecond"),
    ("caller", "burst = 0", "0 is out of range; write 1 to 4294967295"),
    ("caller", "organizations = []", "organizations is empty; list the organizations, or leave the key out to allow all"),
    ("caller", "organizations = [11, 11]", "11 appears twice; remove one"),
    ("caller", "organizations = [0]", "0 is not an organization id; write an integer, such as 11"),
    ("caller", "organizations = [\"11\"]", "each of organizations must be an organization id, not a string; write 11"),
    ("caller", "may_refresh = \"no\"", "may_refresh must be true or false, not a string; write may_refresh = true"),
    ("cache.lifetime", "organizations.get = \"1m\"", "organizations must be a duration, not a table; put operation ids in quotes, for example \"organizations.list\" = \"5m\""),
    ("cache.lifetime", "\"payments.list\" = \"1m\"", "answers to payments.list are never cached; leave it out: only reads are cached, and none with secrets or expiring links"),
];

#[test]
fn each_mistake_is_told_with_what_to_write_instead() {
    for (section, setting, expected) in SETTINGS {
        assert_told(section, setting, expected);
    }
}

const GET: &str = "method = \"GET\"\npath = \"/api/v2/users/{userId}\"\ngrant = \"users:read\"";
const POST: &str = "method = \"POST\"\npath = \"/api/v2/organizations/{organizationId}/x\"\ngrant = \"users:write\"";
const ID: &str = "id = \"users.x\"";

#[rustfmt::skip]
const ROWS: &[(&[&str], &str)] = &[
    (&["id = \"users\"", GET], "\"users\" is not a valid id; write two or more names of a-z, 0-9 and -, separated by dots: \"users.me\""),
    (&["id = \"organizations.get\"", GET], "the id \"organizations.get\" is already used by GET /api/v2/organizations/{organizationId}; built-in rows cannot be replaced: give this row its own id and path"),
    (&[ID, "method = \"get\"\npath = \"/x\"\ngrant = \"a:read\""], "\"get\" is not a method; did you mean \"GET\"?"),
    (&[ID, "method = \"GET\"\npath = \"x\"\ngrant = \"a:read\""], "a path must begin with `/`: write \"/x\"; -"),
    (&[ID, "method = \"GET\"\npath = \"/x\"\ngrant = \"a\""], "\"a\" is not a valid grant; write a name of a-z, 0-9 and -, then :read or :write: \"users:read\""),
    (&[ID, "method = \"GET\"\npath = \"/api/v2/organizations\"\ngrant = \"a:read\""], "GET /api/v2/organizations is already defined by the row \"organizations.list\"; built-in rows cannot be replaced: give this row its own id and path"),
    (&[ID, GET, "cache = \"usages\""], "the class \"usages\" has no lifetime; did you mean \"usage\"?"),
    (&[ID, GET, "retry = \"once\""], "a GET is always safe to send again; write retry = \"safe\", or leave it out"),
    (&[ID, GET, "body = \"any\""], "a GET takes no body; write body = \"none\", or leave it out"),
    (&[ID, GET, "invalidates = [\"x\"]"], "a GET invalidates nothing; leave invalidates out"),
    (&[ID, GET, "tags = [\"u:{user}\"]"], "{user} is not in the path; the path has {userId}"),
    (&[ID, GET, "tags = [\"u:{/id}\"]"], "\"u:{/id}\" refers to the answer; values from the answer can be used only in invalidates"),
    (&[ID, GET, "quota = \"organization\""], "the path has no {organizationId}; write quota = \"account\", or leave it out"),
    (&[ID, GET, "narrow = \"users\""], "there is nothing to narrow here; use it with scoped = true, for a GET without {organizationId} in its path"),
    (&[ID, GET, "record = [\"email\"]"], "email is never recorded; leave it out: it may hold a secret or personal data"),
    (&[ID, GET, "record = { email = \"scalar\" }"], "email is never recorded; leave it out: it may hold a secret or personal data"),
    (&[ID, GET, "record = { a = \"numbrs\" }"], "\"numbrs\" is not a kind of recorded field; did you mean \"numbers\"?"),
    (&[ID, GET, "query = { a = \"sets\" }"], "\"sets\" is not a kind of parameter; did you mean \"set\"?"),
    (&[ID, GET, "query = { a = { kind = \"set\", default = \"x\" } }"], "a set has no default; leave default out"),
    (&[ID, GET, "query = { a = { kind = \"number\", default = \"x\" } }"], "\"x\" is not a plain decimal; write for example default = \"0\""),
    (&[ID, GET, "query = { a = { kind = \"flag\", default = \"1\" } }"], "\"1\" is not a flag; write default = \"true\" or \"false\""),
    (&[ID, GET, "query = { a = { kind = \"refresh\", default = \"true\" } }"], "a refresh cannot have the default \"true\"; leave default out: it is \"false\""),
    (&[ID, GET, "freshness = \"upstraem\""], "\"upstraem\" is not a freshness; did you mean \"upstream\"?"),
    (&[ID, POST, "retry = \"safe\""], "a POST is a write, and no write is safe; write \"idempotent\" if sending it twice has no further effect, otherwise \"once\""),
    (&[ID, POST, "cache = \"usage\""], "the answer to a POST is never cached; leave cache out"),
    (&[ID, POST, "tags = [\"x\"]"], "the answer to a POST is never cached; list the tags that it makes obsolete in invalidates"),
    (&[ID, POST, "scoped = true"], "scoped is for paths without {organizationId}; leave it out: the caller's scope decides about the organization in the path"),
    (&[ID, GET, "look = { read = \"organizations.list\", at = \"\", proves = \"gone\" }"], "a GET is never in doubt; leave look out"),
    (&[ID, POST, "look = { read = \"organizations.gett\", at = \"\", proves = \"gone\" }"], "\"organizations.gett\" is not a GET operation; did you mean \"organizations.get\"?"),
    (&[ID, POST, "look = { read = \"organizations.update\", at = \"\", proves = \"gone\" }"], "organizations.update is a PATCH, but a look must be a read; name a GET"),
    (&[ID, POST, "look = { read = \"variables.history\", at = \"\", proves = \"gone\" }"], "variables.history has path parameters that the write lacks: /api/v2/organizations/{organizationId}/variables/{variableName}/history; name a GET that uses only path parameters of the write"),
    (&[ID, POST, "look = { read = \"organizations.get\", at = \"organization\", proves = \"gone\" }"], "\"organization\" is not a JSON pointer; write \"/organization\""),
    (&[ID, POST, "look = { read = \"organizations.get\", at = \"\", proves = \"field\" }"], "\"field\" is not a kind of proof; did you mean \"fields\"?"),
    (&[ID, POST, "look = { read = \"organizations.get\", at = \"\", proves = \"absent\" }"], "absent needs a member that identifies the object; add for example member = { name = \"{variableName}\" }"),
    (&[ID, POST, "body = \"none\"\nlook = { read = \"organizations.get\", at = \"\", proves = \"fields\" }"], "this write has no body whose fields a look could compare; write \"gone\" or \"absent\""),
    (&[ID, POST, "look = { read = \"organizations.get\", at = \"\", proves = \"fields\" }"], "an object with these fields may have been there before this write; leave look out: no look proves a create"),
    (&[ID, POST, "look = { read = \"organizations.get\", at = \"\", proves = \"gone\", member = { id = \"{x}\" } }"], "{x} is not in the path; the path has {organizationId}"),
    (&[ID, POST, "look = { read = \"organizations.get\", at = \"\", proves = \"gone\", member = { id = \"{/x}\" } }"], "\"{/x}\" is not a valid value; write a path parameter, such as \"{variableName}\""),
    (&[ID, POST, "look = { read = \"organizations.get\", at = \"\", prove = \"gone\", proves = \"gone\" }"], "unknown key \"prove\" in operation.users.x.look; did you mean \"proves\"?"),
];

#[test]
fn each_mistake_in_a_row_is_told_with_what_to_write_instead() {
    for (lines, expected) in ROWS {
        assert_told("[operation]", &lines.join("\n"), expected);
    }
}

#[test]
fn every_mistake_of_a_file_is_told_at_once() {
    let text = r#"version = 2
[gateway]
lisen = "x"
[operator]
[upstream]
token_env = "T"
deadline = "15"
attempt "3s"
[cache]
capacity = "64MB"
settle = "10s
[[caller]]
name = "a"
keys = ["sha256:00"]
grants = ["organization:read", "users:read"]
[[caller]]
name = "a"
keys = []
grants = ["users:raed"]
[[operation]]
id = "users.me"
method = "GETT"
path = "/api/v2/users/me"
grant = "users:read"
"#;
    let expected = "\
1: this makegate does not support version 2; write version = 1
3: unknown key \"lisen\" in gateway; did you mean \"listen\"?
7: \"15\" has no unit; write \"15s\" for seconds
8: this key has no value; write key = value
10: \"64MB\" is not a size; write \"64MiB\" (the units are B, KiB, MiB, GiB)
11: this string has no end; close it with \"
14: this is not the SHA-256 of a key; write what `makegate key new` prints: sha256: and 64 hex digits
15: no operation requires the grant \"organization:read\"; did you mean \"organizations:read\"?
17: a caller named \"a\" already exists; choose another name
19: no operation requires the grant \"users:raed\"; did you mean \"users:read\"?
22: \"GETT\" is not a method; did you mean \"GET\"?
";
    assert_eq!(told(text), expected);
}

#[test]
fn what_must_be_there_is_asked_for() {
    let expected = "\
1: neither key_file nor key_env says where the secret is; add key_file = \"/run/secrets/operator\", or key_env = \"NAME\" for an environment variable
1: neither token_file nor token_env says where the secret is; add token_file = \"/run/secrets/make\", or token_env = \"NAME\" for an environment variable
";
    assert_eq!(told(""), expected);
    let expected = "\
5: name is missing in caller.1; add name = \"finance-dashboard\"
5: keys is missing: nobody could authenticate as this caller; run `makegate key new --caller NAME` and add the line it prints
5: grants is missing; add for example grants = [\"organizations:read\"]; [\"*\"] grants everything
";
    assert_eq!(told(&format!("{LEAST}[[caller]]\n")), expected);
    let certificates = "[gateway]\ntls = { cert = \"c\", key = \"k\", client_ca = \"a\" }\n[[caller]]\nname = \"a\"\ngrants = [\"*\"]\n";
    assert!(parse(&format!("{LEAST}{certificates}"), Path::new("m.toml")).is_ok());
}

#[test]
fn a_name_in_certificates_belongs_to_one_caller() {
    let caller = |name: &str, names: &str| {
        format!("[[caller]]\nname = \"{name}\"\ngrants = [\"*\"]\ncertificates = [{names}]\n")
    };
    let tls = "[gateway]\ntls = { cert = \"c\", key = \"k\", client_ca = \"a\" }\n";
    let both = |name: &str, one: &str, other: &str| {
        format!(
            "a certificate with the name {name:?} would identify two callers, {one:?} and {other:?}; give each caller certificates of its own"
        )
    };
    let listed = caller("a", "\"spiffe://td/x\"") + &caller("b", "\"SPIFFE://TD/x\"");
    assert_eq!(told(&format!("{LEAST}{listed}")), format!("12: {}\n", both("spiffe://td/x", "a", "b")));
    // Their own names are names in certificates, too, where certificates are taken.
    for (callers, line, name) in [
        (caller("a", "\"B\"") + &caller("b", ""), 12, "b"),
        (caller("a", "") + &caller("b", "\"A\""), 14, "a"),
        (caller("a", "") + &caller("A", ""), 12, "a"),
    ] {
        let second = if callers.contains("name = \"b\"") { "b" } else { "A" };
        assert_eq!(told(&format!("{LEAST}{tls}{callers}")), format!("{line}: {}\n", both(name, "a", second)));
        let without =
            callers.replace("certificates = [\"A\"]", "keys = []").replace("certificates = [\"B\"]", "keys = []");
        assert!(parse(&format!("{LEAST}{without}"), Path::new("m.toml")).is_ok(), "{without}");
    }
    assert_eq!(
        warnings(&format!("{LEAST}{}", caller("a", "\"b.c\""))),
        ["1: callers have certificates, but the gateway asks for none"]
    );
}

#[test]
fn a_key_belongs_to_one_caller() {
    let key = format!("sha256:{}", "0a".repeat(32));
    let text = format!(
        "{LEAST}{CALLER}[[caller]]\nname = \"b\"\ngrants = [\"*\"]\nkeys = [\"{key}\", \"{key}\"]\n[[caller]]\nname = \"c\"\ngrants = [\"*\"]\nkeys = [\"{key}\"]\n"
    );
    let expected = "\
12: this key already belongs to this caller; give each caller its own keys
16: this key already belongs to caller \"b\"; give each caller its own keys
";
    assert_eq!(told(&text), expected);
}

/// What is wrong with a key's table, and what its message is.
#[rustfmt::skip]
const KEYS: &[(&str, &str)] = &[
    ("expires = \"soon\"", "\"soon\" is not a date; write the last day, such as \"2027-01-31\", or a time with its zone, such as \"2027-01-31T18:00:00Z\""),
    ("expires = \"2027-02-30\"", "\"2027-02-30\" is not a date; write the last day, such as \"2027-01-31\", or a time with its zone, such as \"2027-01-31T18:00:00Z\""),
    ("expires = \"2027-01-31T18:00:00\"", "\"2027-01-31T18:00:00\" is not a date; write the last day, such as \"2027-01-31\", or a time with its zone, such as \"2027-01-31T18:00:00Z\""),
    ("expires = 2027-01-31", "expires must be a date in quotes, not a date; write expires = \"2027-01-31\""),
    ("from = []", "from is empty: this key could be used from nowhere; list addresses and networks, such as \"10.0.0.0/8\", or leave it out to allow all"),
    ("from = [\"10.0.0.1/8\"]", "\"10.0.0.1/8\" is an address inside of a network; write \"10.0.0.0/8\" for the network, or the address without /8"),
    ("from = \"10.0.0.0/8\"", "from must be a list, not a string; write from = [\"10.0.0.0/8\"]"),
    ("note = \"\"", "this note is empty, too long or has control characters; write 1 to 200 characters"),
    ("expire = \"2027-01-31\"", "unknown key \"expire\" in caller.b.keys; did you mean \"expires\"?"),
];

#[test]
fn each_mistake_in_a_key_is_told_with_what_to_write_instead() {
    let with = |key: &str| format!("{LEAST}{CALLER}[[caller]]\nname = \"b\"\ngrants = [\"*\"]\nkeys = [{key}]\n");
    let hash = format!("hash = \"sha256:{}\"", "0a".repeat(32));
    for (terms, expected) in KEYS {
        assert_eq!(told(&with(&format!("{{ {hash}, {terms} }}"))), format!("12: {expected}\n"), "{terms}");
    }
    let missing = "12: hash is missing in caller.b.keys; add hash = \"sha256:…\"\n";
    assert_eq!(told(&with("{ note = \"n\" }")), missing);
    let twice = format!("{{ {hash} }}, \"sha256:{}\"", "0a".repeat(32));
    assert_eq!(told(&with(&twice)), "12: this key already belongs to this caller; give each caller its own keys\n");
}

#[test]
fn a_key_whose_last_day_is_given_is_good_for_all_of_it() {
    let key = format!("{{ hash = \"sha256:{}\", expires = \"2027-01-31\" }}", "0a".repeat(32));
    let text = format!("{LEAST}[[caller]]\nname = \"b\"\ngrants = [\"*\"]\nkeys = [{key}]\n");
    let config = parse(&text, Path::new("m.toml")).unwrap().config;
    let expires = config.callers[0].keys[0].expires.clone().unwrap();
    assert_eq!((expires.at.to_string(), &*expires.written), ("2027-02-01T00:00:00Z".to_owned(), "2027-01-31"));
}

#[test]
fn no_secret_is_ever_shown() {
    let secret = "4cb9b7ee-1cb5-4b6e-8bd8-3b1f0dffd1a7";
    let slips = [
        format!("{LEAST}[[caller]]\nname = \"a\"\ngrants = []\nkeys = [\"{secret}\"]\n"),
        format!("{LEAST}[[caller]]\nname = \"a\"\ngrants = []\nkeys = \"s3cr3t\"\n"),
        format!("{LEAST}[[caller]]\nname = \"a\"\ngrants = []\nkeys = [\"s3cr3t\"]\n"),
        format!("{LEAST}[[caller]]\nname = \"a\"\ngrants = []\nkeys = [\"sha256:s3cr3t\"]\n"),
        format!("{LEAST}[[caller]]\nname = \"a\"\ngrants = []\nkeys = [\"s3cr3t]\n"),
        format!("{LEAST}[[caller]]\nname = \"a\"\ngrants = []\nkey = \"s3cr3t\"\n"),
        format!("{LEAST}[[caller]]\nname = \"a\"\ngrants = []\nkeys = [{{ hash = \"s3cr3t\", note = \"n\" }}]\n"),
        format!("{LEAST}[[caller]]\nname = \"a\"\ngrants = []\nkeys = [{{ key = \"s3cr3t\" }}]\n"),
        format!("{LEAST}[[caller]]\nname = \"a\"\ngrants = []\nkeys = {{ hash = \"s3cr3t\" }}\n"),
        "[operator]\nkey_env = \"K\"\n[upstream]\ntoken_env = \"s3cr3t!\"\n".to_owned(),
        "[operator]\nkey_env = \"K\"\n[upstream]\ntoken_env = \"4cb9b7ee-1cb5-4b6e-8bd8-3b1f0dffd1a7\"\n".to_owned(),
        format!("[operator]\nkey_env = \"K\"\n[upstream]\ntoken_file = \"{secret}\"\n"),
        "[operator]\nkey = \"s3cr3t\"\n[upstream]\ntoken = \"s3cr3t\"\n".to_owned(),
        format!("{LEAST}url = \"https://u:s3cr3t@eu1.make.com\"\n"),
        format!("{LEAST}# {secret}\nlisten = 5 # {secret}\n"),
    ];
    for text in slips {
        let failed = parse(&text, Path::new("m.toml"));
        for shown in [for_people(&failed), for_programs(&failed), format!("{failed:?}")] {
            assert!(!shown.contains("s3cr3t") && !shown.contains(secret), "{shown}");
        }
    }
}

#[test]
fn what_is_hardly_meant_is_warned_of() {
    let with = |text: &str| warnings(&format!("{LEAST}{text}\n{CALLER}"));
    assert_eq!(warnings(LEAST), ["1: no caller is configured: every request will be refused"]);
    assert_eq!(with("attempt = \"20s\""), ["5: attempt is longer than deadline"]);
    assert_eq!(
        with("deadline = \"4s\""),
        ["3: attempt is longer than deadline", "3: quota_wait is longer than deadline"]
    );
    assert_eq!(with("[limits]\nin_flight = 9"), ["5: in_flight_per_caller is more than in_flight"]);
    assert_eq!(
        with("[limits]\nanswers_bytes = \"64MiB\""),
        ["5: answer_bytes is more than seven eighths of answers_bytes"]
    );
    assert_eq!(with("[cache.lifetime]\nusages = \"1m\""), ["6: no operation uses the class \"usages\""]);
    assert_eq!(with("[gateway]\nlisten = \"0.0.0.0:80\""), ["6: callers send their keys to this address unencrypted"]);
    let users =
        "[[operation]]\nid = \"users.me\"\nmethod = \"GET\"\npath = \"/me\"\ngrant = \"users:read\"\ncache = \"users\"";
    assert_eq!(with(users), ["10: the class \"users\" has no lifetime: its answers are not cached"]);
    let post = "[[operation]]\nid = \"a.b\"\nmethod = \"POST\"\npath = \"/a\"\ngrant = \"a:write\"\ninvalidates = []";
    assert_eq!(with(post), ["10: a write without tags invalidates everything"]);
}

const TWO: &str = "[operator]\nkey_env = \"K\"\nlisen = \"x\"\n[upstream]\ntoken_env = \"T\"\nattempt = \"20s\"\n";

#[test]
fn for_people_every_mistake_has_its_line_and_what_to_write_instead() {
    let told = for_people(&parse(TWO, Path::new("m.toml")));
    let lisen = "\
error: unknown key \"lisen\" in operator
 --> m.toml:3:1
  |
3 | lisen = \"x\"
  | ^^^^^
  |
  = help: did you mean \"listen\"?

";
    assert!(told.contains(lisen), "{told}");
    assert_eq!((errors(TWO).len(), failure(TWO).mistakes.len()), (1, 5), "{told}");
}

#[test]
fn for_programs_a_mistake_is_a_line_of_json() {
    let told = for_programs(&parse(TWO, Path::new("m.toml")));
    let lisen = "{\"severity\":\"error\",\"file\":\"m.toml\",\"line\":3,\"column\":1,\
        \"message\":\"unknown key \\\"lisen\\\" in operator\",\"help\":\"did you mean \\\"listen\\\"?\"}";
    assert!(told.lines().any(|line| line == lisen), "{told}");
    assert!(told.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{told}");
}

#[test]
fn a_file_that_cannot_be_read_is_a_mistake_too() {
    let expected = "\
error: cannot read the configuration: No such file or directory (os error 2)
--> /nowhere/m.toml
 = help: give the configuration's path: --config FILE

";
    assert_eq!(for_people(&read(Path::new("/nowhere/m.toml"))), expected);
}

/// Secrets as they are copied from somewhere, and what must not be seen of each.
const SECRETS: [(&str, &str); 8] = [
    ("4cb9b7ee-1cb5-4b6e-8bd8-3b1f0dffd1a7", "3b1f0dffd1a7"),
    ("Token 4cb9b7ee-1cb5-4b6e-8bd8-3b1f0dffd1a7", "3b1f0dffd1a7"),
    ("Token s3cr3t-of-another-form", "s3cr3t"),
    ("Bearer eyJhbGciOi.J9.s3cr3t", "s3cr3t"),
    ("-----BEGIN PRIVATE KEY-----\\nMIIs3cr3t\\n-----END PRIVATE KEY-----", "s3cr3t"),
    ("\"\"-----BEGIN PRIVATE KEY-----\nMIIs3cr3t==\n-----END PRIVATE KEY-----\n\"\"", "s3cr3t"),
    ("-----BEGIN PRIVATE KEY-----\nMIIs3cr3t==\nMIIs3cr3t = 5\n-----END PRIVATE KEY-----\n", "s3cr3t"),
    ("https://me:s3cr3t@eu1.make.com", "s3cr3t"),
];

/// Each of these secrets in place of each text of the sample: whether it is refused, warned about or taken, nobody sees it.
#[test]
fn a_secret_in_any_wrong_place_is_seen_nowhere() {
    let sample = include_str!("../../config/makegate.toml");
    let uncommented: String = sample
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|rest| rest.contains(" = \"") || rest.starts_with("[[") || rest.contains(" = {"))
                .unwrap_or(line)
                .to_owned()
                + "\n"
        })
        .collect();
    let quotes: Vec<_> = uncommented.match_indices('"').map(|(at, _)| at).collect();
    let texts: Vec<_> = quotes
        .chunks_exact(2)
        .filter(|pair| {
            let line = uncommented[..pair[0]].rsplit('\n').next().unwrap();
            !line.contains('#') && !uncommented[pair[0]..pair[1]].contains('\n')
        })
        .collect();
    assert!(texts.len() > 80, "{}", texts.len());
    for pair in texts {
        for (secret, seen) in SECRETS {
            let text = format!("{}\"{secret}\"{}", &uncommented[..pair[0]], &uncommented[pair[1] + 1..]);
            let read = parse(&text, Path::new("m.toml"));
            let shown = [
                for_people(&read),
                for_programs(&read),
                match &read {
                    Ok(read) => format!("{:?} {}", read.origins.shown(), read.origins.text),
                    Err(failure) => format!("{failure} {failure:?}"),
                },
            ];
            for shown in shown {
                assert!(!shown.contains(seen), "{secret} in place of {}:\n{shown}", &uncommented[pair[0]..=pair[1]]);
            }
        }
    }
}
