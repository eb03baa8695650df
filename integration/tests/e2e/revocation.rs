//! A workspace whose environment was removed is out of the machine's reach; where a guest keeps it, that is said.

use std::fs;

use garret_integration::stage::{ALICE, Workspace, events};

/// Binds a folder of the workspace in a mount namespace that no agent looks into.
const HOLD: &str =
    "setsid unshare -m sh -c 'mount --bind /workspaces/$0/folder /mnt && echo held && exec sleep 4242' $0";

const CONFIG: &str = ".devcontainer/devcontainer.json";

/// What the guest keeps.
#[derive(Clone, Copy, PartialEq)]
enum Held {
    Nothing,
    Workspace,
    /// The folder that was the workspace until it was deleted and made again.
    Former,
}

#[test]
fn a_removed_workspace_leaves_no_file_open_in_the_vmm() {
    let keeps = Workspace::shared(ALICE);
    keeps.up(&["true"]).ok();
    for held in [Held::Nothing, Held::Workspace, Held::Former] {
        let goes = Workspace::with_image(ALICE, "goes", "");
        goes.write("folder/file", "text");
        goes.up(&["sh", "-c", "find . -type f -exec cat {} + >/dev/null"]).ok();
        let id = goes.environment()["id"].as_str().unwrap().to_owned();
        if held != Held::Nothing {
            let hold = format!("{HOLD} > /run/held & until grep -q held /run/held; do sleep 0.1; done");
            ALICE.garret(&["exec", "--machine", "--", "sh", "-c", &hold, &id]).ok();
        }
        if held == Held::Former {
            let config = goes.read(CONFIG);
            fs::remove_dir_all(goes.str()).unwrap();
            goes.write(CONFIG, &config);
            ALICE.own(goes.str().as_ref());
            goes.up(&["true"]).ok();
        }
        let removed = ALICE.garret(&["rm", goes.str()]);
        let events = events();
        let said = events.lines().any(|line| line.contains(&id) && line.contains("workspace-held"));
        assert_eq!(said, held != Held::Nothing, "{events}");
        assert_eq!(removed.stderr.contains("files of"), said, "{}", removed.stderr);
        removed.ok();
    }
    ALICE.garret(&["exec", "--machine", "--", "pkill", "-f", "sleep 4242"]).ok();
    keeps.exec(&["true"]).ok();
}
