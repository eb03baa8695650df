//! Makes untrusted text safe to log and to print.

/// The longest line, in characters.
const LINE_MAX: usize = 500;

/// Converts a peer's text to one line: at most 500 characters, none of them a control character.
pub fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    words.flat_map(|word| std::iter::once(' ').chain(word.chars())).skip(1).take(LINE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_are_one_harmless_line() {
        assert_eq!(one_line("\na\r\n\u{1b}[31mb\0c\td "), "a [31mb c d");
        assert_eq!(one_line(""), "");
        assert_eq!(one_line(&"x".repeat(10_000)).len(), LINE_MAX);
    }
}
