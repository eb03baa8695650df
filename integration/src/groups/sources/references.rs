//! What a Rust file says about modules. Only its tokens are read: a path is names with `::` between them.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A module, or something in one, as the path from the root of its crate. The root's path is empty.
pub(super) type Path = Vec<String>;

/// What a file says about modules, except in what only tests compile.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct References {
    /// Where the paths lead that begin with `crate`, `self` or `super`, each with its line.
    pub used: Vec<(Path, usize)>,
    /// Names that `use` defines, and what they stand for. It may be in another crate: then it leads to no module.
    pub imported: Vec<(Path, Path)>,
    /// Modules that only tests compile.
    pub tests: Vec<Path>,
}

impl References {
    /// `module` is the file's module.
    pub(super) fn read(module: &Path, tokens: TokenStream) -> Self {
        let mut references = Self::default();
        references.walk(module, tokens);
        references
    }

    fn walk(&mut self, module: &Path, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut rest = &tokens[..];
        while let [first, after @ ..] = rest {
            rest = match after {
                [attribute, item @ ..] if is_punct(first, '#') && is_cfg_test(attribute) => self.skip(module, item),
                [name, TokenTree::Group(body), item @ ..] if is_word(first, &["mod"]) => {
                    self.walk(&joined(module, name), body.stream());
                    item
                }
                [a, b, ..] if is_colons(a, b) && is_word(first, &["crate", "self", "super"]) => {
                    self.used.extend(leaves(rest).into_iter().map(|leaf| (resolved(module, &leaf.path), leaf.line)));
                    after_path(rest)
                }
                _ => {
                    match first {
                        TokenTree::Group(group) => self.walk(module, group.stream()),
                        _ if is_word(first, &["use"]) => self.import(module, leaves(after)),
                        _ => {}
                    }
                    after
                }
            };
        }
    }

    /// Skips an item that only tests compile.
    fn skip<'t>(&mut self, module: &Path, item: &'t [TokenTree]) -> &'t [TokenTree] {
        let is_end = |token: &TokenTree| is_punct(token, ';') || is_group(token, Delimiter::Brace);
        let end = item.iter().position(is_end).map_or(item.len(), |at| at + 1);
        let (item, rest) = item.split_at(end);
        let named = item.windows(2).find(|pair| is_word(&pair[0], &["mod"]));
        self.tests.extend(named.map(|pair| joined(module, &pair[1])));
        rest
    }

    fn import(&mut self, module: &Path, leaves: Vec<Leaf>) {
        for leaf in leaves {
            let target = resolved(module, &leaf.path);
            if let Some(name) = leaf.alias.or_else(|| target.last().cloned()) {
                self.imported.push(([&module[..], &[name]].concat(), target));
            }
        }
    }
}

/// The end of a path, or of one in a tree of paths.
struct Leaf {
    /// As written.
    path: Path,
    /// The name after `as`.
    alias: Option<String>,
    line: usize,
}

/// Reads the path, or the tree of paths, with which the tokens begin.
fn leaves(tokens: &[TokenTree]) -> Vec<Leaf> {
    fn read(prefix: Path, tokens: &[TokenTree], leaves: &mut Vec<Leaf>) {
        let Some(first) = tokens.first() else { return };
        let line = first.span().start().line;
        match tokens {
            [TokenTree::Ident(_), a, b, rest @ ..] if is_colons(a, b) => {
                read(joined(&prefix, first), rest, leaves);
            }
            [TokenTree::Ident(_), word, alias, ..] if is_word(word, &["as"]) => {
                leaves.push(Leaf { path: joined(&prefix, first), alias: Some(alias.to_string()), line });
            }
            [TokenTree::Ident(_), ..] => leaves.push(Leaf { path: joined(&prefix, first), alias: None, line }),
            [TokenTree::Group(group), ..] if group.delimiter() == Delimiter::Brace => {
                let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
                tokens.split(|token| is_punct(token, ',')).for_each(|part| read(prefix.clone(), part, leaves));
            }
            // `*`, or the arguments of a type.
            _ => leaves.push(Leaf { path: prefix, alias: None, line }),
        }
    }
    let mut leaves = Vec::new();
    read(Path::new(), tokens, &mut leaves);
    leaves
}

/// What follows the names of a path that are followed by `::`.
fn after_path(mut tokens: &[TokenTree]) -> &[TokenTree] {
    while let [TokenTree::Ident(_), a, b, rest @ ..] = tokens
        && is_colons(a, b)
    {
        tokens = rest;
    }
    tokens
}

/// Where a path leads that is written in this module.
fn resolved(module: &Path, path: &Path) -> Path {
    let mut resolved = module.clone();
    for name in path {
        match name.as_str() {
            "crate" => resolved.clear(),
            "self" => {}
            "super" => drop(resolved.pop()),
            name => resolved.push(name.to_owned()),
        }
    }
    resolved
}

fn joined(path: &Path, name: &TokenTree) -> Path {
    [&path[..], &[name.to_string()]].concat()
}

fn is_word(token: &TokenTree, words: &[&str]) -> bool {
    matches!(token, TokenTree::Ident(ident) if words.iter().any(|word| ident == word))
}

fn is_punct(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

fn is_colons(a: &TokenTree, b: &TokenTree) -> bool {
    is_punct(a, ':') && is_punct(b, ':')
}

fn is_group(token: &TokenTree, delimiter: Delimiter) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == delimiter)
}

fn is_cfg_test(attribute: &TokenTree) -> bool {
    is_group(attribute, Delimiter::Bracket) && attribute.to_string().replace(' ', "") == "[cfg(test)]"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        text.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn paths_lead_to_what_they_name() {
        for (module, text, expected) in [
            ("a", "use crate::b::C;", &["b::C"][..]),
            ("a::b", "use super::c;", &["a::c"]),
            ("a::b", "use super::super::c::{d, e::{self, F as G}};", &["c::d", "c::e", "c::e::F"]),
            ("a", "use self::b::*;", &["a::b"]),
            ("a::b", "fn f(x: super::c::D) -> u8 { crate::e::<u8>(x) }", &["a::c::D", "e"]),
            ("a::b", "info!(\"{}\", super::c(self.d));", &["a::c"]),
            ("a::b", "mod c { use super::D; }", &["a::b::D"]),
            ("a::b", "fn f() -> impl Iterator + use<'_> { super::c() }", &["a::c"]),
            ("a", "use std::io; pub(crate) struct B;", &[]),
            ("a", "// use crate::b;\n/// [`crate::b`]\nfn f() { \"crate::b\"; }", &[]),
            ("a", "#[cfg(test)]\nmod tests { use crate::b; }", &[]),
            ("a", "#[cfg(test)] use crate::b::{C, D}; use crate::e;", &["e"]),
            ("a", "#[cfg(not(test))] use crate::b;", &["b"]),
            ("a", "fn f(self: Pin<&mut Self>) { crate::b::c(self) }", &["b::c"]),
        ] {
            let references = References::read(&path(module), text.parse().unwrap());
            let used: Vec<String> = references.used.iter().map(|(path, _)| path.join("::")).collect();
            assert_eq!(used, expected, "{text} in {module}");
        }
    }

    #[test]
    fn names_that_use_defines_stand_for_their_targets() {
        for (text, name, target) in [
            ("pub use b::C;", "a::C", "a::b::C"),
            ("use crate::b::C as D;", "a::D", "b::C"),
            ("pub use b::{self};", "a::b", "a::b"),
        ] {
            let references = References::read(&path("a"), text.parse().unwrap());
            assert_eq!(references.imported, [(path(name), path(target))], "{text}");
        }
    }

    #[test]
    fn lines_and_test_modules_are_found() {
        let text =
            "\nuse crate::{\n    b,\n    c,\n};\n#[cfg(test)]\npub(super) mod tests;\n#[cfg(test)]\nmod inner {}";
        let references = References::read(&path("a"), text.parse().unwrap());
        assert_eq!(references.used, [(path("b"), 3), (path("c"), 4)]);
        assert_eq!(references.tests, [path("a::tests"), path("a::inner")]);
    }
}
