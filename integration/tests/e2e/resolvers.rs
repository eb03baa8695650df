//! Resolvers that change on the host reach machines and containers that run, and cut nothing.

use std::fs;

use toml::{Table, Value};

use crate::stage::{ALICE, Workspace, restart_daemon, wait_until};

const CONFIG: &str = "/etc/garret/config.toml";

#[test]
fn changed_resolvers_are_followed_without_a_break() {
    let workspace = Workspace::with_image(ALICE, "resolvers", "");
    workspace.up(&[]).ok();
    let guest = |line: &str| ALICE.garret(&["exec", "--machine", "--", "sh", "-c", line]).ok();
    // An address that goes takes the connections over it along.
    guest("nohup ip monitor address >/run/address-events 2>&1 & sleep 0.5");
    let _settings = Resolvers::set("192.0.2.53");
    wait_until("the container has the new resolver", 60, || {
        workspace.sh("cat /etc/resolv.conf").out().contains("nameserver 192.0.2.53\n")
    });
    assert!(guest("cat /etc/resolv.conf").contains("192.0.2.53"));
    assert_eq!(guest("pkill -x ip; cat /run/address-events"), "");
}

/// The daemon's configuration with another resolver; at the end it is as it was.
struct Resolvers {
    before: Option<Vec<u8>>,
}

impl Resolvers {
    fn set(resolver: &str) -> Self {
        let before = fs::read(CONFIG).ok();
        let text = String::from_utf8(before.clone().unwrap_or_default()).expect("UTF-8");
        let mut config: Table = text.parse().expect("the configuration is TOML");
        let network = config.entry("network").or_insert(Value::Table(Table::new())).as_table_mut().expect("a table");
        network.insert("resolvers".to_owned(), Value::Array(vec![resolver.into()]));
        put_in_force(Some(config.to_string().into_bytes()));
        Self { before }
    }
}

impl Drop for Resolvers {
    fn drop(&mut self) {
        put_in_force(self.before.take());
    }
}

fn put_in_force(config: Option<Vec<u8>>) {
    match config {
        Some(text) => fs::write(CONFIG, text),
        None => fs::remove_file(CONFIG),
    }
    .expect("the configuration is root's");
    restart_daemon();
}
