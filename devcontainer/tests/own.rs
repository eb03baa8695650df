//! The devcontainer.json files of this repository use only what this version supports.

use std::path::Path;

use garret_devcontainer::Document;

#[test]
fn own_files_have_no_unsupported_property() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for file in [".devcontainer/devcontainer.json", "examples/python-service/.devcontainer/devcontainer.json"] {
        let text = std::fs::read(repository.join(file)).unwrap();
        let document = Document::parse(file, &text).unwrap();
        assert_eq!(document.notices().unwrap(), [], "{file}");
        document.config().unwrap().source(file).unwrap();
    }
}
