//! Records as people read them: tables that fit, and the log followed from then and from now on.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;

use super::processes::{Demo, Running};
use super::{command, repository, run, stderr, stdout};
use crate::support::golden;

/// A folder with a configuration whose log is the golden one.
fn golden_log() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("audit")).unwrap();
    for file in fs::read_dir(repository().join("tests/golden/log-1")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join("audit").join(file.file_name())).unwrap();
    }
    let text = "operator.key_env = \"K\"\nupstream.token_env = \"T\"\n";
    fs::write(folder.path().join("makegate.toml"), text).unwrap();
    folder
}

const QUERY: [&str; 6] = ["audit", "query", "--config", "makegate.toml", "--limit", "40"];

fn widest(table: &str) -> usize {
    table.lines().map(|line| line.chars().count()).max().unwrap()
}

#[test]
fn a_table_of_records_fits_80_columns_or_as_many_as_it_is_told() {
    let folder = golden_log();
    let usual = stdout(0, &run(folder.path(), &QUERY));
    assert!(widest(&usual) <= 80 && !usual.contains('\u{1b}'), "{usual}");
    golden::compare("tests/golden/cli/query.txt", &usual);
    let of = |columns: &str| stdout(0, &command(folder.path(), &QUERY).env("COLUMNS", columns).output().unwrap());
    let (narrow, broad) = (of("50"), of("180"));
    assert!(widest(&narrow) <= 50 && narrow.starts_with("SEQ  TIME "), "{narrow}");
    assert!((80..=180).contains(&widest(&broad)) && broad.lines().next().unwrap().ends_with("REQUEST"), "{broad}");
    for nonsense in ["", "0", "wide"] {
        assert_eq!(of(nonsense), usual, "{nonsense:?}");
    }
    let wide = stdout(0, &run(folder.path(), &[&QUERY[..], &["-o", "wide"]].concat()));
    golden::compare("tests/golden/cli/query-wide.txt", &wide);
    let colored = stdout(0, &run(folder.path(), &[&QUERY[..], &["--color", "always"]].concat()));
    assert!(colored.contains("\u{1b}[") && colored.contains("Z"), "{colored}");
    let columns = |text: &str| text.lines().next().unwrap().to_owned();
    assert!(columns(&stdout(0, &run(folder.path(), &[&QUERY[..], &["-o", "csv"]].concat()))).starts_with("seq,time,"));
}

/// A write that was in doubt until an operator settled it.
const SETTLED: &str = "01a21953-9cd9-7362-a85f-1fea417e4058";

#[test]
fn a_request_is_told_as_a_story_that_fits_and_all_its_fields_are_there_too() {
    let folder = golden_log();
    let show = |wanted: &str, more: &[&str]| {
        stdout(0, &run(folder.path(), &[&["audit", "show", wanted, "--config", "makegate.toml"][..], more].concat()))
    };
    // A write, and an answer from memory.
    let stories = [show(SETTLED, &[]), show("12", &[])].join("\n");
    assert!(widest(&stories) <= 80 && !stories.contains('\u{1b}'), "{stories}");
    golden::compare("tests/golden/cli/show.txt", &stories);
    assert_eq!(show("58", &[]), show(SETTLED, &[]), "by the number of one of its records");
    assert!(show(SETTLED, &["--color", "always"]).contains("\u{1b}[1mIntent, number 57"));
    let filler = stories.split("to the request ").nth(1).unwrap().split('.').next().unwrap().replace("\n  ", "");
    assert!(show(&filler, &[]).contains("and the answer was stored"), "{filler}");
    let narrow = ["audit", "show", "58", "--config", "makegate.toml"];
    let narrow = stdout(0, &command(folder.path(), &narrow).env("COLUMNS", "50").output().unwrap());
    assert!(widest(&narrow) <= 51 && narrow.lines().count() > show("58", &[]).lines().count(), "{narrow}");
    let shown = on_terminal(80, &mut command(folder.path(), &["audit", "show", "58", "--config", "makegate.toml"]));
    assert!(shown.lines().next().unwrap().contains(" UTC, ") || shown.contains("UTC\u{1b}"), "{shown}");

    let fields = show(SETTLED, &["-o", "table"]);
    assert!(fields.starts_with("seq  ") && fields.contains("\nfields           {\"name\":"), "{fields}");
    let json: Vec<Value> =
        show("58", &["-o", "json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json.iter().map(|record| record["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [57, 58, 59]);
    assert!(show("58", &["-o", "csv"]).starts_with("seq,time,kind,"));
}

/// What a command shows on a terminal of this width.
fn on_terminal(columns: u16, command: &mut Command) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let side = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    tcsetwinsize(&side, Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let mut child = command.env("TERM", "xterm").stdout(side).stderr(Stdio::null()).spawn().unwrap();
    // It keeps what it was started with, and with that the terminal open.
    command.stdout(Stdio::null());
    let mut shown = Vec::new();
    // A terminal that nobody has open any more ends with an error.
    let _closed = File::from(terminal).read_to_end(&mut shown);
    assert!(child.wait().unwrap().success());
    String::from_utf8(shown).unwrap().replace("\r\n", "\n")
}

#[test]
fn a_terminal_gets_its_width_colors_and_relative_times() {
    let folder = golden_log();
    let query =
        |columns, set: &[(&str, &str)]| on_terminal(columns, command(folder.path(), &QUERY).envs(set.iter().copied()));
    let plain = query(70, &[("NO_COLOR", "1")]);
    assert!(widest(&plain) <= 70 && !plain.contains('\u{1b}'), "{plain}");
    // Days ago, or a date without a time of day.
    assert!(plain.lines().skip(1).all(|line| !line.contains("Z ")), "{plain}");
    let broad = query(200, &[("NO_COLOR", "1")]);
    assert!(broad.lines().next().unwrap().ends_with("REQUEST") && widest(&broad) <= 200, "{broad}");
    assert!(widest(&query(200, &[("NO_COLOR", "1"), ("COLUMNS", "60")])) <= 60);
    assert!(query(80, &[]).contains("\u{1b}["));
    // What goes on for hours is not told by how long ago it was.
    let follow = ["audit", "follow", "--config", "makegate.toml", "--since", "2020-01-01", "--limit", "2"];
    let followed = on_terminal(80, command(folder.path(), &follow).env("NO_COLOR", "1"));
    assert!(followed.lines().nth(1).unwrap().contains("T") && widest(&followed) <= 80, "{followed}");

    let temporary = tempfile::tempdir().unwrap();
    let demo = Demo::start(temporary.path());
    let folder = fs::read_dir(temporary.path()).unwrap().next().unwrap().unwrap().path();
    let recent = on_terminal(100, command(&folder, &QUERY).env("NO_COLOR", "1"));
    assert!(recent.lines().skip(1).all(|line| line.contains(" ago ") || line.contains(" now ")), "{recent}");
    drop(demo);
}

/// Ends what goes on beside a test, also if that fails.
struct StopsOnDrop<'a>(&'a AtomicBool);

impl Drop for StopsOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_log_is_followed_from_a_time_on_without_a_gap_and_ends_after_so_many_records() {
    let temporary = tempfile::tempdir().unwrap();
    let demo = Demo::start(temporary.path());
    let folder = fs::read_dir(temporary.path()).unwrap().next().unwrap().unwrap().path();
    for _ in 0..5 {
        demo.get(0, "/api/v2/organizations/11");
    }
    let known = ["audit", "export", "--config", "makegate.toml", "--kind", "request"];
    let lines = |count: usize| loop {
        // A read's record comes a moment after its answer.
        let exported = stdout(0, &run(&folder, &known));
        if exported.lines().count() >= count {
            return exported.lines().map(str::to_owned).collect::<Vec<_>>();
        }
    };
    let first = lines(5);
    let follow = |since: &[&str], limit: &str| {
        let more = [since, &["--kind", "request", "--limit", limit, "-o", "json"]].concat();
        let url = ["audit", "follow", "--url", demo.text("/operator"), "--key-file", "operator.key"];
        [&["audit", "follow", "--config", "makegate.toml"][..], &url]
            .map(|source| Running::start(&mut command(&folder, &[source, &more].concat())))
    };
    // Of five records the first three; and all, of which the newest is as old as the others.
    for (limit, count) in [("3", 3), ("5", 5)] {
        for mut follower in follow(&["--since", "1h"], limit) {
            let shown: Vec<_> = (0..count).map(|_| follower.line().trim_end().to_owned()).collect();
            assert_eq!(shown, first[..count]);
            assert_eq!(follower.line(), "", "so many are enough");
            assert_eq!(follower.wait(), Some(0));
        }
    }
    // They begin while records come, and see each once.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stops_in_any_case = StopsOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                demo.get(0, "/api/v2/organizations/11");
            }
        });
        for mut follower in follow(&["--since", "1h"], "150") {
            let shown: Vec<_> = (0..150).map(|_| follower.line().trim_end().to_owned()).collect();
            assert_eq!(follower.wait(), Some(0));
            assert_eq!(shown, lines(150)[..150]);
        }
    });
    let seq = |line: &String| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64();
    assert!(first.is_sorted_by_key(seq));
    for wrong in [["--limit", "0"], ["--since", "yesterday"]] {
        let told = stderr(2, &run(Path::new("."), &[&["audit", "follow", "--config", "x"], &wrong[..]].concat()));
        assert!(told.contains(wrong[0]), "{told}");
    }
}
