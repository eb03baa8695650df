//! Finds the devcontainer.json of a workspace.

use crate::Error;

/// The files of a workspace, as [`find`] reads them. Paths are relative to the workspace and use `/`.
pub trait Files {
    /// Whether `path` is a file, or a link to one.
    fn is_file(&self, path: &str) -> bool;
    /// The names of the folders directly in `path`; none if there is no such folder.
    fn folders(&self, path: &str) -> Vec<String>;
}

/// The places of a workspace's only devcontainer.json, in order of preference. The last one is garret's own: a plain
/// file in the workspace's root.
const PLACES: [&str; 3] = [".devcontainer/devcontainer.json", ".devcontainer.json", "devcontainer.json"];

/// The devcontainer.json to use, relative to the workspace: the `chosen` one, or the first of the usual places, or the
/// only `.devcontainer/<name>/devcontainer.json`. `chosen` may also be the `<name>`.
///
/// # Errors
/// There is none, the chosen one is missing or outside the workspace, or there are several named ones and no choice.
pub fn find(files: &impl Files, chosen: Option<&str>) -> Result<String, Error> {
    if let Some(chosen) = chosen {
        return find_chosen(files, chosen);
    }
    if let Some(place) = PLACES.into_iter().find(|place| files.is_file(place)) {
        return Ok(place.to_owned());
    }
    let mut named: Vec<_> = files
        .folders(".devcontainer")
        .into_iter()
        .map(|name| named_place(&name))
        .filter(|path| files.is_file(path))
        .collect();
    named.sort();
    match named.len() {
        0 => Err(Error::NotFound),
        1 => Ok(named.remove(0)),
        _ => Err(Error::Several(named)),
    }
}

fn find_chosen(files: &impl Files, chosen: &str) -> Result<String, Error> {
    let path = chosen.strip_prefix("./").unwrap_or(chosen);
    let inside = !path.starts_with('/') && !path.split('/').any(|part| part == "..");
    let candidates = [path.to_owned(), named_place(path)];
    candidates
        .into_iter()
        .find(|path| inside && files.is_file(path))
        .ok_or_else(|| Error::NoSuchFile(chosen.to_owned()))
}

fn named_place(name: &str) -> String {
    format!(".devcontainer/{name}/devcontainer.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Paths<'a>(&'a [&'a str]);

    impl Files for Paths<'_> {
        fn is_file(&self, path: &str) -> bool {
            self.0.contains(&path)
        }
        fn folders(&self, path: &str) -> Vec<String> {
            let mut names: Vec<_> = self
                .0
                .iter()
                .filter_map(|file| file.strip_prefix(path)?.strip_prefix('/')?.split_once('/'))
                .map(|(name, _)| name.to_owned())
                .collect();
            names.dedup();
            names
        }
    }

    #[test]
    fn the_usual_places_in_order() {
        let all = [".devcontainer/devcontainer.json", ".devcontainer.json", "devcontainer.json"];
        assert_eq!(find(&Paths(&[all[2], all[1], all[0]]), None).unwrap(), all[0]);
        assert_eq!(find(&Paths(&[all[2], all[1]]), None).unwrap(), all[1]);
        assert_eq!(find(&Paths(&[all[2], ".devcontainer/a/devcontainer.json"]), None).unwrap(), all[2]);
        assert_eq!(find(&Paths(&["src/devcontainer.json"]), None), Err(Error::NotFound));
    }

    #[test]
    fn named_ones_need_a_choice_only_when_several() {
        let one = ".devcontainer/a/devcontainer.json";
        let two =
            Paths(&[".devcontainer/b/devcontainer.json", ".devcontainer/a/devcontainer.json", ".devcontainer/c/x"]);
        assert_eq!(find(&Paths(&[one]), None).unwrap(), one);
        let message = find(&two, None).unwrap_err().to_string();
        assert!(message.contains(".devcontainer/a/devcontainer.json, .devcontainer/b/devcontainer.json"), "{message}");
        assert_eq!(find(&two, Some("a")).unwrap(), one);
        assert_eq!(find(&two, Some("./.devcontainer/a/devcontainer.json")).unwrap(), one);
    }

    #[test]
    fn a_choice_stays_inside_the_workspace() {
        for chosen in ["nothing", "../x", "/etc/passwd", "a/../../etc/passwd"] {
            assert_eq!(find(&Paths(&["../x", "/etc/passwd"]), Some(chosen)), Err(Error::NoSuchFile(chosen.into())));
        }
    }
}
