//! Where unit tests are: in the file that they test, or, if they are long, in a `tests.rs` in the folder of its module.

use std::path::Path;

/// The most lines of a test module in the file that it tests.
const INLINE_MAX: usize = 90;

/// One line for each place of the file that is laid out in another way.
pub(super) fn problems(file: &Path, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    if name.ends_with("_test") || name.ends_with("_tests") {
        problems.push(format!("{}: tests of a module belong into tests.rs in its folder", file.display()));
    }
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let at = || format!("{}:{}", file.display(), index + 1);
        if line.trim_start().starts_with("#[path") {
            problems.push(format!("{}: a module's file is where its name says, without `path`", at()));
        }
        // rustfmt puts the end of a module below its beginning.
        if line.ends_with("mod tests {") && !line.starts_with(' ') {
            let length = lines[index..].iter().take_while(|line| **line != "}").count() + 1;
            if length > INLINE_MAX {
                problems.push(format!("{}: {length} lines of tests belong into a file tests.rs of their own", at()));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_deviation_is_one_problem() {
        let inline = |lines: usize| format!("fn f() {{}}\nmod tests {{\n{}}}\nfn g() {{}}\n", "\n".repeat(lines - 2));
        for (file, text, expected) in [
            ("a/src/b.rs", inline(INLINE_MAX), None),
            ("a/src/b.rs", inline(INLINE_MAX + 1), Some("a/src/b.rs:2: 91 lines")),
            (
                "a/src/b.rs",
                format!("pub(crate) {}", inline(100).trim_start_matches("fn f() {}\n")),
                Some("a/src/b.rs:1: 100"),
            ),
            ("a/src/b/tests.rs", "fn f() {}\n".repeat(500), None),
            ("a/src/b_test.rs", String::new(), Some("a/src/b_test.rs: tests of a module")),
            ("a/src/b.rs", "#[cfg(test)]\n#[path = \"c.rs\"]\nmod tests;\n".into(), Some("a/src/b.rs:2: a module's")),
        ] {
            let problems = problems(Path::new(file), &text);
            assert_eq!(problems.len(), usize::from(expected.is_some()), "{file}: {problems:?}");
            assert!(problems.iter().zip(expected).all(|(problem, start)| problem.starts_with(start)), "{problems:?}");
        }
    }
}
