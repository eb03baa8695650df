//! A program that takes memory. Each page's contents follow from its number. So a page that compression or swap lost,
//! exchanged or changed is found.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;

/// 64-bit words of a page.
const WORDS: usize = 512;
/// Words of a page that do not compress. Memory of real programs compresses about two to one.
const RANDOM: usize = WORDS / 2;

/// The longest time. If the test has failed, the load ends by itself.
const HELD_MOST: Duration = Duration::from_secs(1200);

/// The size and the duration of a load.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Memory to take, in MiB
    mib: usize,
    /// Seconds to keep it
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    hold: u64,
    /// Keep it until this file exists, for twenty minutes at most
    #[arg(long, value_name = "FILE")]
    until: Option<PathBuf>,
    /// Read all of it repeatedly meanwhile
    #[arg(long)]
    busy: bool,
}

/// Takes memory, keeps it, and checks it. Prints a line when it has the memory, and one when every page was right.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut memory = vec![0_u64; (options.mib << 20) / size_of::<u64>()];
    for (number, page) in memory.chunks_exact_mut(WORDS).enumerate() {
        fill(number, page);
    }
    println!("took {} MiB in {} ms", options.mib, begun.elapsed().as_millis());
    let until = Instant::now() + Duration::from_secs(options.hold);
    let held = || options.until.as_ref().is_some_and(|file| !file.exists());
    while Instant::now() < until || held() {
        if Instant::now() >= until && begun.elapsed() > HELD_MOST {
            bail!("the file of `--until` did not appear within {} s", HELD_MOST.as_secs());
        }
        if options.busy {
            check(&memory)?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    check(&memory)?;
    println!("right: {} MiB after {} ms", options.mib, begun.elapsed().as_millis());
    Ok(ExitCode::SUCCESS)
}

/// Checks the last page first. In the order of writing, memory that is a little too large would be swapped completely.
fn check(memory: &[u64]) -> anyhow::Result<()> {
    let mut expected = [0; WORDS];
    for (number, page) in memory.chunks_exact(WORDS).enumerate().rev() {
        fill(number, &mut expected);
        if page != expected {
            bail!("page {number} is wrong");
        }
    }
    Ok(())
}

/// The contents of page `number`: a xorshift sequence, then its last word repeated.
fn fill(number: usize, page: &mut [u64]) {
    // Never zero, and different for each page.
    let mut word = (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for place in &mut page[..RANDOM] {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        *place = word;
    }
    page[RANDOM..].fill(word);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_page_is_found() {
        let mut memory = vec![0; 4 * WORDS];
        assert!(check(&memory).is_err());
        memory.chunks_exact_mut(WORDS).enumerate().for_each(|(number, page)| fill(number, page));
        check(&memory).unwrap();
        memory[3 * WORDS - 1] ^= 1;
        assert_eq!(check(&memory).unwrap_err().to_string(), "page 2 is wrong");
        memory[3 * WORDS - 1] ^= 1;
        memory.swap(0, WORDS);
        assert!(check(&memory).is_err());
    }
}
