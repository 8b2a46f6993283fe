//! A mistake in a file, rendered for people (with the line) or for programs (one line of JSON).

use std::path::Path;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde_json::json;

use super::TextSpan;
use crate::ids::{escape_invisible, escape_invisible_in_lines, is_invisible};

/// Whether the mistake makes the file unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but is probably not what was meant.
    Warning,
}

impl Severity {
    /// The name of the severity.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// What is wrong, where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// An error or a warning.
    pub severity: Severity,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The bytes of the text it refers to.
    pub span: TextSpan,
    /// What is wrong; contains no secret.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl Diagnostic {
    /// What is said of the file as a whole, and of no line of it.
    #[must_use]
    pub fn of_file(severity: Severity, message: String) -> Self {
        const NOWHERE: TextSpan = usize::MAX..usize::MAX;
        Self { severity, line: 1, column: 1, span: NOWHERE, message, help: None }
    }

    /// Renders it as rustc would: message, position, line, help. `text` is the file's (blotted) text; without it the
    /// line is left out.
    #[must_use]
    pub fn render(&self, file: &Path, text: &str, color: bool) -> String {
        let path = escape_invisible(&file.to_string_lossy());
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(escape_invisible_in_lines(&self.message));
        let mut group: Group<'_> = match self.window(text) {
            Some((lines, span)) => title.element(
                Snippet::source(lines)
                    .line_start(self.line)
                    .path(&*path)
                    .annotation(AnnotationKind::Primary.span(span)),
            ),
            None => title.element(Origin::path(&*path)),
        };
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(escape_invisible_in_lines(help)));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }

    /// The line where the mistake begins, and its position within that line.
    fn window(&self, text: &str) -> Option<(String, TextSpan)> {
        if text.is_empty() {
            return None;
        }
        let start = text.get(..self.span.start)?.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text.get(start..)?.lines().next().unwrap_or_default();
        let from = (self.span.start - start).min(line.len());
        let to = self.span.end.saturating_sub(start).clamp(from, line.len());
        // One character for one, so that columns stay what they are.
        let visible = |c: char| if is_invisible(c) && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
        let shown = |end: usize| line.get(..end).map(|line| line.chars().map(visible).collect::<String>());
        Some((shown(line.len())?, shown(from)?.len()..shown(to)?.len()))
    }

    /// Renders it as one line of JSON: `{"severity", "file", "line", "column", "message", "help"}` (`help` may be
    /// null).
    #[must_use]
    pub fn to_json(&self, file: &Path) -> String {
        json!({
            "severity": self.severity.as_str(),
            "file": file.to_string_lossy(),
            "line": self.line,
            "column": self.column,
            "message": self.message,
            "help": self.help,
        })
        .to_string()
    }
}
