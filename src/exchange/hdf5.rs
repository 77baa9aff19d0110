//! HDF5 as the original's `index.py` wrote it through h5py: `dataset_1` holds the features as float64 `[n,
//! dim]`, `dataset_2` the file names as byte strings padded with zeros to one length; no groups, attributes,
//! chunks or compression.

use std::io::Write;
use std::path::Path;

use hdf5_pure::{DType, File, FileBuilder, make_f64_type};

use super::{BATCH_ROWS, ExchangeError, imported_picture};
use crate::stages::embed::EmbeddingBatch;
use crate::stages::scan::Split;
use crate::stages::store::{FeatureStore, NewFile, StoreError};

const FEATURES: &str = "dataset_1";
const NAMES: &str = "dataset_2";

pub(super) async fn export(store: &FeatureStore, file: &Path) -> Result<usize, ExchangeError> {
    let rows = store.count(Some(Split::Gallery)).await?;
    if rows == 0 {
        return Err(ExchangeError::invalid(
            file,
            "the table has no gallery pictures, and HDF5 files hold nothing else",
        ));
    }
    let mut features: Vec<u8> = Vec::with_capacity(rows * store.dim() * size_of::<f64>());
    let mut names: Vec<String> = Vec::with_capacity(rows);
    store
        .for_each_batch::<StoreError>(Some(Split::Gallery), BATCH_ROWS, |batch| {
            features.extend(batch.vectors.iter().flat_map(|&number| f64::from(number).to_le_bytes()));
            names.extend(batch.pictures.iter().map(|picture| picture.id.clone()));
            Ok(())
        })
        .await?;

    let failed = |error: hdf5_pure::Error| match error {
        hdf5_pure::Error::Io(error) => ExchangeError::Store(StoreError::io(file, &error)),
        error => ExchangeError::invalid(file, error),
    };
    let shape = [rows as u64, store.dim() as u64];
    let mut builder = FileBuilder::new();
    builder
        .create_dataset(FEATURES)
        .with_raw_data(make_f64_type(), features, shape[0] * shape[1])
        .with_shape(&shape);
    let texts: Vec<&str> = names.iter().map(String::as_str).collect();
    let dataset = builder.create_dataset(NAMES);
    // The type's character set is a mere hint to readers; h5py gives bytes for both.
    let named = if names.iter().all(|name| name.is_ascii()) {
        dataset.with_ascii_strings(&texts)
    } else {
        dataset.with_strings(&texts)
    };
    named.map_err(|error| ExchangeError::invalid(file, error))?;

    let mut out = NewFile::create(file)?;
    builder.finish_to(&mut out).map_err(failed)?;
    out.flush().map_err(ExchangeError::io(file))?;
    out.finish()?;
    Ok(rows)
}

/// Floats of any width, strings of fixed or variable length. Numbers are rounded to float32, which is what
/// networks give: those of the original's files come back bit for bit.
pub(super) fn read(path: &Path) -> Result<EmbeddingBatch, ExchangeError> {
    let opened = std::fs::File::open(path).map_err(ExchangeError::io(path))?;
    drop(opened);
    let invalid = |reason: String| ExchangeError::invalid(path, reason);
    let file =
        File::open(path).map_err(|error| invalid(format!("this is not a readable HDF5 file: {error}")))?;
    let dataset = |name: &str| {
        file.dataset(name).map_err(|error| {
            invalid(format!("there is no dataset {name}, as the original's files have: {error}"))
        })
    };
    let failed =
        |name: &str, error: hdf5_pure::Error| invalid(format!("dataset {name} cannot be read: {error}"));

    let features = dataset(FEATURES)?;
    let shape = features.shape().map_err(|error| failed(FEATURES, error))?;
    let [rows, dim] = shape[..] else {
        return Err(invalid(format!("dataset {FEATURES} has shape {shape:?}, not [n, dim]")));
    };
    let vectors = match features.dtype().map_err(|error| failed(FEATURES, error))? {
        DType::F32 => features.read_f32().map_err(|error| failed(FEATURES, error))?,
        DType::F64 => {
            let numbers = features.read_f64().map_err(|error| failed(FEATURES, error))?;
            numbers.into_iter().map(|number| number as f32).collect()
        }
        other => return Err(invalid(format!("dataset {FEATURES} holds {other}, not float32 or float64"))),
    };
    let names = dataset(NAMES)?.read_string().map_err(|error| failed(NAMES, error))?;
    if names.len() as u64 != rows || vectors.len() as u64 != rows * dim {
        let reason =
            format!("{rows} rows in {FEATURES} and {} names in {NAMES} do not fit together", names.len());
        return Err(invalid(reason));
    }
    Ok(EmbeddingBatch {
        norms: vec![1.0; names.len()],
        pictures: names.into_iter().map(imported_picture).collect(),
        dim: dim as usize,
        vectors,
    })
}
