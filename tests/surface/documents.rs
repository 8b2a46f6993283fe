//! The commands of the documents work: every `sh` block of a page is run, in its order, in one shell and an empty folder, with the real
//! binary; ports, paths and words such as REQUEST are replaced. Comments before a block say what a reader of the page need not know:
//!
//! - `<!-- not run: WHY -->`
//! - `<!-- prints: TEXT | TEXT -->`: its output has these texts
//! - `<!-- exits: CODE -->`: it ends so, and not with 0
//! - `<!-- keeps running, ready at: URL -->`: it goes on while the blocks after it run
//! - `<!-- needs: PROGRAM -->`: it is left out where that is not installed
//! - `<!-- file: NAME -->`: a reader saves the block (of any language) as this file
//! - `<!-- done by hand: COMMAND -->`: what a reader does with an editor, instead of a block
//!
//! `<!-- commands: clone -->` on a page: it begins in a fresh clone of the repository, and nothing runs. `service`: it begins in the folder
//! of a makegate that runs as the Debian package has it (`documents/service.sh`). `https`: the same, and its gateway door speaks TLS.
//! `postgres`: it begins in an empty folder, and starts and stops a PostgreSQL of its own (`documents/postgres.sh`).

mod blocks;
mod deploy;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use tempfile::TempDir;

use self::blocks::Block;

/// What stands before the commands of every page; and of those beside a service.
const BEGINNING: &str = include_str!("documents/begin.sh");
const SERVICE: &str = include_str!("documents/service.sh");
const POSTGRES: &str = include_str!("documents/postgres.sh");
/// The ports that the documents name, and how far each is from the first of those that a test takes.
const PORTS: [(&str, u16); PORT_COUNT as usize] =
    [(":8080", 0), (":8081", 1), (":8082", 2), (":9464", 3), (":8443", 4), (":8090", 5), (":8091", 6), (":5432", 7)];
/// How many those are.
const PORT_COUNT: u16 = 8;
/// What the documents need everywhere; `.ci/run` sees to it that these are there.
const TOOLS: [&str; 4] = ["bash", "curl", "jq", "openssl"];
/// Folders with documents.
const FOLDERS: [&str; 7] = ["", "docs", "docs/clients", "docs/decisions", "benches", "deploy", ".github"];

#[test]
fn the_readme() {
    run("README.md");
}

#[test]
fn getting_started() {
    run("docs/getting-started.md");
}

#[test]
fn the_recipes() {
    run("docs/recipes.md");
}

#[test]
fn the_runbooks() {
    run("docs/runbooks.md");
}

#[test]
fn several_replicas() {
    run("docs/replicas.md");
}

#[test]
fn all_other_pages() {
    let own = ["README.md", "docs/getting-started.md", "docs/recipes.md", "docs/runbooks.md", "docs/replicas.md"];
    for page in pages().iter().filter(|page| !own.contains(&page.as_str())) {
        run(page);
    }
}

#[test]
fn commands_within_a_text_are_ones_that_makegate_has() {
    let folder = tempfile::tempdir().unwrap();
    let mut script = "set +e\n".to_owned();
    // What stood in the changelog was so when it was written.
    for page in pages().iter().filter(|page| *page != "CHANGELOG.md") {
        let text = read(page);
        for (line, command) in blocks::inline_commands(&text) {
            let asked = format!("{} --help > /dev/null", command.replace('…', ""));
            script += &format!("{asked} || {{ echo \"{page}:{line}\"; exit 1; }}\n");
        }
    }
    let (code, output) = bash(&folder, &script);
    assert_eq!(code, Some(0), "{output}");
}

#[test]
fn a_command_that_fails_or_prints_something_else_is_told_with_its_place() {
    let told = |page: &str| session("page", &format!("<!-- commands: clone -->\n{page}")).unwrap_err();
    assert!(told("```sh\nmakegate --version\nmakegate key nwe\n```\n").contains("page:2: exit code 2"));
    assert!(told("```sh\ntrue\n```\n```sh\nfalse | cat\n```\n").contains("page:5: exit code 1"));
    assert!(
        told("<!-- prints: makegated -->\n```sh\nmakegate --version\n```\n").contains("page:3: \"makegated\" is not")
    );
    assert!(told("<!-- exits: 3 -->\n```sh\ntrue\n```\n").contains("page:3: exit code 0, not 3"));
    session("page", "```sh\n").unwrap_err();
    session("page", "<!-- commands: clone -->\n<!-- prints: makegate 0 -->\n```sh\nmakegate --version\n```\n").unwrap();
}

#[track_caller]
fn run(page: &str) {
    session(page, &read(page)).unwrap_or_else(|told| panic!("{told}"));
}

/// Runs the blocks of a page.
fn session(page: &str, text: &str) -> Result<(), String> {
    let blocks = blocks::of(text);
    if blocks.is_empty() {
        return Ok(());
    }
    if let Some(tool) = TOOLS.iter().find(|tool| Command::new(tool).arg("--help").output().is_err()) {
        eprintln!("not tested: {page}, because {tool} is not there");
        return Ok(());
    }
    let beginning = text.lines().find_map(|line| line.strip_prefix("<!-- commands: ")?.strip_suffix(" -->"));
    let folder = tempfile::tempdir().unwrap();
    let prelude = match beginning {
        Some("clone") => {
            clone(folder.path());
            String::new()
        }
        Some(kind @ ("service" | "https")) => format!("kind={kind}\n{SERVICE}"),
        Some("postgres") if !has_postgres() => {
            eprintln!("not tested: {page}, because PostgreSQL is not there");
            return Ok(());
        }
        Some("postgres") => POSTGRES.to_owned(),
        _ => {
            return Err(format!(
                "{page} has commands: begin it with <!-- commands: clone -->, service, https or postgres"
            ));
        }
    };
    let steps = blocks.iter().map(|block| step(page, block)).collect::<String>();
    let script = replaced(&format!("{BEGINNING}{prelude}{steps}\necho '@@@ end'\n"), folder.path());
    let (code, output) = bash(&folder, &script);
    let place = output.rsplit("\n@@@ ").next().and_then(|last| last.lines().next()).unwrap_or_default().to_owned();
    if code != Some(0) {
        let told = output.lines().find_map(|line| line.strip_prefix("@@ exit code ")).map(str::to_owned);
        let told = told.unwrap_or_else(|| code.map_or("none".to_owned(), |code| code.to_string()));
        return Err(format!("{place}: exit code {told}\n{output}"));
    }
    for block in &blocks {
        let mark = format!("\n@@@ {page}:{}\n", block.line);
        let printed = output.split_once(&mark).map_or("", |(_, rest)| rest.split("\n@@@ ").next().unwrap());
        let is_missing = |text: &&String| !printed.contains(text.as_str()) && !printed.contains("@@ left out");
        if let Some(text) = block.prints.iter().find(is_missing) {
            return Err(format!("{page}:{}: {text:?} is not in what it prints: {printed}", block.line));
        }
    }
    Ok(())
}

/// The lines of the script for one block.
fn step(page: &str, Block { line, text, exit_code, ready_at, needs, file, .. }: &Block) -> String {
    let mark = format!("printf '\\n@@@ {page}:{line}\\n'\n");
    let body = match (file, exit_code, ready_at) {
        (Some(name), ..) => format!("mkdir -p \"$(dirname '{name}')\"\ncat > '{name}' <<'@@@'\n{text}@@@\n"),
        (None, Some(code), _) => format!("set +e\n(set -e\n{text}\n)\nended $? {code}\nset -e\n"),
        (None, None, Some(url)) => format!("(\n{text}\n) &\nuntil_ready {url}\n"),
        (None, None, None) => text.clone(),
    };
    match needs {
        Some(program) => format!("{mark}if type {program}; then\n{body}\nelse echo '@@ left out'; fi\n"),
        None => mark + &body,
    }
}

/// Runs it; its exit code, and what it printed on both streams.
fn bash(folder: &TempDir, script: &str) -> (Option<i32>, String) {
    let (bin, out) = (folder.path().join(".bin"), folder.path().join(".out"));
    fs::create_dir_all(&bin).unwrap();
    symlink(crate::support::process::binary(), bin.join("makegate")).unwrap();
    fs::write(folder.path().join(".script"), script).unwrap();
    let printed = fs::File::create(&out).unwrap();
    let mut command = Command::new("bash");
    command.arg("../.script").current_dir(start(folder.path())).env_clear().stdin(Stdio::null());
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", bin.display())).env("HOME", folder.path()).env("repository", repository());
    let status = command.stdout(printed.try_clone().unwrap()).stderr(printed).status().unwrap();
    (status.code(), String::from_utf8_lossy(&fs::read(out).unwrap()).into_owned())
}

/// Where a page's commands begin.
fn start(folder: &Path) -> PathBuf {
    let start = folder.join("makegate");
    fs::create_dir_all(&start).unwrap();
    start
}

/// Debian has PostgreSQL's programs in folders of their own.
fn has_postgres() -> bool {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin/initdb")).any(|program| program.is_file())
}

/// What a fresh clone has.
fn clone(folder: &Path) {
    let start = start(folder);
    for entry in fs::read_dir(repository()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name != "target" && name != ".git" {
            symlink(&path, start.join(name)).unwrap();
        }
    }
}

/// The script with this test's own ports and paths.
fn replaced(script: &str, folder: &Path) -> String {
    let first = free_ports();
    let folder = folder.to_str().unwrap();
    let paths = ["/etc/makegate", "/var/lib/makegate", "/var/backups"];
    let script = paths.iter().fold(placed(script), |text, path| text.replace(path, &format!("{folder}{path}")));
    let ports = PORTS.iter().fold(script, |text, (port, at)| text.replace(port, &format!(":{}", first + at)));
    let demo = format!("makegate demo --port {first}");
    ports.replace("cargo run --release -- ", "makegate ").replace("makegate demo", &demo)
}

/// The script with names of the service's world in place of what the documents say in capitals.
fn placed(script: &str) -> String {
    let parts: Vec<_> = script.split("settle REQUEST").enumerate().collect();
    let settled =
        |(at, part): &(usize, &str)| if *at == 0 { (*part).to_owned() } else { format!("settle payment-{at}{part}") };
    let script: String = parts.iter().map(settled).collect();
    [("REQUEST", "payment-1"), ("CALLER", "provisioning")]
        .iter()
        .fold(script, |text, (word, is)| text.replace(word, is))
}

/// The first of some ports that nobody has, below those that the system gives out.
fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes with neighbouring ids run at the same time: each has fifty ports before it comes to those of the next.
    let own = u16::try_from(std::process::id() % 150).unwrap() * 50;
    loop {
        let first = 20_000 + (own + NEXT.fetch_add(PORT_COUNT, Ordering::Relaxed)) % 7_500;
        if (first..first + PORT_COUNT).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            return first;
        }
    }
}

fn pages() -> Vec<String> {
    let entries = FOLDERS.iter().filter_map(|folder| Some((folder, fs::read_dir(repository().join(folder)).ok()?)));
    let names = entries
        .flat_map(|(folder, entries)| entries.map(move |entry| Path::new(folder).join(entry.unwrap().file_name())));
    let mut pages: Vec<_> =
        names.map(|path| path.to_str().unwrap().to_owned()).filter(|name| name.ends_with(".md")).collect();
    pages.sort();
    pages
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(page: &str) -> String {
    fs::read_to_string(repository().join(page)).unwrap()
}
