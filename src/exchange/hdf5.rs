//! HDF5 as the original's `index.py` wrote it through h5py: `dataset_1` holds the features as float64 `[n,
//! dim]`, `dataset_2` the file names as byte strings padded with zeros to one length; no groups, attributes,
//! chunks or compression.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use hdf5_pure::{DType, File, FileBuilder, Layout, make_f64_type};

use super::{BATCH_ROWS, ExchangeError, imported_picture};
use crate::stages::embed::EmbeddingBatch;
use crate::stages::scan::Split;
use crate::stages::store::{FeatureStore, NewFile, StoreError};

const FEATURES: &str = "dataset_1";
const NAMES: &str = "dataset_2";

pub(super) async fn export(store: &FeatureStore, file: &Path) -> Result<usize, ExchangeError> {
    let names = store.ids(Split::Gallery).await?;
    if names.is_empty() {
        return Err(ExchangeError::invalid(
            file,
            "the table has no gallery pictures, and HDF5 files hold nothing else",
        ));
    }
    let failed = |error: hdf5_pure::Error| match error {
        hdf5_pure::Error::Io(error) => ExchangeError::Store(StoreError::io(file, &error)),
        error => ExchangeError::invalid(file, error),
    };
    let shape = [names.len() as u64, store.dim() as u64];
    let mut builder = FileBuilder::new();
    // The library takes a dataset as a whole. It gets zeros that the system has not given memory for yet, and writing them does
    // not change that; the numbers take their place in the file part by part.
    let zeros = vec![0; names.len() * store.dim() * size_of::<f64>()];
    builder
        .create_dataset(FEATURES)
        .with_raw_data(make_f64_type(), zeros, shape[0] * shape[1])
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
    let io = ExchangeError::io(file);
    let mut out = NewFile::create(file)?;
    builder.finish_to(&mut out).map_err(failed)?;

    let written = File::open_streaming(out.path()).map_err(failed)?;
    let layout = written.dataset(FEATURES).and_then(|features| features.layout()).map_err(failed)?;
    let Layout::Contiguous { address: Some(address), .. } = layout else {
        return Err(ExchangeError::invalid(file, format!("{FEATURES} was laid out as {layout:?}")));
    };
    drop(written);
    out.seek(SeekFrom::Start(address)).map_err(&io)?;
    let mut out = BufWriter::new(out);
    store
        .for_each_row_of::<ExchangeError>(Split::Gallery, &names, BATCH_ROWS, |batch| {
            for &number in &batch.vectors {
                out.write_all(&f64::from(number).to_le_bytes()).map_err(&io)?;
            }
            Ok(())
        })
        .await?;
    out.into_inner().map_err(|error| io(error.into_error()))?.finish()?;
    Ok(names.len())
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
