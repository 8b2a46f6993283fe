//! The comments in deploy/ say how to use its files. They have their commands between backticks: those of makegate are ones that it knows,
//! and for each other program there is a reason why this test does not run it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{bash, read, repository};

/// Programs that are not run here, and why.
const OTHERS: [(&str, &str); 16] = [
    ("chmod", "for another user's files"),
    ("chown", "for another user's files"),
    ("curl", "asks the services of compose.yaml, which .ci/deploy/container.py starts and asks"),
    (
        "docker",
        ".ci/deploy/container.py builds the image, and runs it as its head and compose.yaml say, where containers run",
    ),
    ("export", "sets what compose.yaml needs, which .ci/deploy/container.py does, too"),
    ("fluent-bit", ".ci/deploy/log.py reads its configuration"),
    ("helm", ".ci/deploy/kubernetes.py renders the chart; a release needs a cluster"),
    ("install", "writes to /usr and /etc; .ci/deploy/package.py installs the package"),
    ("journalctl", "needs systemd"),
    ("kubectl", "needs a cluster; .ci/deploy/kubernetes.py checks what it would apply"),
    ("makegate", "is run here, up to what it does"),
    ("openssl", "makes a key in the reader's folder"),
    ("promtool", ".ci/deploy/prometheus.py runs it"),
    ("sed", "the address is the reader's"),
    ("systemctl", "needs systemd; .ci/deploy/check.py verifies the units"),
    ("vector", ".ci/deploy/log.py reads its configuration"),
];

/// A command in a comment, or something that looks like one outside of backticks.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Command(String),
    Bare(String),
}

#[test]
fn commands_in_the_comments_of_deploy_are_ones_that_makegate_has() {
    let folder = tempfile::tempdir().unwrap();
    let (mut script, mut programs, mut asked) = ("set +e\n".to_owned(), BTreeSet::new(), 0);
    for file in files(&repository().join("deploy")) {
        let name = file.strip_prefix(repository()).unwrap().to_str().unwrap().to_owned();
        for (line, found) in commands(&name, &read(&name)) {
            let command = match found {
                Found::Command(command) => command,
                Found::Bare(text) => panic!("{name}:{line}: put this command between backticks: {text}"),
            };
            let program = command.split(' ').next().unwrap().to_owned();
            assert!(OTHERS.iter().any(|(known, _)| *known == program), "{name}:{line}: who runs {program}?");
            programs.insert(program);
            // Within a container or a pod, it is the same command.
            let inner = command.find("makegate makegate ").or_else(|| command.find("-- makegate "));
            let inner = inner.and_then(|at| command.get(at..)?.split_once(' ')).map_or(&*command, |(_, inner)| inner);
            if inner.starts_with("makegate ") {
                let asked_for = format!("{inner} --help > /dev/null");
                script += &format!("{asked_for} || {{ echo '{name}:{line}'; exit 1; }}\n");
                asked += 1;
            }
        }
    }
    assert!(asked > 6, "only {asked} commands of makegate");
    let known: BTreeSet<_> = OTHERS.iter().map(|(program, _)| (*program).to_owned()).collect();
    assert_eq!(programs, known, "each of the programs is in a comment");
    let (code, output) = bash(&folder, &script);
    assert_eq!(code, Some(0), "{output}");
}

/// Everything below this folder except for links, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        match (kind.is_dir(), kind.is_file()) {
            (true, _) => found.extend(files(&path)),
            (false, true) => found.push(path),
            (false, false) => {}
        }
    }
    found.sort();
    found
}

fn commands(name: &str, text: &str) -> Vec<(usize, Found)> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    if name.ends_with("NOTES.txt") {
        // What Helm prints has commands on lines of their own, and what it fills in.
        let commands = lines.filter_map(|(at, line)| Some((at, line.strip_prefix("     ")?)));
        let commands = commands.filter(|(_, line)| line.starts_with("kubectl "));
        return commands.map(|(at, line)| (at, Found::Command(filled_in(line)))).collect();
    }
    let comments = lines.filter_map(|(at, line)| Some((at, comment(line)?)));
    comments.flat_map(|(at, comment)| in_comment(comment).into_iter().map(move |found| (at, found))).collect()
}

fn comment(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix('#').or_else(|| line.split_once(" # ").map(|(_, comment)| comment))
}

fn in_comment(comment: &str) -> Vec<Found> {
    let parts: Vec<_> = comment.split('`').collect();
    let spans = parts.iter().skip(1).step_by(2).filter(|span| span.contains(' '));
    let mut found: Vec<_> = spans.map(|span| Found::Command((*span).to_owned())).collect();
    for bare in parts.iter().step_by(2) {
        let words: Vec<_> = bare.split_whitespace().collect();
        let is_command = |pair: &[&str]| match pair {
            ["makegate", word] => ["audit", "check", "doubts", "explain", "key", "serve"].contains(word),
            ["docker", word] => ["build", "compose", "exec", "run"].contains(word),
            ["kubectl", word] => ["apply", "create", "exec", "port-forward"].contains(word),
            _ => false,
        };
        found.extend(words.windows(2).filter(|pair| is_command(pair)).map(|pair| Found::Bare(pair.join(" "))));
    }
    found
}

/// The line with a word for each thing that Helm fills in.
fn filled_in(line: &str) -> String {
    let parts: Vec<_> = line.split("{{").map(|part| part.split_once("}}").map_or(part, |(_, rest)| rest)).collect();
    parts.join("x")
}

#[test]
fn commands_are_found_in_comments_and_nowhere_else() {
    let of = |text: &str| commands("a.yaml", text).into_iter().map(|(_, found)| found).collect::<Vec<_>>();
    let command = |text: &str| Found::Command(text.to_owned());
    assert_eq!(
        of("# 1. `makegate check`, `a b`: `word`\nb: 1 # `c d`\ne: '`f g`'\n"),
        [command("makegate check"), command("a b"), command("c d"),]
    );
    assert_eq!(of("  # run makegate check now\n"), [Found::Bare("makegate check".to_owned())]);
    let notes = commands("NOTES.txt", "1. Do:\n\n     kubectl -n {{ .N }} exec {{ $n }}-0 -- makegate key new\n");
    assert_eq!(notes, [(3, command("kubectl -n x exec x-0 -- makegate key new"))]);
}
