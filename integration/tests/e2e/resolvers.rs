//! Resolvers that change on the host reach machines and containers that run, and cut nothing.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::isolation::Beyond;
use garret_integration::stage::{ALICE, Workspace, wait_until};

const NEW: &str = "nameserver 192.0.2.53\n";

/// Connects, and asks only when the file is there.
const KEEP: &str = r#"
import os, socket, sys, time
server = socket.create_connection((sys.argv[1], 80), 60)
open("connected", "w")
while not os.path.exists("ask"):
    time.sleep(0.1)
server.sendall(b"GET / HTTP/1.0\r\n\r\n")
print(server.recv(8).decode())
"#;

#[test]
fn changed_resolvers_are_followed_without_a_break() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    // An address that goes takes the connections over it along.
    ALICE.guest("nohup ip monitor address >/run/address-events 2>&1 & sleep 0.5").ok();
    let _beyond = Beyond::open();
    wait_until("the server beyond answers", 10, || TcpStream::connect((Beyond::PUBLIC, 80)).is_ok());
    std::thread::scope(|scope| {
        let kept = scope.spawn(|| workspace.exec(&["timeout", "300", "python3", "-c", KEEP, Beyond::PUBLIC]));
        wait_until("the container is connected", 30, || workspace.path().join("connected").exists());
        let _replaced = ResolversFile::replace();
        // The daemon looks every 5 s, and sends a machine what has changed every 15 s.
        wait_until("the container has the new resolver", 60, || {
            workspace.sh("cat /etc/resolv.conf").out().contains(NEW)
        });
        assert!(ALICE.guest("cat /etc/resolv.conf").ok().contains(NEW));
        workspace.write("ask", "");
        assert_eq!(kept.join().expect("the thread ends").ok(), "HTTP/1.0\n");
    });
    assert_eq!(ALICE.guest("pkill -x ip; cat /run/address-events").ok(), "");
}

/// Another file in the place of the one from which the daemon reads the host's resolvers.
struct ResolversFile {
    place: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl ResolversFile {
    fn replace() -> Self {
        let places = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"].map(Path::new);
        let place = places.into_iter().find_map(|path| path.canonicalize().ok()).expect("the host has resolvers");
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), NEW).expect("it writes");
        mount_bind(file.path(), &place).expect("a mount");
        Self { place, _file: file }
    }
}

impl Drop for ResolversFile {
    fn drop(&mut self) {
        unmount(&self.place, UnmountFlags::DETACH).expect("it is mounted");
    }
}
