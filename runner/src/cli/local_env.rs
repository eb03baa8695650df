//! The caller's variables that a devcontainer.json asks for, and no others: a machine learns nothing it was not told of.

use std::collections::BTreeMap;

/// The names in `${localEnv:NAME}`, `${localEnv:NAME:default}` and the older `${env:NAME}`.
pub fn names(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for (at, _) in text.match_indices("${") {
        let inside = text[at + 2..].split('}').next().unwrap_or_default();
        let name = inside.strip_prefix("localEnv:").or_else(|| inside.strip_prefix("env:"));
        if let Some(name) = name.and_then(|name| name.split(':').next()).filter(|name| !name.is_empty()) {
            names.push(name);
        }
    }
    names
}

/// Those of the caller's variables.
pub fn collect(text: &str) -> BTreeMap<String, String> {
    let set = |name: &&str| std::env::var(name).ok().map(|value| ((*name).to_owned(), value));
    names(text).iter().filter_map(set).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_found() {
        let text = r#"{"a": "${localEnv:HOME}/x ${localEnv:TOKEN:none} ${env:OLD}", "b": "${containerEnv:PATH} ${localEnv:}
            ${localWorkspaceFolder} $HOME ${localEnv:ÄÖ} ${localEnv:open"}"#;
        assert_eq!(names(text), ["HOME", "TOKEN", "OLD", "ÄÖ", "open\""]);
    }

    #[test]
    fn unset_variables_are_left_out() {
        let found = collect("${localEnv:PATH} ${localEnv:GARRET_SURELY_NOT_SET}");
        assert_eq!(found.keys().collect::<Vec<_>>(), ["PATH"]);
    }
}
