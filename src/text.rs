//! Text from outside (names of files, labels, what servers answer) made safe to look at.
//!
//! What a newcomer would get wrong: a file's name may hold anything but `/` and NUL: a command to the terminal, the end of a line
//! with a forged message after it, a mark that turns the rest of the line round.

/// Unicode's explicit marks of direction: they make `gpj.exe` look like `exe.jpg`.
pub fn turns_direction(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// One line for a terminal: control characters and marks of direction as escapes (`\u{1b}`, `\n`), everything else as it is.
pub fn visible(text: &str) -> String {
    escaped(text, |_| false)
}

/// The same where a line's end may stay a line's end: in a cell of a table, which is drawn with its borders.
pub fn visible_lines(text: &str) -> String {
    escaped(text, |c| c == '\n')
}

/// A message of a log. Its further lines are indented, so that none can pass for a message of its own.
pub fn visible_message(text: &str) -> String {
    visible_lines(text).replace('\n', "\n  ")
}

fn escaped(text: &str, keeps: fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if (c.is_control() || turns_direction(c)) && !keeps(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_act_and_nothing_else_changes() {
        assert_eq!(visible("größe 中 \"a\" \\ 'b'"), "größe 中 \"a\" \\ 'b'");
        assert_eq!(visible("a\x1b[31m\n\t\u{9b}31m\u{7f}"), "a\\u{1b}[31m\\n\\t\\u{9b}31m\\u{7f}");
        assert_eq!(visible("gpj.\u{202e}live"), "gpj.\\u{202e}live");
        assert_eq!(visible_lines("a\r\nb\x07"), "a\\r\nb\\u{7}");
        assert_eq!(visible_message("one\nERROR two"), "one\n  ERROR two");
    }
}
