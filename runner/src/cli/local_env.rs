//! Collects the caller's variables that a devcontainer.json asks for, and no others. A variable whose name looks like a
//! credential needs the developer's consent, once for each workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal};
use std::path::Path;

use anyhow::bail;
use garret_devcontainer::Document;
use serde_json::Value;

use super::consent::Consent;
use super::credentials::looks_like_credential;
use super::rm::confirmed;

/// Collects the caller's variables for this devcontainer.json. `allowed` are names that the caller consents to now.
///
/// # Errors
/// A variable looks like a credential without consent, and there is no terminal to ask on.
pub(super) fn collect(
    workspace: &Path,
    config: &str,
    text: &[u8],
    allowed: &[String],
) -> anyhow::Result<BTreeMap<String, String>> {
    let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    let ask = |name: &str| {
        let question = format!("{config} asks for {name}, which looks like a credential. Send it to the devcontainer?");
        if terminal { confirmed(&question).map(Some) } else { Ok(None) }
    };
    let set: BTreeMap<String, String> =
        names(config, text).into_iter().filter_map(|name| Some((name.clone(), std::env::var(name).ok()?))).collect();
    admitted(set, workspace, allowed, Consent::read, ask)
}

/// The variables that may be sent. `ask` returns `None` without a terminal.
fn admitted(
    mut set: BTreeMap<String, String>,
    workspace: &Path,
    allowed: &[String],
    read: impl FnOnce() -> anyhow::Result<Consent>,
    ask: impl Fn(&str) -> io::Result<Option<bool>>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let secret: Vec<String> = set.keys().filter(|name| looks_like_credential(name)).cloned().collect();
    if secret.is_empty() {
        return Ok(set);
    }
    let mut consent = read()?;
    for name in secret {
        if consent.has(workspace, &name) {
            continue;
        }
        let yes = if allowed.contains(&name) { Some(true) } else { ask(&name)? };
        match yes {
            Some(true) => consent.add(workspace, &name)?,
            Some(false) => drop(set.remove(&name)),
            None => bail!(
                "devcontainer.json asks for the variable {name}, which looks like a credential: \
                 send it with `--allow-env {name}`, or leave it out with `env -u {name} garret up …`"
            ),
        }
    }
    Ok(set)
}

/// The names in `${localEnv:NAME}`, `${localEnv:NAME:default}` and the older `${env:NAME}` in all values. An invalid
/// file names no variables: the agent reports the error.
fn names(config: &str, text: &[u8]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if let Ok(document) = Document::parse(config, text) {
        names_in(document.value(), &mut found);
    }
    found
}

fn names_in(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => found.extend(names_in_text(text)),
        Value::Array(values) => values.iter().for_each(|value| names_in(value, found)),
        Value::Object(values) => values.values().for_each(|value| names_in(value, found)),
        _ => {}
    }
}

fn names_in_text(text: &str) -> impl Iterator<Item = String> {
    text.match_indices("${").filter_map(|(at, _)| {
        let (inside, _) = text[at + 2..].split_once('}')?;
        let name = inside.strip_prefix("localEnv:").or_else(|| inside.strip_prefix("env:"))?.split(':').next()?;
        (!name.is_empty() && !name.contains(['=', '\0'])).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_value_names_is_found() {
        let text = r#"{"a": "${localEnv:HOME}/x ${localEnv:TOKEN:none}", /* ${localEnv:COMMENT} */ "${localEnv:KEY}": 1,
            "features": {"f": {"v": ["${env:OLD}", "${containerEnv:PATH} ${localEnv:} ${localEnv:a=b}"]}},
            "b": "${localWorkspaceFolder} $HOME ${localEnv:ÄÖ} ${localEnv:open"}"#;
        assert_eq!(names("d", text.as_bytes()).iter().collect::<Vec<_>>(), ["HOME", "OLD", "TOKEN", "ÄÖ"]);
        assert!(names("d", b"{ ${localEnv:HOME}").is_empty());
    }

    #[test]
    fn unset_variables_are_left_out() {
        let text = br#"{"a": "${localEnv:PATH} ${localEnv:GARRET_SURELY_NOT_SET}"}"#;
        let found = collect(Path::new("/w"), "d", text, &[]).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["PATH"]);
    }

    #[test]
    fn a_credential_needs_consent_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("consent.json");
        let (workspace, other) = (Path::new("/w"), Path::new("/other"));
        let sent = |workspace: &Path, allowed: &[&str], answer: Option<bool>| {
            let set = ["HOME", "API_TOKEN"].map(|name| (name.to_owned(), "x".to_owned())).into();
            let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            let names = admitted(set, workspace, &allowed, || Consent::at(&file), |_| Ok(answer));
            names.map(|names| names.into_keys().collect::<Vec<_>>())
        };
        let refused = sent(workspace, &["HOME"], None).unwrap_err().to_string();
        assert!(refused.contains("`--allow-env API_TOKEN`"), "{refused}");
        assert_eq!(sent(workspace, &[], Some(false)).unwrap(), ["HOME"]);
        assert!(sent(workspace, &[], None).is_err(), "a no is not remembered as a yes");
        assert_eq!(sent(workspace, &[], Some(true)).unwrap(), ["API_TOKEN", "HOME"]);
        assert_eq!(sent(workspace, &[], None).unwrap(), ["API_TOKEN", "HOME"]);
        assert!(sent(other, &[], None).is_err());
        assert_eq!(sent(other, &["API_TOKEN"], None).unwrap(), ["API_TOKEN", "HOME"]);
        assert_eq!(sent(other, &[], None).unwrap(), ["API_TOKEN", "HOME"]);
    }
}
