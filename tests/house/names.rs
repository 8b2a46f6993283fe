//! Names: one type, one name. A name that stands twice is a riddle to whoever searches for it.

use std::collections::{BTreeMap, BTreeSet};

use super::sources;

/// The most names that may stand more than once, in percent.
const TWICE_MAX_PERCENT: usize = 3;
/// The words that introduce a type.
const KEYWORDS: [&str; 5] = ["struct", "enum", "trait", "type", "union"];

#[test]
fn hardly_any_type_has_the_name_of_another() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let files = sources("src");
    let for_tests: BTreeSet<_> = files.iter().flat_map(|(_, text)| modules_for_tests(text)).collect();
    for (file, text) in &files {
        if file.trim_end_matches(".rs").split('/').any(|part| for_tests.contains(part)) {
            continue;
        }
        for (line, name) in types(text) {
            places.entry(name).or_default().push(format!("{file}:{line}"));
        }
    }
    assert!(places.len() > 300, "the scan found only {} names", places.len());
    let twice: Vec<_> = places.iter().filter(|(_, at)| at.len() > 1).collect();
    assert!(
        twice.len() * 100 <= places.len() * TWICE_MAX_PERCENT,
        "{} of {} names of types stand more than once: {twice:#?}",
        twice.len(),
        places.len()
    );
}

/// The modules that a file declares for tests alone.
fn modules_for_tests(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[cfg(test)]\nmod ").skip(1).filter_map(|rest| rest.lines().next()?.strip_suffix(';'))
}

/// The types that a file defines, with their lines: those that stand at its top, without those of its tests.
fn types(text: &str) -> Vec<(usize, String)> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().enumerate().filter_map(|(number, line)| Some((number + 1, defined(line)?))).collect()
}

/// The type that a line defines at the top of its file.
fn defined(line: &str) -> Option<String> {
    let mut words = line.split(' ').filter(|word| !word.starts_with("pub"));
    if line.starts_with(' ')
        || line.starts_with("pub(in ")
        || !words.next().is_some_and(|word| KEYWORDS.contains(&word))
    {
        return None;
    }
    let name: String = words.next()?.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

#[test]
fn the_scan_for_types_finds_them() {
    let text = "pub struct A<T> {\nenum B;\n    type Output = ();\npub(super) trait C: D {\nfn struct_of() {}\npub type E = u8;\n\
                #[cfg(test)]\nmod tests {\nstruct No;\n}";
    let names: Vec<_> = types(text).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["A", "B", "C", "E"]);
}
