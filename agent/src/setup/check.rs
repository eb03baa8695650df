//! Checks the host's settings before any file is written.

use garret_api::agent::MachineSetup;
use garret_api::{Code, Problem};

/// The largest certificate bundle, in bytes.
const BUNDLE_MAX: usize = 4 << 20;

/// Rejects values that would produce malformed files. The values are written to files of line-based formats, so no text
/// except the certificates may hold a control character or a quote.
pub(super) fn check(setup: &MachineSetup) -> Result<(), Problem> {
    let invalid = |what: String| Err(Problem::new(Code::Invalid, what));
    let hostname = &setup.hostname;
    let label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if hostname.is_empty() || hostname.len() > 63 || hostname.starts_with('-') || !hostname.bytes().all(label) {
        return invalid(format!("hostname {hostname:?}: 1 to 63 letters, digits and hyphens are needed"));
    }
    if let Some(network) = &setup.network {
        if !(1..=32).contains(&network.prefix) {
            return invalid(format!("network.prefix {}: 1 to 32 is needed", network.prefix));
        }
        if network.mtu < 1280 {
            return invalid(format!("network.mtu {}: 1280 or more is needed", network.mtu));
        }
        if network.resolvers.len() > 3 {
            return invalid(format!("network.resolvers: {} given, at most 3 are used", network.resolvers.len()));
        }
    }
    if let Some(bundle) = &setup.ca_bundle
        && (!bundle.contains("-----BEGIN CERTIFICATE-----") || bundle.len() > BUNDLE_MAX)
    {
        return invalid(format!("ca_bundle: PEM certificates are needed, at most {} MiB", BUNDLE_MAX >> 20));
    }
    let mirrors = setup.registry_mirrors.iter().flat_map(|mirror| [Some(&mirror.registry), Some(&mirror.mirror)]);
    let proxies = [&setup.proxy.http, &setup.proxy.https, &setup.proxy.no_proxy].map(Option::as_ref);
    let packages = &setup.packages;
    let packages = [&packages.pip_index_url, &packages.npm_registry, &packages.apt_proxy].map(Option::as_ref);
    for text in mirrors.chain(proxies).chain(packages).flatten() {
        if text.is_empty() || text.chars().any(|c| c.is_control() || c == '"' || c == '\\') {
            return invalid(format!(
                "{text:?}: an address without quotes, backslashes and control characters is needed"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use garret_api::agent::{NetworkSetup, Proxy};

    use super::*;

    fn setup() -> MachineSetup {
        let network = NetworkSetup {
            address: [10, 0, 0, 2].into(),
            prefix: 30,
            gateway: [10, 0, 0, 1].into(),
            resolvers: vec![],
            mtu: 1500,
        };
        MachineSetup { hostname: "ann-1".into(), network: Some(network), ..Default::default() }
    }

    #[test]
    fn each_bad_value_is_named() {
        assert_eq!(check(&setup()), Ok(()));
        let network = |change: fn(&mut NetworkSetup)| {
            let mut setup = setup();
            change(setup.network.as_mut().unwrap());
            setup
        };
        let proxy = Proxy { http: Some("http://p\nEVIL=1".into()), ..Default::default() };
        let cases = [
            (MachineSetup { hostname: "a b".into(), ..setup() }, "hostname"),
            (network(|network| network.prefix = 33), "network.prefix 33"),
            (network(|network| network.mtu = 576), "network.mtu 576"),
            (network(|network| network.resolvers = vec![[1, 1, 1, 1].into(); 4]), "network.resolvers"),
            (MachineSetup { ca_bundle: Some("no".into()), ..setup() }, "ca_bundle"),
            (MachineSetup { proxy, ..setup() }, "EVIL"),
        ];
        for (setup, named) in cases {
            let problem = check(&setup).unwrap_err();
            assert!(problem.detail.contains(named), "{problem}");
            assert!(!problem.detail.contains('\n'));
        }
    }
}
