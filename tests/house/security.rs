//! `docs/security.md` names the tests behind each attack's row, and they exist.

use super::promises::has_test;
use super::read;

const PAGE: &str = "docs/security.md";

/// The rows of the page's tables: the attack, and the text of the column with its tests.
fn rows(page: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let cells = lines.filter_map(|line| Some((line.split(" | ").next()?, line.rsplit(" | ").next()?)));
    cells.filter(|(attack, _)| !matches!(*attack, "attack" | "---"))
}

#[test]
fn each_attack_names_its_tests_and_they_exist() {
    let page = read(PAGE);
    let mut attacks = 0;
    for (attack, named) in rows(&page) {
        attacks += 1;
        let mut text = None;
        let mut tests = 0;
        for name in named.split('`').skip(1).step_by(2) {
            if name.contains('/') {
                text = Some((name, read(name)));
                continue;
            }
            let (file, text) = text.as_ref().unwrap_or_else(|| panic!("{PAGE}: {attack}: {name} stands in no file"));
            assert!(has_test(text, name), "{PAGE}: {attack}: {file} has no test {name}");
            tests += 1;
        }
        assert!(tests > 0, "{PAGE}: no test shows what happens to: {attack}");
    }
    assert!(attacks > 20, "{PAGE}: its tables are not read");
}
