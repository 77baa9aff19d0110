//! `imagedex sql`: questions to what a pipeline left behind, in SQL.
//!
//! Three tables (`features`, `failures`, `per_query`) and four functions on vectors (see [`udf`]). Reading
//! only: whatever would write, or open another file, is refused. A newcomer would trip over `ORDER BY …
//! DESC`: nulls come last here, in either direction.

pub mod udf;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::error::DataFusionError;
use datafusion::prelude::{ParquetReadOptions, SQLOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast::Statement as Sql;

use crate::panics::{self, Rows};
use crate::stages::store::{FeatureStore, StoreError};
use crate::text::visible_lines;

/// Where the tables are. What is `None`, or not there yet, is explained when a query names it.
#[derive(Debug, Clone, Default)]
pub struct SqlSources {
    /// The feature table's folder.
    pub features: Option<PathBuf>,
    /// Parquet file of the pictures that failed in the last run.
    pub failures: Option<PathBuf>,
    /// Parquet file of the last evaluation's measures, one row for each query.
    pub per_query: Option<PathBuf>,
}

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Drawn with lines; long vectors are shortened, control characters escaped. All rows are held in memory first.
    Table,
    /// With a header; vectors as JSON arrays. For spreadsheets: text that they would take for a formula begins with a quote (').
    Csv,
    /// One array of objects. For programs: every value as it is.
    Json,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    #[error("there is no table {table} yet: {remedy}")]
    NoTable { table: &'static str, remedy: &'static str },
    /// Only questions are answered. Export the features to work on them elsewhere.
    #[error("only SELECT, EXPLAIN, DESCRIBE and SHOW are possible here: {statement} would change something")]
    NotAllowed { statement: String },
    /// The text holds several statements, or none. Ask them one by one.
    #[error("one statement at a time, please: there are {0}")]
    NotOne(usize),
    /// The statement is not valid, or names a column or function that is not there. `DESCRIBE features` lists the columns.
    #[error("{0}")]
    Query(String),
    /// Standard output, or the file it goes to, cannot be written. Free some space, or check where it leads.
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<DataFusionError> for SqlError {
    fn from(error: DataFusionError) -> SqlError {
        SqlError::Query(error.strip_backtrace())
    }
}

impl From<ArrowError> for SqlError {
    fn from(error: ArrowError) -> SqlError {
        match error {
            ArrowError::IoError(_, error) => SqlError::Output(error),
            error => SqlError::Query(error.to_string()),
        }
    }
}

/// The tables by name, and what makes each.
const TABLES: [(&str, &str); 3] = [
    ("features", "`imagedex extract` makes it"),
    ("failures", "`imagedex extract` makes it"),
    ("per_query", "`imagedex evaluate` makes it"),
];

/// A session that knows the tables that are there, and the functions on vectors.
pub async fn session(sources: &SqlSources) -> Result<SessionContext, SqlError> {
    let config = SessionConfig::new()
        .with_information_schema(true)
        .set_str("datafusion.sql_parser.default_null_ordering", "nulls_last");
    let context = SessionContext::new_with_config(config);
    for function in udf::vector_functions() {
        context.register_udf(function);
    }
    if let Some(dir) = &sources.features
        && let Some(store) = FeatureStore::open(dir).await?
    {
        store.register(&context).await?;
    }
    for (name, file) in [("failures", &sources.failures), ("per_query", &sources.per_query)] {
        if let Some(file) = file.as_deref().filter(|file| file.is_file()) {
            register_file(&context, name, file).await?;
        }
    }
    Ok(context)
}

async fn register_file(context: &SessionContext, name: &str, file: &Path) -> Result<(), SqlError> {
    let absolute = std::path::absolute(file)?;
    let url = url::Url::from_file_path(&absolute)
        .map_err(|()| SqlError::Query(format!("{} cannot be written as a URL", file.display())))?;
    let extension = file.extension().map(|end| format!(".{}", end.to_string_lossy())).unwrap_or_default();
    let failed = |reason: &str| SqlError::Query(format!("{}: {reason}", file.display()));
    // In a task: a damaged file may make its reader panic.
    let (context, name) = (context.clone(), name.to_owned());
    let register = tokio::spawn(async move {
        let options = ParquetReadOptions { file_extension: &extension, ..Default::default() };
        context.register_parquet(name, url.as_str(), options).await
    });
    register.await.map_err(|_| failed(panics::DAMAGED))?.map_err(|error| failed(&error.strip_backtrace()))
}

/// Runs one query and prints its rows; returns how many.
pub async fn run(
    context: &SessionContext,
    query: &str,
    format: Format,
    out: &mut dyn Write,
) -> Result<usize, SqlError> {
    let mut statements = DFParser::parse_sql(query)?;
    let count = statements.len();
    let (Some(statement), 1) = (statements.pop_front(), count) else {
        return Err(SqlError::NotOne(count));
    };
    check(context, &statement)?;
    let plan = context.state().statement_to_plan(statement).await?;
    // The statement was looked at; this looks at the plan, into every corner of it.
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false)
        .verify_plan(&plan)?;
    let rows = context.execute_logical_plan(plan).await?;
    match format {
        Format::Table => {
            let schema = Arc::new(rows.schema().as_arrow().clone());
            let rows = panics::collected(rows).await?;
            let rows: Vec<RecordBatch> =
                if rows.is_empty() { vec![RecordBatch::new_empty(schema)] } else { rows };
            let shown = rows
                .iter()
                .map(|rows| as_text(rows, short_list, visible_lines))
                .collect::<Result<Vec<_>, _>>()?;
            writeln!(out, "{}", pretty_format_batches(&shown)?)?;
            Ok(rows.iter().map(RecordBatch::num_rows).sum())
        }
        Format::Csv => {
            let schema = Arc::new(rows.schema().as_arrow().clone());
            let mut writer = csv::WriterBuilder::new().with_header(true).build(&mut *out);
            // The header comes with the first batch, so that an answer without rows has one, too.
            writer.write(&as_text(&RecordBatch::new_empty(schema), json_list, no_formula)?)?;
            let mut stream = Rows::of(rows);
            let mut count = 0;
            while let Some(rows) = stream.next().await.transpose()? {
                count += rows.num_rows();
                writer.write(&as_text(&rows, json_list, no_formula)?)?;
            }
            Ok(count)
        }
        Format::Json => {
            let mut stream = Rows::of(rows);
            let mut writer = json::WriterBuilder::new()
                .with_explicit_nulls(true)
                .build::<_, json::writer::JsonArray>(&mut *out);
            let mut count = 0;
            while let Some(rows) = stream.next().await.transpose()? {
                count += rows.num_rows();
                writer.write(&rows)?;
            }
            writer.finish()?;
            drop(writer);
            writeln!(out)?;
            Ok(count)
        }
    }
}

/// Refuses what is not a question, and names the phase that makes a table that is not there.
fn check(context: &SessionContext, statement: &Statement) -> Result<(), SqlError> {
    let asks = match statement {
        Statement::Statement(sql) => matches!(
            **sql,
            Sql::Query(_)
                | Sql::ExplainTable { .. }
                | Sql::ShowTables { .. }
                | Sql::ShowColumns { .. }
                | Sql::ShowVariable { .. }
                | Sql::ShowFunctions { .. }
        ),
        Statement::Explain(explain) => return check(context, &explain.statement),
        _ => false,
    };
    if !asks {
        let text = statement.to_string();
        let words: Vec<&str> = text.split_whitespace().take(2).collect();
        return Err(SqlError::NotAllowed { statement: words.join(" ") });
    }
    let (tables, _) = resolve_table_references(statement, true)?;
    for table in tables {
        let missing = TABLES.iter().find(|(name, _)| *name == table.table() && table.schema().is_none());
        if let Some((table, remedy)) = missing
            && !context.table_exist(*table)?
        {
            return Err(SqlError::NoTable { table, remedy });
        }
    }
    Ok(())
}

/// Text that a spreadsheet would run as a formula begins with a quote, which it shows as text; numbers stay numbers.
fn no_formula(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']) && text.parse::<f64>().is_err();
    if is_formula { format!("'{text}") } else { text.to_owned() }
}

/// Replaces columns of lists by columns of text, and each text by what `show` makes of it.
fn as_text(
    rows: &RecordBatch,
    write: fn(&dyn Array) -> Result<String, ArrowError>,
    show: fn(&str) -> String,
) -> Result<RecordBatch, ArrowError> {
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
        let lists: Option<Vec<Option<ArrayRef>>> = match column.data_type() {
            DataType::List(_) => Some(column.as_list::<i32>().iter().collect()),
            DataType::LargeList(_) => Some(column.as_list::<i64>().iter().collect()),
            DataType::FixedSizeList(..) => Some(column.as_fixed_size_list().iter().collect()),
            _ => None,
        };
        match lists {
            Some(lists) => {
                let written = |list: &ArrayRef| Ok::<_, ArrowError>(show(&write(list)?));
                let texts = lists.iter().map(|list| list.as_ref().map(written).transpose());
                columns.push(Arc::new(texts.collect::<Result<StringArray, _>>()?) as ArrayRef);
                fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            }
            None if column.data_type().is_string() => {
                let texts = cast(column, &DataType::Utf8)?;
                let texts: StringArray = texts.as_string::<i32>().iter().map(|text| text.map(show)).collect();
                columns.push(Arc::new(texts));
                fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            }
            None => {
                columns.push(column.clone());
                fields.push(field.clone());
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// As many values of a vector as a table shows.
const SHOWN: usize = 4;

/// `[0.027792458, 0.041135568, 0.02852835, 0.009616711, … 512]`
fn short_list(list: &dyn Array) -> Result<String, ArrowError> {
    let options = FormatOptions::default().with_null("null");
    let formatter = ArrayFormatter::try_new(list, &options)?;
    let mut values: Vec<String> =
        (0..list.len().min(SHOWN)).map(|i| formatter.value(i).to_string()).collect();
    if list.len() > SHOWN {
        values.push(format!("… {}", list.len()));
    }
    Ok(format!("[{}]", values.join(", ")))
}

/// A JSON array; numbers in the fewest digits that give the same number back.
fn json_list(list: &dyn Array) -> Result<String, ArrowError> {
    let options = FormatOptions::default().with_null("null");
    let formatter = ArrayFormatter::try_new(list, &options)?;
    let is_text = !list.data_type().is_numeric() && *list.data_type() != DataType::Boolean;
    let value = |i: usize| {
        let text = formatter.value(i).to_string();
        if is_text && list.is_valid(i) { serde_json::Value::String(text).to_string() } else { text }
    };
    Ok(format!("[{}]", (0..list.len()).map(value).collect::<Vec<_>>().join(",")))
}
