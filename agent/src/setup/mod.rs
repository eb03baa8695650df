//! `PUT /v1/machine`: the host's settings for the guest, and the files that apply them.
//!
//! All settings are written below `/etc`, whose changes are in memory only: the host configures the guest again at each
//! boot. The agent also keeps the setup in a file, so that a restarted agent knows it.

mod check;
mod facts;
mod network;
mod render;
mod resolvers;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use garret_api::agent::MachineSetup;
use garret_api::{Code, Problem};
use tokio::sync::{Mutex, watch};

pub(crate) use facts::{FactMount, HostFacts};

/// The machine's setup and the facts derived from it.
pub(crate) struct Setup {
    /// The file that holds the last setup.
    file: PathBuf,
    current: Mutex<Option<MachineSetup>>,
    facts: watch::Sender<Arc<HostFacts>>,
}

impl Setup {
    /// Loads the setup that an earlier agent received since boot, if there is one.
    pub(crate) fn load(run: &Path) -> Self {
        let file = run.join("setup.json");
        let current: Option<MachineSetup> =
            std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let facts = current.as_ref().map(render::facts).unwrap_or_default();
        Self { file, current: Mutex::new(current), facts: watch::Sender::new(Arc::new(facts)) }
    }

    /// The receiver sees every new setup.
    pub(crate) fn facts(&self) -> watch::Receiver<Arc<HostFacts>> {
        self.facts.subscribe()
    }

    /// Whether the machine has been set up since boot.
    pub(crate) async fn done(&self) -> bool {
        self.current.lock().await.is_some()
    }

    /// Applies the setup, one at a time. Settings that already have the wanted value are not touched.
    pub(crate) async fn apply(&self, setup: MachineSetup) -> Result<(), Problem> {
        check::check(&setup)?;
        let mut current = self.current.lock().await;
        if current.as_ref() == Some(&setup) {
            return Ok(());
        }
        let facts = render::facts(&setup);
        let context = |error: io::Error| Problem::new(Code::Internal, format!("cannot set the machine up: {error}"));
        rustix::system::sethostname(setup.hostname.as_bytes()).map_err(|error| context(error.into()))?;
        write_files(Path::new("/"), &setup, &facts, &self.file.with_file_name("image-certificates.crt"))
            .map_err(context)?;
        if let Some(network) = &setup.network {
            let before = current.as_ref().and_then(|before| before.network.as_ref());
            network::configure(before, network).await?;
            if let Some(before) = before.filter(|before| before.resolvers != network.resolvers) {
                resolvers::follow(&before.resolvers, &network.resolvers);
            }
        }
        // Last: a setup that failed half-way is applied again.
        write(&self.file, &serde_json::to_string(&setup).expect("a setup is plain data")).map_err(context)?;
        self.facts.send_replace(Arc::new(facts));
        *current = Some(setup);
        Ok(())
    }
}

/// Writes all files below `root`. `image_certificates` is the copy of the image's own bundle, which the first setup
/// replaces.
fn write_files(root: &Path, setup: &MachineSetup, facts: &HostFacts, image_certificates: &Path) -> io::Result<()> {
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    write(&at("/etc/hostname"), &format!("{}\n", setup.hostname))?;
    write(&at("/etc/hosts"), &render::hosts(&setup.hostname))?;
    write(&at("/etc/resolv.conf"), &render::resolv_conf(setup.network.as_ref()))?;
    let mirrors = render::registries_conf(&setup.registry_mirrors);
    write(&at("/etc/containers/registries.conf.d/50-garret.conf"), &mirrors)?;
    write(&at("/etc/containers/containers.conf.d/50-garret.conf"), &render::containers_conf(facts))?;
    match render::apt(setup) {
        Some(text) => write(&at(render::APT), &text)?,
        None => remove(&at(render::APT))?,
    }
    let certificates = at(render::CERTIFICATES);
    if !image_certificates.exists() {
        let own = std::fs::read_to_string(&certificates).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(String::new()),
            _ => Err(error),
        })?;
        write(image_certificates, &own)?;
    }
    let own = std::fs::read_to_string(image_certificates)?;
    let added = setup.ca_bundle.as_deref().unwrap_or_default();
    write(&certificates, &format!("{own}{added}\n"))?;
    // The guest itself uses the containers' path in apt's settings.
    let link = at(render::CONTAINER_CERTIFICATES);
    remove(&link)?;
    std::fs::create_dir_all(link.parent().unwrap_or(root))?;
    std::os::unix::fs::symlink(render::CERTIFICATES, link)
}

/// Replaces a file atomically; every user can read it. A link at `path` is replaced, not followed.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(named)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(named)?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(named)?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(named)?;
    file.persist(path).map_err(|error| named(error.error))?;
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_added_and_removed_again() {
        let root = tempfile::tempdir().unwrap();
        let kept = root.path().join("kept.crt");
        let bundle = root.path().join("etc/ssl/certs/ca-certificates.crt");
        write(&bundle, "IMAGE\n").unwrap();
        let mut setup = MachineSetup { hostname: "a".into(), ca_bundle: Some("CORP\n".into()), ..Default::default() };
        for _ in 0..2 {
            write_files(root.path(), &setup, &render::facts(&setup), &kept).unwrap();
            assert_eq!(std::fs::read_to_string(&bundle).unwrap(), "IMAGE\nCORP\n\n");
        }
        assert!(root.path().join("etc/apt/apt.conf.d/90garret").exists());
        setup.ca_bundle = None;
        write_files(root.path(), &setup, &render::facts(&setup), &kept).unwrap();
        assert_eq!(std::fs::read_to_string(&bundle).unwrap(), "IMAGE\n\n");
        assert!(!root.path().join("etc/apt/apt.conf.d/90garret").exists());
    }

    #[tokio::test]
    async fn a_restarted_agent_knows_the_setup() {
        let run = tempfile::tempdir().unwrap();
        assert!(!Setup::load(run.path()).done().await);
        let mut setup = MachineSetup { hostname: "a".into(), ..Default::default() };
        setup.packages.npm_registry = Some("http://npm".into());
        write(&run.path().join("setup.json"), &serde_json::to_string(&setup).unwrap()).unwrap();
        let loaded = Setup::load(run.path());
        assert!(loaded.done().await);
        assert_eq!(loaded.facts().borrow().env["NPM_CONFIG_REGISTRY"], "http://npm");
    }

    #[tokio::test]
    async fn a_bad_setup_changes_nothing() {
        let run = tempfile::tempdir().unwrap();
        let setup = Setup::load(run.path());
        let problem = setup.apply(MachineSetup { hostname: "".into(), ..Default::default() }).await.unwrap_err();
        assert_eq!((problem.code, setup.done().await), (Code::Invalid, false));
    }
}
