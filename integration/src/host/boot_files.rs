//! The folder that the emulated host mounts at /run/host: the installed garret, the job, images to serve, and space for
//! logs.

use super::Options;
use anyhow::{Context, bail};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const SWAP: &str = "swap";

/// The files of one boot of the emulated host.
pub(super) struct BootFiles {
    folder: TempDir,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub root: PathBuf,
    pub emulator: PathBuf,
    /// Canonical path of the shared folder.
    pub share: Option<PathBuf>,
}

/// Builds what is missing in the cache, and fills one host's folder.
///
/// # Errors
/// A build script failed (it has printed why), or the shared folder cannot be used.
pub(super) fn prepare(options: &Options) -> anyhow::Result<BootFiles> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate has no parent folder")?;
    let built = script(&repository.join("integration/host/build.sh"), &[])?;
    let [root, initramfs] = built.lines().collect::<Vec<_>>()[..] else {
        bail!("integration/host/build.sh printed {built:?}")
    };
    let emulator = script(&repository.join("integration/emulator/build.sh"), &[])?;
    // The folder is in the cache, so that its files can be hard links.
    let runs = Path::new(root).ancestors().nth(2).context("the cache has no folder")?.join("run");
    fs::create_dir_all(&runs)?;
    let folder = tempfile::Builder::new().prefix("host-").tempdir_in(&runs)?;
    for name in ["log", "programs"] {
        fs::create_dir(folder.path().join(name))?;
    }
    if !options.bare {
        install(repository, folder.path())?;
    }
    if options.preloaded {
        let built = script(&repository.join("integration/base-image/preload.sh"), &[])?;
        place(&Path::new(built.trim()).join("data.ext4"), folder.path())?;
    }
    if options.earlier {
        let built = script(&repository.join("scripts/earlier.sh"), &[])?;
        link_tree(Path::new(built.trim()), &folder.path().join("earlier"))?;
    }
    for program in &options.programs {
        place(program, &folder.path().join("programs"))?;
    }
    let share = options.share.as_deref().map(shared_folder).transpose()?;
    swap_disk(&folder.path().join(SWAP), options.swap)?;
    fs::write(folder.path().join("job"), job(options, share.as_deref())?)?;
    let file = |name| Path::new(root).join(name);
    Ok(BootFiles {
        kernel: file("vmlinuz"),
        root: file("root.ext4"),
        initramfs: Path::new(initramfs).join("initramfs"),
        emulator: Path::new(emulator.trim()).join("qemu-system-x86_64"),
        share,
        folder,
    })
}

impl BootFiles {
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The host's swap disk.
    pub(super) fn swap(&self) -> PathBuf {
        self.path().join(SWAP)
    }

    /// A file or socket in the part of the folder that is not shared with the host.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.path().join("log").join(name)
    }

    /// Copies the logs to the caller's folder. This process may be root in another user's folder, so it follows no link
    /// there.
    pub(super) fn keep_logs(&self, to: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(self.path().join("log"))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let kept = to.join(entry.file_name());
                if kept.symlink_metadata().is_ok() {
                    fs::remove_file(&kept)?;
                }
                io::copy(&mut File::open(entry.path())?, &mut File::create_new(&kept)?)?;
            }
        }
        Ok(())
    }

    /// The last lines of QEMU and of the console, for a host that did not start.
    pub(super) fn last_lines(&self) -> String {
        let mut text = String::new();
        for name in ["qemu.log", "console.log"] {
            let log = fs::read(self.log(name)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<_> = log.lines().collect();
            text.extend(lines[lines.len().saturating_sub(20)..].iter().map(|line| format!("  | {line}\n")));
        }
        text
    }
}

/// A sparse file with a swap signature.
fn swap_disk(file: &Path, mib: u32) -> anyhow::Result<()> {
    fs::File::create(file)?.set_len(u64::from(mib) << 20)?;
    let status = Command::new("mkswap").arg("--quiet").arg(file).status().context("cannot run mkswap")?;
    if !status.success() {
        bail!("mkswap refuses {mib} MiB");
    }
    Ok(())
}

fn install(repository: &Path, folder: &Path) -> anyhow::Result<()> {
    script(&repository.join("scripts/install.sh"), &[folder])?;
    let images = script(&repository.join("integration/base-image/build.sh"), &[])?;
    link_tree(Path::new(images.trim()), &folder.join("registry"))?;
    fs::copy(repository.join("integration/host/config.toml"), folder.join("config.toml"))?;
    // Where TLS goes through a proxy that re-signs certificates, this machine's bundle has the proxy's certificate.
    let bundle = Path::new("/etc/ssl/certs/ca-certificates.crt");
    if bundle.exists() {
        fs::copy(bundle, folder.join("ca.crt"))?;
    }
    Ok(())
}

/// A hard link, or a copy from another file system.
fn place(file: &Path, folder: &Path) -> anyhow::Result<()> {
    let to = folder.join(file.file_name().with_context(|| format!("{} is not a file", file.display()))?);
    fs::hard_link(file, &to)
        .or_else(|_| fs::copy(file, &to).map(drop))
        .with_context(|| format!("cannot place {}", file.display()))
}

/// A folder's files as hard links: it is of the same file system.
fn link_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp").arg("-al").args([from, to]).status()?;
    if !status.success() {
        bail!("cannot link {} to {}", from.display(), to.display());
    }
    Ok(())
}

fn shared_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.canonicalize().with_context(|| format!("SHARE={}", folder.display()))?;
    if !path.is_dir() {
        bail!("SHARE={} is not a folder", path.display());
    }
    let system = [
        "/", "/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var",
        "/home", "/root",
    ];
    if system.iter().any(|name| path == Path::new(name)) {
        bail!("SHARE={} would hide the emulated host's own folder: share one below it", path.display());
    }
    Ok(path)
}

/// The job as shell assignments.
fn job(options: &Options, share: Option<&Path>) -> anyhow::Result<String> {
    let (uid, gid) = options.account.unwrap_or_default();
    let user = if uid == 0 { "root".to_owned() } else { std::env::var("USER").unwrap_or_else(|_| "developer".into()) };
    let size = rustix::termios::tcgetwinsize(std::io::stdin()).ok();
    let share = share.map(|path| path.to_str().context("the shared folder's name is not UTF-8")).transpose()?;
    let values = [
        ("UID", uid.to_string()),
        ("GID", gid.to_string()),
        ("USER", user),
        ("SHARE", share.unwrap_or_default().to_owned()),
        ("COMMAND", options.command.clone().unwrap_or_default()),
        ("TERMINAL", u8::from(options.interactive()).to_string()),
        ("TERM", std::env::var("TERM").unwrap_or_else(|_| "linux".into())),
        ("ROWS", size.map_or(24, |size| size.ws_row).to_string()),
        ("COLUMNS", size.map_or(80, |size| size.ws_col).to_string()),
        ("RUN_AS_DEVELOPER", u8::from(options.run_as_developer).to_string()),
        ("DAEMON", u8::from(!options.no_runner).to_string()),
    ];
    Ok(values.iter().map(|(name, value)| format!("JOB_{name}={}\n", quoted(value))).collect())
}

/// Quotes one word for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Runs a build script, and returns its output. Its progress goes to standard error.
fn script(script: &Path, arguments: &[&Path]) -> anyhow::Result<String> {
    let output = Command::new(script)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !output.status.success() {
        bail!("{} failed", script.display());
    }
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_a_quoted_word_back_as_it_was() {
        for text in ["", "plain", "it's", "a b\n\"c\" $HOME `x` \\", "größe 名前"] {
            let output = Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(text))).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }

    #[test]
    fn a_system_folder_is_not_shared() {
        assert!(shared_folder(Path::new("/usr")).is_err());
        assert!(shared_folder(Path::new("/nowhere at all")).is_err());
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(shared_folder(folder.path()).unwrap(), folder.path().canonicalize().unwrap());
    }
}
