//! A company's settings reach image pulls, image builds and containers: its registry mirror, its certificate authority, its
//! proxy, its package indexes. In these tests the proxy is the only way from a machine to the company's servers, and only its
//! own authority signed their certificates, so that each check fails where a setting does not arrive.

mod changed;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use toml::Table;

use garret_integration::stage::{ALICE, IMAGE, Workspace};

pub(crate) use changed::{Settings, append, network, table};

/// From the block that is reserved for documentation: no network uses it.
const ADDRESS: &str = "192.0.2.7";
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

#[test]
fn company_mirror_and_proxy_reach_pulls_builds_and_containers() {
    let company = Company::open();
    // A machine gets its settings when it starts. There may be none yet.
    let _stopped = ALICE.garret(&["stop", "--machine"]);
    let _settings = Settings::change(|config| company.configure(config));

    // The name exists nowhere, and its mirror answers only through the proxy and with the company's certificate.
    let pulled = Workspace::with_config(ALICE, "pulled", r#"{ "image": "registry.invalid/library/busybox:latest" }"#);
    pulled.up(&["true"]).ok();
    assert!(company.proxied("CONNECT 192.0.2.7:5443"), "{}", company.proxy_log());

    let built = Workspace::with_config(ALICE, "built", r#"{ "build": { "dockerfile": "Dockerfile" } }"#);
    let checks = format!(
        "curl -sSf http://{ADDRESS}:8080/hello && curl -sSf https://{ADDRESS}:8443/hello && \
         apt-config dump Acquire::http::Proxy && echo $NPM_CONFIG_REGISTRY $PIP_INDEX_URL"
    );
    let seen = format!(
        "hello\nhello\nAcquire::http::Proxy \"http://{ADDRESS}:3128\";\nhttp://{ADDRESS}:8080/npm/ http://{ADDRESS}:8080/simple\n"
    );
    // pip takes long under emulation: once, in the build.
    let pip =
        "pip install -q --break-system-packages --root-user-action=ignore garret-probe && python3 -m garret_probe";
    let dockerfile = format!(
        "FROM {IMAGE}\nSHELL [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"]\nRUN {{ {checks} && {pip}; }} | tee /seen\n"
    );
    built.write(".devcontainer/Dockerfile", &dockerfile);
    built.up(&[]).ok();
    assert_eq!(built.sh("cat /seen").ok(), format!("{seen}the probe is installed\n"));
    assert_eq!(built.sh(&checks).ok(), seen);
    // Also for sudo, which drops variables.
    assert!(built.sh("sudo apt-config dump Acquire::http::Proxy").ok().contains(ADDRESS));

    // What would be if the settings did not arrive.
    let without_proxy = format!("env -u http_proxy -u HTTP_PROXY curl -sSf --max-time 3 http://{ADDRESS}:8080/hello");
    assert_ne!(built.sh(&without_proxy).status, 0);
    let without_authority = format!("curl -sSf --cacert {BUNDLE} https://{ADDRESS}:8443/hello");
    assert!(built.sh(&without_authority).stderr.contains("certificate"));
    // The image is the developer's to publish: it says nothing of the company.
    let image = format!("localhost/garret-{}", built.environment()["id"].as_str().expect("an id").to_lowercase());
    let inspect = ["exec", "--machine", "--", "podman", "image", "inspect", "--format", "{{.Config.Env}}", &image];
    let env = ALICE.garret(&inspect).ok();
    assert!(env.contains("PATH=") && !env.contains(ADDRESS) && !env.contains("CERT"), "{env}");
}

/// The company's servers, on this host.
struct Company {
    servers: Child,
    folder: tempfile::TempDir,
}

impl Company {
    fn open() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [("company.sh", include_str!("company.sh")), ("serve.py", include_str!("serve.py"))] {
            fs::write(folder.path().join(name), text).expect("it writes");
        }
        let upstream = if Path::new("/run/garret-registry.yml").exists() {
            "http://192.0.2.1:5000"
        } else {
            "https://registry-1.docker.io"
        };
        let mut servers = Command::new("bash")
            .arg(folder.path().join("company.sh"))
            .arg(folder.path())
            .args([ADDRESS, upstream])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash runs");
        let mut line = String::new();
        BufReader::new(servers.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it says");
        assert_eq!(line, "ready\n", "the company's servers did not start");
        Self { servers, folder }
    }

    fn proxy_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("proxy.log")).unwrap_or_default()
    }

    fn proxied(&self, request: &str) -> bool {
        self.proxy_log().contains(request)
    }

    fn configure(&self, config: &mut Table) {
        let added = format!(
            "ca_bundle = {:?}\n[proxy]\nhttp = \"http://{ADDRESS}:3128\"\nhttps = \"http://{ADDRESS}:3128\"\n\
             [packages]\npip_index_url = \"http://{ADDRESS}:8080/simple\"\nnpm_registry = \"http://{ADDRESS}:8080/npm/\"\n",
            self.bundle().display().to_string()
        );
        config.extend(added.parse::<Table>().expect("TOML"));
        let mirror = format!("registry = \"registry.invalid\"\nmirror = \"{ADDRESS}:5443\"\n");
        append(config, "registry_mirrors", mirror.parse::<Table>().expect("TOML"));
        append(network(config), "allow", format!("{ADDRESS}:3128"));
    }

    /// The host's own authorities and the company's.
    fn bundle(&self) -> PathBuf {
        let both = ["ca.pem".into(), PathBuf::from(BUNDLE)].map(|name| fs::read(self.folder.path().join(name)));
        let path = self.folder.path().join("bundle.pem");
        fs::write(&path, both.map(|bytes| bytes.expect("a bundle")).concat()).expect("it writes");
        path
    }
}

impl Drop for Company {
    fn drop(&mut self) {
        // It has the company's settings.
        let _stopped = ALICE.garret(&["stop", "--machine"]);
        drop(self.servers.stdin.take());
        let _ended = self.servers.wait();
    }
}
