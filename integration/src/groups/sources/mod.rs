//! Checks of our own Rust files that no lint of the compiler makes: their layers, and where their tests are.

mod layers;
mod references;
mod test_layout;

use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

/// Prints what is wrong in the files of the current folder's repository. Returns true if nothing is.
///
/// # Errors
/// The files cannot be listed or read.
pub(super) fn check() -> anyhow::Result<bool> {
    let files = files()?;
    let mut problems: Vec<String> = files.iter().flat_map(|(file, text)| test_layout::problems(file, text)).collect();
    problems.extend(layers::circles(&files)?.iter().map(ToString::to_string));
    for problem in &problems {
        println!("{problem}");
    }
    Ok(problems.is_empty())
}

/// The text of each Rust file that is not ignored, by path.
fn files() -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let list = ["-c", "core.quotePath=off", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.rs"];
    let output = Command::new("git").args(list).output().context("cannot run git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let listed = String::from_utf8(output.stdout).context("git ls-files")?;
    // A file that was removed stays listed until the removal is staged.
    let paths = listed.lines().map(PathBuf::from).filter(|path| path.exists());
    paths
        .map(|path| {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((path, text))
        })
        .collect()
}
