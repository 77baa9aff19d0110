//! What a plan is made for, and how it is written on a command line.

use clap::ValueEnum;
use serde::Serialize;

use crate::exit::UsageError;
use crate::models::Precision;

/// Bounds within which a plan means anything.
const MOST_PICTURES: f64 = 1e12;
const LEAST_QUERIES: f64 = 1e-3;
const MOST_QUERIES: f64 = 1e7;

/// What is wished for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Wish {
    pub pictures: f64,
    pub queries_per_second: f64,
    /// Numbers of a vector.
    pub dimensions: u32,
    pub index_options: Vec<IndexOption>,
    pub precision: Precision,
    pub cores_per_node: u32,
    /// Bytes.
    pub memory_per_node: f64,
    /// Bytes.
    pub disk_per_node: f64,
    /// Copies beside the primary one.
    pub replicas: u32,
}

impl Wish {
    /// Whether Elasticsearch would take it.
    ///
    /// # Errors
    /// An index option that is not for vectors of so many numbers.
    pub fn check(&self) -> Result<(), UsageError> {
        let dimensions = self.dimensions;
        for option in &self.index_options {
            let wanted = match option {
                IndexOption::BbqHnsw if dimensions < 64 => "64 or more",
                IndexOption::Int4Hnsw if !dimensions.is_multiple_of(2) => "an even number",
                _ => continue,
            };
            let option = option.name();
            return Err(UsageError(format!(
                "--dimensions {dimensions}: Elasticsearch's {option} wants {wanted}; leave {option} out of --index-options"
            )));
        }
        Ok(())
    }
}

/// How vectors are kept for searching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum IndexOption {
    /// No graph: `script_score` over all documents, exact
    Exact,
    /// A graph over the vectors as they are
    Hnsw,
    /// A graph over a byte a number, rescored
    Int8Hnsw,
    /// A graph over half a byte a number, rescored
    Int4Hnsw,
    /// A graph over a bit a number, rescored
    BbqHnsw,
}

impl IndexOption {
    /// The name in `index_options`.
    pub fn name(self) -> &'static str {
        match self {
            IndexOption::Exact => "exact",
            IndexOption::Hnsw => "hnsw",
            IndexOption::Int8Hnsw => "int8_hnsw",
            IndexOption::Int4Hnsw => "int4_hnsw",
            IndexOption::BbqHnsw => "bbq_hnsw",
        }
    }
}

/// A number of pictures: `100000000` or `1e8`.
///
/// # Errors
/// What is no whole number from 1 to 1e12.
pub fn pictures(text: &str) -> Result<f64, String> {
    match number(text) {
        Some(number) if number.fract() == 0.0 && (1.0..=MOST_PICTURES).contains(&number) => Ok(number),
        _ => Err(format!("a whole number from 1 to {MOST_PICTURES:e} is wanted, such as 1e8")),
    }
}

/// A number of queries a second.
///
/// # Errors
/// What is no number from 0.001 to 1e7.
pub fn rate(text: &str) -> Result<f64, String> {
    match number(text) {
        Some(number) if (LEAST_QUERIES..=MOST_QUERIES).contains(&number) => Ok(number),
        _ => Err(format!("a number from {LEAST_QUERIES} to {MOST_QUERIES:e} is wanted, such as 50")),
    }
}

/// Bytes, of `64GB`, `1.5TiB`.
///
/// # Errors
/// What is no size from 1 GB to 1000 TB.
pub fn size(text: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 4] =
        [("TiB", (1u64 << 40) as f64), ("GiB", (1u64 << 30) as f64), ("TB", 1e12), ("GB", 1e9)];
    let parsed = UNITS
        .into_iter()
        .find_map(|(unit, factor)| Some(number(text.strip_suffix(unit)?.trim_end())? * factor));
    match parsed {
        Some(bytes) if (1e9..=1e15).contains(&bytes) => Ok(bytes),
        _ => Err("a size from 1GB to 1000TB is wanted, such as 64GB (GB, TB, GiB, TiB)".to_owned()),
    }
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["0", "-1", "NaN", "inf", "1.5", "1e13", "", "many"] {
            pictures(text).expect_err(text);
        }
        for text in ["0", "-0.5", "NaN", "inf", "1e8", "1e-300", "0.0009"] {
            rate(text).expect_err(text);
        }
        for text in ["64", "GB", "0GB", "-64GB", "NaNGB", "1MB", "2000TB"] {
            size(text).expect_err(text);
        }
        assert_eq!((pictures("1e8"), rate("0.001"), size("64 GB")), (Ok(1e8), Ok(0.001), Ok(64e9)));
        assert_eq!(size("2TiB"), Ok(2.0 * 1024.0f64.powi(4)));
    }

    #[test]
    fn what_elasticsearch_refuses_is_no_plan() {
        let check = |option, dimensions| {
            let wish = Wish {
                pictures: 1e6,
                queries_per_second: 1.0,
                dimensions,
                index_options: vec![IndexOption::Exact, option],
                precision: Precision::Int8,
                cores_per_node: 16,
                memory_per_node: 64e9,
                disk_per_node: 2e12,
                replicas: 1,
            };
            wish.check().map_err(|error| error.to_string())
        };
        for (option, dimensions) in [(IndexOption::BbqHnsw, 63), (IndexOption::Int4Hnsw, 511)] {
            let error = check(option, dimensions).expect_err("refused");
            for named in ["--dimensions", &dimensions.to_string(), "--index-options", option.name()] {
                assert!(error.contains(named), "{error}");
            }
            check(option, dimensions + 1).expect("taken");
        }
        check(IndexOption::Int8Hnsw, 1).expect("taken");
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic_or_pass_nonsense(text in "[-+0-9.eEinfNaGTB]{0,12}") {
            for number in [pictures(&text), rate(&text), size(&text)].into_iter().flatten() {
                prop_assert!(number > 0.0 && number.is_finite());
            }
        }
    }
}
