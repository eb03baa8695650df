//! Mounts: the string form (`type=bind,source=…,target=…`, comma-separated values with quotes) and the object form.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// `bind`, `volume`, `tmpfs`, …; the default is `volume`, as in the engines.
    pub kind: String,
    /// A folder, a file, or a volume's name; absent: an anonymous volume, or a kind without a source.
    pub source: Option<String>,
    /// The path in the container.
    pub target: String,
    /// The other options, in order: `readonly`, `consistency=cached`, ….
    pub options: Vec<String>,
}

impl Mount {
    /// Parses the string form.
    ///
    /// # Errors
    /// An unpaired quote, or no target; the message is one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut mount = Mount { kind: "volume".into(), ..Mount::default() };
        let mut target = None;
        for field in fields(text)? {
            match field.split_once('=') {
                Some(("type", kind)) => mount.kind = kind.to_owned(),
                Some(("source" | "src", source)) => mount.source = Some(source.to_owned()),
                Some(("target" | "destination" | "dst", path)) => target = Some(path.to_owned()),
                _ => mount.options.push(field),
            }
        }
        mount.target = target.ok_or_else(|| format!("mount {text:?} has no target"))?;
        Ok(mount)
    }

    /// The string form, for `--mount`.
    pub fn to_argument(&self) -> String {
        let mut fields = vec![format!("type={}", self.kind)];
        fields.extend(self.source.as_ref().map(|source| format!("source={source}")));
        fields.push(format!("target={}", self.target));
        fields.extend(self.options.iter().cloned());
        fields.iter().map(|field| quoted(field)).collect::<Vec<_>>().join(",")
    }
}

/// Comma-separated fields; a field in double quotes may contain commas, and quotes that are written twice (RFC 4180).
fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut field = String::new();
    let mut rest = text.chars().peekable();
    let mut inside = false;
    while let Some(next) = rest.next() {
        match next {
            '"' if inside && rest.peek() == Some(&'"') => field.extend(rest.next()),
            '"' => inside = !inside,
            ',' if !inside => fields.push(std::mem::take(&mut field)),
            other => field.push(other),
        }
    }
    if inside {
        return Err(format!("mount {text:?} opens a quote and does not close it"));
    }
    fields.push(field);
    Ok(fields.into_iter().filter(|field| !field.is_empty()).collect())
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// A mount as it is written, because the merged configuration shows it in this form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountEntry {
    /// `"type=…,…"`, which has been parsed.
    Text(String, Mount),
    /// `{"type": …, "source": …, "target": …}`.
    Object(Mount),
}

impl MountEntry {
    /// The mount.
    pub fn mount(&self) -> &Mount {
        match self {
            MountEntry::Text(_, mount) | MountEntry::Object(mount) => mount,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct ObjectForm {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    target: String,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"type=…,source=…,target=…\" or an object with type, source and target")]
enum Form {
    Text(String),
    Object(ObjectForm),
}

impl<'de> Deserialize<'de> for MountEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Text(text) => match Mount::parse(&text) {
                Ok(mount) => Ok(MountEntry::Text(text, mount)),
                Err(message) => Err(serde::de::Error::custom(message)),
            },
            Form::Object(ObjectForm { kind, source, target }) => {
                Ok(MountEntry::Object(Mount { kind, source, target, options: Vec::new() }))
            }
        }
    }
}

impl Serialize for MountEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            MountEntry::Text(text, _) => text.serialize(serializer),
            MountEntry::Object(Mount { kind, source, target, .. }) => {
                ObjectForm { kind: kind.clone(), source: source.clone(), target: target.clone() }.serialize(serializer)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_names_of_source_and_target() {
        for text in [
            "type=bind,source=/a,target=/b,readonly",
            "type=bind,src=/a,dst=/b,readonly",
            "readonly,destination=/b,source=/a,type=bind",
        ] {
            let mount = Mount::parse(text).unwrap();
            assert_eq!(mount.to_argument(), "type=bind,source=/a,target=/b,readonly");
        }
        assert_eq!(Mount::parse("target=/b").unwrap().to_argument(), "type=volume,target=/b");
        assert!(Mount::parse("type=bind,source=/a").unwrap_err().contains("no target"));
        assert!(Mount::parse("\"source=/a,target=/b").unwrap_err().contains("quote"));
    }

    #[test]
    fn quotes_hold_commas() {
        let mount = Mount::parse(r#"type=bind,"source=/a,""b""",target=/c"#).unwrap();
        assert_eq!(mount.source.as_deref(), Some("/a,\"b\""));
        assert_eq!(Mount::parse(&mount.to_argument()).unwrap(), mount);
    }

    proptest! {
        #[test]
        fn a_written_mount_is_read_back(source in proptest::option::of("[ -~ä]{1,20}"), target in "/[ -~ä]{0,20}") {
            let mount = Mount { kind: "bind".into(), source, target, options: vec!["consistency=cached".into()] };
            prop_assert_eq!(Mount::parse(&mount.to_argument()).unwrap(), mount);
        }

        #[test]
        fn any_text_parses_or_fails(text in "\\PC{0,60}") {
            let _ = Mount::parse(&text);
        }
    }
}
