//! What a collection holds of a picture, how its rows are sent, and how pictures are named in expressions.

use milvus::v2::prelude::{CollectionSchema, DataType, FieldData, FieldSchema};

use super::client::failed;
use crate::engines::{EngineError, Filter};
use crate::stages::decode::Picture;

/// The primary key: the picture's id.
pub const ID: &str = "id";
pub const LABEL: &str = "label";
pub const VECTOR: &str = "embedding";
/// The longest text that Milvus takes, in bytes.
const LONGEST_TEXT: u32 = 65_535;
/// Columns of text and of whole numbers that searches can be filtered by.
const TEXTS: [&str; 4] = [ID, LABEL, "sha256", "format"];
const NUMBERS: [&str; 3] = ["dhash", "width", "height"];

/// The columns of a collection.
pub fn schema(dim: usize) -> CollectionSchema {
    let field = |name: &str, data_type: DataType| FieldSchema::new().name(name).data_type(data_type);
    let mut schema = CollectionSchema::new().enable_dynamic_field(false);
    for name in TEXTS {
        let text = field(name, DataType::VarChar).max_length(LONGEST_TEXT);
        schema = schema.add_field(if name == ID { text.primary_key(true) } else { text });
    }
    for name in NUMBERS {
        schema = schema.add_field(field(name, DataType::Int64));
    }
    schema
        .add_field(field("norm", DataType::Float))
        .add_field(field(VECTOR, DataType::FloatVector).dimension(dim as u32))
}

/// Rows to send, by column.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    texts: [Vec<String>; TEXTS.len()],
    numbers: [Vec<i64>; NUMBERS.len()],
    norms: Vec<f32>,
    vectors: Vec<Vec<f32>>,
    /// Of texts and numbers, as they are sent.
    pub bytes: usize,
}

impl Rows {
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    pub fn add(&mut self, picture: &Picture, norm: f32, vector: &[f32]) {
        // Milvus 2.3 has no nulls: a picture without a label has an empty one, which no scan gives.
        let label = picture.label.as_deref().unwrap_or_default();
        let texts = [picture.id.as_str(), label, &picture.sha256, &picture.format];
        for (column, text) in self.texts.iter_mut().zip(texts) {
            self.bytes += text.len();
            column.push(text.to_owned());
        }
        // As the feature table has it: the same 64 bits, signed.
        let numbers = [picture.dhash as i64, i64::from(picture.width), i64::from(picture.height)];
        self.numbers.iter_mut().zip(numbers).for_each(|(column, number)| column.push(number));
        self.norms.push(norm);
        self.vectors.push(vector.to_vec());
        self.bytes += 8 * NUMBERS.len() + 4 * (1 + vector.len());
    }

    pub fn columns(&self) -> Vec<FieldData> {
        let texts =
            TEXTS.iter().zip(&self.texts).map(|(name, column)| FieldData::varchar(*name, column.clone()));
        let numbers =
            NUMBERS.iter().zip(&self.numbers).map(|(name, column)| FieldData::int64(*name, column.clone()));
        let rest = [
            FieldData::float("norm", self.norms.clone()),
            FieldData::float_vector(VECTOR, self.vectors.clone()),
        ];
        texts.chain(numbers).chain(rest).collect()
    }
}

/// The expression for these pictures.
pub fn with_ids(ids: &[String]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| quoted(id)).collect();
    format!("{ID} in [{}]", ids.join(","))
}

/// The expression for pictures that pass all of them; empty where there are none.
pub fn passing(filters: &[Filter]) -> Result<String, EngineError> {
    let each = filters.iter().map(|Filter { column, value }| {
        if TEXTS.contains(&column.as_str()) {
            return Ok(format!("{column} == {}", quoted(value)));
        }
        if !NUMBERS.contains(&column.as_str()) {
            let columns = [&TEXTS[..], &NUMBERS[..]].concat().join(", ");
            return Err(EngineError::Usage(format!(
                "a collection of Milvus has no column {}; it has {columns}",
                column.escape_debug()
            )));
        }
        let number: i64 = value.parse().map_err(|_| {
            EngineError::Usage(format!("{column} is a whole number, and {} is none", value.escape_debug()))
        })?;
        Ok(format!("{column} == {number}"))
    });
    Ok(each.collect::<Result<Vec<String>, EngineError>>()?.join(" and "))
}

/// A text as Milvus' expressions have it.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The text of each row of a column that came back.
pub fn texts<'a>(columns: &'a [FieldData], name: &str) -> Result<&'a [String], EngineError> {
    let column = columns.iter().find(|column| column.name() == name).and_then(FieldData::as_varchar);
    column.ok_or_else(|| failed(format!("an answer came without its column {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_end_its_expression() {
        assert_eq!(quoted("a\"] or id != \"\\"), r#""a\"] or id != \"\\""#);
        assert_eq!(quoted("two\nlines"), r#""two\nlines""#);
        assert_eq!(with_ids(&["a".to_owned(), "b".to_owned()]), r#"id in ["a","b"]"#);
    }

    #[test]
    fn filters_name_columns_that_are_there() {
        let filter = |column: &str, value: &str| {
            passing(&[Filter { column: column.to_owned(), value: value.to_owned() }])
        };
        assert_eq!(filter("label", "Apple").expect("a column"), "label == \"Apple\"");
        assert_eq!(filter("width", "320").expect("a number"), "width == 320");
        for (column, value, named) in [("width", "3 or 1 == 1", "whole number"), ("1==1 or x", "", "label")] {
            let error = filter(column, value).expect_err("refused").to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
