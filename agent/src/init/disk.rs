//! The data disk. It is never formatted here: it arrives formatted, and its contents belong to the developer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use anyhow::{Context, bail};
use rustix::mount::{MountFlags, mount as mount_at};

pub(super) const DEVICE: &str = "/dev/vda";
const DATA: &str = "/data";

/// The offset of the ext4 superblock, in bytes.
const SUPERBLOCK_AT: u64 = 1024;
/// The number of bytes of the superblock that are read.
const SUPERBLOCK_LENGTH: usize = 0x158;

/// Mounts the data disk on `/data`. It is checked first only if the file system reports errors or does not mount; the
/// mount itself replays a journal left by a crash. Without a disk, `/data` is in memory.
pub(super) fn mount() -> anyhow::Result<()> {
    let device = match File::open(DEVICE) {
        Ok(device) => device,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => {
            super::say("there is no data disk: everything is kept in memory and lost at power-off");
            return mount_at("tmpfs", DATA, "tmpfs", MountFlags::NODEV, c"mode=0755").context("tmpfs on /data");
        }
        Err(error) => return Err(error).context(format!("data disk {DEVICE}")),
    };
    let superblock = read_superblock(&device).with_context(|| format!("data disk {DEVICE}"))?;
    if superblock.has_errors {
        check()?;
    }
    match try_mount() {
        Ok(()) => Ok(()),
        Err(error) => {
            super::say(format_args!("data disk {DEVICE} does not mount ({error}) and is checked"));
            check()?;
            try_mount().with_context(|| format!("data disk {DEVICE} does not mount even after a check"))
        }
    }
}

/// Whether the device is larger than its file system.
pub(super) fn may_grow() -> bool {
    let superblock = File::open(DEVICE).map_err(anyhow::Error::from).and_then(|device| read_superblock(&device));
    let sectors = std::fs::read_to_string("/sys/block/vda/size").ok().and_then(|text| text.trim().parse::<u64>().ok());
    matches!((superblock, sectors), (Ok(superblock), Some(sectors)) if sectors * 512 >= superblock.bytes.saturating_add(superblock.block))
}

fn try_mount() -> rustix::io::Result<()> {
    // `discard`: deleted data becomes a hole in the host's file. `errors=remount-ro`: never continue to write after
    // damage.
    mount_at(DEVICE, DATA, "ext4", MountFlags::NODEV | MountFlags::NOATIME, c"discard,errors=remount-ro")
}

/// e2fsck(8): 0 clean, 1 corrected, 2 corrected and a reboot is requested (for mounted file systems); above: not
/// repaired.
fn check() -> anyhow::Result<()> {
    let mut command = super::program("e2fsck");
    let status = command.args(["-p", DEVICE]).stdin(Stdio::null()).status().context("e2fsck")?;
    match status.code() {
        Some(0..=2) => Ok(()),
        _ => {
            bail!("data disk {DEVICE} is damaged and e2fsck -p does not repair it ({status}); repair its image by hand")
        }
    }
}

/// The fields of an ext4 superblock that are used.
#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    has_errors: bool,
    /// The file system's size, in bytes.
    bytes: u64,
    /// A block's size, in bytes.
    block: u64,
}

fn read_superblock(device: &File) -> anyhow::Result<Superblock> {
    let mut bytes = [0; SUPERBLOCK_LENGTH];
    device.read_exact_at(&mut bytes, SUPERBLOCK_AT).context("cannot be read")?;
    parse_superblock(&bytes).context("holds no ext4 file system; give the machine a formatted image")
}

/// The kernel's Documentation/filesystems/ext4: s_blocks_count_lo 0x4, s_log_block_size 0x18, s_magic 0x38, s_state
/// 0x3a, s_feature_incompat 0x60, s_blocks_count_hi 0x150; all little-endian.
fn parse_superblock(bytes: &[u8; SUPERBLOCK_LENGTH]) -> Option<Superblock> {
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u64::from(u16_at(at)) | u64::from(u16_at(at + 2)) << 16;
    if u16_at(0x38) != 0xef53 || u32_at(0x18) > 6 {
        return None;
    }
    let block = 1024 << u32_at(0x18);
    let has_64bit = u32_at(0x60) & 0x80 != 0;
    let blocks = u32_at(0x4) | if has_64bit { u32_at(0x150) << 32 } else { 0 };
    Some(Superblock { has_errors: u16_at(0x3a) & 2 != 0, bytes: blocks.checked_mul(block)?, block })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A real file system, created by the program that creates the template.
    fn image() -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(8 << 20).unwrap();
        let status = Command::new("/usr/sbin/mkfs.ext4").arg("-q").arg(image.path()).status().unwrap();
        assert!(status.success());
        image
    }

    #[test]
    fn reads_a_real_superblock() {
        let image = image();
        let superblock = read_superblock(image.as_file()).unwrap();
        assert_eq!((superblock.has_errors, superblock.bytes), (false, 8 << 20));
        image.as_file().write_all_at(&[3, 0], SUPERBLOCK_AT + 0x3a).unwrap();
        assert!(read_superblock(image.as_file()).unwrap().has_errors);
    }

    #[test]
    fn other_file_systems_than_ext4_are_refused() {
        assert_eq!(parse_superblock(&[0; SUPERBLOCK_LENGTH]), None);
        assert_eq!(parse_superblock(&[0xff; SUPERBLOCK_LENGTH]), None);
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(read_superblock(empty.as_file()).is_err());
    }

    proptest::proptest! {
        /// PID 1 does not panic, for any contents of the disk.
        #[test]
        fn any_superblock_is_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), SUPERBLOCK_LENGTH)) {
            let mut bytes: [u8; SUPERBLOCK_LENGTH] = bytes.try_into().unwrap();
            bytes[0x38..0x3a].copy_from_slice(&0xef53u16.to_le_bytes());
            let exponent = u32::from(bytes[0x18] % 7);
            bytes[0x18..0x1c].copy_from_slice(&exponent.to_le_bytes());
            if let Some(superblock) = parse_superblock(&bytes) {
                assert!(superblock.block.is_power_of_two() && superblock.bytes % superblock.block == 0);
            }
        }
    }
}
