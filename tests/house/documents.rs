//! Documents: tables say what the code does. `UPDATE_GOLDEN=1` rewrites them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use makegate::catalogue::{Catalogue, Operation};
use makegate::gateway::refusal::Refusal;
use makegate::reconcile::DoubtReason;

use super::{golden, read};

/// A user decides in two minutes whether to go on reading.
const README_LINES_MAX: usize = 120;
/// What the codes of refusals are about, by their first digits.
const ABOUT: [(&str, &str); 12] = [
    ("MG10", "the request's form"),
    ("MG11", "who sends it"),
    ("MG12", "which operation it is"),
    ("MG13", "whether the caller may"),
    ("MG14", "rates and shares"),
    ("MG15", "its body and fields"),
    ("MG16", "an earlier write"),
    ("MG17", "Make's quota"),
    ("MG18", "the log"),
    ("MG19", "the cache"),
    ("MG2", "Make, or the way to it"),
    ("MG5", "makegate itself"),
];
/// Refusals that cannot be provoked from outside, and why.
const UNPROVOKED: [(&str, &str); 1] = [("MG500", "an internal error: a test cannot provoke one from outside")];

#[test]
fn each_refusal_has_a_sample_a_golden_file_and_nothing_has_one_too_many() {
    let files = ["refusal.rs", "refusal/shortage.rs", "refusal/credential.rs"];
    let code: String = files.iter().map(|file| read(&format!("src/gateway/{file}"))).collect();
    let rows: BTreeSet<&str> = code.split('"').filter(|text| is_code(text)).collect();
    let samples: Vec<&str> = Refusal::samples().iter().map(|sample| sample.row().code).collect();
    assert!(samples.is_sorted() && samples.windows(2).all(|pair| pair.first() != pair.last()), "{samples:?}");
    assert_eq!(samples.iter().copied().collect::<BTreeSet<_>>(), rows, "Refusal::samples() has one of each kind");
    let provoked: BTreeSet<String> = std::fs::read_dir(golden::file("tests/golden/refusals"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().trim_end_matches(".json").to_owned())
        .collect();
    let told: BTreeSet<String> = provoked
        .iter()
        .map(String::as_str)
        .chain(UNPROVOKED.iter().map(|(code, _)| *code))
        .map(str::to_owned)
        .collect();
    assert_eq!(told, rows.iter().map(|code| (*code).to_owned()).collect(), "each is provoked, or told why not");
}

fn is_code(text: &str) -> bool {
    text.strip_prefix("MG").is_some_and(|number| number.len() == 3 && number.bytes().all(|b| b.is_ascii_digit()))
}

#[test]
fn the_refusals_are_listed_and_each_code_is_in_the_readme() {
    let rows = Refusal::samples().into_iter().map(|sample| {
        let row = sample.row();
        format!("| {} | {} | {} | {} |", row.code, row.status.as_u16(), row.title, sample.detail().replace('|', "\\|"))
    });
    let head = "| code | status | means | says, for example |\n| --- | --- | --- | --- |\n";
    golden::compare_between("docs/refusals.md", "refusals", &(head.to_owned() + &rows.collect::<Vec<_>>().join("\n")));

    let mut groups: Vec<(&str, Vec<String>)> = Vec::new();
    for sample in Refusal::samples() {
        let row = sample.row();
        let (_, about) = ABOUT.iter().find(|(prefix, _)| row.code.starts_with(prefix)).unwrap();
        let told = format!("{} {} ({})", row.code, row.title, row.status.as_u16());
        match groups.last_mut() {
            Some((last, codes)) if last == about => codes.push(told),
            _ => groups.push((about, vec![told])),
        }
    }
    let rows = groups.iter().map(|(about, codes)| format!("| {about} | {} |", codes.join(" · "))).collect::<Vec<_>>();
    let head = "| about | codes (status) |\n| --- | --- |\n";
    golden::compare_between("README.md", "refusals", &(head.to_owned() + &rows.join("\n")));
}

#[test]
fn the_page_of_the_configuration_is_the_sample() {
    let sample = read("config/makegate.toml");
    let sections = sample.split("\n# --- ").skip(1).map(|section| {
        let (title, rest) = section.split_once('\n').unwrap();
        format!("## {}\n\n```toml\n{}\n```", title.trim_end_matches([' ', '-']), rest.trim_matches('\n'))
    });
    golden::compare_between("docs/configuration.md", "configuration", &sections.collect::<Vec<_>>().join("\n\n"));
}

#[test]
fn the_page_of_records_has_a_row_for_each_field() {
    let page = read("docs/records.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    assert_eq!(rows.map(|(name, _)| name).collect::<Vec<_>>(), makegate::audit::COLUMNS);
}

#[test]
fn the_readme_is_short() {
    assert!(read("README.md").lines().count() <= README_LINES_MAX);
}

/// Blocks of TOML on one page may build on each other; one that shows only a part of a table begins with its key.
#[test]
fn the_configurations_of_the_documents_are_ones() {
    let clients = ["docs/clients/README.md", "docs/clients/mcp.md", "docs/clients/vscode.md"];
    for page in ["docs/getting-started.md", "docs/operators.md", "docs/recipes.md"].into_iter().chain(clients) {
        let page_text = read(page);
        let blocks = page_text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        for block in blocks {
            let text = block.replace("sha256:…", &format!("sha256:{}", "0".repeat(64)));
            let indent = text.len() - text.trim_start_matches(' ').len();
            let text: String =
                text.lines().map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect();
            let required = [
                ("[upstream]", "upstream.token_file = \"make\"\n"),
                ("key_file", "operator.key_file = \"operator\"\n"),
            ];
            let rest =
                required.iter().filter(|(own, _)| !text.contains(own)).map(|(_, line)| *line).collect::<String>();
            let parsed = makegate::config::parse(&(rest + &text), Path::new("makegate.toml"));
            assert!(
                parsed.is_ok(),
                "{page}: {text}{}",
                parsed.err().map(|failure| failure.to_string()).unwrap_or_default()
            );
        }
    }
}

#[test]
fn the_table_of_operations_is_the_catalogue() {
    let catalogue = Catalogue::built_in();
    let rows: Vec<String> = catalogue.rows().iter().map(|row| operation(row)).collect();
    let head = "| operation | request | grant | body | cached | retry | invalidates | may be recorded | look |\n\
                | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    golden::compare_between("docs/operations.md", "operations", &(head.to_owned() + &rows.join("\n")));
}

#[test]
fn what_a_doubt_waits_for_is_explained() {
    let page = read("docs/operations.md");
    for why in DoubtReason::ALL {
        assert!(page.contains(&format!("\n| {} | ", why.as_str())), "docs/operations.md lacks {:?}", why.as_str());
    }
}

fn operation(row: &Operation) -> String {
    let (body, retry) = (row.body.as_str(), row.retry.as_str());
    let memory = match &row.cache {
        None if row.is_write() => String::new(),
        Some(class) => class.to_string(),
        None if row.may_cache => "if configured".to_owned(),
        None => "never".to_owned(),
    };
    let code = |names: Vec<&str>| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" ");
    let invalidates = code(row.invalidates.iter().map(|tag| tag.as_str()).collect());
    let recorded = code(row.record.iter().map(|field| &*field.name).collect());
    let look = row.look.as_ref().map_or_else(String::new, |look| format!("`{}`: {}", look.read, look.proves.as_str()));
    format!(
        "| `{}`: {} | `{} {}` | `{}` | {body} | {memory} | {retry} | {invalidates} | {recorded} | {look} |",
        row.id, row.summary, row.method, row.path, row.grant
    )
}

/// Runs the page's script with python3 and openssl, where these are; `.ci/run` sees to it that they are.
#[test]
fn the_auditors_script_accepts_a_log_and_finds_what_was_done_to_it() {
    let has = |tool: &str| Command::new(tool).arg("--help").output().is_ok();
    if !has("python3") || !has("openssl") {
        return eprintln!("not tested: python3 or openssl is not there");
    }
    let page = read("docs/auditing.md");
    let script = page.split_once("```python\n").unwrap().1.split_once("```").unwrap().0;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("check.py"), script).unwrap();
    let golden = golden::file("tests/golden/log-1");
    let keys = read("tests/golden/log-1/keys");
    let first_key = keys.split_once("\nkey ").unwrap().1.lines().next().unwrap();
    let check = |change: &dyn Fn(&Path), words: &str| {
        let log = dir.path().join("audit");
        drop(fs::remove_dir_all(&log));
        fs::create_dir(&log).unwrap();
        for entry in fs::read_dir(&golden).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, log.join(path.file_name().unwrap())).unwrap();
        }
        change(&log);
        let mut command = Command::new("python3");
        command.current_dir(dir.path()).args(["check.py", "audit/", first_key]).arg(golden.join("head"));
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(said.contains(words), "{words}: {said}");
        output.status.success()
    };
    let edit = |log: &Path, file: &str, change: &dyn Fn(&str) -> String| {
        let text = fs::read_to_string(log.join(file)).unwrap();
        let changed = change(&text);
        assert_ne!(changed, text, "{file}");
        fs::write(log.join(file), changed).unwrap();
    };
    let (middle, last) = ("00000000000000000053.jsonl", "00000000000000000114.jsonl");
    let without = |text: &str, at: usize| {
        text.lines().enumerate().filter(|(line, _)| *line != at).map(|(_, line)| format!("{line}\n")).collect()
    };
    assert!(check(&|_| {}, "it ends with record 122; signed heads prove it up to record 122"));
    assert!(check(&|log| fs::remove_file(log.join("00000000000000000001.jsonl")).unwrap(), "begins with record 19"));
    let altered = |log: &Path| edit(log, middle, &|text| text.replacen("\"status\":200", "\"status\":201", 1));
    assert!(!check(&altered, "record 70: an earlier record has changed since this one was written"));
    assert!(!check(&|log| edit(log, middle, &|text| without(text, 4)), "expected record 57"));
    assert!(!check(&|log| fs::remove_file(log.join(middle)).unwrap(), "expected record 53"));
    assert!(!check(&|log| edit(log, last, &|text| without(text, 8)), "covers 122 records, but the log ends with 121"));
    assert!(!check(&|log| edit(log, "head", &|text| text.replace("122", "121")), "not signed by a trusted key"));
}
