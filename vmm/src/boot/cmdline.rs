//! The kernel's command line: the VMM's own parameters, then the caller's.

use garret_api::vmm::MachineConfig;

/// The longest complete command line, in bytes. Linux accepts 2,048 with the final NUL.
pub(crate) const MAX: usize = 2000;

/// A command line that Linux would not accept.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0} bytes with what the VMM adds, at most {MAX} are possible: shorten kernel.cmdline")]
    TooLong(usize),
    #[error("byte {0} of kernel.cmdline is not a printable ASCII character")]
    Unprintable(usize),
}

/// `loglevel`: warnings and errors, unless the caller sets another level. It comes before the consoles, because a
/// console that is registered prints the messages so far. `earlyprintk` and `console`: the serial port, which needs a
/// few exits per character, then the virtio console, which needs one exit per line. `panic`: reset at once, in case the
/// panic device has not reported the panic.
const BASE: &str = "loglevel=4 earlyprintk=ttyS0 console=hvc0 panic=-1";
/// The root image as `/dev/pmem0`. `rootwait`: the device appears shortly after the kernel first looks for it.
const ROOT: &str = "root=/dev/pmem0 rootfstype=erofs rootflags=dax=always ro rootwait";

/// The complete command line for `config`.
pub(crate) fn build(config: &MachineConfig) -> Result<String, Error> {
    let own = &config.kernel.cmdline;
    if let Some(at) = own.bytes().position(|byte| !(b' '..=b'~').contains(&byte)) {
        return Err(Error::Unprintable(at));
    }
    let root = config.root.is_some().then_some(ROOT);
    let parts = [Some(BASE), root, Some(own.trim())];
    let line = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    if line.len() > MAX { Err(Error::TooLong(line.len())) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(root: bool, cmdline: &str) -> MachineConfig {
        let root = if root { r#""root": "/r","# } else { "" };
        let json = format!(r#"{{"vcpus": 1, "memory_mib": 128, {root} "kernel": {{"image": "/k"}}}}"#);
        let mut config: MachineConfig = serde_json::from_str(&json).unwrap();
        config.kernel.cmdline = cmdline.to_owned();
        config
    }

    #[test]
    fn the_callers_words_come_last_and_win() {
        assert_eq!(build(&config(false, "")).unwrap(), BASE);
        assert_eq!(build(&config(false, " init=/x quiet ")).unwrap(), format!("{BASE} init=/x quiet"));
        assert_eq!(build(&config(true, "quiet")).unwrap(), format!("{BASE} {ROOT} quiet"));
    }

    #[test]
    fn a_long_or_unprintable_line_is_refused() {
        let room = MAX - BASE.len() - 1;
        assert!(build(&config(false, &"x".repeat(room))).is_ok());
        assert_eq!(build(&config(false, &"x".repeat(room + 1))), Err(Error::TooLong(MAX + 1)));
        for (line, at) in [("a\nb", 1), ("\0", 0), ("abé", 2)] {
            assert_eq!(build(&config(false, line)), Err(Error::Unprintable(at)));
        }
    }
}
