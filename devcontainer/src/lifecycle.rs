//! The six lifecycle commands.

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

/// When a lifecycle command runs. The stages are in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Before the container exists, outside of it.
    InitializeCommand,
    /// Once, in the new container.
    OnCreateCommand,
    /// Once, after `onCreateCommand`; with prebuilt content, also when the workspace's content has changed.
    UpdateContentCommand,
    /// Once, after `updateContentCommand`, with the user's own secrets.
    PostCreateCommand,
    /// Each time the container starts.
    PostStartCommand,
    /// Each time a tool attaches.
    PostAttachCommand,
}

impl Stage {
    /// The stages inside the container, in order.
    pub const IN_CONTAINER: [Stage; 5] = [
        Stage::OnCreateCommand,
        Stage::UpdateContentCommand,
        Stage::PostCreateCommand,
        Stage::PostStartCommand,
        Stage::PostAttachCommand,
    ];

    /// The property's name.
    pub fn name(self) -> &'static str {
        match self {
            Stage::InitializeCommand => "initializeCommand",
            Stage::OnCreateCommand => "onCreateCommand",
            Stage::UpdateContentCommand => "updateContentCommand",
            Stage::PostCreateCommand => "postCreateCommand",
            Stage::PostStartCommand => "postStartCommand",
            Stage::PostAttachCommand => "postAttachCommand",
        }
    }
}

/// A lifecycle command as it is written: a string, an array, or an object of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// One command.
    One(Single),
    /// Named commands that run at the same time.
    Parallel(Vec<(String, Single)>),
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Single {
    /// For `/bin/sh -c`.
    Shell(String),
    /// A program and its arguments, without a shell.
    Exec(Vec<String>),
}

impl Command {
    /// The commands to run at the same time, each with its name in the object form. Blank commands are left out.
    pub fn singles(&self) -> Vec<(Option<&str>, &Single)> {
        let all: Vec<_> = match self {
            Command::One(single) => vec![(None, single)],
            Command::Parallel(named) => named.iter().map(|(name, single)| (Some(name.as_str()), single)).collect(),
        };
        all.into_iter().filter(|(_, single)| !single.is_blank()).collect()
    }
}

impl Single {
    /// Program and arguments; empty for an empty array.
    pub fn argv(&self) -> Vec<String> {
        match self {
            Single::Shell(line) => vec!["/bin/sh".into(), "-c".into(), line.clone()],
            Single::Exec(argv) => argv.clone(),
        }
    }

    fn is_blank(&self) -> bool {
        match self {
            Single::Shell(line) => line.trim().is_empty(),
            Single::Exec(argv) => argv.is_empty(),
        }
    }

    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(line) => Some(Single::Shell(line.clone())),
            Value::Array(items) => {
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>().map(Single::Exec)
            }
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let command = match &value {
            Value::Object(named) => {
                let single = |(name, value): (&String, _)| Some((name.clone(), Single::of(value)?));
                named.iter().map(single).collect::<Option<_>>().map(Command::Parallel)
            }
            other => Single::of(other).map(Command::One),
        };
        command.ok_or_else(|| D::Error::custom("expected a string, an array of strings, or an object of such"))
    }
}

impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Command::One(single) => single.serialize(serializer),
            Command::Parallel(named) => {
                let mut map = serializer.serialize_map(Some(named.len()))?;
                for (name, single) in named {
                    map.serialize_entry(name, single)?;
                }
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn singles(value: Value) -> Vec<(Option<String>, Vec<String>)> {
        let command: Command = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&command).unwrap(), value);
        command.singles().into_iter().map(|(name, single)| (name.map(str::to_owned), single.argv())).collect()
    }

    #[test]
    fn a_command_has_three_forms() {
        let shell = |line: &str| vec!["/bin/sh".to_owned(), "-c".into(), line.into()];
        assert_eq!(singles(json!("npm ci && x")), [(None, shell("npm ci && x"))]);
        assert_eq!(singles(json!(["a", "b c"])), [(None, vec!["a".to_owned(), "b c".into()])]);
        let parallel = json!({"z": "one", "a": ["two"], "blank": "  "});
        assert_eq!(singles(parallel), [(Some("z".into()), shell("one")), (Some("a".into()), vec!["two".into()])]);
    }

    #[test]
    fn blank_ones_are_nothing_to_run() {
        for value in [json!(""), json!(" \n"), json!([]), json!({}), json!({"a": []})] {
            assert_eq!(singles(value), []);
        }
    }
}
