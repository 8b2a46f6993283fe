//! The demo's tour: every command that it prints works when it is pasted.

use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::command;
use super::processes::Running;

/// What each printed command is known by, its exit code, and what it then prints.
const TOUR: [(&str, i32, &str); 12] = [
    ("/organizations/11#[1-2]", 0, "makegate; hit; ttl="),
    ("/organizations/13", 0, " 403 "),
    ("/organizations#[1-3]", 0, " 429 "),
    ("-X PATCH", 0, "makegate-outcome: done"),
    ("/sandbox/faults", 0, "{\"faults\":[{"),
    ("/organizations/11/invite", 0, "makegate-outcome: in-doubt"),
    ("doubts list", 0, "demo-doubt "),
    ("doubts settle", 0, ""),
    ("explain", 3, "verdict: refuse with 403 MG131"),
    ("audit show", 0, "the invitation was sent"),
    ("audit follow", 0, "MG132"),
    ("http://demo:", 0, "<html"),
];

#[test]
fn every_command_of_the_demo_works_when_it_is_pasted() {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: there is no curl");
        return;
    }
    for options in [&[][..], &["--tls"]] {
        tour(options);
    }
}

fn tour(options: &[&str]) {
    let temporary = tempfile::tempdir().unwrap();
    let arguments = [&["demo", "--port", "0"], options].concat();
    let mut running = Running::start(command(temporary.path(), &arguments).env("TMPDIR", temporary.path()));
    let mut printed = Vec::new();
    loop {
        printed.push(running.line().trim_end().to_owned());
        match printed.last().unwrap().as_str() {
            line if line.starts_with("  http://demo:") => break,
            "" if printed.ends_with(&[String::new(), String::new()]) => panic!("{printed:#?}"),
            _ => {}
        }
    }
    let commands = printed.iter().filter_map(|line| line.strip_prefix("  "));
    let (exports, commands): (Vec<_>, Vec<_>) = commands.partition(|line| line.starts_with("export "));
    assert_eq!((exports.len(), commands.len()), (3, TOUR.len()), "{printed:#?}");
    for (line, (part, code, expected)) in commands.iter().zip(TOUR) {
        assert!(line.contains(part), "{line}");
        let pasted = match part {
            "http://demo:" => format!("curl -sS -H 'Accept: text/html' {line}"),
            // It has seen enough when it has seen this.
            "audit follow" => format!("{line} --refusal {expected} --limit 1"),
            _ => (*line).to_owned(),
        };
        let script = format!("{}\n{pasted}", exports.join("\n"));
        let mut shell = Command::new("sh");
        let ended = shell.args(["-c", &script]).current_dir(temporary.path()).output().unwrap();
        let told = String::from_utf8_lossy(&ended.stdout);
        assert_eq!(ended.status.code(), Some(code), "{pasted}: {ended:?}");
        assert!(told.to_lowercase().contains(&expected.to_lowercase()), "{pasted}: {told}");
    }
    // The variables are those of the lines above.
    let script = format!(
        "{}\ncurl -sS -H \"Authorization: Token $DASHBOARD\" -k \"$GATEWAY/api/v2/organizations/12\"",
        exports.join("\n")
    );
    let asked = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(String::from_utf8_lossy(&asked.stdout).contains("\"id\":12"), "{asked:?}");
    assert_eq!(running.end(Signal::TERM).0, Some(0));
}
