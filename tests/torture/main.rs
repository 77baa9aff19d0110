//! Kills the program at random moments, starts it again, and holds what it leaves to what an undisturbed run leaves.
//!
//! `make torture` runs all of it and prints one table; `make test` runs a slice. docs/reliability.md says what is compared, and how
//! a failure is repeated. Settings, all of them from the environment:
//!
//! | | default | |
//! |---|---|---|
//! | `TORTURE_SEED` | 1 | chooses changes, phases and moments |
//! | `TORTURE_KILLS` | 20 | kill -9 |
//! | `TORTURE_SIGNALS` | 6 | SIGTERM and SIGINT |
//! | `TORTURE_PARTS` | none | `all`, or part of a name: parts that are commands of their own ([`parts`]) as well |
//! | `SOAK_MINUTES` | none | the long run ([`soak`]) instead, for so long at most |
//! | `SOAK_PICTURES` | 20,000 | pictures of the long run's gallery |

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, reason = "shared with the other tests")]
#[path = "../it/es_node.rs"]
mod es_node;
#[allow(dead_code, reason = "shared with the other tests")]
#[path = "../it/process.rs"]
mod process;
#[allow(dead_code, reason = "shared with the other tests")]
#[path = "../it/support.rs"]
mod support;

mod compare;
mod parts;
mod shop;
mod soak;
mod strike;
mod table;

use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

use fastrand::Rng;

use crate::es_node::Node;
use crate::shop::{Model, Pair};
use crate::strike::{Ended, PHASES, Strike};
use crate::table::Table;

/// Pictures of a quick model, which all but the rounds with VGG16 use.
const PICTURES: usize = 400;
/// A round of so many adds more pictures than one commit of the table takes, and the next round takes them away.
const BIG_EVERY: usize = 9;
/// A round of so many is on the real VGG16.
const VGG16_EVERY: usize = 6;
/// Longest chain of strikes on one piece of work.
const LONGEST_CHAIN: usize = 7;

fn main() -> ExitCode {
    // `cargo test NAME` asks every test program.
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_asked =
        args.iter().filter(|arg| !arg.starts_with('-')).all(|name| "torture".contains(name.as_str()));
    if !is_asked || args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    if let Ok(minutes) = std::env::var("SOAK_MINUTES") {
        return soak::run(minutes.parse().unwrap_or_else(|_| panic!("SOAK_MINUTES={minutes} is no number")));
    }
    let started = Instant::now();
    let seed = setting("TORTURE_SEED", 1);
    let mut table = Table::default();
    println!("torture: seed {seed}");
    let node = Node::start(&[]);
    let crash = Torture::new(&node, seed, Weapon::Kill);
    let signals = Torture::new(&node, seed.wrapping_add(1), Weapon::Signal);
    let ended = crash
        .go(setting("TORTURE_KILLS", 20) as usize, &mut table)
        .and_then(|()| signals.go(setting("TORTURE_SIGNALS", 6) as usize, &mut table));
    if let Err(reason) = &ended {
        println!("\n{reason}\n");
    }
    if let Ok(wanted) = std::env::var("TORTURE_PARTS") {
        parts::run(&wanted, &mut table);
    }
    print!("\n{table}");
    let seconds = started.elapsed().as_secs();
    match (&ended, table.lost()) {
        (Ok(()), 0) => {
            println!("test result: ok. torture: {} tried, 0 lost, seed {seed}, {seconds} s", table.tried());
            ExitCode::SUCCESS
        }
        (_, lost) => {
            println!(
                "test result: FAILED. torture: {lost} lost; repeat it with TORTURE_SEED={seed}, {seconds} s"
            );
            ExitCode::FAILURE
        }
    }
}

/// For what is asynchronous: the feature table.
pub fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| imagedex::pipeline::async_runtime().expect("a runtime"))
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Weapon {
    Kill,
    Signal,
}

impl Weapon {
    fn part(self) -> &'static str {
        match self {
            Weapon::Kill => "crash (kill -9)",
            Weapon::Signal => "signals (TERM, INT)",
        }
    }

    fn draw(self, rng: &mut Rng) -> Vec<i32> {
        let signal = if rng.bool() { libc::SIGTERM } else { libc::SIGINT };
        match self {
            Weapon::Kill => vec![libc::SIGKILL],
            // A second signal ends it at once.
            Weapon::Signal if rng.u8(..4) == 0 => vec![signal, signal],
            Weapon::Signal => vec![signal],
        }
    }
}

/// Rounds of changes, undisturbed runs and struck ones.
struct Torture<'a> {
    node: &'a Node,
    weapon: Weapon,
    rng: Rng,
    /// Strikes in each of [`PHASES`].
    struck: [usize; PHASES.len()],
}

impl<'a> Torture<'a> {
    fn new(node: &'a Node, seed: u64, weapon: Weapon) -> Torture<'a> {
        Torture { node, weapon, rng: Rng::with_seed(seed), struck: [0; PHASES.len()] }
    }

    fn total(&self) -> usize {
        self.struck.iter().sum()
    }

    /// Strikes `wanted` times or a few more. Ends with the first loss, whose folder is kept.
    fn go(mut self, wanted: usize, table: &mut Table) -> Result<(), String> {
        let (mut quick, mut real): (Option<Pair<'_>>, Option<Pair<'_>>) = (None, None);
        let mut round = 0;
        let mut fruitless = 0;
        while self.total() < wanted {
            round += 1;
            let is_real = round % VGG16_EVERY == 0;
            let (slot, model, pictures) = match is_real {
                true => (&mut real, Model::Vgg16, 24),
                false => (&mut quick, Model::Pixels, PICTURES),
            };
            let pair = match slot {
                Some(pair) => {
                    pair.change(&mut self.rng, !is_real && round % BIG_EVERY == 0);
                    pair
                }
                None => slot.insert(Pair::new(self.node, model, pictures, &mut self.rng)),
            };
            let before = self.struck;
            let result = self.round(pair, wanted);
            let struck = self.struck.iter().zip(before).map(|(now, before)| now - before);
            for (phase, count) in PHASES.iter().zip(struck) {
                table.add(self.weapon.part(), phase, count, if result.is_ok() { count } else { 0 });
            }
            if let Err(reason) = result {
                let kept = slot.take().expect("it is there").keep();
                // Where it was lost before anything was struck, the table must still say so.
                if self.struck == before {
                    table.add(self.weapon.part(), "undisturbed", 1, 0);
                }
                return Err(format!(
                    "round {round} of {}: {reason}\nkept: {}",
                    self.weapon.part(),
                    kept.display()
                ));
            }
            fruitless = if self.struck == before { fruitless + 1 } else { 0 };
            if fruitless > 20 {
                return Err("twenty rounds ended before they could be struck".to_owned());
            }
        }
        Ok(())
    }

    /// One change: an undisturbed run on one side; on the other one strikes, and a run to completion. Then both must hold the same.
    fn round(&mut self, pair: &Pair<'_>, wanted: usize) -> Result<(), String> {
        let was = pair.hit().searchable();
        let calm = pair.calm().run(None);
        calm.must_be_done("the undisturbed run")?;
        let counts = [was, pair.calm().searchable()];
        let longest = self.rng.usize(1..=LONGEST_CHAIN);
        let mut is_extracted = false;
        let mut is_complete = false;
        let mut chain = Vec::new();
        while !is_complete && chain.len() < longest && self.total() < wanted {
            let Some(strike) = self.aim(&calm, is_extracted) else { break };
            let hit = pair.hit().run(Some(&strike));
            is_extracted |= hit.reached("load");
            match hit.struck_in {
                Some(phase) => {
                    self.struck[phase] += 1;
                    chain.push(PHASES[phase]);
                }
                // It was done before its moment came.
                None => is_complete = true,
            }
            let look = hit
                .must_have_ended_well(&strike)
                .and_then(|()| pair.hit().look(&hit, &counts, &mut self.rng));
            look.map_err(|reason| format!("{reason} after {}\n{}", chain.join(", "), hit.said()))?;
        }
        if !is_complete {
            pair.hit().run(None).must_be_done(&format!("the run after {}", chain.join(", ")))?;
        }
        pair.age_leftovers();
        for side in [pair.calm(), pair.hit()] {
            let version = side.table_version();
            side.run(None).must_be_done("a second run")?;
            if side.table_version() != version {
                return Err(format!(
                    "a second run committed something: {version} → {}",
                    side.table_version()
                ));
            }
        }
        let what = if chain.is_empty() { "nothing was struck".to_owned() } else { chain.join(", ") };
        println!("{:>4}  {:<10} {what}", self.total(), pair.what());
        let differences = compare::differences(pair);
        match differences.is_empty() {
            true => Ok(()),
            false => Err(format!("after {what}:\n{}", differences.join("\n"))),
        }
    }

    /// A moment in the phase that was struck least, by what the undisturbed run did when.
    fn aim(&mut self, calm: &Ended, is_extracted: bool) -> Option<Strike> {
        let mut phases: Vec<usize> = (0..PHASES.len()).collect();
        self.rng.shuffle(&mut phases);
        phases.sort_by_key(|&phase| self.struck[phase]);
        let how = self.weapon.draw(&mut self.rng);
        phases.into_iter().find_map(|phase| {
            let spans: Vec<_> = calm
                .spans()
                .into_iter()
                .filter(|span| span.phase == phase && !(is_extracted && span.only_with_work()))
                .collect();
            // Phase extract has many short stages: each of them gets its share, however long it takes.
            let span = spans.get(self.rng.usize(..spans.len().max(1)))?;
            Some(Strike {
                stage: span.stage.clone(),
                nth: span.nth,
                after: span.duration.mul_f64(self.rng.f64()),
                how: how.clone(),
            })
        })
    }
}
