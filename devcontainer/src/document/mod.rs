//! The text of a devcontainer.json: JSON with comments and trailing commas, and the place of each value.

use std::collections::BTreeMap;

use jsonc_parser::ast;
use jsonc_parser::common::Ranged;
use jsonc_parser::errors::ParseErrorKind;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Config, Error, Place};

/// A parsed file that remembers the place of each value.
#[derive(Clone, Debug)]
pub struct Document {
    file: String,
    value: Value,
    places: BTreeMap<String, Place>,
}

/// The additions of JSONC to JSON, and no others: an editor would mark the others as errors too.
const OPTIONS: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_trailing_commas: true,
    allow_loose_object_property_names: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

impl Document {
    /// Parses `text`; errors name it as `file`.
    ///
    /// # Errors
    /// The text is not UTF-8, not JSON with comments, or not an object.
    pub fn parse(file: &str, text: &[u8]) -> Result<Self, Error> {
        let syntax = |place, message: String| Error::Syntax { file: file.to_owned(), place, message };
        let text = utf8(text).map_err(|(place, message)| syntax(place, message))?;
        let parsed = parse_to_ast(text, &CollectOptions::default(), &OPTIONS).map_err(|error| {
            // An editor marks a missing comma at the value behind it, but the parser names the end of the value before
            // it.
            let skipped = match error.kind() {
                ParseErrorKind::ExpectedComma => leading_white_space(&text[error.range().start..]),
                _ => 0,
            };
            let place = Lines::of(text).place(error.range().start + skipped);
            syntax(place, decapitalized(&error.kind().to_string()))
        })?;
        let start = Place { line: 1, column: 1 };
        let Some(root) = parsed.value else {
            return Err(syntax(start, "the file is empty: a JSON object is expected".into()));
        };
        let mut walk = Walk { lines: Lines::of(text), places: BTreeMap::new() };
        let value = walk.value(&root, String::new());
        if !value.is_object() {
            return Err(syntax(walk.lines.place(root.start()), "a JSON object is expected".into()));
        }
        Ok(Self { file: file.to_owned(), value, places: walk.places })
    }

    /// The file's name in errors.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The file's value as written: no variable is replaced.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The properties, typed, with their variables as written.
    ///
    /// # Errors
    /// A property has a value of the wrong type, or one that this version does not support.
    pub fn config(&self) -> Result<Config, Error> {
        self.config_of(&self.value)
    }

    /// The properties of `value`, which is this document's with its variables replaced.
    pub(crate) fn config_of(&self, value: &Value) -> Result<Config, Error> {
        Ok(Config { own: self.read(value)?, metadata: self.read(value)? })
    }

    fn read<T: DeserializeOwned>(&self, value: &Value) -> Result<T, Error> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let property = error.path().to_string();
            self.property(&property, &error.into_inner().to_string())
        })
    }

    /// An error about one property of this file.
    pub(crate) fn property(&self, property: &str, message: &str) -> Error {
        Error::Property {
            file: self.file.clone(),
            place: self.place(property),
            property: property.to_owned(),
            message: message.to_owned(),
        }
    }

    /// The place of a property. If it is inside a value that is read as a whole: the place of the nearest enclosing
    /// property.
    pub(crate) fn place(&self, property: &str) -> Place {
        let mut path = property;
        loop {
            if let Some(place) = self.places.get(path) {
                return *place;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.places.get("").copied().unwrap_or(Place { line: 1, column: 1 }),
            }
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, (Place, String)> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        (Lines::of(valid).place(valid.len()), "the text is not UTF-8 here".to_owned())
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// The length of the white space at the beginning; 0 if nothing follows it.
fn leading_white_space(text: &str) -> usize {
    let rest = text.trim_start();
    if rest.is_empty() { 0 } else { text.len() - rest.len() }
}

fn decapitalized(message: &str) -> String {
    let mut rest = message.chars();
    rest.next().map(|first| first.to_lowercase().chain(rest).collect()).unwrap_or_default()
}

/// Converts offsets to places.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line - 1];
        Place { line, column: self.text[start..offset].chars().count() + 1 }
    }
}

/// The walk over the syntax tree. Its depth is the parser's limit (512).
struct Walk<'a> {
    lines: Lines<'a>,
    places: BTreeMap<String, Place>,
}

impl Walk<'_> {
    fn value(&mut self, node: &ast::Value<'_>, path: String) -> Value {
        let value = match node {
            ast::Value::StringLit(text) => Value::from(text.value.as_ref()),
            // A number too large for 64 bits becomes the nearest double, as in JavaScript.
            ast::Value::NumberLit(number) => serde_json::from_str(number.value).unwrap_or(Value::Null),
            ast::Value::BooleanLit(boolean) => Value::from(boolean.value),
            ast::Value::NullKeyword(_) => Value::Null,
            ast::Value::Array(array) => {
                let items = array.elements.iter().enumerate();
                items.map(|(index, item)| self.value(item, format!("{path}[{index}]"))).collect()
            }
            ast::Value::Object(object) => Value::Object(self.members(object, &path)),
        };
        let place = self.lines.place(node.start());
        self.places.insert(path, place);
        value
    }

    fn members(&mut self, object: &ast::Object<'_>, path: &str) -> Map<String, Value> {
        let mut members = Map::new();
        for property in &object.properties {
            let name = property.name.as_str();
            let inner = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            members.insert(name.to_owned(), self.value(&property.value, inner));
        }
        members
    }
}

#[cfg(test)]
mod tests;
