//! Files that were being written when a run was killed: nobody reads them, and nothing else removes them.
//!
//! Ours begin with `.imagedex-`; the feature table's end with `#` and a number, and Delta's own clean-up (vacuum) does not see
//! them. One that is young may belong to a run that is at work, on another work folder or by a search beside this run.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Nothing that is still being written stays untouched for so long.
const AGE: Duration = Duration::from_secs(24 * 3600);

/// Removes such files of a day ago and before from a work folder, the folders in it, and a feature table. What cannot be removed
/// stays: it does no harm but take space.
pub fn sweep(work: &Path, features: &Path) {
    sweep_folder(work, is_ours);
    for entry in fs::read_dir(work).into_iter().flatten().flatten() {
        // `report`, its `trec`, and the folder of index files.
        if entry.path() != features && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sweep_folder(&entry.path(), is_ours);
            sweep_folder(&entry.path().join("trec"), is_ours);
        }
    }
    for folder in [features, &features.join("_delta_log")] {
        sweep_folder(folder, is_of_the_table);
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with(".imagedex-")
}

/// Such as `part-00000-….snappy.parquet#1` and `00000000000000000007.json#1`.
fn is_of_the_table(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(name, number)| {
        [".parquet", ".json", "_last_checkpoint"].iter().any(|end| name.ends_with(end))
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn sweep_folder(folder: &Path, is_leftover: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(&is_leftover) {
            continue;
        }
        let changed =
            entry.metadata().ok().filter(fs::Metadata::is_file).and_then(|file| file.modified().ok());
        let age = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        if age.is_some_and(|age| age > AGE) {
            match fs::remove_file(entry.path()) {
                Ok(()) => {
                    tracing::info!(
                        "removed {}, which a run that was cut off has left",
                        entry.path().display()
                    )
                }
                Err(error) => tracing::debug!("cannot remove {}: {error}", entry.path().display()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_leftovers_go() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (work, features) = (folder.path().join("work"), folder.path().join("work/features"));
        for part in ["report/trec", "features/_delta_log", "indexes"] {
            fs::create_dir_all(work.join(part)).expect("writable");
        }
        let leftovers = [
            ".imagedex-a1",
            "report/.imagedex-b2",
            "report/trec/.imagedex-c3",
            "indexes/.imagedex-d4",
            "features/part-0.parquet#1",
            "features/_delta_log/00000000000000000007.json#12",
        ];
        let others = [
            "run.json",
            "report/report.md",
            "indexes/graph",
            "features/part-0.parquet",
            "features/mine#1",
            "features/part-1.parquet#x",
            "features/_delta_log/00000000000000000007.json",
        ];
        let age = |name: &str, by| {
            let file = fs::File::create(work.join(name)).expect("writable");
            file.set_modified(SystemTime::now() - by).expect("set");
        };
        let are_there = |names: &[&str]| names.iter().filter(|name| work.join(name).exists()).count();
        leftovers.iter().for_each(|name| age(name, AGE / 2));
        others.iter().for_each(|name| age(name, AGE * 2));
        sweep(&work, &features);
        assert_eq!((are_there(&leftovers), are_there(&others)), (leftovers.len(), others.len()), "too young");
        leftovers.iter().for_each(|name| age(name, AGE * 2));
        sweep(&work, &features);
        assert_eq!((are_there(&leftovers), are_there(&others)), (0, others.len()));
        sweep(&folder.path().join("none"), &folder.path().join("none/features"));
    }
}
