//! Whole rankings → the files of TREC: `MODE.qrels` (`query 0 picture 1`: what is relevant) and
//! `ENGINE.METRIC.MODE.run` (`query Q0 picture rank score tag`: what was found), for `trec_eval`, `ir_measures`, `ranx`.
//!
//! What a newcomer would get wrong: those tools do not read the rank. They sort by score, and break ties their own way
//! (`trec_eval`: by id, descending). So a score here is the number of hits from this one to the last: it carries our order, ties
//! broken. What the engine scored is in `per_query.parquet`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tempfile::TempPath;

use super::temporary_in;
use crate::stages::evaluate::{EvaluateError, FullRanking, Mode, RankingSink};

/// `trec_eval` keeps scores as `f32`, which tells whole numbers apart up to here.
const DEEPEST: usize = 1 << 24;
/// A file that will have more bytes than this is announced while it is written.
const LARGE: u64 = 1_000_000_000;
/// What would end a column, or be taken for a byte that was encoded. Bytes above 127 are encoded too: some readers split lines
/// at any Unicode space, and some take the locale's word for what bytes mean.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// The folder that takes in the rankings of a run. Files get their names in [`TrecFolder::finish`], all whole.
#[derive(Debug)]
pub struct TrecFolder {
    folder: PathBuf,
    /// By the names that they will have.
    done: BTreeMap<String, TempPath>,
    open: Option<OpenFile>,
    /// The engine that was told the right answers of each mode, and for how many queries. They are the same for the next engine.
    judged: BTreeMap<Mode, (String, u64)>,
    written: Written,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    pub files: usize,
    pub bytes: u64,
}

#[derive(Debug)]
struct OpenFile {
    name: String,
    out: BufWriter<File>,
    path: TempPath,
}

impl TrecFolder {
    /// A folder that is made where it is missing. Files of an earlier run stay until this one's are whole.
    pub fn create(folder: &Path) -> Result<TrecFolder, EvaluateError> {
        fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
        Ok(TrecFolder {
            folder: folder.to_owned(),
            done: BTreeMap::new(),
            open: None,
            judged: BTreeMap::new(),
            written: Written::default(),
        })
    }

    /// Puts the files in the place of those of an earlier run.
    pub fn finish(mut self) -> Result<Written, EvaluateError> {
        self.close()?;
        self.remove_old().map_err(|error| cannot_write(&self.folder, &error))?;
        for (name, path) in std::mem::take(&mut self.done) {
            let to = self.folder.join(name);
            path.persist(&to).map_err(|error| cannot_write(&to, &error.error))?;
        }
        Ok(self.written)
    }

    /// Another selection of engines, metrics and modes has other names: what is left of it would be taken for this run's.
    fn remove_old(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let ours = path.extension().is_some_and(|ending| ending == "run" || ending == "qrels");
            if ours && path.is_file() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Appends to the file with that name, which becomes the open one.
    fn append(&mut self, name: &str, text: &[u8]) -> Result<(), EvaluateError> {
        if self.open.as_ref().is_none_or(|open| open.name != name) {
            self.close()?;
            let (file, path) =
                temporary_in(&self.folder).map_err(|error| cannot_write(&self.folder, &error))?.into_parts();
            self.open =
                Some(OpenFile { name: name.to_owned(), out: BufWriter::with_capacity(1 << 20, file), path });
        }
        if let Some(open) = &mut self.open {
            open.out.write_all(text).map_err(|error| cannot_write(&self.folder.join(name), &error))?;
        }
        self.written.bytes += text.len() as u64;
        Ok(())
    }

    fn close(&mut self) -> Result<(), EvaluateError> {
        let Some(OpenFile { name, out, path }) = self.open.take() else { return Ok(()) };
        let to = self.folder.join(&name);
        let file = out.into_inner().map_err(|error| cannot_write(&to, error.error()))?;
        file.sync_all().map_err(|error| cannot_write(&to, &error))?;
        self.done.insert(name, path);
        self.written.files += 1;
        Ok(())
    }
}

impl RankingSink for TrecFolder {
    fn relevant(
        &mut self,
        engine: &str,
        mode: Mode,
        query: &str,
        relevant: &[&str],
    ) -> Result<(), EvaluateError> {
        let (of, queries) = self.judged.entry(mode).or_insert_with(|| (engine.to_owned(), 0));
        if of != engine {
            return Ok(());
        }
        *queries += 1;
        let query = encode(query);
        let lines: String = relevant.iter().map(|id| format!("{query} 0 {} 1\n", encode(id))).collect();
        self.append(&format!("{}.qrels", mode.name()), lines.as_bytes())
    }

    fn ranking(&mut self, ranking: &FullRanking) -> Result<(), EvaluateError> {
        let FullRanking { mode, metric, query, ref hits, .. } = *ranking;
        let system = format!("{}.{metric}", file_name(ranking.engine));
        let name = format!("{system}.{}.run", mode.name());
        if hits.len() > DEEPEST {
            let reason = format!(
                "{} hits of a query are more than trec_eval can keep in order; set evaluate.depth",
                hits.len()
            );
            return Err(EvaluateError::Rankings {
                path: self.folder.join(name).display().to_string(),
                reason,
            });
        }
        let query = encode(query);
        let lines: String = (1..)
            .zip(hits)
            .map(|(rank, id)| {
                let score = hits.len() + 1 - rank;
                format!("{query} Q0 {} {rank} {score} {system}\n", encode(id))
            })
            .collect();
        let is_first = self.open.as_ref().is_none_or(|open| open.name != name);
        self.append(&name, lines.as_bytes())?;
        let queries = self.judged.get(&mode).map_or(0, |(_, queries)| *queries);
        let expected = queries * lines.len() as u64;
        if is_first && expected > LARGE {
            tracing::warn!(
                "{name} will have some {:.1} GB, {queries} queries of {} hits each; without report.trec = true it is not \
                 written",
                expected as f64 / 1e9,
                hits.len()
            );
        }
        Ok(())
    }
}

/// An id as one word of ASCII; percent-decoding gives it back.
pub fn encode(id: &str) -> Cow<'_, str> {
    utf8_percent_encode(id, ENCODED).into()
}

/// An engine's name (`elasticsearch knn int8_hnsw 100`) as part of a file name.
fn file_name(engine: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    engine.chars().map(|c| if plain(c) { c } else { '-' }).collect()
}

fn cannot_write(path: &Path, error: &io::Error) -> EvaluateError {
    let reason = format!("{error}; make room for it there");
    EvaluateError::Rankings { path: path.display().to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;

    fn ranking<'a>(query: &'a str, hits: &[&'a str]) -> FullRanking<'a> {
        FullRanking {
            engine: "graph of 8",
            mode: Mode::HeldOut,
            metric: Metric::L1,
            query,
            hits: hits.to_vec(),
        }
    }

    #[test]
    fn both_files_as_trec_has_them() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().join("trec");
        let mut trec = TrecFolder::create(&folder).expect("made");
        fs::write(folder.join("flat.cosine.held_out.run"), "of an earlier run").expect("writable");
        fs::write(folder.join("notes.txt"), "somebody's").expect("writable");
        for engine in ["graph of 8", "another, told the same"] {
            trec.relevant(engine, Mode::HeldOut, "a query", &["b", "a c"]).expect("written");
        }
        trec.ranking(&ranking("a query", &["x", "a c", "b"])).expect("written");
        trec.ranking(&ranking("other", &[])).expect("written");
        let written = trec.finish().expect("whole");
        let read = |name: &str| fs::read_to_string(folder.join(name)).expect(name);
        let (qrels, run) = (read("held_out.qrels"), read("graph-of-8.l1.held_out.run"));
        assert_eq!(qrels, "a%20query 0 b 1\na%20query 0 a%20c 1\n");
        assert_eq!(
            run,
            "a%20query Q0 x 1 3 graph-of-8.l1\n\
             a%20query Q0 a%20c 2 2 graph-of-8.l1\n\
             a%20query Q0 b 3 1 graph-of-8.l1\n"
        );
        assert_eq!(written, Written { files: 2, bytes: (qrels.len() + run.len()) as u64 });
        let mut names: Vec<_> = fs::read_dir(&folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["graph-of-8.l1.held_out.run", "held_out.qrels", "notes.txt"]);
    }

    #[test]
    fn a_run_that_ends_early_leaves_what_was_there() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("held_out.qrels"), "old").expect("writable");
        let mut trec = TrecFolder::create(folder.path()).expect("there");
        trec.relevant("flat", Mode::HeldOut, "q", &["a"]).expect("written");
        drop(trec);
        let names: Vec<_> = fs::read_dir(folder.path()).expect("a folder").flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(fs::read_to_string(names[0].path()).expect("readable"), "old");
    }

    #[test]
    fn ids_are_one_word_of_ascii_each() {
        for (id, word) in [
            ("cat/1.jpg", "cat/1.jpg"),
            ("a b\t%\n", "a%20b%09%25%0A"),
            ("größe\u{a0}中", "gr%C3%B6%C3%9Fe%C2%A0%E4%B8%AD"),
            ("100%25", "100%2525"),
        ] {
            assert_eq!(encode(id), word);
            let back = percent_encoding::percent_decode_str(word).decode_utf8().expect("UTF-8");
            assert_eq!(back, id);
        }
    }

    #[test]
    fn what_is_in_the_way_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("trec");
        fs::write(&file, "a file").expect("writable");
        let said = TrecFolder::create(&file).expect_err("a file is in the way").to_string();
        assert!(said.starts_with(&format!("cannot write {}: ", file.display())), "{said}");
        assert!(said.ends_with("or leave report.trec = false"), "{said}");
    }
}
