//! Updates the resolvers of running containers. podman writes a container's `resolv.conf` once, when the container
//! starts.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// podman's folder of running containers. Each has a subfolder with the file that it sees as `/etc/resolv.conf`.
const CONTAINERS: &str = "/run/containers/storage/overlay-containers";
/// The file with the process id of the name server for networks whose containers find each other by name.
const NAME_SERVER: &str = "/run/containers/networks/aardvark-dns/aardvark.pid";
/// The largest `resolv.conf` that is changed, in bytes; podman's own have a few lines.
const FILE_MAX: u64 = 64 << 10;

/// Replaces the resolvers `before` by `after` in running containers.
pub(super) fn follow(before: &[IpAddr], after: &[IpAddr]) {
    let folders = fs::read_dir(CONTAINERS).into_iter().flatten().flatten();
    for path in folders.map(|entry| entry.path().join("userdata/resolv.conf")) {
        match update(&path, before, after) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("a container keeps its former resolvers: {}: {error}", path.display());
            }
            _ => {}
        }
    }
    // The signal makes the name server read the guest's resolvers again. Its containers query only the name server.
    if let Some(server) = name_server()
        && let Err(error) = kill_process(server, Signal::HUP)
    {
        tracing::warn!("the containers' name server keeps its former resolvers: {error}");
    }
}

fn name_server() -> Option<Pid> {
    let pid = fs::read_to_string(NAME_SERVER).ok()?.trim().parse().ok()?;
    // The file remains after the server was killed.
    let name = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/comm"))).ok()?;
    Pid::from_raw(pid).filter(|_| name.trim() == "aardvark-dns")
}

/// Changes the file in place, because a container has it mounted. It can be read at any time, because it is never
/// empty.
fn update(path: &Path, before: &[IpAddr], after: &[IpAddr]) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut text = String::new();
    (&file).take(FILE_MAX).read_to_string(&mut text)?;
    let Some(replaced) = replace(&text, before, after) else { return Ok(()) };
    file.write_all_at(replaced.as_bytes(), 0)?;
    file.set_len(replaced.len() as u64)
}

/// The file's text with the new resolvers. `None` if it does not name `before`: its container has its own resolvers.
fn replace(text: &str, before: &[IpAddr], after: &[IpAddr]) -> Option<String> {
    let named =
        |line: &str| line.trim().strip_prefix("nameserver").map(|address| address.trim().parse::<IpAddr>().ok());
    let own: Vec<_> = text.lines().filter_map(named).collect();
    if before.is_empty() || own != before.iter().copied().map(Some).collect::<Vec<_>>() {
        return None;
    }
    let others = text.lines().filter(|line| named(line).is_none()).map(|line| format!("{line}\n"));
    Some(others.chain(after.iter().map(|address| format!("nameserver {address}\n"))).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn addresses(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn only_the_guests_own_resolvers_are_replaced() {
        let (before, after) = (addresses(&["10.0.0.1", "fd00::1"]), addresses(&["10.0.0.9"]));
        let own = "search corp\nnameserver 10.0.0.1\nnameserver fd00::1\noptions edns0\n";
        let new = "search corp\noptions edns0\nnameserver 10.0.0.9\n";
        assert_eq!(replace(own, &before, &after).as_deref(), Some(new));
        for others in [
            "",
            "search corp\n",
            "nameserver 10.89.0.1\n",
            "nameserver 10.0.0.1\n",
            "nameserver fd00::1\nnameserver 10.0.0.1\n",
            "nameserver 10.0.0.1\nnameserver fd00::1\nnameserver 1.1.1.1\n",
            "nameserver 10.0.0.1\nnameserver fd00::1\nnameserver unreadable\n",
        ] {
            assert_eq!(replace(others, &before, &after), None, "{others}");
        }
        assert_eq!(replace("search corp\n", &[], &after), None, "podman has put in its own");
    }

    #[test]
    fn file_is_changed_in_place() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "nameserver 10.0.0.1\nnameserver 10.0.0.2\n").unwrap();
        let inode = fs::metadata(file.path()).unwrap().ino();
        update(file.path(), &addresses(&["10.0.0.1", "10.0.0.2"]), &addresses(&["1.1.1.1"])).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "nameserver 1.1.1.1\n");
        assert_eq!(fs::metadata(file.path()).unwrap().ino(), inode);
        let missing = update(Path::new("/no such file"), &[], &[]).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
