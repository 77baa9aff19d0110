//! One set of pictures with two pipelines over it: a calm one, whose runs nobody disturbs, and one that is hit.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use imagedex::exit::Exit;
use imagedex::models::onnx::{
    AttributeProto, Dimension, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto,
    data_type,
};
use imagedex::stages::store::FeatureStore;
use prost::Message;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::es_node::Node;
use crate::strike::{self, Ended, Strike};

#[derive(Clone, Copy, PartialEq)]
pub enum Model {
    /// The real one: 25 ms a picture.
    Vgg16,
    /// The pixels themselves, 4 x 4 of them, as 48 numbers: a model card and an ONNX file of our own, for many quick runs.
    Pixels,
}

const CLASSES: [&str; 4] = ["cat", "dog", "owl", "elk"];
/// More than the first chunk that is committed at once, 4,096.
const BIG: usize = 4_500;

/// The pictures, and the two pipelines.
pub struct Pair<'a> {
    folder: TempDir,
    model: Model,
    calm: Side<'a>,
    hit: Side<'a>,
    /// Names of the pictures in `gallery`.
    gallery: Vec<String>,
    /// Those of a big change, which the next change takes away.
    big: Vec<String>,
    next: u32,
    changed: String,
}

impl<'a> Pair<'a> {
    /// New pictures, and nothing made of them yet.
    pub fn new(node: &'a Node, model: Model, pictures: usize, rng: &mut Rng) -> Pair<'a> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let unique = rng.u32(..);
        let side = |name: &str| Side {
            work: folder.path().join(name).join("work"),
            pipeline: folder.path().join(name).join("shop.toml"),
            alias: format!("{name}{unique:08x}"),
            node,
        };
        let (calm, hit) = (side("calm"), side("hit"));
        if model == Model::Pixels {
            write_card(folder.path());
        }
        for side in [&calm, &hit] {
            fs::create_dir_all(folder.path().join(&side.alias[..side.alias.len() - 8])).expect("writable");
            fs::write(&side.pipeline, pipeline(side, model)).expect("writable");
        }
        for i in 0..pictures.min(12) {
            let name = format!("queries/{}/{i}.png", CLASSES[i % CLASSES.len()]);
            draw(&folder.path().join(name), 1_000_000 + i as u32);
        }
        let changed = format!("{pictures} new");
        let (gallery, big) = (Vec::new(), Vec::new());
        let mut pair = Pair { folder, model, calm, hit, gallery, big, next: 0, changed };
        pair.gallery = (0..pictures).map(|_| pair.draw_new("")).collect();
        pair
    }

    pub fn calm(&self) -> &Side<'a> {
        &self.calm
    }

    pub fn hit(&self) -> &Side<'a> {
        &self.hit
    }

    /// The last change.
    pub fn what(&self) -> String {
        let model = if self.model == Model::Vgg16 { "VGG16, " } else { "" };
        format!("{model}{}", self.changed)
    }

    /// Keeps the folder, for a look at what went wrong.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }

    /// Some pictures are new, other ones, renamed, of another class, gone or broken; after a big change thousands are new.
    pub fn change(&mut self, rng: &mut Rng, is_big: bool) {
        let mut changed = Vec::new();
        if !self.big.is_empty() {
            changed.push(format!("{} gone", self.big.len()));
            for name in std::mem::take(&mut self.big) {
                fs::remove_file(self.path(&name)).expect("it is there");
            }
        }
        if is_big {
            self.big = (0..BIG).map(|_| self.draw_new("big/")).collect();
            changed.push(format!("{BIG} new"));
        }
        let few = (self.gallery.len() / 10).max(2);
        for what in ["new", "other", "renamed", "relabelled", "gone", "broken"] {
            let count = rng.usize(..few);
            // A change of each kind every other time, so that each is tried alone and with others.
            if rng.bool() || count == 0 {
                continue;
            }
            rng.shuffle(&mut self.gallery);
            // Enough stay for an evaluation.
            let most = if what == "broken" { 3 } else { self.gallery.len().saturating_sub(10) };
            let count = count.min(most);
            match what {
                "new" => {
                    let new: Vec<String> = (0..count).map(|_| self.draw_new("")).collect();
                    self.gallery.extend(new);
                }
                "gone" => {
                    for name in self.gallery.split_off(self.gallery.len() - count) {
                        fs::remove_file(self.path(&name)).expect("it is there");
                    }
                }
                "renamed" | "relabelled" => {
                    for at in 0..count {
                        let old = self.gallery[at].clone();
                        let (class, file) = old.split_once('/').expect("class/file");
                        let new = match what {
                            "renamed" => format!("{class}/r{}-{file}", rng.u16(..)),
                            _ => format!("{}/l{}-{file}", CLASSES[rng.usize(..CLASSES.len())], rng.u16(..)),
                        };
                        fs::create_dir_all(self.path(&new).parent().expect("a class")).expect("writable");
                        fs::rename(self.path(&old), self.path(&new)).expect("both are there");
                        self.gallery[at] = new;
                    }
                }
                "broken" => {
                    for name in &self.gallery[..count] {
                        fs::write(self.path(name), b"\x89PNG\r\n\x1a\nand no more").expect("writable");
                    }
                }
                _ => {
                    for at in 0..count {
                        self.next += 1;
                        draw(&self.path(&self.gallery[at]), self.next);
                    }
                }
            }
            changed.push(format!("{count} {what}"));
        }
        self.changed = if changed.is_empty() { "no change".to_owned() } else { changed.join(", ") };
    }

    /// So many pictures are other ones, and so many go for as many new ones.
    pub fn churn(&mut self, rng: &mut Rng, other: usize, new: usize) {
        rng.shuffle(&mut self.gallery);
        for name in &self.gallery[..other] {
            self.next += 1;
            draw(&self.path(name), self.next);
        }
        for name in self.gallery.split_off(self.gallery.len() - new) {
            fs::remove_file(self.path(&name)).expect("it is there");
        }
        let new: Vec<String> = (0..new).map(|_| self.draw_new("")).collect();
        self.gallery.extend(new);
    }

    /// The card of [`Model::Pixels`].
    pub fn card(&self) -> PathBuf {
        self.folder.path().join("pixels.toml")
    }

    /// The gallery's folder.
    pub fn pictures(&self) -> PathBuf {
        self.folder.path().join("gallery")
    }

    /// Makes what killed runs left a week old, so that the next run may take it away.
    pub fn age_leftovers(&self) {
        for side in [&self.calm, &self.hit] {
            for path in side.leftovers() {
                let file = fs::File::options().append(true).open(path).expect("it is there");
                file.set_modified(SystemTime::now() - Duration::from_secs(7 * 24 * 3600)).expect("set");
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("gallery").join(name)
    }

    fn draw_new(&mut self, folder: &str) -> String {
        self.next += 1;
        let class = CLASSES[self.next as usize % CLASSES.len()];
        let name = format!("{class}/{folder}{}.png", self.next);
        draw(&self.path(&name), self.next);
        name
    }
}

/// A small picture that no other seed gives.
fn draw(path: &Path, seed: u32) {
    fs::create_dir_all(path.parent().expect("a class")).expect("writable");
    let mut rng = Rng::with_seed(u64::from(seed));
    image::RgbImage::from_fn(8, 8, |_, _| image::Rgb([rng.u8(1..), rng.u8(1..), rng.u8(1..)]))
        .save(path)
        .expect("writable");
}

fn pipeline(side: &Side<'_>, model: Model) -> String {
    let (url, alias) = (side.node.url(), &side.alias);
    let model = match model {
        Model::Vgg16 => "precision = 'fp32'",
        Model::Pixels => "card = '../pixels.toml'\npooling = 'model'",
    };
    format!(
        "name = 'shop'\nwork = 'work'\n\
         [input]\ngallery = '../gallery'\nqueries = '../queries'\nmax_failures = '90%'\nmax_deleted = '100%'\n\
         [model]\n{model}\n\
         [load]\nengine = ['hnsw', 'elasticsearch']\n[load.elasticsearch]\nurl = '{url}'\nalias = '{alias}'\n\
         [evaluate]\nk = [1, 5]\nmetrics = ['cosine', 'l2']\n"
    )
}

/// A model whose numbers are the pixels.
fn write_card(folder: &Path) {
    let node = |op: &str, input: &str, output: &str, attribute| NodeProto {
        op_type: op.into(),
        input: vec![input.into()],
        output: vec![output.into()],
        attribute,
        ..Default::default()
    };
    let n = || Dimension::symbol("pictures");
    let pixels = vec![n(), Dimension::fixed(4), Dimension::fixed(4), Dimension::fixed(3)];
    let graph = GraphProto {
        name: "pixels".into(),
        node: vec![
            node("Cast", "rgb", "float", vec![AttributeProto::int("to", data_type::FLOAT.into())]),
            node("Flatten", "float", "numbers", vec![AttributeProto::int("axis", 1)]),
        ],
        input: vec![ValueInfoProto::tensor("rgb", data_type::UINT8, pixels)],
        output: vec![ValueInfoProto::tensor("numbers", data_type::FLOAT, vec![n(), Dimension::fixed(48)])],
        ..Default::default()
    };
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 13 }];
    let model =
        ModelProto { ir_version: 8, graph: Some(graph), opset_import, ..Default::default() }.encode_to_vec();
    fs::write(folder.join("pixels.onnx"), &model).expect("writable");
    let card = format!(
        "name = 'pixels'\ndescription = 'the pixels themselves'\nlicence = 'MIT'\nsource = 'this test'\ninput = 'rgb'\n\
         output = 'numbers'\nside = 4\ndim = 48\nnon_negative = true\nresize = 'nearest'\n\
         [[file]]\nfile = 'pixels.onnx'\nformat = 'fp32'\nsha256 = '{}'\n",
        hex::encode(Sha256::digest(&model))
    );
    fs::write(folder.join("pixels.toml"), card).expect("writable");
}

/// One pipeline over the pictures.
pub struct Side<'a> {
    pub work: PathBuf,
    pub pipeline: PathBuf,
    pub alias: String,
    pub node: &'a Node,
}

impl Side<'_> {
    pub fn run(&self, strike: Option<&Strike>) -> Ended {
        for _ in 0..3 {
            let ended = strike::run(&self.pipeline, strike);
            if ended.status.code() != Some(i32::from(Exit::Locked as u8)) {
                return ended;
            }
            // The server came to a request of a killed run after we had looked for its lock.
            self.node.request("DELETE", &format!("/imagedex-locks/_doc/{}?refresh=true", self.alias), None);
        }
        strike::run(&self.pipeline, strike)
    }

    /// Pictures that a search of the server finds; 0 where nothing has been promoted.
    pub fn searchable(&self) -> u64 {
        match self.node.behind(&self.alias).first() {
            Some(index) => self.node.count(index),
            None => 0,
        }
    }

    pub fn table_version(&self) -> u64 {
        let runtime = crate::runtime();
        let store = runtime.block_on(FeatureStore::open(&self.work.join("features"))).expect("a table");
        store.map_or(0, |store| store.version())
    }

    /// What is true at any moment: users search one whole index, the old one or the new one; and no file of ours is half written.
    /// Where a run ended by itself there is no more than that. `counts`: pictures of the old index and of the new one.
    pub fn look(&self, ended: &Ended, counts: &[u64; 2], rng: &mut Rng) -> Result<(), String> {
        let behind = self.node.behind(&self.alias);
        if behind.len() > 1 || (counts[0] > 0 && behind.is_empty()) {
            return Err(format!("alias {} stands for {behind:?}", self.alias));
        }
        let found = self.searchable();
        if !counts.contains(&found) {
            return Err(format!("users search {found} pictures, neither of {counts:?}"));
        }
        for file in ["run.json", "report/summary.json"] {
            if let Ok(bytes) = fs::read(self.work.join(file)) {
                serde_json::from_slice::<Value>(&bytes)
                    .map_err(|error| format!("{file} is half written: {error}"))?;
            }
        }
        let lock = format!("/imagedex-locks/_doc/{}", self.alias);
        let is_locked = self.node.request("GET", &lock, None).0 == 200;
        if ended.is_tidy() {
            let half_made: Vec<String> = self
                .indices()
                .into_iter()
                .filter(|(_, meta)| meta["state"] != "promoted")
                .map(|(name, _)| name)
                .collect();
            if is_locked || !half_made.is_empty() {
                return Err(format!(
                    "it ended by itself, and left lock: {is_locked}, indices: {half_made:?}"
                ));
            }
        } else if is_locked {
            // Thirty seconds without a heartbeat, without the wait. Most times the next run need not watch for six more.
            let expired = json!({ "owner": "killed", "host": "here", "process": 1, "heartbeat": 1000 });
            match rng.u8(..8) {
                0 => self.node.ask("PUT", &format!("{lock}?refresh=true"), Some(expired)),
                _ => self.node.ask("DELETE", &format!("{lock}?refresh=true"), None),
            };
        }
        Ok(())
    }

    /// All indices of the alias, with what their mapping says of them.
    pub fn indices(&self) -> Vec<(String, Value)> {
        let path = format!("/{}-*?expand_wildcards=all&allow_no_indices=true", self.alias);
        let answer = self.node.ask("GET", &path, None);
        let found = answer.as_object().cloned().unwrap_or_default();
        found
            .into_iter()
            .map(|(name, index)| (name, index["mappings"]["_meta"]["imagedex"].clone()))
            .collect()
    }

    /// Temporary files in the work folder.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let files = walkdir::WalkDir::new(&self.work).into_iter().flatten().map(walkdir::DirEntry::into_path);
        files
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.starts_with(".imagedex-") || name.rsplit_once('#').is_some()
            })
            .collect()
    }
}
