//! The command line as people and scripts meet it: the real binary, its output and its exit codes.

mod confined;
mod doubts;
mod endings;
mod files;
mod manuals;
mod processes;
mod records;
mod replicas;
mod service_manager;
mod tour;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use makegate::hash;
use rustix::process::geteuid;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::Value;

/// The binary with these arguments, in this folder, without what the tester's environment says to makegate.
fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(crate::support::process::binary());
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["CONFIG", "LOG", "OPERATOR_URL", "OPERATOR_KEY", "OPERATOR_KEY_FILE", "OPERATOR_CA", "OPERATOR_CERT"] {
        command.env_remove(format!("MAKEGATE_{name}"));
    }
    command.env_remove("NO_COLOR").env_remove("COLUMNS").env_remove("CREDENTIALS_DIRECTORY");
    command
}

/// What it prints and how it ends.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// Stdout of what must end with this code.
#[track_caller]
fn stdout(code: i32, output: &Output) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Stderr of what must end with this code.
#[track_caller]
fn stderr(code: i32, output: &Output) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

const COMMANDS: [&[&str]; 30] = [
    &["doubts"],
    &["doubts", "list"],
    &["doubts", "settle"],
    &[],
    &["serve"],
    &["demo"],
    &["check"],
    &["sandbox"],
    &["key", "new"],
    &["key", "hash"],
    &["cert"],
    &["cert", "new"],
    &["explain"],
    &["audit"],
    &["audit", "query"],
    &["audit", "follow"],
    &["audit", "export"],
    &["audit", "show"],
    &["audit", "verify"],
    &["audit", "head"],
    &["replicas"],
    &["replicas", "init"],
    &["replicas", "status"],
    &["replicas", "leave"],
    &["healthcheck"],
    &["config"],
    &["config", "show"],
    &["completions"],
    &["man"],
    &["key"],
];

#[test]
fn every_command_explains_itself_and_ends_with_examples() {
    for command in COMMANDS {
        let short = stdout(0, &run(repository(), &[command, &["-h"]].concat()));
        let long = stdout(0, &run(repository(), &[command, &["--help"]].concat()));
        let words = |text: &str| text.split_whitespace().count();
        assert!(words(&long) >= words(&short), "{command:?}");
        let end = long.rsplit_once("Examples:\n").map(|(_, end)| end);
        let example = |line: &str| line.starts_with("  ") && (line.contains("makegate") || line.contains("curl"));
        assert!(end.is_some_and(|end| end.lines().all(example)), "{command:?}: {long}");
        assert!(short.ends_with(end.unwrap()), "{command:?}: {short}");
    }
    let long = stdout(0, &run(repository(), &["--help"]));
    assert!(long.contains("Exit codes:\n  0  success\n  1  failure\n  2  usage or configuration error\n"), "{long}");
}

#[test]
fn usage_is_2_and_the_version_is_told() {
    let told = format!("makegate {} (commit {})\n", env!("CARGO_PKG_VERSION"), env!("MAKEGATE_COMMIT"));
    assert_eq!(stdout(0, &run(repository(), &["--version"])), told);
    for wrong in [&[] as &[&str], &["sreve"], &["serve"], &["demo", "--port", "65534"], &["audit", "query"]] {
        assert!(!stderr(2, &run(repository(), wrong)).is_empty(), "{wrong:?}");
    }
    let told = stderr(2, &run(repository(), &["audit", "query", "--config", "x", "--status", "abc"]));
    assert_eq!(told, "error: --status: \"abc\" is not valid here; write a status such as 404, or 4xx\n");
    let told = stderr(2, &run(repository(), &["healthcheck", "--url", "localhost"]));
    assert!(told.contains("use http://127.0.0.1:8081"), "{told}");
    let told = stderr(2, &run(repository(), &["healthcheck", "--url", "http://me:s3cr3t@localhost"]));
    assert!(told.contains("@localhost") && !told.contains("s3cr3t"), "{told}");
}

const MISTAKEN: &str = r#"[operator]
key_file = "makegate.toml"
listen = "127.0.0.1"

[upstream]
token_file = "nowhere"
deadlin = "15s"

[[caller]]
name = "dashboard"
keys = ["sha256:0000000000000000000000000000000000000000000000000000000000000000"]
grants = ["organisations:read"]
"#;

const TOLD: &str = r#"error: "127.0.0.1" is not a valid listen address
 --> makegate.toml:3:10
  |
3 | listen = "127.0.0.1"
  |          ^^^^^^^^^^^
  |
  = help: write "127.0.0.1:8081", with a port

warning: the file "nowhere" is missing
 --> makegate.toml:6:14
  |
6 | token_file = "nowhere"
  |              ^^^^^^^^^
  |
  = help: provide the secret before you start makegate

error: unknown key "deadlin" in upstream
 --> makegate.toml:7:1
  |
7 | deadlin = "15s"
  | ^^^^^^^
  |
  = help: did you mean "deadline"?

error: no operation requires the grant "organisations:read"
  --> makegate.toml:12:11
   |
12 | grants = ["organisations:read"]
   |           ^^^^^^^^^^^^^^^^^^^^
   |
   = help: did you mean "organizations:read"?

"#;

const OF_ROOT: &str = "\
warning: makegate runs as root
--> makegate.toml
 = help: run it as a user of its own: whoever takes it over then has no more than that user

";

#[test]
fn check_tells_all_mistakes_at_once_with_place_and_help() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("makegate.toml"), MISTAKEN).unwrap();
    // It is also what key_file names.
    fs::set_permissions(folder.path().join("makegate.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    let checked = run(folder.path(), &["check", "--config", "makegate.toml"]);
    let (told, of_root) = if geteuid().is_root() { (format!("{TOLD}{OF_ROOT}"), 1) } else { (TOLD.to_owned(), 0) };
    assert_eq!(stdout(2, &checked), told);
    assert_eq!(stderr(2, &checked), format!("makegate.toml: not valid; errors: 3, warnings: {}\n", 1 + of_root));

    let checked = run(folder.path(), &["check", "--config", "makegate.toml", "--format", "json"]);
    let mut lines: Vec<Value> = stdout(2, &checked).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.retain(|line| line["message"] != "makegate runs as root");
    let places: Vec<_> = lines.iter().map(|line| (line["line"].as_u64(), line["column"].as_u64())).collect();
    assert_eq!(places, [(3, 10), (6, 14), (7, 1), (12, 11)].map(|(line, column)| (Some(line), Some(column))));
    assert_eq!(lines[2]["help"], "did you mean \"deadline\"?");

    let shown = run(folder.path(), &["config", "show", "--config", "makegate.toml"]);
    assert_eq!(stderr(2, &shown), TOLD);

    let served = run(folder.path(), &["serve", "--config", "makegate.toml"]);
    let logged: Vec<Value> = stderr(2, &served).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told =
        |line: &Value| [&line["level"], &line["msg"], &line["help"]].map(|text| text.as_str().map(str::to_owned));
    let expected = |line: &Value| {
        let severity = if line["severity"] == "warning" { "warn".into() } else { line["severity"].clone() };
        [&severity, &line["message"], &line["help"]].map(|text| text.as_str().map(str::to_owned))
    };
    assert_eq!(logged[2]["place"], "makegate.toml:7:1");
    assert_eq!(logged.iter().map(told).collect::<Vec<_>>(), lines.iter().map(expected).collect::<Vec<_>>());
}

#[test]
fn check_fails_for_a_missing_secret_only_online() {
    let folder = tempfile::tempdir().unwrap();
    let text = "operator.key_file = \"o\"\nupstream = { url = \"http://127.0.0.1:1\", token_file = \"t\" }\n";
    fs::write(folder.path().join("makegate.toml"), text).unwrap();
    let check = |more: &[&str]| run(folder.path(), &[&["check", "--config", "makegate.toml"], more].concat());
    let warnings = if geteuid().is_root() { 4 } else { 3 };
    assert_eq!(stderr(0, &check(&[])), format!("makegate.toml: valid; errors: 0, warnings: {warnings}\n"));
    let told = stdout(2, &check(&["--online"]));
    assert!(told.contains("error: the operator key: the file \"o\" does not exist"), "{told}");
    assert!(told.contains("error: the Make token: the file \"t\" does not exist"), "{told}");

    fs::write(folder.path().join("o"), "operator-key").unwrap();
    fs::write(folder.path().join("t"), "a-token-of-make").unwrap();
    let told = stdout(2, &check(&["--online"]));
    assert!(told.contains("error: cannot reach 127.0.0.1:1: "), "{told}");
    assert!(told.contains("warning: the operator key has fewer than 20 characters"), "{told}");
    assert!(!told.contains("error: the operator key"), "{told}");
}

/// What of the machine would stop `serve`: `check` says the same, as a warning where that may be otherwise elsewhere or later.
#[test]
fn check_finds_what_would_stop_serve() {
    let folder = tempfile::tempdir().unwrap();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let held = held.local_addr().unwrap();
    for (file, text) in [("file", ""), ("o", "an-operator-key-of-this-test"), ("t", "a-token-of-make-of-this-test")] {
        fs::write(folder.path().join(file), text).unwrap();
    }
    std::os::unix::fs::symlink("nowhere", folder.path().join("link")).unwrap();
    let in_use = format!("listen = \"{held}\"");
    let socket = |more: &str| format!("listen = \"unix:gate\"\nsocket = {{ {more} }}");
    let (user, group) = (socket("owner = \"no-such-user\""), socket("group = \"no-such-group\""));
    // The lines of [gateway] and [audit], what is said of them, and what it is without --online and with it.
    let cases = [
        (&*user, "", "/etc/passwd has no user \"no-such-user\"", "warning", "error"),
        (&*group, "", "/etc/group has no group \"no-such-group\"", "warning", "error"),
        ("listen = \"unix:none/gate\"", "", "the folder \"none\"", "warning", "error"),
        ("listen = \"unix:file\"", "", "a file that is not a socket has this path", "warning", "error"),
        ("listen = \"192.0.2.1:7\"", "", "cannot listen on 192.0.2.1:7", "", "error"),
        (&*in_use, "", "cannot listen on 127.0.0.1:", "", "warning"),
        ("", "dir = \"file\"", "not a directory", "warning", "error"),
        ("", "dir = \"file/audit\"", "", "warning", "error"),
        ("", "dir = \"link\"", "\"link\"", "warning", "error"),
    ];
    for (gateway, audit, words, offline, online) in cases {
        let listen = if gateway.is_empty() { "listen = \"127.0.0.1:0\"" } else { "" };
        let text = format!(
            "[gateway]\n{listen}\n{gateway}\n[operator]\nlisten = \"127.0.0.1:0\"\nkey_file = \"o\"\n\
             [upstream]\nurl = \"http://127.0.0.1:1\"\ntoken_file = \"t\"\n[audit]\n{audit}\n[process]\nconfine = false\n"
        );
        fs::write(folder.path().join("makegate.toml"), &text).unwrap();
        let before = fs::read_dir(folder.path()).unwrap().count();
        let check = |code, more: &[&str]| {
            stdout(code, &run(folder.path(), &[&["check", "--config", "makegate.toml"], more].concat()))
        };
        let told = |output: &str, severity: &str| {
            let is_it = |line: &&str| line.starts_with(severity) && line.to_lowercase().contains(&words.to_lowercase());
            output
                .lines()
                .filter(|line| line.starts_with("error") || line.starts_with("warning"))
                .any(|line| is_it(&line))
        };
        let (without, with) = (check(0, &[]), check(2, &["--online"]));
        let is_said = if offline.is_empty() { !told(&without, "") } else { told(&without, offline) };
        assert!(is_said, "{gateway}{audit}: {without}");
        assert!(told(&with, online), "{gateway}{audit}: {with}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before, "check changes nothing");
        let served = stderr(1, &run(folder.path(), &["serve", "--config", "makegate.toml"]));
        assert!(
            served.to_lowercase().contains(&words.to_lowercase().replace('"', ""))
                || served.replace('\\', "").contains(words),
            "{gateway}{audit}: {served}"
        );
    }
}

#[test]
fn deployed_configurations_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let deploy = |name: &str| fs::read_to_string(repository().join("deploy").join(name)).unwrap();
    let hash = "0".repeat(64);
    let compose = embedded(&deploy("compose.yaml"), "content: |");
    let compose = compose.replace("${DASHBOARD_SHA256:?see the head of this file}", &hash);
    let configurations = [
        deploy("makegate.toml"),
        deploy("container.toml"),
        embedded(&deploy("kubernetes.yaml"), "makegate.toml: |"),
        compose,
    ];
    for text in configurations {
        fs::write(folder.path().join("makegate.toml"), &text).unwrap();
        stdout(0, &run(folder.path(), &["check", "--config", "makegate.toml"]));
        assert!(text.contains("[[caller]]"), "{text}");
    }
}

/// The block of text that begins behind this line of YAML.
fn embedded(yaml: &str, line: &str) -> String {
    let mut lines = yaml.lines().skip_while(|candidate| candidate.trim() != line).peekable();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let parent = depth(lines.next().unwrap());
    let block = lines.take_while(|line| line.is_empty() || depth(line) > parent);
    block.map(|line| line.trim_start().to_owned() + "\n").collect()
}

#[test]
fn a_new_key_is_a_uuid_and_its_callers_table_has_the_hash_of_it() {
    let output = run(repository(), &["key", "new", "--caller", "dashboard"]);
    let told = stdout(0, &output);
    let (key, table) = told.split_once('\n').unwrap();
    let uuid = uuid::Uuid::parse_str(key).unwrap();
    assert_eq!((uuid.get_version_num(), uuid.get_variant(), key.len()), (4, uuid::Variant::RFC4122, 36));
    let entry = format!("sha256:{}", hash::hex(&hash::sha256(key.as_bytes())));
    assert!(!stderr(0, &output).contains(key) && !table.contains(key), "{table}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let least = "[operator]\nkey_env = \"K\"\n[upstream]\ntoken_env = \"T\"\n";
    fs::write(file.path(), format!("{least}{table}")).unwrap();
    stdout(0, &run(repository(), &["check", "--config", file.path().to_str().unwrap()]));
    assert!(table.contains(&format!("[[caller]]\nname = \"dashboard\"\nkeys = [\"{entry}\"]\n")), "{table}");

    let made: Value =
        serde_json::from_str(&stdout(0, &run(repository(), &["key", "new", "--caller", "a", "-o", "json"]))).unwrap();
    let hashed = stdout(0, &run(repository(), &["key", "hash", made["key"].as_str().unwrap()]));
    assert_eq!((&made["caller"], made["hash"].as_str().unwrap()), (&"a".into(), hashed.trim()));
    let as_json = stdout(0, &run(repository(), &["key", "hash", made["key"].as_str().unwrap(), "-o", "json"]));
    assert_eq!(serde_json::from_str::<Value>(&as_json).unwrap(), serde_json::json!({ "hash": made["hash"] }));
    let mut typed =
        command(repository(), &["key", "hash"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(typed.stdin.take().unwrap(), "{key}").unwrap();
    assert_eq!(stdout(0, &typed.wait_with_output().unwrap()).trim(), entry);
    assert!(stderr(2, &run(repository(), &["key", "hash", "a b"])).contains("this is not a key"));
    assert!(stderr(2, &run(repository(), &["key", "new", "--caller", "a b"])).contains("is not a valid caller name"));
}

/// rustls takes the pair for the gateway's and verifies it by the authority, for each name.
#[test]
fn a_new_certificate_is_trusted_by_who_trusts_its_authority() {
    let folder = tempfile::tempdir().unwrap();
    for bad in ["https://gate", "gate:80", "a_b", "*.", ""] {
        let refused = run(folder.path(), &["cert", "new", "--dir", "tls", "--name", bad]);
        assert!(stderr(2, &refused).contains("is not a host name"), "{bad}: {refused:?}");
    }
    let new = ["cert", "new", "--dir", "tls", "--name", "gate.internal", "--name", "*.internal", "--name", "fd00::7"];
    let told = stdout(0, &run(folder.path(), &new));
    let file = |name: &str| folder.path().join("tls").join(name);
    for expected in
        ["NODE_EXTRA_CA_CERTS=", "REQUESTS_CA_BUNDLE=", "SSL_CERT_FILE=", "curl --cacert ", "tls = { cert = "]
    {
        assert!(told.contains(expected), "{told}");
    }
    let cert = CertificateDer::from_pem_file(file("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("key.pem")).unwrap();
    rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert.clone()], key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.pem")).unwrap()).unwrap();
    let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build().unwrap();
    let verify = |name: &str| {
        verifier.verify_server_cert(&cert, &[], &ServerName::try_from(name).unwrap(), &[], UnixTime::now())
    };
    for name in ["localhost", "127.0.0.1", "::1", "gate.internal"] {
        verify(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert!(verify("evil.example").is_err());
    for (name, mode) in [("ca.key", 0o600), ("key.pem", 0o600), ("ca.pem", 0o644)] {
        assert_eq!(fs::metadata(file(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    let before = fs::read(file("key.pem")).unwrap();
    assert!(stderr(1, &run(folder.path(), &new)).contains("already has a ca.pem"));
    assert_eq!(fs::read(file("key.pem")).unwrap(), before);
    assert!(stderr(2, &run(folder.path(), &["cert", "new", "--dir", "x", "--name", "a b\u{e4}"])).contains("--name: "));
}

#[test]
fn settings_are_shown_with_their_origin() {
    let show =
        |format| stdout(0, &run(repository(), &["config", "show", "--config", "deploy/makegate.toml", "-o", format]));
    let table = show("table");
    assert!(table.starts_with("KEY "), "{table}");
    let dir = table.lines().find(|line| line.starts_with("audit.dir ")).map(|line| line.split_whitespace().collect());
    assert_eq!(dir, Some(vec!["audit.dir", "/var/lib/makegate/audit", "deploy/makegate.toml:13"]));
    assert!(show("csv").starts_with("key,value,origin\ngateway.listen,127.0.0.1:8080,default\n"));
    let first: Value = serde_json::from_str(show("json").lines().next().unwrap()).unwrap();
    assert_eq!(first, serde_json::json!({"key": "gateway.listen", "value": "127.0.0.1:8080", "origin": "default"}));
}

#[test]
fn a_decision_is_explained_and_a_refusal_is_its_exit_code() {
    let explain = |method, target, format| {
        let place = ["explain", "--config", "deploy/makegate.toml", "--caller", "dashboard"];
        stdout(
            if method == "GET" { 0 } else { 3 },
            &run(repository(), &[&place[..], &[method, target, "-o", format]].concat()),
        )
    };
    let allowed = explain("GET", "/api/v2/organizations/11", "table");
    assert!(allowed.starts_with("STEP ") && allowed.ends_with("\n\nverdict: allow\n"), "{allowed}");
    let refused = explain("DELETE", "/api/v2/organizations/11", "table");
    assert!(refused.ends_with("\n\nverdict: refuse with 403 MG131\n"), "{refused}");
    let refused: Value = serde_json::from_str(&explain("DELETE", "/api/v2/organizations/11", "json")).unwrap();
    assert_eq!(
        (&refused["verdict"], &refused["status"], &refused["code"]),
        (&"refuse".into(), &403.into(), &"MG131".into())
    );
}

#[test]
fn completions_are_there() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(0, &run(repository(), &["completions", shell]));
        assert!(script.contains("healthcheck"), "{shell}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let arguments = ["config", "show", "--config", "deploy/makegate.toml"];
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command(repository(), &arguments).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[test]
fn the_exit_code_tells_the_result_even_if_nobody_reads_the_output() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.toml"), "[gateway]\nlisten = 1\n").unwrap();
    let sample = repository().join("deploy/makegate.toml");
    let explain = ["explain", "--config", sample.to_str().unwrap(), "--caller", "dashboard", "DELETE"];
    for format in ["table", "json"] {
        let refused = [&explain[..], &["/api/v2/organizations/11", "-o", format]].concat();
        assert_eq!(without_readers(folder.path(), &refused), Some(3), "{format}");
    }
    for format in ["text", "json"] {
        let check = ["check", "--config", "bad.toml", "--format", format];
        assert_eq!(without_readers(folder.path(), &check), Some(2), "{format}");
    }
    let log = folder.path().join("log");
    std::fs::create_dir(&log).unwrap();
    for entry in std::fs::read_dir(repository().join("tests/golden/log-1")).unwrap() {
        let (path, is_segment) = (entry.unwrap().path(), |text: &str| text.contains("\"PATCH\""));
        let bytes = std::fs::read(&path).unwrap();
        let altered = String::from_utf8(bytes.clone()).ok().filter(|text| is_segment(text));
        let altered = altered.map_or(bytes, |text| text.replacen("\"PATCH\"", "\"PUT\"", 1).into());
        std::fs::write(log.join(path.file_name().unwrap()), altered).unwrap();
    }
    assert_eq!(without_readers(folder.path(), &["audit", "verify", "log"]), Some(1));
}

/// The exit code of a command whose stdout and stderr nobody reads any more.
fn without_readers(folder: &Path, arguments: &[&str]) -> Option<i32> {
    let closed = || std::io::pipe().unwrap().1;
    command(folder, arguments).stdout(closed()).stderr(closed()).status().unwrap().code()
}
