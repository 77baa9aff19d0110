//! The Markdown report in the summary of a GitHub Actions step: appended to the file that `GITHUB_STEP_SUMMARY` names.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use super::{Exporter, Markdown, RunReport};

/// GitHub shows nothing of a summary with more bytes than this.
const MOST: usize = 1 << 20;

/// Appends the Markdown report, or as much of it as GitHub shows, and says then where the whole of it is. A summary that cannot
/// be written is no reason for a run to fail.
pub fn append_step_summary(report: &RunReport, whole: &Path) {
    let Some(file) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|file| !file.is_empty()) else { return };
    let file = Path::new(&file);
    let mut markdown = Vec::new();
    let written = Markdown.write(report, &mut markdown);
    if let Err(error) = written.and_then(|()| append(file, &String::from_utf8_lossy(&markdown), whole)) {
        tracing::warn!(
            "GITHUB_STEP_SUMMARY: cannot append to {}: {error}; the report is {}",
            file.display(),
            whole.display()
        );
    }
}

fn append(file: &Path, markdown: &str, whole: &Path) -> io::Result<()> {
    let mut out = OpenOptions::new().append(true).create(true).open(file)?;
    // A step may have written something before.
    let there = usize::try_from(out.metadata()?.len()).unwrap_or(usize::MAX);
    // Starts on a line of its own, whatever stood there before.
    let start = if there > 0 { "\n" } else { "" };
    let text = shortened(markdown, MOST.saturating_sub(there + start.len()), whole);
    let text = text.ok_or_else(|| io::Error::other("it has 1 MiB already, which is what GitHub shows"))?;
    out.write_all(format!("{start}{text}").as_bytes())
}

/// As many whole sections as `most` bytes hold, else as many whole lines; nothing where not even the note fits.
fn shortened(markdown: &str, most: usize, whole: &Path) -> Option<String> {
    if markdown.len() <= most {
        return Some(markdown.to_owned());
    }
    let note = format!(
        "\n**Shortened:** GitHub shows 1 MiB of a step's summary, and the report has {} bytes. The whole of it is {}.\n",
        markdown.len(),
        super::markdown::escape(&whole.display().to_string())
    );
    let fits = &markdown[..markdown.floor_char_boundary(most.checked_sub(note.len())?)];
    let end = fits.rfind("\n## ").or_else(|| fits.rfind('\n').map(|end| end + 1)).unwrap_or(0);
    Some(format!("{}{note}", &fits[..end]))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_is_appended_on_a_line_of_its_own() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("summary.md");
        append(&file, "# one\n", Path::new("report.md")).expect("made");
        assert_eq!(fs::read_to_string(&file).expect("a file"), "# one\n");
        fs::write(&file, "by echo -n").expect("writable");
        append(&file, "# one\n", Path::new("report.md")).expect("appended");
        assert_eq!(fs::read_to_string(&file).expect("a file"), "by echo -n\n# one\n");
    }

    #[test]
    fn what_github_would_not_show_is_shortened_at_a_section() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("summary.md");
        let long = format!(
            "# title\n\n## first\n\n{}\n## second\n\n{}",
            "text ü\n".repeat(9),
            "line ü\n".repeat(200_000)
        );
        append(&file, &long, Path::new("runs/a_b/report.md")).expect("made");
        let text = fs::read_to_string(&file).expect("a file");
        assert!(text.len() <= MOST && text.starts_with(&long[..80]), "{} bytes", text.len());
        let (kept, note) = text.split_once("\n**Shortened:** ").expect("a note");
        assert!(kept.ends_with("text ü\n") && !kept.contains("## second"), "{kept}");
        assert!(note.contains(&format!("the report has {} bytes", long.len())), "{note}");
        assert!(note.ends_with("The whole of it is runs/a\\_b/report.md.\n"), "{note}");

        // One section alone: as many lines as fit; and a full summary takes no more.
        let section = "line ü\n".repeat(200_000);
        fs::remove_file(&file).expect("there");
        append(&file, &section, Path::new("report.md")).expect("made");
        let text = fs::read_to_string(&file).expect("a file");
        assert!(text.len() <= MOST && text.len() > MOST - 300, "{} bytes", text.len());
        append(&file, &section, Path::new("report.md")).expect_err("full");
        assert_eq!(fs::read_to_string(&file).expect("a file"), text);
        append(folder.path(), "# one\n", Path::new("report.md")).expect_err("a folder");
    }
}
