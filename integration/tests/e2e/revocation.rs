//! A workspace whose environment was removed is out of the machine's reach; where a guest keeps it, that is said.

use crate::stage::{ALICE, Workspace, events};

/// Binds a folder of the workspace in a mount namespace that no agent looks into.
const HOLD: &str =
    "setsid unshare -m sh -c 'mount --bind /workspaces/$0/folder /mnt && echo held && exec sleep 4242' $0";

#[test]
fn a_removed_workspace_leaves_no_file_open_in_the_vmm() {
    let keeps = Workspace::shared(ALICE);
    keeps.up(&["true"]).ok();
    for lets_go in [true, false] {
        let goes = Workspace::with_image(ALICE, "goes", "");
        goes.write("folder/file", "text");
        goes.up(&["sh", "-c", "find . -type f -exec cat {} + >/dev/null"]).ok();
        let id = goes.environment()["id"].as_str().unwrap().to_owned();
        if !lets_go {
            let hold = format!("{HOLD} > /run/held & until grep -q held /run/held; do sleep 0.1; done");
            ALICE.garret(&["exec", "--machine", "--", "sh", "-c", &hold, &id]).ok();
        }
        ALICE.garret(&["rm", goes.str()]).ok();
        let events = events();
        let said = events.lines().any(|line| line.contains(&id) && line.contains("workspace-held"));
        assert_eq!(said, !lets_go, "{events}");
    }
    ALICE.garret(&["exec", "--machine", "--", "pkill", "-f", "sleep 4242"]).ok();
    keeps.exec(&["true"]).ok();
}
