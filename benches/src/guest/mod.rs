//! The job of a guest: a shell script that the guest's first process reads from its second disk. So the VMM needs only
//! block devices and a console.

pub(crate) mod helper;
mod wire;

pub(crate) use wire::{fill, round_trips, throughput_from, throughput_to};

/// The vsock and TCP port of the helper.
pub(crate) const PORT: u32 = 5000;
/// The kernel's command line. The job is always the second disk.
pub(crate) const CMDLINE: &str = "quiet init=/bin/bash -- /dev/vdb";
/// The same for memory that is plugged. The policy keeps that memory movable, so that it can be unplugged.
pub(crate) const HOTPLUG_CMDLINE: &str = "quiet memory_hotplug.online_policy=auto-movable init=/bin/bash -- /dev/vdb";

const PREAMBLE: &str = include_str!("preamble.sh");
/// File benches.
pub(crate) const FS: &str = include_str!("fs.sh");
/// A raw disk.
pub(crate) const BLOCK: &str = include_str!("block.sh");
/// A vsock server.
pub(crate) const VSOCK: &str = include_str!("vsock.sh");
/// A TCP server.
pub(crate) const NET: &str = include_str!("net.sh");
/// A build, then a vsock server that takes memory.
pub(crate) const MEMORY: &str = include_str!("memory.sh");

/// How long a guest pauses around each case, in seconds, so that the host can read its counters.
const REST: &str = "0.3";
const SECTOR: usize = 512;

/// The script with its variables in front, padded with newlines to whole sectors.
pub(crate) fn script(variables: &[(&str, String)], body: &str) -> Vec<u8> {
    let mut text = String::new();
    let defaults = [("REST", REST), ("TOOLS", ""), ("HELPER", "")].map(|(name, value)| (name, value.to_owned()));
    for (name, value) in defaults.iter().chain(variables) {
        text.push_str(&format!("{name}='{}'\n", value.replace('\'', r"'\''")));
    }
    text.push_str(PREAMBLE);
    text.push_str(body);
    let mut bytes = text.into_bytes();
    pad(&mut bytes, b'\n');
    bytes
}

/// Pads the script to whole sectors.
pub(crate) fn pad(bytes: &mut Vec<u8>, with: u8) {
    bytes.resize(bytes.len().next_multiple_of(SECTOR), with);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    #[test]
    fn a_script_is_whole_sectors_that_bash_can_read() {
        for body in [FS, BLOCK, VSOCK, NET, MEMORY] {
            let script = script(&[("CASES", "it's a test".into()), ("TOOLS", "/dev/vdd".into())], body);
            assert!(script.len().is_multiple_of(SECTOR) && script.ends_with(b"\n"));
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), &script).unwrap();
            let output = Command::new("bash").arg("-n").arg(file.path()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    #[test]
    fn stages_speak_the_consoles_language() {
        let stage = PREAMBLE.split("# tool").next().unwrap().split("say()").nth(1).unwrap();
        let text = format!("REST=0\nsay(){stage}\nstage ok true\nstage bad sh -c 'echo why; exit 3'");
        let output = Command::new("bash").arg("-c").arg(text).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!((lines[0], lines[2]), ("@bench begin ok", "@bench begin bad"));
        assert!(lines[1].starts_with("@bench end ok 0 ") && lines[3].starts_with("@bench end bad 3 "), "{output}");
        assert_eq!(lines[4], "@bench value error:bad why");
    }
}
