//! `imagedex features verify`: is the feature table sound? And with `--repair`: what is lost is taken out and embedded again.

use serde_json::json;

use super::{Extracted, Run};
use crate::commands::say;
use crate::config::PipelineConfig;
use crate::exit::{Exit, UsageError};
use crate::stages::store::{CommitFacts, FeatureStore, Inspection, Repaired};

/// Reads the whole table and says what is wrong with it; with `repair` mends it.
///
/// Exit: 0 for a table that is sound or was repaired, 4 for a damaged one; after a repair that of the extract that follows.
pub fn verify(config: &PipelineConfig, repair: bool) -> anyhow::Result<Exit> {
    if let (true, Some(url)) = (repair, &config.features_at) {
        let reason = format!(
            "{url} is in an object store, and is not repaired from here; what is damaged in its copy is fetched again once {} is deleted, and \
             what is damaged in the bucket has to be restored there",
            config.features.display()
        );
        return Err(UsageError(reason).into());
    }
    let run = if repair { Run::start(config)? } else { Run::look(config)? };
    let lock = if repair { Some(run.lock_table()?) } else { None };
    let dir = &config.features;
    let Some(found) = run.block_on(FeatureStore::inspect(dir))? else {
        let reason = format!("{} holds no features yet; run `imagedex extract` first", dir.display());
        return Err(UsageError(reason).into());
    };
    let problems: String = found.problems.iter().map(|problem| format!("damaged: {problem}\n")).collect();
    say(format!("{problems}{}: {}\n", dir.display(), summary(&found)).as_bytes())?;
    if found.problems.is_empty() {
        return Ok(Exit::Done);
    }
    if !repair {
        match &config.features_at {
            Some(url) => {
                tracing::error!("delete {}: the copy is then fetched from {url} again", dir.display())
            }
            None => tracing::error!(
                "run `imagedex features verify --repair`: it takes out what is damaged and embeds it again"
            ),
        }
        return Ok(Exit::Infrastructure);
    }
    let facts = CommitFacts(json!({"imagedex": env!("CARGO_PKG_VERSION"), "repair": found.problems.len()}));
    let repaired = run.block_on(FeatureStore::repair(dir, &found, &facts))?;
    say(format!("repaired: {}\n", outcome(&repaired)).as_bytes())?;
    if repaired.taken_out == 0 && !repaired.may_lack_rows {
        return Ok(Exit::Done);
    }
    if run.is_imported()? {
        say(b"not embedded again: the features were imported, so there are no pictures of them; import the file again\n")?;
        return Ok(Exit::Done);
    }
    // It belonged to a folder that may have been moved.
    drop(lock);
    let extracted = run.extract()?;
    say(
        format!("embedded again: {}\n{}", count(extracted.embedded(), "picture"), extracted.books).as_bytes()
    )?;
    run.close(extracted)
}

impl Run<'_> {
    /// Whether the table came from a file rather than from pictures.
    fn is_imported(&self) -> anyhow::Result<bool> {
        let store = self.block_on(FeatureStore::open(&self.config.features))?;
        Ok(store.is_some_and(|store| store.provenance().facts.get("imported_sha256").is_some()))
    }
}

impl Extracted {
    fn embedded(&self) -> u64 {
        self.books.embedded
    }
}

fn summary(found: &Inspection) -> String {
    let version = found.version.map_or(String::new(), |version| format!(", version {version}"));
    let mut text =
        format!("{}, {}{version}", count(found.files as u64, "file"), count(found.rows as u64, "sound row"));
    if found.without_checksum > 0 {
        text += &format!("; {} without a checksum", found.without_checksum);
    }
    match found.problems.len() {
        0 => text + "; sound",
        problems => text + "; " + &count(problems as u64, "problem"),
    }
}

fn outcome(repaired: &Repaired) -> String {
    let to = repaired.moved_to.display();
    if repaired.is_whole_table {
        return format!("nothing could be saved; the table is now {to}, and a new one is made");
    }
    let log = if repaired.may_lack_rows { "the log was written anew; " } else { "" };
    format!("{log}{} taken out; what was damaged is in {to}", count(repaired.taken_out, "row"))
}

/// `1 row`, `2 rows`.
fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
