//! `docs/promises.md` names the tests of each promise: they exist, and no file of such tests is missing there.

use super::{read, sources};

/// The promises of the design.
const PROMISES: u8 = 14;
const PAGE: &str = "docs/promises.md";

/// Files with names of tests in them: each bullet of a promise's section.
type Named<'p> = Vec<(&'p str, Vec<&'p str>)>;

/// The sections of the page: the promise's number, and what is named there.
fn sections(page: &str) -> Vec<(u8, Named<'_>)> {
    let numbered = page.split("\n## ").skip(1).map(|section| {
        let number = section.split('.').next().and_then(|number| number.parse().ok());
        (number.unwrap_or_else(|| panic!("a section without a number: {section:.40}")), section)
    });
    numbered.map(|(number, section)| (number, section.lines().filter_map(bullet).collect())).collect()
}

/// `- `FILE`: `TEST`, `TEST``.
fn bullet(line: &str) -> Option<(&str, Vec<&str>)> {
    let mut quoted = line.strip_prefix("- ")?.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

/// Is there a test with this name in the text of a file?
pub(super) fn has_test(text: &str, name: &str) -> bool {
    text.split_once(&format!("fn {name}(")).is_some_and(|(before, _)| {
        before
            .lines()
            .rev()
            .take(4)
            .any(|line| matches!(line.trim(), "#[test]" | "proptest! {") || line.contains("#[tokio::test"))
    })
}

#[test]
fn each_promise_names_its_tests_and_they_exist() {
    let page = read(PAGE);
    let sections = sections(&page);
    assert_eq!(sections.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (1..=PROMISES).collect::<Vec<_>>());
    for (number, named) in &sections {
        assert!(!named.is_empty(), "{PAGE}: no test holds promise {number}");
        for (file, tests) in named {
            let text = read(file);
            assert!(!tests.is_empty(), "{PAGE}: promise {number} names no test of {file}");
            for test in tests {
                assert!(has_test(&text, test), "{PAGE}: promise {number}: {file} has no test {test}");
            }
        }
    }
}

#[test]
fn each_file_of_a_promises_tests_is_run_and_named() {
    let (main, page) = (read("tests/promises/main.rs"), read(PAGE));
    let sections = sections(&page);
    for (file, text) in sources("tests/promises") {
        let module = file.trim_start_matches("tests/promises/").trim_end_matches(".rs");
        if module == "main" {
            continue;
        }
        let number: u8 = module
            .get(1..3)
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("{file}: of which promise?"));
        assert!(text.starts_with(&format!("//! Promise {number}")), "{file} begins with another promise");
        assert!(main.contains(&format!("mod {module};")), "{file} is not run");
        let own = sections.iter().filter(|(of, _)| *of == number).flat_map(|(_, named)| named);
        assert!(own.into_iter().any(|(named, _)| *named == file), "{PAGE}: promise {number} does not name {file}");
    }
}

#[test]
fn a_test_is_told_from_what_is_none() {
    let text =
        "#[test]\nfn one() {}\n#[tokio::test(flavor = \"multi_thread\")]\nasync fn two() {}\n\n\n\n\nfn three() {}\n";
    assert_eq!(["one", "two", "three", "four"].map(|name| has_test(text, name)), [true, true, false, false]);
    assert_eq!(bullet("- `a.rs`: `b`, `c`"), Some(("a.rs", vec!["b", "c"])));
}
