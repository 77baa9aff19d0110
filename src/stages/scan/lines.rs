//! Lines of JSON → a table of text, whatever the types of their values.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, StringBuilder};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::error::ArrowError;
use serde_json::{Deserializer, Map, Value};

use super::coco::open_json;

/// What stands in the lines.
pub(super) struct Lines {
    /// A column for each name that any of them has; text or null.
    pub rows: RecordBatch,
    /// Columns that hold lists or objects, which are null in `rows`, and the first row that does so; rows count from 1.
    pub nested: BTreeMap<String, usize>,
}

/// Reads a file. On an error the reason, with the line of the file.
pub(super) fn read(file: &Path) -> Result<Lines, String> {
    let reader = open_json(file).map_err(|error| error.to_string())?;
    let (mut names, mut columns): (Vec<String>, Vec<StringBuilder>) = (Vec::new(), Vec::new());
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut nested = BTreeMap::new();
    let mut count = 0;
    for object in Deserializer::from_reader(reader).into_iter::<Map<String, Value>>() {
        count += 1;
        for (name, value) in object.map_err(|error| error.to_string())? {
            let place = *places.entry(name).or_insert_with_key(|name| {
                names.push(name.clone());
                columns.push(StringBuilder::new());
                names.len() - 1
            });
            let column = &mut columns[place];
            fill(column, count - 1);
            match value {
                Value::Null => column.append_null(),
                Value::String(text) => column.append_value(text),
                Value::Bool(_) | Value::Number(_) => column.append_value(value.to_string()),
                Value::Array(_) | Value::Object(_) => {
                    nested.entry(names[place].clone()).or_insert(count);
                    column.append_null();
                }
            }
        }
    }
    let columns = columns.into_iter().map(|mut column| -> ArrayRef {
        fill(&mut column, count);
        Arc::new(column.finish())
    });
    let rows = batch(&names, columns.collect()).map_err(|error| error.to_string())?;
    Ok(Lines { rows, nested })
}

/// Nulls for the rows that lack the column.
fn fill(column: &mut StringBuilder, length: usize) {
    use datafusion::arrow::array::ArrayBuilder;
    let missing = length.saturating_sub(column.len());
    (0..missing).for_each(|_| column.append_null());
}

fn batch(names: &[String], columns: Vec<ArrayRef>) -> Result<RecordBatch, ArrowError> {
    let fields: Vec<Field> = names.iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    match columns.first().map(|column| column.len()) {
        // A table without columns does not know how many rows it has.
        None => Ok(RecordBatch::new_empty(schema)),
        Some(_) => RecordBatch::try_new(schema, columns),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::AsArray;

    use super::*;

    fn of(text: &[u8]) -> Result<Lines, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("list.jsonl");
        std::fs::write(&file, text).expect("writable");
        read(&file)
    }

    #[test]
    fn values_of_all_types_are_text() {
        let text = "\u{feff}{\"path\": \"1.png\", \"label\": 7, \"box\": 1}\n\n{\"label\": \"x\", \"box\": [1]}\n\
                    {\"path\": null, \"label\": 1.5}\r\n{\"path\": \"4.png\", \"label\": true, \"box\": {}}";
        let lines = of(text.as_bytes()).expect("valid");
        let column = |name: &str| -> Vec<Option<String>> {
            let column = lines.rows.column_by_name(name).expect("there").as_string::<i32>();
            column.iter().map(|text| text.map(str::to_owned)).collect()
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(column("path"), [some("1.png"), None, None, some("4.png")]);
        assert_eq!(column("label"), [some("7"), some("x"), some("1.5"), some("true")]);
        assert_eq!(column("box"), [some("1"), None, None, None]);
        assert_eq!(lines.nested, BTreeMap::from([("box".to_owned(), 2)]));
        assert_eq!(of(b"").expect("nothing").rows.num_columns(), 0);
    }

    #[test]
    fn what_is_broken_is_told_by_its_line() {
        for (text, line) in [
            (&b"{\"path\": \"1.png\"}\n\n{\"path\": }\n"[..], "line 3"),
            (b"\xef\xbb\xbf{\"path\": \"1.png\"}\n{\"path\"", "line 2"),
            (b"{}\n[1]\n", "line 2"),
            (b"{}\n{\"path\": \"\xff\"}\n", "line 2"),
        ] {
            let reason = of(text).err().expect("broken");
            assert!(reason.contains(line), "{reason}");
        }
    }
}
