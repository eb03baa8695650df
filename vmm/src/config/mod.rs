//! Reads the machine's configuration file and checks it as a whole: the error has one line per mistake.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use garret_api::vmm::{DiskConfig, HotplugConfig, MachineConfig, NetConfig, RateLimit, ShareConfig};

use crate::boot::cmdline;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("configuration {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: std::io::Error,
    },
    /// It is not a machine's configuration. The parser's message ends with line and column.
    #[error("configuration {path}: {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    #[error("{}", lines(path, mistakes))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The wrong values.
        mistakes: Vec<Mistake>,
    },
}

/// One wrong value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub(crate) struct Mistake {
    field: String,
    problem: String,
}

fn lines(path: &Path, mistakes: &[Mistake]) -> String {
    let line = |mistake| format!("configuration {}: {mistake}", path.display());
    mistakes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Reads and checks `path`.
pub(crate) fn load(path: &Path) -> Result<MachineConfig, Error> {
    let path = path.to_owned();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(Error::Read { path, source }),
    };
    let config = match serde_json::from_str(&text) {
        Ok(config) => config,
        Err(source) => return Err(Error::Parse { path, source }),
    };
    let mistakes = validate(&config);
    if mistakes.is_empty() { Ok(config) } else { Err(Error::Invalid { path, mistakes }) }
}

/// Returns every mistake in `config`. Opens no file.
pub(crate) fn validate(config: &MachineConfig) -> Vec<Mistake> {
    let mut check = Check(Vec::new());
    check.within("vcpus", config.vcpus, 1, 32);
    check.within("memory_mib", config.memory_mib, 64, 1 << 20);
    if let Some(hotplug) = &config.hotplug {
        check.hotplug(hotplug);
    }
    if let Err(error) = cmdline::build(config) {
        check.mistake("kernel.cmdline", error);
    }
    check.at_most("disks", config.disks.len(), 8);
    check.at_most("nets", config.nets.len(), 4);
    check.at_most("shares", config.shares.len(), 4);
    check.distinct("disks", "id", config.disks.iter().map(|disk| &disk.id));
    check.distinct("nets", "tap", config.nets.iter().map(|net| &net.tap));
    check.distinct("nets", "mac", config.nets.iter().map(|net| &net.mac));
    check.distinct("shares", "tag", config.shares.iter().map(|share| &share.tag));
    config.disks.iter().enumerate().for_each(|(index, disk)| check.disk(index, disk));
    config.nets.iter().enumerate().for_each(|(index, net)| check.net(index, net));
    config.shares.iter().enumerate().for_each(|(index, share)| check.share(index, share));
    if let Some(vsock) = &config.vsock {
        check.within("vsock.cid", vsock.cid, 3, u32::MAX - 1);
    }
    if let Some(lease_s) = config.lease_s {
        check.within("lease_s", lease_s, 1, 86_400);
    }
    check.0
}

struct Check(Vec<Mistake>);

impl Check {
    fn mistake(&mut self, field: impl Display, problem: impl Display) {
        self.0.push(Mistake { field: field.to_string(), problem: problem.to_string() });
    }

    fn within<T: PartialOrd + Display>(&mut self, field: impl Display, value: T, min: T, max: T) {
        if value < min || value > max {
            self.mistake(field, format_args!("{value} is not between {min} and {max}"));
        }
    }

    fn at_most(&mut self, field: &str, count: usize, max: usize) {
        if count > max {
            self.mistake(field, format_args!("there are {count}, at most {max} are possible"));
        }
    }

    fn distinct<'a>(&mut self, list: &str, field: &str, values: impl Iterator<Item = &'a String>) {
        let mut seen = HashSet::new();
        for (index, value) in values.enumerate() {
            if !seen.insert(value) {
                self.mistake(format_args!("{list}[{index}].{field}"), format_args!("{value:?} is there already"));
            }
        }
    }

    fn multiple_of(&mut self, field: &str, value: u32, unit: u32) {
        if !value.is_multiple_of(unit) {
            self.mistake(field, format_args!("{value} is not a multiple of {unit}"));
        }
    }

    fn hotplug(&mut self, hotplug: &HotplugConfig) {
        self.within("hotplug.size_mib", hotplug.size_mib, 128, 1 << 20);
        self.multiple_of("hotplug.size_mib", hotplug.size_mib, 128);
        self.within("hotplug.requested_mib", hotplug.requested_mib, 0, hotplug.size_mib);
        self.multiple_of("hotplug.requested_mib", hotplug.requested_mib, 2);
    }

    fn disk(&mut self, index: usize, disk: &DiskConfig) {
        let possible = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if disk.id.is_empty() || disk.id.len() > 20 || !disk.id.bytes().all(possible) {
            let problem = format_args!("{:?} is not 1 to 20 characters of a-z, 0-9 and -", disk.id);
            self.mistake(format_args!("disks[{index}].id"), problem);
        }
        self.rate_limit(format_args!("disks[{index}]"), disk.rate_limit);
    }

    fn net(&mut self, index: usize, net: &NetConfig) {
        // The kernel's limit for interface names, minus the final NUL.
        if net.tap.is_empty()
            || net.tap.len() > 15
            || net.tap.bytes().any(|byte| byte == b'/' || byte.is_ascii_whitespace())
        {
            self.mistake(format_args!("nets[{index}].tap"), format_args!("{:?} is not an interface name", net.tap));
        }
        match mac(&net.mac) {
            None => self.mistake(
                format_args!("nets[{index}].mac"),
                format_args!("{:?} is not six pairs of hexadecimal digits with colons between them", net.mac),
            ),
            Some(bytes) if bytes[0] & 1 != 0 => {
                self.mistake(format_args!("nets[{index}].mac"), format_args!("{} is a group address", net.mac));
            }
            Some(_) => {}
        }
        self.rate_limit(format_args!("nets[{index}]"), net.rate_limit);
    }

    fn share(&mut self, index: usize, share: &ShareConfig) {
        if share.tag.is_empty() || share.tag.len() > 36 || share.tag.contains('\0') {
            let problem = format_args!("{:?} is not 1 to 36 bytes without NUL", share.tag);
            self.mistake(format_args!("shares[{index}].tag"), problem);
        }
        self.within(format_args!("shares[{index}].queues"), share.queues, 1, 8);
        self.within(format_args!("shares[{index}].fd_limit"), share.fd_limit, 64, 1 << 20);
    }

    fn rate_limit(&mut self, at: impl Display, limit: Option<RateLimit>) {
        let Some(limit) = limit else { return };
        for (name, bucket) in [("bytes", limit.bytes), ("operations", limit.operations)] {
            let Some(bucket) = bucket else { continue };
            self.within(format_args!("{at}.rate_limit.{name}.per_second"), bucket.per_second, 1, u64::MAX);
            self.within(format_args!("{at}.rate_limit.{name}.burst"), bucket.burst, 1, u64::MAX);
        }
    }
}

/// `aa:bb:cc:dd:ee:ff`
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut parts = text.split(':').map(|part| {
        let two_digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        two_digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    });
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        *byte = parts.next()??;
    }
    parts.next().is_none().then_some(bytes)
}
