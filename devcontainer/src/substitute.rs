//! Variables: `${name}` and `${name:argument:default}` in every string value.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Error;

/// The values of variables. `None` means not known yet: these variables stay as written, for a later pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variables<'a> {
    /// The file's name in errors.
    pub file: &'a str,
    /// `${localEnv:NAME}`, also written `${env:NAME}`.
    pub local_env: Option<&'a BTreeMap<String, String>>,
    /// `${localWorkspaceFolder}`, and its last part `${localWorkspaceFolderBasename}`.
    pub local_workspace_folder: Option<&'a str>,
    /// `${containerWorkspaceFolder}`, and its last part `${containerWorkspaceFolderBasename}`.
    pub container_workspace_folder: Option<&'a str>,
    /// `${devcontainerId}`.
    pub devcontainer_id: Option<&'a str>,
    /// `${containerEnv:NAME}`.
    pub container_env: Option<&'a BTreeMap<String, String>>,
}

/// `value` with the variables of all its strings replaced; names of members stay. The inserted values are not
/// substituted again.
///
/// # Errors
/// `${localEnv}` or `${containerEnv}` without a name.
pub fn substitute(value: &Value, variables: &Variables<'_>) -> Result<Value, Error> {
    Ok(match value {
        Value::String(text) => Value::String(variables.replace(text)?),
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| substitute(item, variables)).collect::<Result<_, _>>()?)
        }
        Value::Object(members) => {
            let member = |(name, value): (&String, _)| Ok((name.clone(), substitute(value, variables)?));
            Value::Object(members.iter().map(member).collect::<Result<_, Error>>()?)
        }
        other => other.clone(),
    })
}

impl Variables<'_> {
    /// One string with its variables replaced.
    ///
    /// # Errors
    /// As [`substitute`].
    pub fn replace(&self, text: &str) -> Result<String, Error> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let (before, from) = rest.split_at(start);
            out.push_str(before);
            match end_of_variable(&from[2..]) {
                Some(length) => {
                    let (whole, after) = from.split_at(2 + length + 1);
                    match self.lookup(&from[2..2 + length])? {
                        Some(known) => out.push_str(&known),
                        None => out.push_str(whole),
                    }
                    rest = after;
                }
                None => {
                    out.push_str("${");
                    rest = &from[2..];
                }
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    fn lookup(&self, variable: &str) -> Result<Option<String>, Error> {
        let mut parts = variable.split(':');
        let name = parts.next().unwrap_or_default();
        let arguments: Vec<_> = parts.collect();
        let known = |value: Option<&str>| value.map(str::to_owned);
        Ok(match name {
            "localEnv" | "env" => self.variable_of(self.local_env, name, &arguments)?,
            "containerEnv" => self.variable_of(self.container_env, name, &arguments)?,
            "localWorkspaceFolder" => known(self.local_workspace_folder),
            "localWorkspaceFolderBasename" => known(self.local_workspace_folder.map(basename)),
            "containerWorkspaceFolder" => known(self.container_workspace_folder),
            "containerWorkspaceFolderBasename" => known(self.container_workspace_folder.map(basename)),
            "devcontainerId" => known(self.devcontainer_id),
            _ => None,
        })
    }

    /// The default ends at the next colon, and an absent variable without a default is empty, as in the reference
    /// implementation.
    fn variable_of(
        &self,
        env: Option<&BTreeMap<String, String>>,
        variable: &str,
        arguments: &[&str],
    ) -> Result<Option<String>, Error> {
        let Some(env) = env else { return Ok(None) };
        let Some(name) = arguments.first() else {
            return Err(Error::NoVariableName { file: self.file.to_owned(), variable: variable.to_owned() });
        };
        let default = arguments.get(1).copied().unwrap_or_default();
        Ok(Some(env.get(*name).map_or(default, String::as_str).to_owned()))
    }
}

/// The bytes before the `}` of a variable; it ends on its own line.
fn end_of_variable(text: &str) -> Option<usize> {
    let end = text.find(['}', '\n', '\r', '\u{2028}', '\u{2029}'])?;
    text[end..].starts_with('}').then_some(end)
}

fn basename(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn env() -> BTreeMap<String, String> {
        BTreeMap::from([("HOME".into(), "/home/me".into()), ("EMPTY".into(), String::new())])
    }

    fn replaced(text: &str) -> String {
        let env = env();
        let variables = Variables {
            file: "d",
            local_env: Some(&env),
            local_workspace_folder: Some("/src/my project"),
            container_workspace_folder: Some("/workspaces/p"),
            devcontainer_id: None,
            container_env: None,
        };
        variables.replace(text).unwrap()
    }

    #[test]
    fn each_variable_is_replaced() {
        for (text, expected) in [
            ("a${localEnv:HOME}b", "a/home/meb"),
            ("${env:HOME}", "/home/me"),
            ("${localEnv:NONE}", ""),
            ("${localEnv:NONE:x y}", "x y"),
            ("${localEnv:EMPTY:x}", ""),
            ("${localEnv:NONE:http://x}", "http"),
            ("${localEnv:}", ""),
            ("${localWorkspaceFolder}/${localWorkspaceFolderBasename}", "/src/my project/my project"),
            ("${containerWorkspaceFolder}|${containerWorkspaceFolderBasename}", "/workspaces/p|p"),
            ("${containerEnv:PATH}${devcontainerId}", "${containerEnv:PATH}${devcontainerId}"),
            ("${unknown} $HOME ${", "${unknown} $HOME ${"),
            ("${a\n${localEnv:HOME}", "${a\n/home/me"),
            ("${a${localEnv:HOME}}", "${a${localEnv:HOME}}"),
        ] {
            assert_eq!(replaced(text), expected, "{text}");
        }
    }

    #[test]
    fn a_variable_needs_its_name() {
        let env = env();
        let variables = Variables { file: "d", local_env: Some(&env), ..Variables::default() };
        let error = variables.replace("${localEnv}").unwrap_err().to_string();
        assert_eq!(error, "d: ${localEnv} names no environment variable: write ${localEnv:NAME}");
    }

    #[test]
    fn strings_in_arrays_and_members_but_not_names() {
        let env = env();
        let variables = Variables { local_env: Some(&env), ..Variables::default() };
        let value = json!({"${localEnv:HOME}": ["${localEnv:HOME}", 1, null, {"a": "${localEnv:HOME}"}]});
        let expected = json!({"${localEnv:HOME}": ["/home/me", 1, null, {"a": "/home/me"}]});
        assert_eq!(substitute(&value, &variables).unwrap(), expected);
    }

    proptest! {
        #[test]
        fn text_without_variables_stays(text in "[^$]{0,60}") {
            prop_assert_eq!(replaced(&text), text);
        }

        #[test]
        fn any_text_is_replaced_or_refused(text in r"(\$\{|\}|:|localEnv|containerEnv|HOME|\n|ä|.){0,30}") {
            let env = env();
            let variables = Variables { local_env: Some(&env), container_env: Some(&env), ..Variables::default() };
            if let Ok(once) = variables.replace(&text) {
                // Text without variables stays as it is.
                let open = once.contains("${");
                prop_assert!(open || variables.replace(&once).unwrap() == once);
            }
        }
    }
}
