//! The interface `eth0`. Correct settings are not touched: removing an address ends every connection that uses it.

use std::process::Stdio;

use garret_api::agent::NetworkSetup;
use garret_api::{Code, Problem};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Applies `network` to the interface; `before` is the setup that was applied before.
pub(super) async fn configure(before: Option<&NetworkSetup>, network: &NetworkSetup) -> Result<(), Problem> {
    let commands = commands(before, network);
    if commands.is_empty() {
        return Ok(());
    }
    let failed =
        |why: String| Problem::new(Code::Internal, format!("cannot configure the network interface eth0: {why}"));
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| failed(format!("ip: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(commands.as_bytes()).await.map_err(|error| failed(error.to_string()))?;
    }
    let output = child.wait_with_output().await.map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))),
    }
}

/// Commands for `ip -batch`, one per line. The gateway need not be inside the prefix.
fn commands(before: Option<&NetworkSetup>, network: &NetworkSetup) -> String {
    let NetworkSetup { address, prefix, gateway, mtu, .. } = network;
    let same_address = before.is_some_and(|before| (before.address, before.prefix) == (*address, *prefix));
    let mut commands = String::new();
    if before.is_none_or(|before| before.mtu != *mtu) {
        commands += &format!("link set dev eth0 mtu {mtu} up\n");
    }
    if !same_address {
        commands += &format!("addr flush dev eth0 scope global\naddr add {address}/{prefix} dev eth0\n");
    }
    // Removing the address also removes the route.
    if !same_address || before.is_none_or(|before| before.gateway != *gateway) {
        commands += &format!("route replace default via {gateway} dev eth0 onlink\n");
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_applied() {
        let setup = NetworkSetup {
            address: [10, 0, 0, 2].into(),
            prefix: 30,
            gateway: [10, 0, 0, 1].into(),
            resolvers: vec![[1, 1, 1, 1].into()],
            mtu: 1500,
        };
        let link = "link set dev eth0 mtu 1500 up\n";
        let address = "addr flush dev eth0 scope global\naddr add 10.0.0.2/30 dev eth0\n";
        let route = "route replace default via 10.0.0.1 dev eth0 onlink\n";
        for (before, expected) in [
            (None, vec![link, address, route]),
            (Some(setup.clone()), vec![]),
            (Some(NetworkSetup { resolvers: vec![], ..setup.clone() }), vec![]),
            (Some(NetworkSetup { mtu: 1400, ..setup.clone() }), vec![link]),
            (Some(NetworkSetup { gateway: [10, 0, 0, 3].into(), ..setup.clone() }), vec![route]),
            (Some(NetworkSetup { address: [10, 0, 0, 6].into(), ..setup.clone() }), vec![address, route]),
            (Some(NetworkSetup { prefix: 24, ..setup.clone() }), vec![address, route]),
        ] {
            assert_eq!(commands(before.as_ref(), &setup), expected.concat(), "{before:?}");
        }
    }
}
