//! A machine's data disk: a sparse copy of the formatted, empty template.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use rustix::fs::{SeekFrom as Sparse, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::config::Limit;

const GIB: u64 = 1 << 30;

/// Creates the disk unless it exists, not larger than the limit. The creation is atomic: a runner that is killed during
/// it leaves no disk. A disk made with a lower limit or a smaller template grows; its guest grows the file system when
/// it starts. Blocks.
///
/// # Errors
/// The template is missing or empty, the disk's folder is full or not writable, or the disk is larger than the limit.
pub(super) fn make(template: &Path, disk: &Path, limit: &Limit) -> anyhow::Result<()> {
    if let Ok(metadata) = fs::metadata(disk) {
        check_size(metadata.len(), template, limit)?;
        return grow(disk, metadata.len(), template, limit);
    }
    let folder = disk.parent().context("the data disk needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let half_made = disk.with_extension("new");
    copy(template, &half_made)
        .with_context(|| format!("cannot copy {} to {}", template.display(), half_made.display()))?;
    shrink(&half_made, limit)?;
    fs::rename(&half_made, disk)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// A disk made before the limit was set may have the template's size. A larger one was enlarged by other means.
fn check_size(length: u64, template: &Path, limit: &Limit) -> anyhow::Result<()> {
    if fs::metadata(template).is_ok_and(|template| length <= template.len()) {
        return Ok(());
    }
    let gib = u32::try_from(length.div_ceil(GIB)).unwrap_or(u32::MAX);
    limit.check("disk_gib", gib).map_err(|problem| {
        anyhow::anyhow!("{}: raise it, or `garret rm --machine` removes the disk with its data", problem.detail)
    })
}

/// The size of a disk that is made from a template of this length.
fn allowed(template: u64, limit: &Limit) -> u64 {
    let gib = u32::try_from(template / GIB).unwrap_or(u32::MAX);
    let clipped = limit.clip(gib);
    if clipped == gib { template } else { u64::from(clipped) * GIB }
}

fn grow(disk: &Path, length: u64, template: &Path, limit: &Limit) -> anyhow::Result<()> {
    let wanted = fs::metadata(template).map_or(0, |template| allowed(template.len(), limit));
    if wanted <= length {
        return Ok(());
    }
    let grown = File::options().write(true).open(disk).and_then(|file| file.set_len(wanted).and(file.sync_all()));
    grown.with_context(|| format!("cannot grow {}", disk.display()))?;
    tracing::info!("{} grew from {length} to {wanted} bytes", disk.display());
    Ok(())
}

/// Reduces the file system and the file of an empty disk to the limit.
fn shrink(disk: &Path, limit: &Limit) -> anyhow::Result<()> {
    let file = File::options().write(true).open(disk)?;
    let length = file.metadata()?.len();
    let allowed = allowed(length, limit);
    if allowed == length {
        return Ok(());
    }
    let gib = allowed / GIB;
    let resized = Command::new("resize2fs").arg("-f").arg(disk).arg(format!("{gib}G")).output();
    let output = resized.context("cannot run `resize2fs`: install e2fsprogs")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        bail!("cannot shrink {} to {gib} GiB ([limits] disk_gib): {said}", disk.display());
    }
    file.set_len(allowed)?;
    Ok(file.sync_all()?)
}

fn copy(template: &Path, target: &Path) -> io::Result<()> {
    let mut from = File::open(template)?;
    let length = from.metadata()?.len();
    if length == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the template is empty: build it again"));
    }
    let mut to = File::options().write(true).create(true).truncate(true).open(target)?;
    // Where the file system can share blocks, no data is copied.
    if ioctl_ficlone(&to, &from).is_err() {
        to.set_len(length)?;
        copy_data(&mut from, &mut to)?;
    }
    to.sync_all()
}

/// Copies data and keeps holes.
fn copy_data(from: &mut File, to: &mut File) -> io::Result<()> {
    let mut end = 0;
    loop {
        let start = match seek(&*from, Sparse::Data(end)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        end = seek(&*from, Sparse::Hole(start))?;
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        let copied = io::copy(&mut from.take(end - start), to)?;
        if copied < end - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn holes_stay_holes_and_data_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (template, disk) = (dir.path().join("data.ext4"), dir.path().join("machines/m/data.img"));
        let file = File::create(&template).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(b"superblock", 1024).unwrap();
        file.write_all_at(&[7; 100_000], 500 << 20).unwrap();
        make(&template, &disk, &Limit::default()).unwrap();
        let copy = File::open(&disk).unwrap();
        let (mut head, mut middle) = ([0; 10], [0; 100_000]);
        copy.read_exact_at(&mut head, 1024).unwrap();
        copy.read_exact_at(&mut middle, 500 << 20).unwrap();
        assert_eq!((&head, middle.iter().all(|byte| *byte == 7)), (b"superblock", true));
        let metadata = copy.metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 < 2 << 20, "{} blocks", metadata.blocks());
        assert!(!disk.with_extension("new").exists());
    }

    #[test]
    fn a_disk_that_is_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("data.img");
        fs::write(&disk, "precious").unwrap();
        make(&dir.path().join("no-template"), &disk, &Limit::default()).unwrap();
        assert_eq!(fs::read(&disk).unwrap(), b"precious");
    }

    #[test]
    fn a_copy_left_by_a_killed_runner_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let (template, disk) = (dir.path().join("data.ext4"), dir.path().join("data.img"));
        fs::write(&template, "whole").unwrap();
        fs::write(disk.with_extension("new"), "half of something longer").unwrap();
        make(&template, &disk, &Limit::default()).unwrap();
        assert_eq!(fs::read(&disk).unwrap(), b"whole");
    }

    #[test]
    fn a_missing_or_empty_template_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (template, disk) = (dir.path().join("data.ext4"), dir.path().join("data.img"));
        assert!(format!("{:#}", make(&template, &disk, &Limit::default()).unwrap_err()).contains("data.ext4"));
        fs::write(&template, "").unwrap();
        assert!(format!("{:#}", make(&template, &disk, &Limit::default()).unwrap_err()).contains("template is empty"));
        assert!(!disk.exists());
    }

    #[test]
    fn a_disk_follows_a_raised_limit_and_a_larger_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (template, disk) = (dir.path().join("data.ext4"), dir.path().join("data.img"));
        File::create(&template).unwrap().set_len(3 * GIB).unwrap();
        let made = Command::new("mke2fs").args(["-q", "-t", "ext4", "-m", "0"]).arg(&template).status().unwrap();
        assert!(made.success());
        make(&template, &disk, &Limit::of(1)).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), GIB);
        let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&disk).output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
        for (limit, gib) in [(Limit::of(1), 1), (Limit::of(2), 2), (Limit::of(1), 2), (Limit::default(), 3)] {
            make(&template, &disk, &limit).unwrap();
            assert_eq!(fs::metadata(&disk).unwrap().len(), gib * GIB, "{limit:?}");
        }
        // Like the guest at its start.
        let resized = Command::new("resize2fs").arg("-f").arg(&disk).output().unwrap();
        let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&disk).output().unwrap();
        assert!(resized.status.success() && checked.status.success(), "{resized:?} {checked:?}");
        make(&template, &disk, &Limit::of(1)).unwrap();
        File::options().write(true).open(&disk).unwrap().set_len(3 * GIB + 1).unwrap();
        let said = make(&template, &disk, &Limit::of(1)).unwrap_err().to_string();
        assert!(said.contains("disk_gib is 4, but at most 1"), "{said}");
    }
}
