//! `garret-bench`: measures garret and its alternatives in the same run on the same host.

mod bench;
mod clock;
mod compare;
mod console;
mod count;
mod gate;
mod guest;
mod host;
mod lab;
mod plan;
mod process;
mod project;
mod report;
mod result;
mod run;
mod scale;
mod statistics;
mod subject;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure, as root on a host with /dev/kvm and garret installed
    Run(Box<run::Options>),
    /// Make tables and plots of results
    Report(report::Options),
    /// Show what changed between two results
    Compare(compare::Options),
    /// Check garret's counts against a baseline: status 0 as expected, 1 worse or missing, 3 better
    Gate(gate::Options),
    /// The helper inside a guest
    #[command(hide = true, subcommand)]
    Guest(guest::helper::Helper),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(options) => run::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Report(options) => report::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Compare(options) => compare::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Gate(options) => gate::run(&options),
        Command::Guest(helper) => guest::helper::run(&helper).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("garret-bench: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        let words =
            "garret-bench run --only boot,fs --size full --peer firecracker=/f --peer qemu=/q --resume --minutes 5";
        Arguments::try_parse_from(words.split(' ')).unwrap();
        for words in ["garret-bench guest serve", "garret-bench gate baseline.json", "garret-bench run --size huge"] {
            assert!(Arguments::try_parse_from(words.split(' ')).is_err(), "{words}");
        }
    }
}
