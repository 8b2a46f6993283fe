//! Manual pages and the environment: each command has its page, each variable its line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::{repository, run, stderr, stdout};
use crate::support::golden;

#[test]
fn every_command_has_a_manual_page_and_every_page_that_is_named_exists() {
    let folder = tempfile::tempdir().unwrap();
    stdout(0, &run(folder.path(), &["man", "--dir", "share/man/man1"]));
    // Again: an upgrade replaces them.
    stdout(0, &run(folder.path(), &["man", "--dir", "share/man/man1"]));
    let files = fs::read_dir(folder.path().join("share/man/man1")).unwrap().map(|file| file.unwrap().path());
    let pages: BTreeMap<String, String> = files
        .map(|file| (file.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&file).unwrap()))
        .collect();
    for (name, page) in &pages {
        let plain = page.replace('\\', "");
        for named in plain.split(|c: char| !(c.is_ascii_alphanumeric() || "-()".contains(c))) {
            let named = named.strip_suffix("(1)").map(|named| named.trim_start_matches("fB").trim_end_matches("fR"));
            assert!(named.is_none_or(|named| pages.contains_key(named)), "{name} names {named:?}");
        }
        let words: Vec<_> = name.split('-').skip(1).collect();
        assert_eq!(stdout(0, &run(repository(), &[&["man"], &words[..]].concat())), *page, "{name}");
        assert!(stdout(0, &run(repository(), &[&["help"], &words[..]].concat())).contains("Usage: makegate"), "{name}");
        for section in [".SH NAME", ".SH SYNOPSIS", ".SH EXAMPLES"] {
            assert!(page.contains(section), "{name} lacks {section}: {page}");
        }
    }
    assert!(pages.len() > 20 && pages.contains_key("makegate-audit-query"), "{:?}", pages.keys());
    let told = stderr(2, &run(repository(), &["man", "audit", "qeury"]));
    assert!(told.contains("no command `makegate audit qeury`; makegate audit has query, show, follow"), "{told}");
    assert!(stderr(2, &run(repository(), &["man", "check", "x"])).contains("no commands below it"));
}

/// The lines of a help's section on the environment: names and meanings.
fn environment(help: &str) -> Vec<(String, String)> {
    let section = help.split_once("\nEnvironment:\n").map(|(_, rest)| rest.split("\n\n").next().unwrap());
    let line = |line: &str| {
        let (name, meaning) = line.trim().split_once("  ").unwrap();
        (name.to_owned(), meaning.trim().to_owned())
    };
    section.into_iter().flat_map(str::lines).map(line).collect()
}

/// `UPDATE_GOLDEN=1` writes the page's table anew.
#[test]
fn every_variable_stands_in_the_help_of_who_reads_it_and_in_the_documents_table() {
    let help = |command: &[&str]| stdout(0, &run(repository(), &[command, &["--help"]].concat()));
    let all = environment(&help(&[]));
    let mut readers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let leaves: Vec<_> = super::COMMANDS.iter().filter(|command| !help(command).contains("\nCommands:\n")).collect();
    for command in &leaves {
        let told = help(command);
        for (name, meaning) in environment(&told) {
            assert!(all.contains(&(name.clone(), meaning)), "{command:?}: {name}");
            readers.entry(name).or_default().push(format!("`{}`", command.join(" ")));
        }
        // What the options name is in the section as well.
        for named in told.split(|c: char| !(c.is_ascii_uppercase() || c == '_')).filter(|word| word.len() > 9) {
            let is_told = environment(&told).iter().any(|(name, _)| name == named);
            assert!(is_told || !named.starts_with("MAKEGATE_"), "{command:?} lacks {named}");
        }
    }
    let row = |(name, meaning): &(String, String)| {
        let by = &readers[name];
        let by = if by.len() == leaves.len() { "every command".to_owned() } else { by.join(", ") };
        format!("| `{name}` | {meaning} | {by} |")
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    let head = "| variable | is | read by |\n| --- | --- | --- |\n";
    golden::compare_between("docs/environment.md", "variables", &(head.to_owned() + &rows.join("\n")));

    let known: BTreeSet<_> = all.iter().map(|(name, _)| &**name).collect();
    let mut files = vec![repository().join("src")];
    while let Some(file) = files.pop() {
        if file.is_dir() {
            files.extend(fs::read_dir(file).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for name in text.split('"').filter(|text| text.starts_with("MAKEGATE_")) {
            // These are for tests and builds.
            let is_variable = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            let is_ours = is_variable && !["MAKEGATE_SEED", "MAKEGATE_SEEDS", "MAKEGATE_COMMIT"].contains(&name);
            assert!(!is_ours || known.contains(name), "{}: {name}", file.display());
        }
    }
}
