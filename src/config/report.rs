//! The report about a configuration, for people or programs.

use super::{ConfigError, Diagnostic, LoadedConfig, Severity};

/// Renders every mistake, then a summary line. With `json`, prints one object per mistake and nothing else
/// (`{"severity", "file", "line", "column", "message", "help"}`).
#[must_use]
pub fn report(read: &Result<LoadedConfig, ConfigError>, json: bool, color: bool) -> String {
    let (file, text, mistakes) = match read {
        Ok(read) => (&read.origins.file, &read.origins.text, &read.warnings),
        Err(failure) => (&failure.file, &failure.text, &failure.mistakes),
    };
    if json {
        return mistakes.iter().map(|mistake| mistake.to_json(file) + "\n").collect();
    }
    let rendered = mistakes.iter().map(|mistake| mistake.render(file, text, color) + "\n\n");
    rendered.collect::<String>() + &format!("{}: {}\n", file.display(), summary(mistakes))
}

fn summary(mistakes: &[Diagnostic]) -> String {
    let warnings = mistakes.iter().filter(|mistake| mistake.severity == Severity::Warning).count();
    match (mistakes.len() - warnings, warnings) {
        (0, 0) => "no mistakes".to_owned(),
        (0, warnings) => format!("no mistakes, {}", counted(warnings, "warning")),
        (errors, 0) => counted(errors, "mistake"),
        (errors, warnings) => format!("{}, {}", counted(errors, "mistake"), counted(warnings, "warning")),
    }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{parse, read};

    const TWO: &str = "[operator]\nkey_env = \"K\"\nlisen = \"x\"\n[upstream]\ntoken_env = \"T\"\nattempt = \"20s\"\n";

    #[test]
    fn for_people_every_mistake_has_its_line_and_what_to_write_instead() {
        let report = report(&parse(TWO, Path::new("m.toml")), false, false);
        let lisen = "\
error: unknown key \"lisen\" in operator
 --> m.toml:3:1
  |
3 | lisen = \"x\"
  | ^^^^^
  |
  = help: did you mean \"listen\"?

";
        assert!(report.contains(lisen), "{report}");
        assert!(report.ends_with("m.toml: 1 mistake, 4 warnings\n"), "{report}");
    }

    #[test]
    fn for_programs_a_mistake_is_a_line_of_json() {
        let report = report(&parse(TWO, Path::new("m.toml")), true, false);
        let lisen = "{\"severity\":\"error\",\"file\":\"m.toml\",\"line\":3,\"column\":1,\
            \"message\":\"unknown key \\\"lisen\\\" in operator\",\"help\":\"did you mean \\\"listen\\\"?\"}";
        assert!(report.lines().any(|line| line == lisen), "{report}");
        assert!(report.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{report}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_mistake_too() {
        let report = report(&read(Path::new("/nowhere/m.toml")), false, false);
        let expected = "\
error: cannot read the configuration: No such file or directory (os error 2)
--> /nowhere/m.toml
 = help: give the configuration's path: --config FILE

/nowhere/m.toml: 1 mistake
";
        assert_eq!(report, expected);
    }
}
