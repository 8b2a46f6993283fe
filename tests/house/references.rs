//! Whoever follows a reference finds what it names: no document stands outside of the repository.

use std::fs;
use std::path::Path;

use super::{golden, sources};

#[test]
fn every_document_that_is_named_is_there() {
    let root = golden::file("");
    let mut missing = Vec::new();
    let folders = ["src", "tests", "benches"].map(sources).concat();
    let documents = documents(&root);
    for (file, text) in folders.iter().chain(&documents) {
        for name in named(text) {
            let beside = root.join(file).parent().map(|folder| folder.join(name));
            let is_there = root.join(name).is_file() || beside.is_some_and(|path| path.is_file());
            if !is_there {
                missing.push(format!("{file}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "documents that nobody can find: {missing:#?}");
}

/// The Markdown files of the repository, by their paths.
fn documents(root: &Path) -> Vec<(String, String)> {
    let folders = ["", "docs", "docs/clients", "docs/decisions", "benches", "deploy"];
    let entries = folders.iter().filter_map(|folder| Some((folder, fs::read_dir(root.join(folder)).ok()?)));
    let files = entries.flat_map(|(folder, entries)| entries.map(move |entry| (folder, entry.unwrap().path())));
    files
        .filter(|(_, path)| path.extension().is_some_and(|extension| extension == "md"))
        .map(|(folder, path)| {
            let name = path.file_name().unwrap().to_str().unwrap();
            (Path::new(folder).join(name).to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect()
}

/// What looks like the path of a Markdown file.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "._-/".contains(c)));
    words.map(|word| word.trim_end_matches('.')).filter(|word| word.len() > 3 && word.ends_with(".md"))
}

#[test]
fn a_reference_is_recognised() {
    let found: Vec<_> =
        named("see `docs/auditing.md`, [two](./README.md#try-it) and CHANGELOG.md. Not .md or x.mdx").collect();
    assert_eq!(found, ["docs/auditing.md", "./README.md", "CHANGELOG.md"]);
}
