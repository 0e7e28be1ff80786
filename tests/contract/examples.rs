//! The examples of CONTRIBUTING.md are code that is built and tested, and each is as short as it says.

use super::{read, root};

const LINES_MAX: usize = 10;

/// The blocks of a Markdown text in one of these languages, each with the last path that was named before it.
fn blocks<'t>(text: &'t str, languages: &[&str]) -> Vec<(&'t str, String)> {
    let mut found = Vec::new();
    let mut parts = text.split("\n```");
    let mut before = parts.next().unwrap_or_default();
    while let (Some(block), after) = (parts.next(), parts.next()) {
        let (language, code) = block.split_once('\n').expect("a block has lines");
        if languages.contains(&language) {
            let words = before.split('`').skip(1).step_by(2);
            let path = words.filter(|word| word.contains('/') && word.contains('.')).last();
            found.push((path.expect("a path is named before the block"), format!("{code}\n")));
        }
        before = after.unwrap_or_default();
    }
    found
}

#[test]
fn an_example_is_the_text_of_its_file_in_ten_lines() {
    let text = read(&root().join("CONTRIBUTING.md"));
    let found = blocks(&text, &["c", "rust"]);
    let suffixes: Vec<_> = found.iter().map(|(path, _)| path.rsplit('.').next().expect("a suffix")).collect();
    assert_eq!(suffixes, ["c", "rs", "rs"]);
    for (path, code) in found {
        let file = read(&root().join(path));
        assert!(file.contains(&code), "CONTRIBUTING.md does not show what {path} holds:\n{code}");
        let counts = |line: &&str| !line.is_empty() && !line.starts_with("#include");
        let lines = code.lines().filter(counts).count();
        assert!(lines <= LINES_MAX, "{lines} lines of {path}");
        let is_tested = path.ends_with(".c") || file.contains("#[test]");
        assert!(is_tested, "{path} has no test");
    }
}
