//! The kill campaign: in the middle of what a developer does, daemon, VMM or agent is killed, or the host's disk is full until
//! the command has ended. Afterwards the machine is as desired or one clear error says why not, repeating the command succeeds, and when the
//! machine is removed nothing of it remains.
//!
//! `CAMPAIGN_COUNT` cases from number `CAMPAIGN_FIRST` are drawn from `CAMPAIGN_SEED`. Each is a pure function of the seed and
//! its own number. Without these variables it is the slice that `make test` runs. `make campaign` runs the long form, and
//! machines that are made and removed one after the other.

mod case;
mod census;
mod operation;
mod victim;

use std::fs::OpenOptions;
use std::io::Write;
use std::ops::Range;
use std::time::Instant;

use case::{Case, TURNS};
use census::Census;
use operation::Scene;

/// How many cases `make test` runs: each operation once, about two minutes on an emulated host.
const SLICE: u64 = TURNS.len() as u64;

/// How many machines `make test` makes and removes.
const CYCLES_SLICE: u64 = 2;

/// In the host's current folder, a line for each case that passed. A campaign continues behind them.
const PASSED: &str = "passed";

#[test]
fn kills() {
    let seed = variable("CAMPAIGN_SEED").unwrap_or(1);
    let before = Census::take();
    let scene = Scene::open();
    for number in numbers(SLICE) {
        let (case, begun) = (Case::draw(seed, number), Instant::now());
        println!("case {number} of seed {seed}: {case}");
        let outcome = scene.play(&case, &before);
        println!("case {number}: {outcome}, {} s", begun.elapsed().as_secs());
        note_passed(number, &format!("{case}\t{outcome}"));
    }
    scene.close();
    before.assert_nothing_remains();
}

/// Machines come and go, each with an environment.
#[test]
fn cycles() {
    let before = Census::take();
    for number in numbers(CYCLES_SLICE) {
        let begun = Instant::now();
        let scene = Scene::open();
        scene.bring_up();
        scene.close();
        before.assert_nothing_remains();
        println!("cycle {number}: {} s", begun.elapsed().as_secs());
        note_passed(number, "a cycle");
    }
}

/// Which cases to run.
fn numbers(slice: u64) -> Range<u64> {
    let first = variable("CAMPAIGN_FIRST").unwrap_or(0);
    first..first + variable("CAMPAIGN_COUNT").unwrap_or(slice)
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Only a campaign that may have to continue keeps notes.
fn note_passed(number: u64, what: &str) {
    if std::env::var_os("CAMPAIGN_COUNT").is_some() {
        let mut notes = OpenOptions::new().create(true).append(true).open(PASSED).expect("the folder is writable");
        writeln!(notes, "{number}\t{what}").expect("it writes");
    }
}
