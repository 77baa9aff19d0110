//! What an executor does with the pictures of one task: read, decode, embed, as an extract on one machine does.
//!
//! Nothing that happens to one picture ends the task: each gets a row, with a vector or with the reason why there is none. Nor
//! does a panic: pictures are then tried one by one, and the one at fault gets such a row.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::answer::{EXECUTOR, INFERENCE, PANIC, READY, REFUSED, Row};
use super::spec::WorkSpec;
use crate::embedders::{self, Embedder, Runtime};
use crate::memory::Shares;
use crate::models::ModelSpec;
use crate::objects::Bucket;
use crate::stages::decode::{self, DecodeOptions, Decoded, Failure, PictureOptions};
use crate::stages::embed::EmbeddingBatch;
use crate::stages::scan::{ImageRef, Seen, Source, Split};

/// An executor's model, opened once, and how it works.
#[derive(Debug)]
pub struct Worker {
    /// Its name in answers, errors and books: `host:port`.
    pub name: String,
    /// Folder of the model files.
    pub models: PathBuf,
    pub runtime: Runtime,
    /// Models that were opened, by the spec that asked for them; or why not. Asked again where it failed: a file may come.
    opened: Mutex<HashMap<String, Arc<Opened>>>,
}

/// A model at work.
struct Opened {
    work: WorkSpec,
    model: ModelSpec,
    /// Tasks take turns, a batch each: one decodes while the other's batch is in the model.
    embedder: Mutex<Box<dyn Embedder>>,
    described: String,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.described)
    }
}

/// A picture of a task: where it is. An empty location asks for nothing but an answer.
pub struct Item {
    pub location: String,
}

impl Worker {
    pub fn new(name: String, models: PathBuf, runtime: Runtime) -> Worker {
        Worker { name, models, runtime, opened: Mutex::default() }
    }

    /// For a process that plans queries and runs none: it knows the function by name and shape.
    pub fn nowhere() -> Worker {
        let runtime = Runtime { library: PathBuf::new(), threads: 1, cache: None };
        Worker::new("scheduler".to_owned(), PathBuf::new(), runtime)
    }

    /// One row for each item, in their order. When `stop` is set, nobody wants them any more.
    pub fn answer(&self, items: &[Item], spec: &str, stop: &AtomicBool) -> Vec<Row> {
        let refused = |kind: &str, reason: String| -> Vec<Row> {
            tracing::error!("refused a task: {reason}");
            items.iter().map(|_| Row::failed(&self.name, EXECUTOR, kind, reason.clone())).collect()
        };
        let opened = match self.open(spec) {
            Ok(opened) => opened,
            Err(reason) => return refused(REFUSED, reason),
        };
        if items.iter().all(|item| item.location.is_empty()) {
            return items
                .iter()
                .map(|_| Row::failed(&self.name, EXECUTOR, READY, opened.described.clone()))
                .collect();
        }
        tracing::info!("{} pictures to do", items.len());
        let started = Instant::now();
        let answered = match caught(|| self.embed(&opened, items, stop)) {
            Ok(answered) => answered,
            Err(panic) => self.one_by_one(&opened, items, stop, &panic),
        };
        match answered {
            Ok(rows) => {
                let failed = rows.iter().filter(|row| row.reason.is_some()).count();
                let seconds = started.elapsed().as_secs_f64();
                tracing::info!("{} pictures in {seconds:.1} s, {failed} of them failed", rows.len());
                rows
            }
            Err(reason) => refused(INFERENCE, reason),
        }
    }

    fn open(&self, spec: &str) -> Result<Arc<Opened>, String> {
        // Held while a model is opened: two tasks that come first want one model, not two. A thread that panicked here left
        // nothing half done.
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = opened.get(spec) {
            return Ok(model.clone());
        }
        let work: WorkSpec = serde_json::from_str(spec)
            .map_err(|error| format!("the task is written for another version of imagedex: {error}"))?;
        let model = work.resolve(&self.models, &self.runtime)?;
        let embedder = embedders::open(model.clone(), &self.runtime).map_err(|error| error.to_string())?;
        let described = embedder.describe();
        tracing::info!("opened {} with {described}", model.file.display());
        let model = Arc::new(Opened { work, model, embedder: Mutex::new(embedder), described });
        // Of one run at a time: a model takes hundreds of megabytes.
        opened.clear();
        opened.insert(spec.to_owned(), model.clone());
        Ok(model)
    }

    /// All at once: while the model works, the next batch is decoded.
    fn embed(&self, opened: &Opened, items: &[Item], stop: &AtomicBool) -> Result<Vec<Row>, String> {
        // What an object store refused to another task it may give to this one.
        Bucket::try_all_again();
        let mut rows: Vec<Option<Row>> = items.iter().map(|_| None).collect();
        let mut images = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match Source::from_text(&item.location) {
                Some(source) => images.push(seen(index, source)),
                None => return Err(format!("no location that this imagedex knows: {}", item.location)),
            }
        }
        let options = PictureOptions {
            decode: DecodeOptions { exif: opened.work.exif, max_pixels: opened.work.max_pixels },
            side: opened.model.side,
            resize: opened.model.resize,
            batch: opened.model.batch,
            threads: self.runtime.threads,
            shares: Shares::default(),
        };
        let (send, receive) = crossbeam_channel::bounded::<Decoded>(options.shares.queue);
        std::thread::scope(|scope| {
            // Moved into the scope: an early return drops it, and the decoder ends at its next `send`.
            let receive = receive;
            let (images, options) = (&images, &options);
            scope.spawn(move || decode::batches(images, options, stop, |decoded| send.send(decoded).is_ok()));
            for Decoded { batch, failures } in receive {
                for failure in failures {
                    let index = index_of(&failure.path);
                    rows[index] = Some(self.failed(failure, &images[index].image.source));
                }
                if batch.pictures.is_empty() {
                    continue;
                }
                let (vectors, worked) = {
                    let mut embedder = opened.embedder.lock().unwrap_or_else(PoisonError::into_inner);
                    let working = Instant::now();
                    let vectors = embedder.embed(batch).map_err(|error| error.to_string())?;
                    (vectors, working.elapsed())
                };
                let seconds = worked.as_secs_f64() / vectors.len() as f64;
                self.note(vectors, seconds, &opened.described, &mut rows);
            }
            Ok::<(), String>(())
        })?;
        let gone = || Row::failed(&self.name, EXECUTOR, INFERENCE, "the task was stopped".to_owned());
        Ok(rows.into_iter().map(|row| row.unwrap_or_else(gone)).collect())
    }

    fn note(&self, vectors: EmbeddingBatch, seconds: f64, described: &str, rows: &mut [Option<Row>]) {
        for (i, picture) in vectors.pictures.iter().enumerate() {
            rows[index_of(&picture.id)] = Some(Row {
                embedding: Some(vectors.vector(i).to_vec()),
                norm: Some(vectors.norms[i]),
                sha256: Some(picture.sha256.clone()),
                pixel_sha256: Some(picture.pixel_sha256.clone()),
                dhash: Some(picture.dhash),
                width: Some(picture.width),
                height: Some(picture.height),
                format: Some(picture.format.clone()),
                stage: None,
                kind: None,
                reason: None,
                executor: self.name.clone(),
                runtime: described.to_owned(),
                seconds,
            });
        }
    }

    /// With the hash of what was read: another machine may see other bytes, and has to be able to tell.
    fn failed(&self, failure: Failure, source: &Source) -> Row {
        let mut row = Row::failed(&self.name, &failure.stage, &failure.kind, failure.reason);
        if failure.stage != "read" {
            let mut hash = Sha256::new();
            let read = source.open().and_then(|mut content| std::io::copy(&mut content, &mut hash));
            row.sha256 = read.is_ok().then(|| hex::encode(hash.finalize()));
        }
        row
    }

    /// Each alone, so that a panic costs the picture that causes it. Where all of several cause one, it is not the pictures.
    fn one_by_one(
        &self,
        opened: &Opened,
        items: &[Item],
        stop: &AtomicBool,
        panic: &str,
    ) -> Result<Vec<Row>, String> {
        tracing::warn!("a panic among {} pictures ({panic}): trying them one by one", items.len());
        let mut rows = Vec::with_capacity(items.len());
        let mut panics = 0;
        for item in items {
            match caught(|| self.embed(opened, std::slice::from_ref(item), stop)) {
                Ok(answered) => rows.extend(answered?),
                Err(panic) => {
                    panics += 1;
                    let mut row =
                        Row::failed(&self.name, "decode", PANIC, format!("its reader gave up: {panic}"));
                    if let Some(source) = Source::from_text(&item.location) {
                        row.sha256 = source.read().ok().map(|bytes| crate::stages::scan::sha256_hex(&bytes));
                    }
                    rows.push(row);
                }
            }
        }
        match panics == items.len() && panics > 1 {
            true => Err(format!("a panic with each of {panics} pictures: {panic}")),
            false => Ok(rows),
        }
    }
}

/// The picture's place in the task is its name here: nobody else on this machine asks for it.
fn seen(index: usize, source: Source) -> Seen {
    let image = ImageRef { id: index.to_string(), split: Split::Gallery, label: None, source };
    Seen { image, sha256: String::new() }
}

fn index_of(id: &str) -> usize {
    id.parse().unwrap_or_default()
}

/// Runs `work`; of a panic its text.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // Sound although asserted: the model takes a whole batch or none, and everything else is dropped with the panic.
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedders::EmbedError;
    use crate::stages::preprocess::ImageBatch;

    /// Panics at a white picture.
    struct AfraidOfWhite(ModelSpec);

    impl Embedder for AfraidOfWhite {
        fn spec(&self) -> &ModelSpec {
            &self.0
        }

        fn describe(&self) -> String {
            "afraid".to_owned()
        }

        fn embed(&mut self, batch: ImageBatch) -> Result<EmbeddingBatch, EmbedError> {
            assert!(batch.pixels.iter().any(|&value| value != 255), "white");
            let white = batch.pixels.chunks(batch.pixels.len() / batch.pictures.len());
            for picture in white {
                assert!(picture.iter().any(|&value| value != 255), "white");
            }
            let count = batch.pictures.len();
            Ok(EmbeddingBatch {
                pictures: batch.pictures,
                dim: 2,
                vectors: vec![1.0; 2 * count],
                norms: vec![1.0; count],
            })
        }
    }

    fn worker_and_model(folder: &std::path::Path) -> (Worker, Opened) {
        let model = crate::models::tests::spec();
        let work = WorkSpec {
            imagedex: String::new(),
            model: model.clone(),
            file: PathBuf::new(),
            below_models: None,
            batch: model.batch,
            exif: decode::Exif::Ignore,
            max_pixels: 1 << 20,
            fingerprint: String::new(),
            facts: serde_json::Value::Null,
            onnxruntime: String::new(),
            openvino: None,
        };
        let runtime = Runtime { library: PathBuf::new(), threads: 2, cache: None };
        let worker = Worker::new("a:1".to_owned(), folder.to_owned(), runtime);
        let embedder: Box<dyn Embedder> = Box::new(AfraidOfWhite(model.clone()));
        (worker, Opened { work, model, embedder: Mutex::new(embedder), described: "afraid".to_owned() })
    }

    fn picture(folder: &std::path::Path, name: &str, value: u8) -> Item {
        let path = folder.join(name);
        image::RgbImage::from_pixel(6, 6, image::Rgb([value; 3])).save(&path).expect("writable");
        Item { location: Source::File(path).to_text() }
    }

    #[test]
    fn a_panic_costs_the_picture_that_causes_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let (worker, opened) = worker_and_model(folder.path());
        let items = [1, 2, 255, 4].map(|value| picture(folder.path(), &format!("{value}.png"), value));
        let stop = AtomicBool::new(false);
        let panic = caught(|| worker.embed(&opened, &items, &stop)).expect_err("a panic");
        let rows = worker.one_by_one(&opened, &items, &stop, &panic).expect("rows");
        let kinds: Vec<_> = rows.iter().map(|row| row.kind.as_deref()).collect();
        assert_eq!(kinds, [None, None, Some(PANIC), None]);
        assert!(rows[2].sha256.is_some() && rows[3].embedding.is_some());
    }

    #[test]
    fn a_panic_with_every_picture_is_not_the_pictures() {
        let folder = tempfile::tempdir().expect("a folder");
        let (worker, opened) = worker_and_model(folder.path());
        let items = ["a.png", "b.png"].map(|name| picture(folder.path(), name, 255));
        let error =
            worker.one_by_one(&opened, &items, &AtomicBool::new(false), "white").expect_err("all panic");
        assert!(error.contains("each of 2 pictures"), "{error}");
    }

    #[test]
    fn a_spec_that_is_none_is_refused_in_each_row() {
        let items = [Item { location: "file:/a".to_owned() }, Item { location: String::new() }];
        let rows = Worker::nowhere().answer(&items, "{}", &AtomicBool::new(false));
        assert_eq!(rows.len(), 2);
        assert!(rows.iter().all(|row| row.kind.as_deref() == Some(REFUSED) && row.executor == "scheduler"));
    }
}
