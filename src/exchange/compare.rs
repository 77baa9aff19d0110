//! How alike two sets of features are, picture by picture: what a precision, a provider or another program's decoder costs.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use super::{ExchangeError, read};
use crate::engines::kernels::{Sum, naive};
use crate::stages::embed::EmbeddingBatch;
use crate::stages::scan::Split;
use crate::stages::store::{FeatureStore, validate};

/// Two sets of features, by the pictures that both hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Pictures that both hold with the same bytes and a vector that has a direction, the least alike first.
    pub pairs: Vec<Pair>,
    /// Pictures that only the first set holds, and only the second.
    pub only: [usize; 2],
    /// Pictures of one name but other bytes, which say nothing about how they were embedded.
    pub other_bytes: usize,
    /// Pictures with a vector of zeros in either, for which no cosine is defined.
    pub without_cosine: usize,
}

/// One picture in both sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    pub split: Split,
    pub id: String,
    /// Of its two vectors, -1 to 1, summed in `f64`.
    pub cosine: f64,
}

/// Compares two sets of features, each the folder of a feature table or a [feature file](super::FileFormat).
///
/// Files of the original's layout hold no hashes: there the name alone says which pictures are the same. Both sets are held
/// in memory. Errors: a set that is not there, vectors of different
/// lengths, an id that is there twice, no picture in common.
pub async fn compare(a: &Path, b: &Path) -> Result<Comparison, ExchangeError> {
    let (first, second) = (features(a).await?, features(b).await?);
    if first.dim != second.dim {
        let reason =
            format!("its vectors have {} numbers, those of {} {}", second.dim, a.display(), first.dim);
        return Err(ExchangeError::invalid(b, reason));
    }
    let comparison = Comparison::of(&first, &second);
    if comparison.only == [first.len(), second.len()] {
        return Err(ExchangeError::invalid(b, format!("it has no picture in common with {}", a.display())));
    }
    Ok(comparison)
}

async fn features(path: &Path) -> Result<EmbeddingBatch, ExchangeError> {
    if path.is_file() {
        let batch = read(path)?;
        validate(&batch, batch.dim)?;
        return Ok(batch);
    }
    match FeatureStore::open(path).await? {
        Some(store) => Ok(store.read(None).await?),
        None => Err(ExchangeError::NoTable { path: path.display().to_string() }),
    }
}

impl Comparison {
    fn of(a: &EmbeddingBatch, b: &EmbeddingBatch) -> Comparison {
        let key = |batch: &'_ EmbeddingBatch, row: usize| {
            (batch.pictures[row].split, batch.pictures[row].id.clone())
        };
        let in_b: HashMap<_, _> = (0..b.len()).map(|row| (key(b, row), row)).collect();
        let shared: Vec<_> = (0..a.len()).filter_map(|row| Some((row, *in_b.get(&key(a, row))?))).collect();
        let mut comparison = Comparison {
            pairs: Vec::with_capacity(shared.len()),
            only: [a.len() - shared.len(), b.len() - shared.len()],
            other_bytes: 0,
            without_cosine: 0,
        };
        for (i, j) in shared {
            let (picture, other) = (&a.pictures[i], &b.pictures[j]);
            let hashes_known = !picture.sha256.is_empty() && !other.sha256.is_empty();
            if hashes_known && picture.sha256 != other.sha256 {
                comparison.other_bytes += 1;
            } else if let Some(cosine) = cosine(a.vector(i), b.vector(j)) {
                comparison.pairs.push(Pair { split: picture.split, id: picture.id.clone(), cosine });
            } else {
                comparison.without_cosine += 1;
            }
        }
        let order = |a: &Pair, b: &Pair| {
            a.cosine.total_cmp(&b.cosine).then_with(|| (a.split, &a.id).cmp(&(b.split, &b.id)))
        };
        comparison.pairs.sort_by(order);
        comparison
    }

    /// Mean and least cosine; nothing where no pair has one.
    pub fn mean_and_least(&self) -> Option<(f64, f64)> {
        let sum: f64 = self.pairs.iter().map(|pair| pair.cosine).sum();
        Some((sum / self.pairs.len() as f64, self.pairs.first()?.cosine))
    }

    /// The table that `imagedex features compare` prints, with as many of the least alike pictures as `shown`.
    pub fn table(&self, shown: usize) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            let Comparison { pairs, only: [first, second], other_bytes, without_cosine } = self;
            writeln!(f, "compared {}; only in the first {first}, only in the second {second}", pairs.len())?;
            writeln!(f, "left out: other bytes {other_bytes}, no cosine {without_cosine}")?;
            let Some((mean, least)) = self.mean_and_least() else { return Ok(()) };
            writeln!(f, "cosine: mean {mean:.7}, least {least:.7}")?;
            for Pair { split, id, cosine } in pairs.iter().take(shown) {
                writeln!(f, "  {cosine:.7}  {:<7}  {}", split.name(), id.escape_debug())?;
            }
            Ok(())
        })
    }
}

/// Nothing where one of the vectors is all zeros.
fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    let lengths = (naive(Sum::Dot, a, a) * naive(Sum::Dot, b, b)).sqrt();
    (lengths > 0.0).then(|| naive(Sum::Dot, a, b) / lengths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::imported_picture;
    use crate::stages::decode::Picture;

    fn batch(rows: &[(&str, &str, [f32; 2])]) -> EmbeddingBatch {
        let picture = |(id, sha256, _): &(&str, &str, [f32; 2])| Picture {
            sha256: (*sha256).into(),
            ..imported_picture((*id).into())
        };
        EmbeddingBatch {
            pictures: rows.iter().map(picture).collect(),
            dim: 2,
            vectors: rows.iter().flat_map(|(.., vector)| *vector).collect(),
            norms: vec![1.0; rows.len()],
        }
    }

    #[test]
    fn pictures_are_paired_by_name_and_bytes() {
        let a = batch(&[
            ("gone", "1", [1.0, 0.0]),
            ("same", "2", [3.0, 4.0]),
            ("turned", "3", [1.0, 0.0]),
            ("changed", "4", [1.0, 0.0]),
            ("black", "5", [0.0, 0.0]),
            ("imported", "", [0.0, 1.0]),
        ]);
        let b = batch(&[
            ("imported", "9", [1.0, 1.0]),
            ("black", "5", [1.0, 0.0]),
            ("changed", "other", [1.0, 0.0]),
            ("turned", "3", [0.0, 2.0]),
            ("same", "2", [0.6, 0.8]),
            ("new", "7", [1.0, 0.0]),
            ("newer", "8", [1.0, 0.0]),
        ]);
        let found = Comparison::of(&a, &b);
        assert_eq!((found.only, found.other_bytes, found.without_cosine), ([1, 2], 1, 1));
        let ids: Vec<_> = found.pairs.iter().map(|pair| pair.id.as_str()).collect();
        assert_eq!(ids, ["turned", "imported", "same"], "the least alike first");
        let (mean, least) = found.mean_and_least().unwrap();
        assert!(
            least.abs() < 1e-12 && (mean - (0.0 + 0.5f64.sqrt() + 1.0) / 3.0).abs() < 1e-7,
            "{mean} {least}"
        );
    }
}
