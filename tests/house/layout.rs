//! Layout: ranks, lengths and names.

use std::collections::BTreeMap;

use super::{read, sources};

/// The most lines of a file.
const LINES_MAX: usize = 500;
/// Names that say nothing.
const NO_NAMES: [&str; 6] = ["utils", "util", "helpers", "manager", "common", "misc"];

#[test]
fn a_module_names_only_modules_of_a_lower_rank() {
    let ranks = ranks();
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        let module = module_of(&file);
        let Some(rank) = ranks.get(&module) else { continue };
        for named in named_modules(&text) {
            let named_rank = ranks.get(&named).unwrap_or_else(|| panic!("{file} names {named}, which lib.rs lacks"));
            let allowed = if module == "sandbox" { named_rank.0 == 0 } else { named_rank < rank };
            if named != module && !allowed {
                wrong.push(format!("{file} (rank {}) names {named} (rank {})", rank.0, named_rank.0));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The one table of ranks is `src/lib.rs`: each `// Rank N` and the modules below it. In rank 0 the order counts too.
fn ranks() -> BTreeMap<String, (u8, usize)> {
    let (mut ranks, mut rank) = (BTreeMap::new(), None);
    for line in read("src/lib.rs").lines() {
        if let Some(rest) = line.strip_prefix("// Rank ") {
            rank = rest.split(':').next().and_then(|number| number.parse().ok());
        }
        if let Some(module) = line.trim_start_matches("pub ").strip_prefix("mod ") {
            let rank = rank.unwrap_or_else(|| panic!("no rank above {module}"));
            ranks.insert(module.trim_end_matches(';').to_owned(), (rank, if rank == 0 { ranks.len() } else { 0 }));
        }
    }
    assert!(ranks.len() > 10, "{ranks:?}");
    ranks
}

/// `src/cache/entry.rs` and `src/cache.rs` belong to `cache`; `src/lib.rs` and `src/main.rs` to nobody.
fn module_of(file: &str) -> String {
    let rest = file.strip_prefix("src/").unwrap();
    rest.split('/').next().unwrap().trim_end_matches(".rs").to_owned()
}

/// The modules in `crate::a::…`, `use crate::{a, b::c}` and `makegate::a` of a text, comments aside.
fn named_modules(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |all, line| all + line + "\n");
    let mut named = Vec::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => named.extend(first_level(group).into_iter().map(|item| word(&item))),
            None => named.push(word(rest)),
        }
    }
    named.retain(|name| !name.is_empty());
    named
}

/// The items of a `{…}` group, those that are groups themselves whole.
pub(super) fn first_level(group: &str) -> Vec<String> {
    let (mut items, mut item, mut depth) = (Vec::new(), String::new(), 0);
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => {
                items.push(std::mem::take(&mut item));
                continue;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        item.push(c);
    }
    items.push(item);
    items
}

/// The identifier that a text begins with.
fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn the_scan_for_modules_finds_them() {
    let text = "use crate::{a, b::{self, c}, d::E};\n// crate::no\nlet x = crate::f::g();\nuse crate::h;";
    assert_eq!(named_modules(text), ["a", "b", "d", "f", "h"]);
}

#[test]
fn no_file_is_longer_than_a_head_can_hold() {
    let long: Vec<_> = ["src", "tests"]
        .into_iter()
        .flat_map(sources)
        .map(|(file, text)| (text.lines().count(), file))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "more than {LINES_MAX} lines: {long:?}");
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    for (file, _) in ["src", "tests"].into_iter().flat_map(sources) {
        let vague = file.split(['/', '.']).any(|part| NO_NAMES.contains(&part));
        assert!(!vague, "{file}");
    }
}

/// What takes the time from the machine, or makes a task that nobody waits for, past `clock::Clock` and `tasks::Tasks`; and who may.
/// (Clippy's list of banned calls holds for the code itself; tests are let off it for the files they touch.)
#[test]
fn tests_take_time_and_tasks_from_where_all_code_does() {
    let banned = ["Instant::now", "SystemTime::now", "Timestamp::now", "tokio::spawn", "env::set_var"];
    let stopwatches = ["src/clock.rs", "tests/promises/p13_deadline.rs", "tests/surface/sandbox/faults.rs"];
    for (file, text) in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        let found = banned.iter().find(|call| text.contains(&format!("{call}(")));
        assert!(found.is_none() || stopwatches.contains(&&*file), "{file} calls {found:?}");
    }
}
