//! The text of the files for a setup; pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use garret_api::agent::{MachineSetup, NetworkSetup, PackageIndexes, Proxy, RegistryMirror};
use serde::Serialize;
use toml::Value;

use super::{FactMount, HostFacts};

/// The merged certificates in the guest. Containers see the same file at [`CONTAINER_CERTIFICATES`]: a bind mount over
/// a container's own bundle would make `update-ca-certificates` fail.
pub(super) const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
pub(super) const CONTAINER_CERTIFICATES: &str = "/run/garret/ca-certificates.crt";
/// apt's settings are in a file and not in a variable, because `sudo apt-get` in a container drops variables.
pub(super) const APT: &str = "/etc/apt/apt.conf.d/90garret";

/// Variables by which programs find certificates: OpenSSL, curl, Python's requests, pip, Node, git, cargo.
const CERTIFICATE_VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
];

/// The settings for containers, builds and the engine.
pub(super) fn facts(setup: &MachineSetup) -> HostFacts {
    let engine_env = proxy_env(&setup.proxy);
    let mut env = engine_env.clone();
    env.extend(package_env(&setup.packages));
    let mut mounts = Vec::new();
    if setup.ca_bundle.is_some() {
        env.extend(CERTIFICATE_VARIABLES.map(|name| (name.to_owned(), CONTAINER_CERTIFICATES.to_owned())));
        mounts.push(FactMount { source: CERTIFICATES.into(), target: CONTAINER_CERTIFICATES.into() });
    }
    if apt(setup).is_some() {
        mounts.push(FactMount { source: APT.into(), target: PathBuf::from(APT) });
    }
    HostFacts { env, engine_env, mounts }
}

/// Both spellings: curl reads `http_proxy` in lower case only, other programs read upper case.
fn proxy_env(proxy: &Proxy) -> BTreeMap<String, String> {
    let named = [("http_proxy", &proxy.http), ("https_proxy", &proxy.https), ("no_proxy", &proxy.no_proxy)];
    let set = named.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    set.flat_map(|(name, value)| [(name.to_owned(), value.clone()), (name.to_uppercase(), value.clone())]).collect()
}

fn package_env(packages: &PackageIndexes) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    if let Some(url) = &packages.pip_index_url {
        env.insert("PIP_INDEX_URL".into(), url.clone());
        // pip rejects an index over plain HTTP unless its host is trusted explicitly.
        if let Some(host) = url.strip_prefix("http://").and_then(|rest| rest.split(['/', ':']).next()) {
            env.insert("PIP_TRUSTED_HOST".into(), host.into());
        }
    }
    if let Some(url) = &packages.npm_registry {
        env.insert("NPM_CONFIG_REGISTRY".into(), url.clone());
    }
    env
}

/// apt's settings, in the guest and in containers.
pub(super) fn apt(setup: &MachineSetup) -> Option<String> {
    let mut lines = String::new();
    let proxy = setup.packages.apt_proxy.as_ref();
    if let Some(proxy) = proxy.or(setup.proxy.http.as_ref()) {
        lines += &format!("Acquire::http::Proxy \"{proxy}\";\n");
    }
    if let Some(proxy) = setup.proxy.https.as_ref() {
        lines += &format!("Acquire::https::Proxy \"{proxy}\";\n");
    }
    if setup.ca_bundle.is_some() {
        lines += &format!("Acquire::https::CAInfo \"{CONTAINER_CERTIFICATES}\";\n");
    }
    (!lines.is_empty()).then_some(lines)
}

pub(super) fn hosts(hostname: &str) -> String {
    format!("127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost ip6-loopback\n")
}

pub(super) fn resolv_conf(network: Option<&NetworkSetup>) -> String {
    let resolvers = network.map_or(&[][..], |network| &network.resolvers);
    resolvers.iter().map(|resolver| format!("nameserver {resolver}\n")).collect()
}

#[derive(Serialize)]
struct Registries {
    registry: Vec<Registry>,
}

#[derive(Serialize)]
struct Registry {
    prefix: String,
    location: String,
    mirror: Vec<Mirror>,
}

#[derive(Serialize)]
struct Mirror {
    location: String,
    insecure: bool,
}

/// containers-registries.conf(5): each registry with its mirrors in the given order.
pub(super) fn registries_conf(mirrors: &[RegistryMirror]) -> String {
    let names: BTreeSet<&str> = mirrors.iter().map(|mirror| mirror.registry.as_str()).collect();
    let registry = names.into_iter().map(|name| Registry {
        prefix: name.into(),
        location: name.into(),
        mirror: mirrors
            .iter()
            .filter(|mirror| mirror.registry == name)
            .map(|mirror| Mirror { location: mirror.mirror.clone(), insecure: mirror.insecure })
            .collect(),
    });
    toml::to_string(&Registries { registry: registry.collect() }).expect("strings are valid TOML")
}

/// containers.conf(5): `append` keeps the entries of the image's own file. podman rejects a list that holds nothing
/// else, so an empty list is left out.
pub(super) fn containers_conf(facts: &HostFacts) -> String {
    let list = |values: Vec<String>| {
        let mut list: Vec<Value> = values.into_iter().map(Value::String).collect();
        list.push(Value::Table(toml::Table::from_iter([("append".into(), Value::Boolean(true))])));
        Value::Array(list)
    };
    let env = |env: &BTreeMap<String, String>| env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mount = |mount: &FactMount| format!("{}:{}:ro", mount.source.display(), mount.target.display());
    let section = |lists: Vec<(&str, Vec<String>)>| {
        let lists = lists.into_iter().filter(|(_, values)| !values.is_empty());
        toml::Table::from_iter(lists.map(|(name, values)| (name.into(), list(values))))
    };
    let containers = section(vec![("env", env(&facts.env)), ("volumes", facts.mounts.iter().map(mount).collect())]);
    let engine = section(vec![("env", env(&facts.engine_env))]);
    let sections = [("containers".into(), Value::Table(containers)), ("engine".into(), Value::Table(engine))];
    toml::to_string(&toml::Table::from_iter(sections)).expect("strings are valid TOML")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> MachineSetup {
        MachineSetup {
            hostname: "ann".into(),
            ca_bundle: Some("PEM".into()),
            proxy: Proxy { http: Some("http://p:3128".into()), https: None, no_proxy: Some("localhost".into()) },
            packages: PackageIndexes {
                pip_index_url: Some("http://pip.corp:8080/simple".into()),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[test]
    fn facts_hold_proxies_indexes_and_certificates() {
        let facts = facts(&setup());
        assert_eq!(facts.engine_env.keys().collect::<Vec<_>>(), ["HTTP_PROXY", "NO_PROXY", "http_proxy", "no_proxy"]);
        assert_eq!(facts.env["PIP_TRUSTED_HOST"], "pip.corp");
        assert_eq!(facts.env["SSL_CERT_FILE"], CONTAINER_CERTIFICATES);
        assert_eq!(facts.mounts.len(), 2);
        assert_eq!(super::facts(&MachineSetup::default()), HostFacts::default());
    }

    #[test]
    fn an_https_index_is_not_trusted_blindly() {
        let packages = PackageIndexes { pip_index_url: Some("https://pip.corp/simple".into()), ..Default::default() };
        assert!(!package_env(&packages).contains_key("PIP_TRUSTED_HOST"));
    }

    #[test]
    fn the_apt_proxy_wins_over_the_general_one() {
        let mut setup = setup();
        assert!(apt(&setup).unwrap().contains("http::Proxy \"http://p:3128\""));
        setup.packages.apt_proxy = Some("http://apt:3142".into());
        assert!(apt(&setup).unwrap().contains("http::Proxy \"http://apt:3142\""));
    }

    #[test]
    fn mirrors_of_one_registry_keep_their_order() {
        let mirror = |registry: &str, mirror: &str| RegistryMirror {
            registry: registry.into(),
            mirror: mirror.into(),
            insecure: true,
        };
        let mirrors = [mirror("docker.io", "a:5000/x"), mirror("mcr.microsoft.com", "b"), mirror("docker.io", "c")];
        let parsed: toml::Table = registries_conf(&mirrors).parse().unwrap();
        let registries = parsed["registry"].as_array().unwrap();
        assert_eq!(registries.len(), 2);
        assert_eq!(registries[0]["mirror"][1]["location"].as_str(), Some("c"));
        assert_eq!(registries[1]["mirror"][0]["insecure"].as_bool(), Some(true));
    }

    #[test]
    fn containers_conf_appends() {
        let parsed: toml::Table = containers_conf(&facts(&setup())).parse().unwrap();
        let env = parsed["containers"]["env"].as_array().unwrap();
        assert!(env.contains(&Value::String("http_proxy=http://p:3128".into())));
        assert_eq!(env.last().unwrap()["append"].as_bool(), Some(true));
        let volumes = parsed["containers"]["volumes"].as_array().unwrap();
        assert_eq!(volumes[0].as_str(), Some(&*format!("{CERTIFICATES}:{CONTAINER_CERTIFICATES}:ro")));
        let empty: toml::Table = containers_conf(&HostFacts::default()).parse().unwrap();
        assert!(empty.values().all(|section| section.as_table().unwrap().is_empty()), "{empty}");
    }
}
