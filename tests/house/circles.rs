//! Circles: files of a module that import each other, directly or by others, belong into one file or apart.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::first_level;
use super::sources;

/// The largest modules, each with the most files that may make up a circle: 1 is none.
const MODULES: [(&str, usize); 5] = [("audit", 2), ("door", 1), ("gateway", 1), ("operator", 1), ("reconcile", 1)];

/// What each file imports, by paths as `gateway/admit/policy`.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_files_import_each_other_in_a_circle() {
    let imports = imports();
    assert!(imports["gateway/life"].contains("gateway/recorder"), "{:?}", imports["gateway/life"]);
    let most = |circle: &[&String]| {
        let module = circle[0].split('/').next();
        MODULES.iter().find(|(name, _)| module == Some(name)).map_or(usize::MAX, |(_, most)| *most)
    };
    let circles: Vec<_> = circles(&imports).into_iter().filter(|circle| circle.len() > most(circle)).collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

/// The imports of every file of `src` from files of its own module. A `mod.rs` stands for what is defined in it: re-exports, and the
/// declarations of what is below it, lead nowhere.
fn imports() -> Imports {
    let files: BTreeMap<String, String> = sources("src")
        .into_iter()
        .filter(|(file, _)| !file.ends_with("tests.rs") && !file.contains("/tests/"))
        .map(|(file, text)| (place(&file), without_tests(&text)))
        .collect();
    files
        .iter()
        .map(|(file, text)| {
            let module = file.split('/').next().unwrap();
            let own = |named: &String| named != file && named.split('/').next() == Some(module);
            (file.clone(), used(file, text).iter().filter_map(|path| defined(&files, path)).filter(own).collect())
        })
        .collect()
}

/// `src/gateway/admit/mod.rs` is `gateway/admit`, `src/gateway/life.rs` is `gateway/life`.
fn place(file: &str) -> String {
    file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod").to_owned()
}

fn without_tests(text: &str) -> String {
    text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned()
}

/// All paths that a file's `use` declarations name, from the root: `gateway/admit/policy/Policy`.
fn used(file: &str, text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let parent = |path: &str| path.rsplit_once('/').map_or(String::new(), |(parent, _)| parent.to_owned());
    for declaration in text.split("\nuse ").skip(1) {
        let mut parts = declaration.split(';').next().unwrap().split(" as ");
        let renamed = |rest: &str| rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').to_owned();
        let declaration = parts.next().unwrap().to_owned() + &parts.map(renamed).collect::<String>();
        let declaration: String = declaration.split_whitespace().collect();
        for path in flattened(&declaration) {
            let mut base = file.to_owned();
            let mut rest = &*path;
            if let Some(absolute) = rest.strip_prefix("crate::") {
                (base, rest) = (String::new(), absolute);
            } else if let Some(own) = rest.strip_prefix("self::") {
                rest = own;
            } else if rest.starts_with("super::") {
                while let Some(above) = rest.strip_prefix("super::") {
                    (base, rest) = (parent(&base), above);
                }
            }
            all.push(format!("{base}/{}", rest.replace("::", "/")).trim_start_matches('/').to_owned());
        }
    }
    all
}

/// `a::{b, c::{self, d}}` as `a::b`, `a::c::self`, `a::c::d`.
fn flattened(declaration: &str) -> Vec<String> {
    let Some((head, group)) = declaration.split_once('{') else { return vec![declaration.to_owned()] };
    let items = first_level(group);
    items.iter().filter(|item| !item.is_empty()).flat_map(|item| flattened(&format!("{head}{item}"))).collect()
}

/// The file that a path leads to; `None`: none of ours, or a name that a module only hands on.
fn defined(files: &BTreeMap<String, String>, path: &str) -> Option<String> {
    let path = path.trim_end_matches("/self");
    if files.contains_key(path) {
        return Some(path.to_owned());
    }
    let (file, name) = path.rsplit_once('/')?;
    let text = files.get(file)?;
    let defines = ["struct", "enum", "fn", "trait", "type", "const", "static"]
        .iter()
        .any(|kind| text.contains(&format!("{kind} {name}")));
    if defines {
        return Some(file.to_owned());
    }
    // A re-export: the file below that it comes from.
    let from =
        text.lines().filter_map(|line| line.trim().strip_prefix("pub")?.split_once("use ")).find_map(|(_, list)| {
            let hands_on = list.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
            hands_on.then(|| list.split("::").next().unwrap().to_owned())
        })?;
    let below = format!("{file}/{from}");
    files.contains_key(&below).then_some(below)
}

/// Files that reach each other, each set once.
fn circles(imports: &Imports) -> Vec<Vec<&String>> {
    let reach: BTreeMap<&String, BTreeSet<&String>> =
        imports.keys().map(|file| (file, reached(imports, file))).collect();
    let mut seen = BTreeSet::new();
    let mut circles = Vec::new();
    for (file, from_here) in &reach {
        let leads_back = |other: &&&String| reach.get(**other).is_some_and(|back| back.contains(*file));
        let circle: Vec<&String> = from_here.iter().filter(leads_back).copied().collect();
        if circle.len() > 1 && seen.insert(circle.clone()) {
            circles.push(circle);
        }
    }
    circles
}

fn reached<'i>(imports: &'i Imports, from: &'i String) -> BTreeSet<&'i String> {
    let (mut reached, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(file) = left.pop() {
        left.extend(imports.get(file).into_iter().flatten().filter(|next| reached.insert(*next)));
    }
    reached
}

#[test]
fn the_scan_for_imports_finds_them() {
    let text = "//! x\nuse std::fmt;\nuse super::super::tree::{Tree, leaf::{self, Leaf as L}};\nuse crate::gateway::admit::policy::Policy;\n";
    let found = used("audit/proof/heads", text);
    assert_eq!(
        found[1..],
        ["audit/tree/Tree", "audit/tree/leaf/self", "audit/tree/leaf/Leaf", "gateway/admit/policy/Policy"]
    );
}
