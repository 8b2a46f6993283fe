//! What `makegate demo` prints: commands to paste, in the order in which they tell a story.

use std::path::{Path, PathBuf};

use super::demo::{DemoAddresses, DemoCaller};

pub(super) fn text(addresses: &DemoAddresses, callers: &[DemoCaller; 3], operator_key: &str) -> String {
    let DemoAddresses { gateway, operator, sandbox, .. } = addresses;
    let door = operator.trim_start_matches("http://");
    format!(
        "\
makegate demo: the gateway is at {gateway}, the simulated Make at {sandbox}. Press Ctrl-C to stop.
Paste any of these commands into another terminal.

{}
{}
The operator page: {operator}/ (any user name; the password is the operator key), or with the key in its address:
  http://demo:{operator_key}@{door}/
",
        requests(addresses, callers),
        commands(addresses, callers, operator_key),
    )
}

/// What callers send.
fn requests(addresses: &DemoAddresses, [all, reader, slow]: &[DemoCaller; 3]) -> String {
    let DemoAddresses { gateway, sandbox, ca_file, .. } = addresses;
    let trust = ca_file.as_deref().map_or_else(String::new, |file| format!("--cacert {} ", quoted(file)));
    let organizations = format!("{gateway}/api/v2/organizations");
    let curl = |caller: &DemoCaller| format!("curl -i {trust}-H 'Authorization: Token {}'", caller.key);
    let send =
        |method: &str, body: &str| format!("{} -X {method} -H 'Content-Type: application/json' -d '{body}'", curl(all));
    format!(
        "\
A cache hit: two requests (curl makes two of `#[1-2]`), but only one reaches Make (see Cache-Status).
  {} '{organizations}/11#[1-2]'

A 403: {} may see only organizations 11 and 12.
  {} {organizations}/13

A 429: {} may send only two requests at once, and this sends three.
  {} '{organizations}#[1-3]'

A write: it is on disk before Make gets it, and what it changes leaves the cache.
  {} {organizations}/11

A doubt: Make carries the write out, but its answer is lost. The first command arms that fault.
  curl -sS -d '{{\"method\": \"POST\", \"path\": \"/api/v2/organizations/*/invite\", \"kind\": {{\"close\": {{\"effect\": true}}}}}}' {sandbox}/sandbox/faults
  {} -H 'X-Request-Id: {DOUBT}' {organizations}/11/invite
",
        curl(all),
        reader.name,
        curl(reader),
        slow.name,
        curl(slow),
        send("PATCH", "{\"name\": \"Renamed\"}"),
        send("POST", "{\"email\": \"ann@example.com\", \"name\": \"Ann\", \"usersRoleId\": 1}"),
    )
}

/// The id of the request that the demo has go wrong.
const DOUBT: &str = "demo-doubt";

/// What operators run.
fn commands(addresses: &DemoAddresses, callers: &[DemoCaller; 3], operator_key: &str) -> String {
    let DemoAddresses { gateway, operator, sandbox, .. } = addresses;
    let [_, reader, _] = callers;
    let makegate = program();
    let keys: Vec<_> = callers
        .iter()
        .map(|caller| format!("{}={}", caller.name.replace('-', "_").to_uppercase(), caller.key))
        .collect();
    format!(
        "\
The commands of makegate find the operator door by these variables; the other lines are for requests of your own.
  export MAKEGATE_OPERATOR_URL={operator} MAKEGATE_OPERATOR_KEY={operator_key}
  export GATEWAY={gateway} SANDBOX={sandbox}
  export {}

What is in doubt, and what became of it: Make did send the invitation.
  {makegate} doubts list
  {makegate} doubts settle {DOUBT} --as done --note 'the invitation was sent'

What would happen to a request, and why (exit code 3: it would be refused).
  {makegate} explain --caller {} DELETE /api/v2/organizations/11

Who did what, and what they do from now on (Ctrl-C ends it).
  {makegate} audit show {DOUBT}
  {makegate} audit follow --since 1h
",
        keys.join(" "),
        reader.name,
    )
}

/// The name by which a shell finds this program: `makegate` if it is on the PATH.
fn program() -> String {
    let Ok(own) = std::env::current_exe() else { return "makegate".to_owned() };
    let on_path = std::env::var_os("PATH").is_some_and(|path| {
        let found = std::env::split_paths(&path).map(|folder| folder.join("makegate"));
        found.filter_map(|file| canonical(&file)).next() == canonical(&own)
    });
    if on_path { "makegate".to_owned() } else { quoted(&own) }
}

#[expect(clippy::disallowed_methods, reason = "a command may block on its files")]
fn canonical(file: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(file).ok()
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    if is_plain { path } else { format!("'{}'", path.replace('\'', "'\\''")) }
}
