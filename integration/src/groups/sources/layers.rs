//! Which modules of a folder use each other in a circle. A module may use what encloses it: the circles are among siblings.

use super::references::{Path, References};
use anyhow::anyhow;
use proc_macro2::TokenStream;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::{Path as FilePath, PathBuf};

/// The most names that one path leads through by `use`: nothing else ends a name that stands for itself.
const IMPORTS_MAX: usize = 16;

/// A circle of modules, the first of which follows the last.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Circle {
    /// Each step's modules, and the places in the first that use the second.
    steps: Vec<(Path, Path, Vec<Place>)>,
}

/// A line of a file.
type Place = (PathBuf, usize);

impl fmt::Display for Circle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.steps.iter().map(|(from, ..)| format!("`{}`", from.join("::"))).collect();
        write!(formatter, "{} use each other in a circle:", names.join(", "))?;
        for (_, to, places) in &self.steps {
            for (file, line) in places {
                write!(formatter, "\n  {}:{line} uses `{}`", file.display(), to.join("::"))?;
            }
        }
        Ok(())
    }
}

/// The circles among the modules of each crate, of all these files.
///
/// # Errors
/// A file is not Rust.
pub(super) fn circles(files: &BTreeMap<PathBuf, String>) -> anyhow::Result<Vec<Circle>> {
    let mut crates: BTreeMap<&FilePath, Crate> = BTreeMap::new();
    for (file, text) in files {
        let Some(root) = root_of(file, files) else { continue };
        let module = module_of(file.strip_prefix(root)?);
        let tokens: TokenStream = text.parse().map_err(|error| anyhow!("{} is not Rust: {error}", file.display()))?;
        crates.entry(root).or_default().add(file, &module, References::read(&module, tokens));
    }
    Ok(crates.values().flat_map(Crate::circles).collect())
}

/// The nearest folder that has the root file of a crate.
fn root_of<'f>(file: &'f FilePath, files: &BTreeMap<PathBuf, String>) -> Option<&'f FilePath> {
    let is_root = |folder: &FilePath| ["lib.rs", "main.rs"].iter().any(|name| files.contains_key(&folder.join(name)));
    file.ancestors().skip(1).find(|folder| is_root(folder))
}

/// The module that a file holds, by its path in the crate.
fn module_of(file: &FilePath) -> Path {
    let mut module: Path = file.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

#[derive(Default)]
struct Crate {
    modules: BTreeSet<Path>,
    tests: BTreeSet<Path>,
    imported: BTreeMap<Path, Path>,
    used: Vec<(Path, Path, Place)>,
}

impl Crate {
    fn add(&mut self, file: &FilePath, module: &Path, references: References) {
        self.modules.insert(module.clone());
        self.tests.extend(references.tests);
        self.imported.extend(references.imported);
        let used = references.used.into_iter();
        self.used.extend(used.map(|(path, line)| (module.clone(), path, (file.to_owned(), line))));
    }

    /// The module that something belongs to. Names that an enclosing module imports belong to where they come from.
    fn owner(&self, path: &Path) -> Path {
        let mut path = path.clone();
        for _ in 0..IMPORTS_MAX {
            let depth = (0..=path.len()).rev().find(|&depth| self.modules.contains(&path[..depth])).unwrap_or(0);
            let import = path.get(..=depth).and_then(|name| self.imported.get(name));
            match import {
                Some(target) => path = [&target[..], &path[depth + 1..]].concat(),
                None => {
                    path.truncate(depth);
                    break;
                }
            }
        }
        path
    }

    /// What each module uses of its siblings, itself or in the modules within it, and where.
    fn uses(&self) -> BTreeMap<Path, BTreeMap<Path, Vec<Place>>> {
        let mut uses: BTreeMap<Path, BTreeMap<Path, Vec<Place>>> = BTreeMap::new();
        let is_test = |module: &Path| (0..=module.len()).any(|depth| self.tests.contains(&module[..depth]));
        for (from, path, place) in self.used.iter().filter(|(from, ..)| !is_test(from)) {
            let to = self.owner(path);
            let depth = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (from.get(..=depth), to.get(..=depth)) {
                let places = uses.entry(from.to_vec()).or_default().entry(to.to_vec()).or_default();
                if places.last() != Some(place) {
                    places.push(place.clone());
                }
            }
        }
        uses
    }

    /// For each module in a circle the shortest one through it, and each circle once.
    fn circles(&self) -> Vec<Circle> {
        let uses = self.uses();
        let mut seen = BTreeSet::new();
        let paths = uses.keys().filter_map(|module| shortest_circle(module, &uses));
        let new = paths.filter(|path| seen.insert(path.iter().cloned().collect::<BTreeSet<_>>()));
        new.map(|path| {
            let next = path.iter().skip(1).chain(path.first());
            let steps = path.iter().zip(next).map(|(from, to)| (from.clone(), to.clone(), uses[from][to].clone()));
            Circle { steps: steps.collect() }
        })
        .collect()
    }
}

/// The shortest way from a module back to itself, without its end.
fn shortest_circle(start: &Path, uses: &BTreeMap<Path, BTreeMap<Path, Vec<Place>>>) -> Option<Vec<Path>> {
    let mut came_from: BTreeMap<&Path, &Path> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(module) = queue.pop_front() {
        for next in uses.get(module).into_iter().flat_map(BTreeMap::keys) {
            if !came_from.contains_key(next) {
                came_from.insert(next, module);
                queue.push_back(next);
            }
        }
    }
    let mut way = vec![*came_from.get(start)?];
    while let Some(&module) = way.last()
        && module != start
    {
        way.push(came_from.get(module)?);
    }
    way.reverse();
    Some(way.into_iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The circles, each as `a>b`, among these files.
    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(file, text)| (PathBuf::from(file), (*text).to_owned())).collect();
        let circles = circles(&files).unwrap();
        let names = |circle: &Circle| circle.steps.iter().map(|(from, ..)| from.join("::")).collect::<Vec<_>>();
        circles.iter().map(|circle| names(circle).join(">")).collect()
    }

    #[test]
    fn siblings_that_use_each_other_are_a_circle() {
        let root = ("src/lib.rs", "mod a; mod b; mod c;");
        for (files, expected) in [
            (&[("src/a.rs", "use crate::b::B;"), ("src/b.rs", "use super::a::A;")][..], &["a>b"][..]),
            (&[("src/a.rs", "use crate::b::B;"), ("src/b.rs", "")], &[]),
            (
                &[("src/a.rs", "use super::b;"), ("src/b.rs", "use super::c;"), ("src/c.rs", "use super::a;")],
                &["a>b>c"],
            ),
            // A folder uses what its files use, and may use what encloses it.
            (&[("src/a/mod.rs", ""), ("src/a/x.rs", "use crate::b;"), ("src/b.rs", "use crate::a::x;")], &["a>b"]),
            (&[("src/a/mod.rs", "use x::X;"), ("src/a/x.rs", "use super::A; use crate::D;")], &[]),
            (&[("src/a/x.rs", "use super::y::Y;"), ("src/a/y.rs", "use crate::a::x::X;")], &["a::x>a::y"]),
            // A name that the parent imports belongs to where it comes from.
            (
                &[
                    ("src/a/mod.rs", "pub use x::X; pub use y::Y;"),
                    ("src/a/x.rs", "use super::Y;"),
                    ("src/a/y.rs", "use super::X;"),
                ],
                &["a::x>a::y"],
            ),
            // Tests may use what they like.
            (&[("src/a.rs", "use super::b; #[cfg(test)] mod t { use crate::b; }"), ("src/b.rs", "")], &[]),
            (
                &[
                    ("src/a/mod.rs", "#[cfg(test)] mod tests;"),
                    ("src/a/tests.rs", "use crate::b;"),
                    ("src/b.rs", "use crate::a::A;"),
                ],
                &[],
            ),
            // Of another crate.
            (&[("src/a.rs", "use crate::b;"), ("tests/x/main.rs", ""), ("tests/x/b.rs", "use crate::a;")], &[]),
        ] {
            assert_eq!(found(&[&[root], files].concat()), expected, "{files:?}");
        }
    }

    #[test]
    fn a_circle_names_files_and_lines() {
        let a = ("src/a.rs", "\nuse crate::b;\nfn f() { super::b::g() }");
        let b = ("src/b.rs", "use crate::a;");
        let files = [("src/main.rs", ""), a, b].map(|(file, text)| (PathBuf::from(file), text.to_owned()));
        let circles = circles(&files.into()).unwrap();
        let [circle] = &circles[..] else { panic!("{circles:?}") };
        assert_eq!(
            circle.to_string(),
            "`a`, `b` use each other in a circle:\n  src/a.rs:2 uses `b`\n  src/a.rs:3 uses `b`\n  src/b.rs:1 uses `a`"
        );
    }

    #[test]
    fn a_file_that_is_not_rust_is_named() {
        let files = [("src/lib.rs", "fn f( {")].map(|(file, text)| (PathBuf::from(file), text.to_owned()));
        assert!(circles(&files.into()).unwrap_err().to_string().starts_with("src/lib.rs is not Rust"));
    }
}
