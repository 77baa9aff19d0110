//! The memory budget of a run (`memory = "1GiB"`): what is taken is measured, and what is left is shared out.
//!
//! What a newcomer would get wrong: a budget counts what the operating system counts, which is more than what is in use. The
//! program's own code, the model and the list of pictures have to be there, however small the budget; their size is not guessed
//! but read off as they come ([`Ledger::note`]). Only the rest can be chosen: how many rows, batches and decoded pictures are in
//! memory at a time ([`Shares`]). A part of the budget stays free, for what the allocator does not give back at once.

use std::fmt;

use serde::{Deserialize, Serialize};
use toml::Value;

/// Bytes, written as `1GiB` or `800MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "Value")]
pub struct Bytes(pub u64);

const MIB: u64 = 1 << 20;

const UNITS: [(&str, u64); 6] = [
    ("KiB", 1 << 10),
    ("MiB", MIB),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

impl TryFrom<Value> for Bytes {
    type Error = String;

    fn try_from(value: Value) -> Result<Bytes, String> {
        let parsed = value.as_str().and_then(|text| {
            let (unit, factor) = UNITS.into_iter().find(|(unit, _)| text.ends_with(unit))?;
            let number: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            let bytes = number * factor as f64;
            (number.is_finite() && (1.0..1e18).contains(&bytes)).then_some(Bytes(bytes as u64))
        });
        parsed.ok_or_else(|| {
            format!("{value} is no size: memory is written as \"1GiB\", \"512MiB\" or \"800MB\" (KiB, MiB, GiB, KB, MB, GB)")
        })
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}MiB", self.0.div_ceil(MIB))
    }
}

/// Why a run does not fit into its budget. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error(
        "memory = \"{budget}\" is too little for this run, which so far needs {needs}; set memory to \"{least}\" or more"
    )]
    TooLittle {
        budget: Bytes,
        // What takes how much.
        needs: String,
        least: Bytes,
    },
    /// What the program takes is read from `/proc`, which Linux has.
    #[error(
        "memory: this system does not tell what a program takes, so no budget can be kept; leave the key out"
    )]
    NotMeasured,
}

/// How much is in memory at a time of what can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Bytes of rows that wait for their commit; and of rows that were read, and wait to be used.
    pub rows: u64,
    /// Bytes of pictures that are being decoded, on all threads together. `None`: as many as they take.
    pub decoding: Option<u64>,
    /// Batches that wait between decoding and the model: four are enough that neither waits for the other's hiccups.
    pub queue: usize,
}

impl Default for Shares {
    /// Without a budget.
    fn default() -> Shares {
        Shares { rows: MOST_ROWS, decoding: None, queue: QUEUE }
    }
}

const QUEUE: usize = 4;

/// More rows at a time make nothing faster: the model and the table's files are what takes time.
const MOST_ROWS: u64 = 16 * MIB;

const LEAST_ROWS: u64 = MIB;

/// A photo of 8 million pixels.
const LEAST_DECODING: u64 = 32 * MIB;

/// Row groups that are being read and written (each up to 16 MiB), columns made of a part of the rows, and the like.
const FILES: u64 = 48 * MIB;

/// An id in a list, and the column that it came from.
const ID_BYTES: u64 = 200;

impl Shares {
    /// Rows of `dim` numbers each that fit into [`Shares::rows`].
    pub fn rows(&self, dim: usize) -> usize {
        // Beside the vector: path, class, hashes.
        (self.rows as usize / (4 * dim + 512)).max(64)
    }

    /// Rows that a query hands on at a time.
    pub fn batch_rows(&self, dim: usize) -> usize {
        (self.rows(dim) / 4).clamp(64, 2_048)
    }
}

/// One of the things that have to be in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    pub what: String,
    pub bytes: u64,
}

/// What a run has taken of its budget so far. Without a budget it measures nothing and allows everything.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    budget: Option<Bytes>,
    taken: Vec<Taken>,
    shares: Shares,
}

impl Ledger {
    /// Begins with what the program itself takes, and sees to it that the least shares fit beside it.
    pub fn open(budget: Option<Bytes>) -> Result<Ledger, MemoryError> {
        let mut ledger = Ledger { budget, ..Ledger::default() };
        if budget.is_some() {
            resident().ok_or(MemoryError::NotMeasured)?;
            ledger.note("the program");
            ledger.share(0)?;
        }
        Ok(ledger)
    }

    /// For a command that reads a table of so many rows, of which it lists the ids.
    pub fn for_table(budget: Bytes, rows: usize) -> Result<Ledger, MemoryError> {
        let mut ledger = Ledger::open(Some(budget))?;
        ledger.reserve(format!("the ids of {rows} pictures"), rows as u64 * ID_BYTES);
        ledger.share(0)?;
        Ok(ledger)
    }

    /// Whether there is a budget.
    pub fn is_limited(&self) -> bool {
        self.budget.is_some()
    }

    /// The shares as they were given out last.
    pub fn shares(&self) -> Shares {
        self.shares
    }

    /// Books what has been taken since the last time as `what`.
    pub fn note(&mut self, what: impl Into<String>) {
        if let (Some(_), Some(now)) = (self.budget, resident()) {
            let bytes = now.saturating_sub(self.taken());
            self.taken.push(Taken { what: what.into(), bytes });
        }
    }

    /// Sets so much aside for `what`, which is yet to come.
    pub fn reserve(&mut self, what: impl Into<String>, bytes: u64) {
        if self.budget.is_some() {
            self.taken.push(Taken { what: what.into(), bytes });
        }
    }

    /// Refuses what would not fit, before it is taken.
    pub fn expect(&self, what: impl Into<String>, bytes: u64) -> Result<(), MemoryError> {
        self.left([Taken { what: what.into(), bytes }]).map(drop)
    }

    /// Shares out what is left. `batch`: bytes of a batch of pictures as the model takes them; 0 where none are decoded.
    pub fn share(&mut self, batch: u64) -> Result<Shares, MemoryError> {
        let need = |what: &str, bytes| Taken { what: what.to_owned(), bytes };
        let least = [
            need("rows of the feature table", FILES + 2 * LEAST_ROWS),
            // One is being filled, one waits, one is being handed over, and the model has one.
            need("batches of pictures", 4 * batch),
            need("decoding one picture", if batch > 0 { LEAST_DECODING } else { 0 }),
        ];
        let Some(left) = self.left(least)? else { return Ok(self.shares) };
        // A quarter of what is free beyond the least for waiting batches, a quarter for rows, and pictures get the rest.
        let queue = 1 + (left / 4 / batch.max(1)).min(QUEUE as u64 - 1) as usize;
        let left = left - batch * (queue as u64 - 1);
        let rows = (LEAST_ROWS + left / 8).min(MOST_ROWS);
        let left = left - 2 * (rows - LEAST_ROWS);
        let decoding = (batch > 0).then_some(LEAST_DECODING + left);
        self.shares = Shares { rows, decoding, queue };
        Ok(self.shares)
    }

    /// What would be left of the budget beside `needs`; `None` where there is none.
    fn left(&self, needs: impl IntoIterator<Item = Taken>) -> Result<Option<u64>, MemoryError> {
        let Some(budget) = self.budget else { return Ok(None) };
        let all: Vec<Taken> =
            self.taken.iter().cloned().chain(needs).filter(|taken| taken.bytes > 0).collect();
        let sum: u64 = all.iter().map(|taken| taken.bytes).sum();
        let usable = budget.0 - budget.0 / RESERVE;
        if sum <= usable {
            return Ok(Some(usable - sum));
        }
        let needs: Vec<String> =
            all.iter().map(|taken| format!("{} for {}", Bytes(taken.bytes), taken.what)).collect();
        let least = Bytes((sum * RESERVE / (RESERVE - 1)).next_multiple_of(16 * MIB));
        Err(MemoryError::TooLittle { budget, needs: needs.join(", "), least })
    }

    fn taken(&self) -> u64 {
        self.taken.iter().map(|taken| taken.bytes).sum()
    }

    /// For `run.json`.
    pub fn record(&self) -> Option<Record> {
        let budget = self.budget?.0;
        Some(Record { budget, peak: 0, taken: self.taken.clone(), shares: self.shares })
    }

    /// Tells people what went where.
    pub fn log(&self) {
        let Some(budget) = self.budget else { return };
        let taken: Vec<String> =
            self.taken.iter().map(|taken| format!("{} {}", taken.what, Bytes(taken.bytes))).collect();
        let Shares { rows, decoding, queue, .. } = self.shares;
        let decoding =
            decoding.map_or(String::new(), |bytes| format!(", pictures being decoded {}", Bytes(bytes)));
        tracing::info!(
            "memory: of {budget} {}; at a time {} of rows{decoding}, {queue} batches waiting",
            taken.join(", "),
            Bytes(rows)
        );
    }
}

/// A budget in bytes, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub budget: u64,
    /// What the program took at most.
    pub peak: u64,
    pub taken: Vec<Taken>,
    pub shares: Shares,
}

impl Record {
    /// The same with the peak, which is told as well.
    pub fn ended(self) -> Record {
        let peak = peak().unwrap_or_default();
        let (taken, budget) = (Bytes(peak), Bytes(self.budget));
        match peak > self.budget {
            true => tracing::warn!("memory: {taken} at most, more than the {budget} of the pipeline file"),
            false => tracing::info!("memory: {taken} at most, of {budget}"),
        }
        Record { peak, ..self }
    }
}

/// Lets memory that is freed go back to the system. Call it before any thread is started.
///
/// By itself glibc keeps a heap for each thread, and raises the size from which memory is given back with each large block that is
/// freed: an extract of 100,000 pictures then took 406 MB at most, and so 279 MB.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, 256 << 10)] {
        // SAFETY: two numbers for settings of the allocator, which takes its own lock; values that it does not like it refuses.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// The part of a budget that stays free is one of so many.
const RESERVE: u64 = 10;

/// Bytes that this process takes now; nothing where the system does not tell.
pub fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// Bytes that this process took at most.
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

fn status(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Bytes, String> {
        Bytes::try_from(Value::String(text.to_owned()))
    }

    #[test]
    fn a_size_is_a_number_and_a_unit() {
        for (text, bytes) in [
            ("1GiB", 1 << 30),
            ("512 MiB", 512 << 20),
            ("1.5GB", 1_500_000_000),
            ("800MB", 800_000_000),
            ("4KiB", 4096),
            ("3KB", 3000),
        ] {
            assert_eq!(parsed(text), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "1", "GiB", "1 gib", "-1GiB", "NaNGiB", "infGB", "0MB", "1TiB", "1e30GiB"] {
            assert!(parsed(text).is_err_and(|reason| reason.contains("\"512MiB\"")), "{text}");
        }
        assert!(Bytes::try_from(Value::Integer(1 << 30)).is_err());
    }

    fn ledger(budget: u64, taken: u64) -> Ledger {
        let taken = vec![Taken { what: "the model".into(), bytes: taken * MIB }];
        Ledger { budget: Some(Bytes(budget * MIB)), taken, ..Ledger::default() }
    }

    #[test]
    fn what_is_shared_out_fits_into_what_is_left() {
        let batch = 4 * MIB;
        for budget in (260..2000).step_by(7) {
            let shares = ledger(budget, 100).share(batch).unwrap();
            let pictures = shares.decoding.unwrap() + batch * (shares.queue as u64 + 3);
            let all = 100 * MIB + pictures + 2 * shares.rows + FILES;
            assert!(all <= budget * MIB * 9 / 10 + RESERVE, "{budget}: {shares:?}");
            assert!(
                shares.rows >= LEAST_ROWS && shares.decoding >= Some(LEAST_DECODING) && shares.queue >= 1
            );
        }
        assert_eq!(ledger(4000, 100).share(batch).unwrap().queue, QUEUE);
        assert_eq!(ledger(4000, 100).share(batch).unwrap().rows, MOST_ROWS);
        assert_eq!(ledger(4000, 100).share(0).unwrap().decoding, None);
    }

    #[test]
    fn too_little_says_what_takes_how_much_and_what_would_do() {
        let error = ledger(200, 150).share(MIB).unwrap_err();
        let MemoryError::TooLittle { least, .. } = error else { panic!("{error}") };
        let text = error.to_string();
        for part in [
            "memory = \"200MiB\"",
            "150MiB for the model",
            "4MiB for batches of pictures",
            "32MiB for decoding",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(ledger(least.0 / MIB, 150).share(MIB).is_ok(), "{text}");
        let text = ledger(400, 150).expect("vectors of flat", 300 * MIB).unwrap_err().to_string();
        assert!(text.contains("300MiB for vectors of flat"), "{text}");
    }

    #[test]
    fn without_a_budget_everything_goes() {
        let mut ledger = Ledger::open(None).unwrap();
        ledger.note("the model");
        assert!(ledger.expect("the sea", u64::MAX).is_ok());
        assert_eq!(ledger.share(u64::MAX / 8).unwrap(), Shares::default());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_tells_what_is_taken() {
        let before = resident().expect("Linux tells");
        // Far more than what tests beside this one give back meanwhile.
        let block = std::hint::black_box(vec![1_u8; 256 << 20]);
        let grown = resident().expect("Linux tells").saturating_sub(before);
        assert!(grown > 128 << 20 && peak() >= Some(before), "{grown} bytes for a block of {}", block.len());
    }
}
