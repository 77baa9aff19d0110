//! CSV: `id,label,split,v0,v1,…`. Numbers have the fewest digits that give the same float32 back; an empty
//! label is none.

use std::io::BufWriter;
use std::path::Path;

use super::{BATCH_ROWS, ExchangeError, imported_picture};
use crate::stages::decode::Picture;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::scan::Split;
use crate::stages::store::{FeatureStore, NewFile, StoreError, parse_split};

pub(super) async fn export(store: &FeatureStore, file: &Path) -> Result<usize, ExchangeError> {
    let failed = |error: csv::Error| {
        let reason = error.to_string();
        match error.into_kind() {
            csv::ErrorKind::Io(error) => ExchangeError::Store(StoreError::io(file, &error)),
            _ => ExchangeError::invalid(file, reason),
        }
    };
    let mut out = csv::Writer::from_writer(BufWriter::new(NewFile::create(file)?));
    let columns = ["id", "label", "split"].map(str::to_owned).into_iter();
    out.write_record(columns.chain((0..store.dim()).map(|i| format!("v{i}")))).map_err(failed)?;
    let mut rows = 0;
    store
        .for_each_batch::<ExchangeError>(None, BATCH_ROWS, |batch| {
            for (i, picture) in batch.pictures.iter().enumerate() {
                let label = picture.label.as_deref().unwrap_or_default();
                for text in [&picture.id, label, picture.split.name()] {
                    out.write_field(text).map_err(failed)?;
                }
                for number in batch.vector(i) {
                    // As 1.0 and -0.0: a column of bare zeros would be read as integers.
                    out.write_field(format!("{number:?}")).map_err(failed)?;
                }
                out.write_record(None::<&[u8]>).map_err(failed)?;
            }
            rows += batch.len();
            Ok(())
        })
        .await?;
    let io = ExchangeError::io(file);
    let out = out.into_inner().map_err(|error| io(error.into_error()))?;
    out.into_inner().map_err(|error| io(error.into_error()))?.finish()?;
    Ok(rows)
}

/// Needs `id` and `v0` … in this order; `label` and `split` where they are there; other columns are passed
/// over.
pub(super) fn read(path: &Path) -> Result<EmbeddingBatch, ExchangeError> {
    let opened = std::fs::File::open(path).map_err(ExchangeError::io(path))?;
    let invalid = |reason: String| ExchangeError::invalid(path, reason);
    let mut reader = csv::Reader::from_reader(std::io::BufReader::new(opened));
    let header = reader.headers().map_err(|error| invalid(error.to_string()))?.clone();
    let column = |name: &str| header.iter().position(|column| column.trim_start_matches('\u{feff}') == name);
    let id = column("id").ok_or_else(|| invalid("there is no column id".into()))?;
    let (label, split) = (column("label"), column("split"));
    let numbers: Vec<usize> = (0..).map_while(|i| column(&format!("v{i}"))).collect();
    if numbers.is_empty() {
        return Err(invalid("there is no column v0".into()));
    }

    let mut batch = EmbeddingBatch { dim: numbers.len(), ..Default::default() };
    for record in reader.records() {
        let record = record.map_err(|error| invalid(error.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let field = |column: usize| record.get(column).unwrap_or_default();
        for &column in &numbers {
            let number = field(column).trim().parse::<f32>();
            batch.vectors.push(
                number.map_err(|_| invalid(format!("line {line}: {:?} is not a number", field(column))))?,
            );
        }
        let split = match split.map(field) {
            None | Some("") => Split::Gallery,
            Some(name) => parse_split(name).ok_or_else(|| {
                invalid(format!("line {line}: split {name:?} is neither gallery nor query"))
            })?,
        };
        let label = label.map(field).filter(|label| !label.is_empty()).map(str::to_owned);
        batch.pictures.push(Picture { label, split, ..imported_picture(field(id).to_owned()) });
        batch.norms.push(1.0);
    }
    Ok(batch)
}
