//! Which gallery pictures are right answers to a query, and which must not be counted at all.
//!
//! Right is what has the query's label. What must not be counted is the query itself: found by the SHA-256 of its
//! bytes under whatever name, and in leave-one-out by its id as well. Dropping "the first hit" instead would be wrong:
//! a copy of the query may come before it.

use std::collections::HashMap;

use super::{EvaluateError, GalleryRows, Mode, QueryState};
use crate::stages::decode::Picture;
use crate::stages::embed::EmbeddingBatch;

/// The gallery, looked up by id, bytes and class. Classes are numbered by name ascending.
pub struct Gallery<'a> {
    pub rows: GalleryRows<'a>,
    /// What is known of the pictures, by row.
    pub pictures: &'a [Picture],
    row_of: HashMap<&'a str, u32>,
    with_bytes: HashMap<&'a str, Vec<u32>>,
    class_of: Vec<Option<u32>>,
    /// Names of all classes, ascending.
    pub classes: Vec<&'a str>,
    /// Pictures of each class.
    pub class_sizes: Vec<usize>,
}

impl<'a> Gallery<'a> {
    pub fn new(rows: GalleryRows<'a>) -> Result<Gallery<'a>, EvaluateError> {
        let pictures = rows.pictures();
        let mut row_of = HashMap::with_capacity(pictures.len());
        let mut with_bytes: HashMap<&str, Vec<u32>> = HashMap::with_capacity(pictures.len());
        for (row, picture) in (0u32..).zip(pictures) {
            if row_of.insert(picture.id.as_str(), row).is_some() {
                return Err(EvaluateError::RepeatedId { id: picture.id.clone() });
            }
            with_bytes.entry(&picture.sha256).or_default().push(row);
        }
        let mut classes: Vec<&str> = pictures.iter().filter_map(|picture| picture.label.as_deref()).collect();
        classes.sort_unstable();
        classes.dedup();
        let mut gallery = Gallery {
            rows,
            pictures,
            row_of,
            with_bytes,
            class_of: Vec::new(),
            class_sizes: vec![0; classes.len()],
            classes,
        };
        gallery.class_of = pictures.iter().map(|picture| gallery.class(picture.label.as_deref()?)).collect();
        for class in gallery.class_of.iter().flatten() {
            gallery.class_sizes[*class as usize] += 1;
        }
        Ok(gallery)
    }

    /// The row of a picture by id.
    pub fn row(&self, id: &str) -> Option<u32> {
        self.row_of.get(id).copied()
    }

    /// Whether `row` is of class `class`.
    pub fn is_of(&self, row: u32, class: u32) -> bool {
        self.class_of[row as usize] == Some(class)
    }

    /// How many pictures of `class` there are beside those in `gone`, which names each row once.
    pub fn relevant(&self, class: u32, gone: &[u32]) -> usize {
        self.class_sizes[class as usize] - gone.iter().filter(|row| self.is_of(**row, class)).count()
    }

    /// How many pictures have a label.
    pub fn labelled(&self) -> usize {
        self.class_sizes.iter().sum()
    }

    fn class(&self, label: &str) -> Option<u32> {
        self.classes.binary_search(&label).ok().map(|class| class as u32)
    }
}

/// What is known of a query before it is searched.
#[derive(Debug)]
pub struct Judgement<'a> {
    pub id: &'a str,
    pub label: Option<&'a str>,
    pub picture: &'a Picture,
    pub vector: &'a [f32],
    /// The gallery's class of that label, where it has one.
    pub class: Option<u32>,
    /// In leave-one-out: the query's own row.
    pub itself: Option<u32>,
    /// Gallery pictures taken out of ranking and relevant set: rows, ascending.
    pub excluded: Vec<u32>,
    /// Of those: copies of the query's bytes (in leave-one-out, under another id).
    pub copies: usize,
    /// Relevant pictures that remain.
    pub relevant: usize,
}

impl<'a> Judgement<'a> {
    /// Whether it is in the means.
    pub fn state(&self) -> QueryState {
        match self.label {
            None => QueryState::Unlabelled,
            Some(_) if self.relevant == 0 => QueryState::Unanswerable,
            Some(_) => QueryState::Evaluated,
        }
    }

    /// All queries of a mode, by id.
    ///
    /// Errors: leave-one-out over a gallery whose vectors are not in memory.
    pub fn all(
        mode: Mode,
        gallery: &Gallery<'a>,
        queries: &'a EmbeddingBatch,
    ) -> Result<Vec<Judgement<'a>>, EvaluateError> {
        let asked = match mode {
            Mode::HeldOut => queries,
            Mode::LeaveOneOut => gallery.rows.held().ok_or(EvaluateError::NotHeld)?,
        };
        let mut all: Vec<Judgement> =
            (0..asked.len()).map(|i| Judgement::new(mode, gallery, asked, i)).collect();
        all.sort_by_key(|judgement| judgement.id);
        Ok(all)
    }

    fn new(mode: Mode, gallery: &Gallery<'a>, asked: &'a EmbeddingBatch, i: usize) -> Judgement<'a> {
        let picture = &asked.pictures[i];
        // Bytes that were not read have no hash, and are no copies of each other.
        let same_bytes =
            (!picture.sha256.is_empty()).then(|| gallery.with_bytes.get(picture.sha256.as_str())).flatten();
        let mut excluded = same_bytes.cloned().unwrap_or_default();
        let itself = match mode {
            Mode::HeldOut => None,
            Mode::LeaveOneOut => gallery.row(&picture.id),
        };
        let copies = excluded.iter().filter(|row| Some(**row) != itself).count();
        excluded.extend(itself.filter(|itself| !excluded.contains(itself)));
        excluded.sort_unstable();
        let class = picture.label.as_deref().and_then(|label| gallery.class(label));
        let relevant = class.map_or(0, |class| gallery.relevant(class, &excluded));
        Judgement {
            id: &picture.id,
            label: picture.label.as_deref(),
            picture,
            vector: asked.vector(i),
            class,
            itself,
            excluded,
            copies,
            relevant,
        }
    }
}
