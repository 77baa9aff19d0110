//! NumPy's `.npy` (format 1.0: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>),
//! with the columns that an array cannot hold in a Parquet file beside it, row by row.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use regex::Regex;

use super::{BATCH_ROWS, ExchangeError, parquet};
use crate::stages::embed::EmbeddingBatch;
use crate::stages::store::{FeatureStore, NewFile};

const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

/// The data start at a multiple of this.
const ALIGNMENT: usize = 64;

/// `features.npy` → `features.rows.parquet`
pub(super) fn sidecar(file: &Path) -> PathBuf {
    file.with_extension("rows.parquet")
}

pub(super) async fn export(store: &FeatureStore, file: &Path) -> Result<usize, ExchangeError> {
    let rows = store.count(None).await?;
    let io = ExchangeError::io(file);
    let mut out = BufWriter::new(NewFile::create(file)?);
    out.write_all(&header(rows, store.dim())).map_err(&io)?;
    let mut sidecar = parquet::Writer::create(&sidecar(file), store, parquet::Columns::WithoutEmbedding)?;
    store
        .for_each_batch::<ExchangeError>(None, BATCH_ROWS, |batch| {
            for number in &batch.vectors {
                out.write_all(&number.to_le_bytes()).map_err(&io)?;
            }
            sidecar.write(batch)
        })
        .await?;
    let out = out.into_inner().map_err(|error| io(error.into_error()))?;
    sidecar.finish()?;
    out.finish()?;
    Ok(rows)
}

fn header(rows: usize, dim: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    let unpadded = MAGIC.len() + 2 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(ALIGNMENT) - unpadded));
    text.push('\n');
    [MAGIC, &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

/// Little-endian float32 or float64, two dimensions, C order; with its sidecar.
pub(super) fn read(file: &Path) -> Result<EmbeddingBatch, ExchangeError> {
    let bytes = fs::read(file).map_err(ExchangeError::io(file))?;
    let (dim, vectors) = parse(&bytes).map_err(|reason| ExchangeError::invalid(file, reason))?;
    let sidecar = sidecar(file);
    if !sidecar.is_file() {
        let reason = format!("its rows have no names: {} is missing", sidecar.display());
        return Err(ExchangeError::invalid(file, reason));
    }
    let rows = parquet::read_without_embedding(&sidecar)?;
    if rows.len() * dim != vectors.len() {
        let reason =
            format!("{} rows there and {} here do not fit together", rows.len(), vectors.len() / dim.max(1));
        return Err(ExchangeError::invalid(&sidecar, reason));
    }
    Ok(EmbeddingBatch { dim, vectors, ..rows })
}

fn parse(bytes: &[u8]) -> Result<(usize, Vec<f32>), String> {
    // Version 2.0 and 3.0 differ in the width of the length alone; NumPy writes them for headers past 64 KiB
    // only.
    let (version, rest) = match bytes {
        [0x93, b'N', b'U', b'M', b'P', b'Y', version, _, rest @ ..] => (*version, rest),
        _ => return Err("this is not a .npy file".into()),
    };
    let (length, rest) = match (version, rest) {
        (1, [a, b, rest @ ..]) => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        (2 | 3, [a, b, c, d, rest @ ..]) => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        _ => return Err(format!("version {version} of the .npy format is not known")),
    };
    let cut_off = || "the file is cut off".to_owned();
    let (header, data) = rest.split_at_checked(length).ok_or_else(cut_off)?;
    let header = String::from_utf8_lossy(header);
    let field = |pattern: &str| {
        let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
        pattern.captures(&header).ok_or_else(|| format!("the header {:?} cannot be used", header.trim()))
    };
    let descr = field(r"'descr':\s*'([^']*)'")?[1].to_owned();
    if &field(r"'fortran_order':\s*(True|False)")?[1] == "True" {
        return Err("the array is in Fortran order; save numpy.ascontiguousarray(array)".into());
    }
    let shape = field(r"'shape':\s*\(\s*(\d+)\s*,\s*(\d+)\s*,?\s*\)")
        .map_err(|_| format!("the array has not two dimensions: {}", header.trim()))?;
    let number = |group: usize| shape[group].parse::<usize>().map_err(|error| error.to_string());
    let (rows, dim) = (number(1)?, number(2)?);
    let count = rows.checked_mul(dim).ok_or_else(cut_off)?;
    let vectors: Vec<f32> = match descr.as_str() {
        "<f4" => data
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap_or_default()))
            .collect(),
        "<f8" => data
            .chunks_exact(8)
            .map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap_or_default()) as f32)
            .collect(),
        other => return Err(format!("the numbers are of type {other}, not <f4 or <f8")),
    };
    if vectors.len() != count {
        return Err(cut_off());
    }
    Ok((dim, vectors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_aligned_and_read_back() {
        for (rows, dim) in [(0, 512), (1, 1), (123_456_789, 512)] {
            let header = header(rows, dim);
            assert_eq!(header.len() % ALIGNMENT, 0);
            assert_eq!(header.last(), Some(&b'\n'));
        }
        let mut file = header(2, 1);
        file.extend([1.5_f32, -2.0].iter().flat_map(|number| number.to_le_bytes()));
        assert_eq!(parse(&file), Ok((1, vec![1.5, -2.0])));
        assert_eq!(parse(&file[..file.len() - 1]), Err("the file is cut off".into()));
    }

    #[test]
    fn foreign_headers_are_read_or_refused() {
        let file = |header: &str, data: &[u8]| {
            [MAGIC, &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
        };
        let double = file("{'descr':'<f8','fortran_order':False,'shape':(1,1)}\n", &0.5_f64.to_le_bytes());
        assert_eq!(parse(&double), Ok((1, vec![0.5])));
        let reason = |header: &str| parse(&file(header, &[])).unwrap_err();
        assert!(reason("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1), }").contains("Fortran"));
        assert!(
            reason("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }").contains("two dimensions")
        );
        assert!(reason("{'descr': '<i8', 'fortran_order': False, 'shape': (0, 4), }").contains("<i8"));
        assert!(parse(b"hello").unwrap_err().contains("not a .npy"));
    }
}
