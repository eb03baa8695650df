//! What all benches share: files, images and counters.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use rustix::process::{Resource, Rlimit, setrlimit};
use tempfile::TempDir;

use crate::count::Tracer;
use crate::guest;
use crate::process::run;
use crate::project;
use crate::scale::{Scale, Size};
use crate::subject::{Disk, Machine};

/// The size of a machine's data disk. It is sparse, so its size costs nothing.
const DATA_BYTES: u64 = 8 << 30;
/// Number of files in one folder of the source tree.
const FILES_PER_FOLDER: usize = 50;
/// The seed for the lengths of the source tree's files.
const SEED: u64 = 7;

/// The default of `fs.nr_open`: the most descriptors that a process may have.
const DESCRIPTORS: u64 = 1 << 20;
/// The prefix of our folders in a shared folder.
const PREFIX: &str = "garret-bench-";

/// The locations of everything that a run needs.
#[derive(Debug, Args)]
pub(crate) struct Places {
    /// Where garret is installed
    #[arg(long, value_name = "FOLDER", default_value = "/usr/lib/garret")]
    pub lib: PathBuf,
    /// The image made by benches/tools/build.sh. The benches fs, block and net need it
    #[arg(long, value_name = "FILE", env = "GARRET_BENCH_TOOLS")]
    tools: Option<PathBuf>,
    /// A folder on a disk. The machines' files are in a folder of their own in it
    #[arg(long, value_name = "FOLDER", default_value = "/var/tmp")]
    work: PathBuf,
    /// Keep the machines' files (consoles, configurations, disks)
    #[arg(long)]
    keep: bool,
    /// The account that the devcontainer bench acts as
    #[arg(long, value_name = "NAME", default_value = "alice")]
    developer: String,
}

/// The resources of a run.
pub(crate) struct Lab {
    /// The profile.
    pub size: Size,
    /// The profile's numbers.
    pub scale: Scale,
    /// The folder of garret's programs.
    pub lib: PathBuf,
    /// An erofs image of a Debian with fio, iperf3, a compiler and npm, which some benches need.
    tools: Option<PathBuf>,
    /// The account that the devcontainer bench acts as.
    pub developer: String,
    /// The kernel's counters.
    pub tracer: Tracer,
    /// Whether the emulator counts instructions: one instruction is then one nanosecond of this host's clock.
    pub icount: bool,
    work: TempDir,
    keep: bool,
}

impl Lab {
    /// Prepares a run.
    ///
    /// # Errors
    /// garret is not installed, this process is not root, or the kernel's traces cannot be used.
    pub(crate) fn open(size: Size, places: &Places, icount: bool) -> anyhow::Result<Self> {
        let Places { lib, work, .. } = places;
        for name in ["vmlinux", "root.erofs", "garret-vmm"] {
            let file = lib.join(name);
            ensure!(file.exists(), "{} is missing: install garret first (make install)", file.display());
        }
        ensure!(rustix::process::geteuid().is_root(), "the benchmarks run as root: they read the kernel's counters");
        // An error is ignored: the module may be built in, or no bench of this host needs it.
        for module in ["kvm_amd", "kvm_intel", "vhost_vsock", "vhost_net", "tun"] {
            let _ = run("modprobe", &["-q", module]);
        }
        allow_descriptors()?;
        remove_old(work);
        let mut work = tempfile::Builder::new().prefix(PREFIX).tempdir_in(work)?;
        work.disable_cleanup(places.keep);
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
        let lab = Self {
            size,
            scale: size.scale(),
            lib: lib.clone(),
            tools: places.tools.clone(),
            developer: places.developer.clone(),
            tracer: Tracer::open()?,
            icount,
            work,
            keep: places.keep,
        };
        lab.make_helper()?;
        Ok(lab)
    }

    /// A machine with the common parts and without disks.
    pub(crate) fn machine(&self, cmdline: &str) -> Machine {
        Machine {
            vcpus: self.scale.vcpus,
            memory_mib: self.scale.memory_mib,
            hotplug_mib: 0,
            reporting: true,
            kernel: self.lib.join("vmlinux"),
            root: self.lib.join("root.erofs"),
            cmdline: cmdline.to_owned(),
            disks: Vec::new(),
            share: None,
            // Under icount a machine lives through minutes of its own time, so no deadline may be short.
            staleness_ms: if self.size == Size::Gate { 86_400_000 } else { 1000 },
            tap: None,
            vsock: false,
        }
    }

    /// A machine's memory, in bytes.
    pub(crate) fn guest_bytes(&self) -> u64 {
        u64::from(self.scale.memory_mib) << 20
    }

    /// Creates an empty folder for one machine. It is removed when dropped, unless all files are kept.
    ///
    /// # Errors
    /// For example, the disk is full.
    pub(crate) fn folder(&self) -> anyhow::Result<TempDir> {
        let mut folder = tempfile::Builder::new().prefix("run-").tempdir_in(self.work.path())?;
        folder.disable_cleanup(self.keep);
        // Other accounts may need files in it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        Ok(folder)
    }

    /// Creates a formatted, empty data disk in `folder`.
    ///
    /// # Errors
    /// `mkfs.ext4` is missing.
    pub(crate) fn data_disk(&self, folder: &Path) -> anyhow::Result<Disk> {
        let path = folder.join("data.img");
        File::create(&path)?.set_len(DATA_BYTES)?;
        let options = ["-q", "-F", "-m", "0", "-J", "size=64", "-E", "assume_storage_prezeroed=1,discard"];
        run("mkfs.ext4", &[&options[..], &[path.to_str().context("the path is not UTF-8")?]].concat())?;
        Ok(Disk { path, read_only: false })
    }

    /// Creates a disk with a job's script.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn job_disk(&self, folder: &Path, variables: &[(&str, String)], body: &str) -> anyhow::Result<Disk> {
        let path = folder.join("job.img");
        fs::write(&path, guest::script(variables, body))?;
        Ok(Disk { path, read_only: true })
    }

    /// The tools image.
    ///
    /// # Errors
    /// It is missing.
    pub(crate) fn tools_disk(&self) -> anyhow::Result<Disk> {
        let path = self.tools.clone().context("no tools image: benches/tools/build.sh makes one, --tools names it")?;
        ensure!(path.exists(), "no tools image {}", path.display());
        Ok(Disk { path, read_only: true })
    }

    /// This program, as a disk.
    pub(crate) fn helper_disk(&self) -> Disk {
        Disk { path: self.work.path().join("helper.img"), read_only: true }
    }

    /// The source tree as a tar archive, created once.
    ///
    /// # Errors
    /// It cannot be written, or `tar` is missing.
    pub(crate) fn source_disk(&self) -> anyhow::Result<Disk> {
        let path = self.work.path().join("source.tar");
        if !path.exists() {
            let tree = self.work.path().join("source");
            write_tree(&tree, self.scale.files)?;
            let (tree, archive) = (tree.to_str().context("path")?, path.to_str().context("path")?);
            run("tar", &["--sort=name", "--owner=0", "--group=0", "-C", tree, "-cf", archive, "."])?;
            fs::remove_dir_all(tree)?;
        }
        Ok(Disk { path, read_only: true })
    }

    /// The source of a small C program as a tar archive, in one folder and with a Makefile, created once.
    ///
    /// # Errors
    /// It cannot be written, or `tar` is missing.
    pub(crate) fn project_disk(&self) -> anyhow::Result<Disk> {
        let path = self.work.path().join("project.tar");
        if !path.exists() {
            let tree = self.work.path().join("project");
            project::write(&tree)?;
            let (parent, archive) = (self.work.path().to_str().context("path")?, path.to_str().context("path")?);
            run("tar", &["--sort=name", "--owner=0", "--group=0", "-C", parent, "-cf", archive, "project"])?;
            fs::remove_dir_all(tree)?;
        }
        Ok(Disk { path, read_only: true })
    }

    /// A raw disk of `mib`, fully written. It is created once and used again: a later job finds what an earlier one
    /// wrote.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn scratch_disk(&self, mib: u32) -> anyhow::Result<Disk> {
        let path = self.work.path().join("scratch.img");
        if !path.exists() {
            let mut file = File::create(&path)?;
            let mut random = fastrand::Rng::with_seed(SEED);
            let mut piece = vec![0; 1 << 20];
            for _ in 0..mib {
                random.fill(&mut piece);
                file.write_all(&piece)?;
            }
            file.sync_all()?;
        }
        Ok(Disk { path, read_only: false })
    }

    fn make_helper(&self) -> anyhow::Result<()> {
        let mut program = fs::read(std::env::current_exe()?).context("this program")?;
        guest::pad(&mut program, 0);
        fs::write(self.work.path().join("helper.img"), program).context("helper.img")
    }
}

/// Sets the limit of descriptors, whatever the shell's limit is. A file server may keep a descriptor for each file that
/// its guest knows, so all subjects get the same high limit.
fn allow_descriptors() -> anyhow::Result<()> {
    let limit = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    setrlimit(Resource::Nofile, limit).context("RLIMIT_NOFILE")
}

/// Removes the files of runs that were killed or that kept their files.
fn remove_old(work: &Path) {
    for entry in fs::read_dir(work).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes folders of text files of 200 bytes to 8 KiB, the same each time.
fn write_tree(tree: &Path, files: usize) -> anyhow::Result<()> {
    let mut random = fastrand::Rng::with_seed(SEED);
    for number in 0..files {
        let folder = tree.join(format!("part{:03}", number / FILES_PER_FOLDER));
        if number % FILES_PER_FOLDER == 0 {
            fs::create_dir_all(&folder)?;
        }
        let length = random.usize(200..8192);
        let text: String = std::iter::repeat_with(|| if random.u8(..) < 20 { '\n' } else { random.lowercase() })
            .take(length)
            .collect();
        fs::write(folder.join(format!("source{number}.c")), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let trees = ["a", "b"].map(|name| folder.path().join(name));
        for tree in &trees {
            write_tree(tree, 60).unwrap();
        }
        let file = "part001/source59.c";
        assert_eq!(fs::read(trees[0].join(file)).unwrap(), fs::read(trees[1].join(file)).unwrap());
        assert_eq!(fs::read_dir(&trees[0]).unwrap().count(), 2);
    }
}
