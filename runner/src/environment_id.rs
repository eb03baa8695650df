//! An environment's id: readable, and computed from owner and folder, so that command and daemon compute the same id.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// The longest part of an id that comes from the folder's name, in characters.
const NAME_MAX: usize = 31;
/// The length of the hash, in bytes. A developer can choose any path: with a shorter hash, they could search for a path
/// whose id is another developer's.
const HASH_BYTES: usize = 16;

/// `<folder name, simplified>-<32 hex digits of uid and path>`, at most 64 characters of `[a-z0-9-]`. `workspace` must be
/// the folder's canonical path.
pub(crate) fn environment_id(uid: u32, workspace: &Path) -> String {
    let mut hash = Sha256::new();
    hash.update(uid.to_string());
    hash.update(b":");
    hash.update(workspace.as_os_str().as_bytes());
    let digest: String = hash.finalize().iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{digest}", simplified(workspace))
}

/// The folder's name with every run of characters other than ASCII letters and digits replaced by one dash.
fn simplified(workspace: &Path) -> String {
    let name = workspace.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut name = words.join("-");
    name.truncate(NAME_MAX);
    let name = name.trim_end_matches('-');
    if name.is_empty() { "workspace".into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The longest id, in characters: it is also used as a folder's name, in the guest too.
    const ID_MAX: usize = 64;

    fn is_environment_id(id: &str) -> bool {
        (1..=ID_MAX).contains(&id.len())
            && !id.starts_with('-')
            && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    }

    #[test]
    fn folder_names_are_simplified() {
        for (folder, name) in [
            ("/home/a/my-project", "my-project"),
            ("/home/a/My Project (2)", "my-project-2"),
            ("/home/a/Übung", "bung"),
            ("/home/a/日本", "workspace"),
            ("/", "workspace"),
            ("/x/.config", "config"),
        ] {
            assert_eq!(simplified(Path::new(folder)), name);
        }
    }

    #[test]
    fn uid_and_path_both_count() {
        let id = |uid, path: &str| environment_id(uid, Path::new(path));
        assert_eq!(id(1000, "/w/a"), id(1000, "/w/a"));
        assert_ne!(id(1000, "/w/a"), id(1001, "/w/a"));
        assert_ne!(id(1000, "/w/a"), id(1000, "/v/a"));
    }

    #[test]
    fn an_id_carries_128_bits() {
        let id = environment_id(1000, Path::new("/w/a"));
        assert_eq!(id, "a-abbfba00d2249f691085f32a4e2f7ddc");
    }

    proptest! {
        #[test]
        fn every_folder_has_a_valid_id(path in "\\PC{0,300}", uid in any::<u32>()) {
            let id = environment_id(uid, &Path::new("/").join(path));
            prop_assert!(is_environment_id(&id), "{}", id);
        }
    }
}
