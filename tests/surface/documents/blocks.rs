//! The fenced blocks of a page, with what the comments before each say about it.

/// A block of a page that is run or written, or a step that the text asks a person to do by hand.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// The line on which it begins.
    pub(super) line: usize,
    language: String,
    pub(super) text: String,
    /// What must be in its output.
    pub(super) prints: Vec<String>,
    pub(super) exit_code: Option<i32>,
    /// It runs beside the blocks after it, which wait until there is an answer at this URL.
    pub(super) ready_at: Option<String>,
    /// A program without which it is left out.
    pub(super) needs: Option<String>,
    /// The file that a reader saves it as.
    pub(super) file: Option<String>,
    not_run: Option<String>,
}

impl Block {
    /// It is part of the page's session.
    pub(super) fn counts(&self) -> bool {
        self.file.is_some() || (self.language == "sh" && self.not_run.is_none())
    }
}

/// The blocks of a page that count, in their order. Panics at a comment that it cannot read.
pub(super) fn of(page: &str) -> Vec<Block> {
    let (mut blocks, mut next) = (Vec::new(), Block::default());
    let mut lines = page.lines().enumerate().map(|(at, line)| (at + 1, line));
    while let Some((at, line)) = lines.next() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("<!-- ") && trimmed.ends_with(" -->") {
            for comment in trimmed.split("<!-- ").filter_map(|comment| comment.trim_end().strip_suffix(" -->")) {
                if let Some(("done by hand", step)) = comment.split_once(": ") {
                    let (language, text) = ("sh".to_owned(), format!("{step}\n"));
                    blocks.push(Block { line: at, language, text, ..Block::default() });
                } else {
                    next.note(comment);
                }
            }
        } else if let Some(language) = trimmed.strip_prefix("```") {
            let indent = line.len() - trimmed.len();
            let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```");
            next.text = inside.map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect();
            (next.line, next.language) = (at, language.to_owned());
            blocks.push(std::mem::take(&mut next));
        } else if !trimmed.is_empty() {
            next = Block::default();
        }
    }
    blocks.retain(Block::counts);
    blocks
}

impl Block {
    /// Takes in a comment such as `prints: MG132`. Others, such as the marks of tables, are none of its business.
    fn note(&mut self, comment: &str) {
        let Some((word, rest)) = comment.split_once(": ") else { return };
        let rest = rest.to_owned();
        match word {
            "prints" => self.prints.extend(rest.split(" | ").map(str::to_owned)),
            "exits" => self.exit_code = Some(rest.parse().unwrap()),
            "keeps running, ready at" => self.ready_at = Some(rest),
            "needs" => self.needs = Some(rest),
            "file" => self.file = Some(rest),
            "not run" => self.not_run = Some(rest),
            "commands" => {}
            _ => panic!("what does <!-- {comment} --> say? See tests/surface/documents.rs"),
        }
    }
}

/// The commands in running text: `makegate …` between single backticks, outside of fenced blocks.
pub(super) fn inline_commands(page: &str) -> Vec<(usize, &str)> {
    let (mut found, mut is_fenced) = (Vec::new(), false);
    for (at, line) in page.lines().enumerate() {
        is_fenced ^= line.trim_start().starts_with("```");
        if is_fenced {
            continue;
        }
        let spans = line.split('`').skip(1).step_by(2);
        found.extend(spans.filter(|span| span.starts_with("makegate ")).map(|span| (at + 1, span)));
    }
    found
}

#[test]
fn blocks_are_found_with_what_is_said_of_them() {
    let page = "# A\n\n<!-- prints: one | two --> <!-- exits: 3 -->\n\n\n```sh\na\n  b\n```\n\n<!-- not run: no -->\n```sh\nc\n```\n\
                - x\n\n  <!-- file: f.py -->\n  ```python\n  d\n    e\n  ```\n<!-- done by hand: f -->\n```text\ng\n```\n\
                <!-- prints: lost -->\ntext\n```sh\nh\n```\n";
    let found = of(page);
    let told: Vec<_> = found.iter().map(|block| (block.line, block.text.as_str(), block.exit_code)).collect();
    assert_eq!(told, [(6, "a\n  b\n", Some(3)), (18, "d\n  e\n", None), (22, "f\n", None), (28, "h\n", None)]);
    let prints: Vec<_> = found.iter().map(|block| block.prints.join(" ")).collect();
    assert_eq!(prints, ["one two", "", "", ""]);
    let inline = inline_commands("see `makegate check` and `other`\n```sh\n`makegate no`\n```\n`makegate x -y`");
    assert_eq!(inline, [(1, "makegate check"), (5, "makegate x -y")]);
}
