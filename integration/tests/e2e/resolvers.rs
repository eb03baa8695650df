//! Resolvers that change on the host reach machines and containers that run, and cut nothing.

use toml::Value;

use crate::settings::{Settings, network};
use garret_integration::stage::{ALICE, Workspace, wait_until};

#[test]
fn changed_resolvers_are_followed_without_a_break() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    // An address that goes takes the connections over it along.
    ALICE.guest("nohup ip monitor address >/run/address-events 2>&1 & sleep 0.5").ok();
    let resolvers = Value::Array(vec!["192.0.2.53".into()]);
    let _settings = Settings::change(|config| drop(network(config).insert("resolvers".into(), resolvers)));
    wait_until("the container has the new resolver", 60, || {
        workspace.sh("cat /etc/resolv.conf").out().contains("nameserver 192.0.2.53\n")
    });
    assert!(ALICE.guest("cat /etc/resolv.conf").ok().contains("192.0.2.53"));
    assert_eq!(ALICE.guest("pkill -x ip; cat /run/address-events").ok(), "");
}
