//! `shop-{000000..000009}.tar` and `shop-*.tar` → the files that are meant.
//!
//! Braces mean what they mean to WebDataset and to shells: each file that they name must be there. `*`, `?` and `[…]` mean what
//! is there.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// More files than this are a slip of the keyboard.
const MOST: usize = 1_000_000;

/// Whether a path that is not there names several.
pub(super) fn is_pattern(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.contains(['{', '*', '?', '[']))
}

/// The folder above all that a pattern can name: files are called by their paths from there.
pub(super) fn base(pattern: &Path) -> PathBuf {
    let mut base = PathBuf::new();
    let mut parts = pattern.components().peekable();
    // The last part is a file's name, with or without a pattern.
    while let (Some(part), Some(_)) = (parts.next(), parts.peek()) {
        // A folder may be called `[a]`.
        if is_pattern(Path::new(&part)) && !base.join(part).exists() {
            break;
        }
        base.push(part);
    }
    base
}

/// The files, those of a brace in its order, those of `*` by name; each once.
///
/// Errors: a file that is not there, of the kind [`ErrorKind::NotFound`]; a pattern that is none.
pub(super) fn files(pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let wrong = |reason: String| io::Error::new(ErrorKind::InvalidInput, reason);
    let missing = |reason: String| io::Error::new(ErrorKind::NotFound, reason);
    let base = base(pattern);
    let rest = pattern.strip_prefix(&base).unwrap_or(pattern);
    let no_text = || wrong("a pattern must be UTF-8".to_owned());
    let (above, rest) = (base.to_str().ok_or_else(no_text)?, rest.to_str().ok_or_else(no_text)?);
    let above = PathBuf::from(glob::Pattern::escape(above));
    let mut files = Vec::new();
    for text in braces(rest, MOST).ok_or_else(|| wrong(format!("it names more than {MOST} files")))? {
        let path = base.join(&text);
        if path.try_exists()? {
            files.push(path);
            continue;
        }
        if !text.contains(['*', '?', '[']) {
            return Err(missing(format!("{text} is not there")));
        }
        let before = files.len();
        let found =
            glob::glob(&above.join(&text).to_string_lossy()).map_err(|error| wrong(error.to_string()))?;
        for file in found {
            files.push(file.map_err(io::Error::from)?);
        }
        if files.len() == before {
            return Err(missing(format!("no file is called {text}")));
        }
    }
    let mut seen = HashSet::new();
    files.retain(|file| seen.insert(file.clone()));
    Ok(files)
}

/// Every text that braces stand for: `{a,b}`, `{7..12}`, `{007..012}`, `{0..20..5}`, `{a..e}`, one in another. Nothing where they
/// are more than `most`. A brace that is none of these is a brace, as in a shell.
fn braces(text: &str, most: usize) -> Option<Vec<String>> {
    let Some((before, choices, after)) = first_brace(text, most) else { return Some(vec![text.to_owned()]) };
    let after = braces(after, most)?;
    let mut all = Vec::new();
    for choice in choices {
        for choice in braces(&choice, most)? {
            if all.len() + after.len() > most {
                return None;
            }
            all.extend(after.iter().map(|after| format!("{before}{choice}{after}")));
        }
    }
    Some(all)
}

/// What stands before the first brace that is one, what is in it, and what stands after it.
fn first_brace(text: &str, most: usize) -> Option<(&str, Vec<String>, &str)> {
    for (open, _) in text.match_indices('{') {
        let (mut depth, mut commas) = (0, vec![open]);
        for (i, c) in text[open..].char_indices().map(|(i, c)| (open + i, c)) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => commas.push(i),
                _ => {}
            }
            if depth == 0 {
                let choices = if commas.len() > 1 {
                    commas.push(i);
                    commas.windows(2).map(|two| text[two[0] + 1..two[1]].to_owned()).collect()
                } else {
                    match range(&text[open + 1..i], most) {
                        Some(choices) => choices,
                        None => break,
                    }
                };
                return Some((&text[..open], choices, &text[i + 1..]));
            }
        }
    }
    None
}

/// `7..12`, `007..012`, `a..e`, each with a step if wanted: `0..20..5`. One more than `most` are enough to know that it is too many.
fn range(text: &str, most: usize) -> Option<Vec<String>> {
    let parts: Vec<&str> = text.split("..").collect();
    let (first, last, step) = match parts[..] {
        [first, last] => (first, last, 1),
        [first, last, step] => (first, last, step.parse::<i64>().ok()?.unsigned_abs().max(1)),
        _ => return None,
    };
    let letter = |text: &str| match text.as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => Some(i64::from(*letter)),
        _ => None,
    };
    if let (Some(first), Some(last)) = (letter(first), letter(last)) {
        return Some(steps(first, last, step, most).map(|c| char::from(c as u8).to_string()).collect());
    }
    let digits = |text: &str| text.trim_start_matches('-').len();
    let is_padded = |text: &str| digits(text) > 1 && text.trim_start_matches('-').starts_with('0');
    // A sign is one of the places, as in a shell.
    let width = if is_padded(first) || is_padded(last) { first.len().max(last.len()) } else { 0 };
    let (first, last): (i64, i64) = (first.parse().ok()?, last.parse().ok()?);
    Some(steps(first, last, step, most).map(|number| format!("{number:0width$}")).collect())
}

fn steps(first: i64, last: i64, step: u64, most: usize) -> impl Iterator<Item = i64> {
    let count = (first.abs_diff(last) / step).saturating_add(1).min(most as u64 + 1);
    (0..count).map(move |i| {
        let way = i.wrapping_mul(step) as i64;
        if first <= last { first.wrapping_add(way) } else { first.wrapping_sub(way) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_mean_what_they_mean_in_a_shell() {
        let all = |text| braces(text, 100).unwrap().join(" ");
        assert_eq!(all("a-{000008..000011}.tar"), "a-000008.tar a-000009.tar a-000010.tar a-000011.tar");
        assert_eq!(all("{train,test}/{0..1}"), "train/0 train/1 test/0 test/1");
        assert_eq!(all("{8..10}"), "8 9 10");
        assert_eq!(all("{3..1}{a..c}"), "3a 3b 3c 2a 2b 2c 1a 1b 1c");
        assert_eq!(all("{0..20..5}"), "0 5 10 15 20");
        assert_eq!(all("{00..10..5}"), "00 05 10");
        assert_eq!(all("a{b,c{1,2}}"), "ab ac1 ac2");
        assert_eq!(all("{a,}.tar"), "a.tar .tar");
        assert_eq!(all("{-1..1}"), "-1 0 1");
        for none in ["{a}", "{", "a{b", "}{", "{1..}", "{1..b}", "{}"] {
            assert_eq!(all(none), none);
        }
        assert_eq!(all("{a}{1,2}"), "{a}1 {a}2");
        assert_eq!(braces("{0..9}{0..9}{0..9}", 999), None);
        assert_eq!(braces("{0..9223372036854775807}", 999), None);
    }

    #[test]
    fn files_are_those_that_are_meant() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a-0.tar", "a-1.tar", "a-2.tar", "b{0,1}.tar", "notes.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let names = |pattern: &str| {
            let files = files(&folder.path().join(pattern))?;
            let name = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().to_owned();
            Ok::<Vec<String>, io::Error>(files.iter().map(name).collect())
        };
        assert_eq!(names("a-{1,0,1}.tar").unwrap(), ["a-1.tar", "a-0.tar"]);
        assert_eq!(names("a-*.tar").unwrap(), ["a-0.tar", "a-1.tar", "a-2.tar"]);
        assert_eq!(names("a-[!1].t?r").unwrap(), ["a-0.tar", "a-2.tar"]);
        for (pattern, said) in [("a-{0..3}.tar", "a-3.tar is not there"), ("c*.tar", "no file is called")] {
            let error = names(pattern).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.to_string().contains(said), "{error}");
        }
        assert!(names("a-***.tar").is_err_and(|error| error.kind() == ErrorKind::InvalidInput));
        std::fs::create_dir(folder.path().join("[b]")).unwrap();
        std::fs::write(folder.path().join("[b]/1.tar"), "").unwrap();
        assert_eq!(names("[b]/*.tar").unwrap(), ["1.tar"]);
        assert_eq!(base(Path::new("/data/shop/a-{0..3}.tar")), Path::new("/data/shop"));
        assert_eq!(base(Path::new("/data/{a,b}/c*.tar")), Path::new("/data"));
        assert_eq!(base(Path::new("c*.tar")), Path::new(""));
    }
}
