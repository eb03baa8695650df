//! The system calls that each kind of thread may make. A forbidden call ends the process, and its name is logged.

mod lists;
mod trap;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use syscalls::Sysno;

pub(crate) use trap::log_to;

/// The kind of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// The state driver.
    Main,
    /// The thread that waits for the signals that end the machine.
    Signals,
    /// The HTTP API.
    Api,
    /// A virtual CPU.
    Vcpu,
    /// A worker of a block device.
    Block,
    /// A worker of a network interface.
    Net,
    /// A worker of a shared folder.
    Fs,
    /// The worker of the vsock device.
    Vsock,
    /// The worker of the device that plugs memory.
    Mem,
    /// The worker of a quiet device: rng, console, balloon, pmem.
    Quiet,
}

/// One permitted call.
#[derive(Clone, Copy, Debug)]
enum Allow {
    /// With any arguments.
    Any(Sysno),
    /// Only when this argument (counted from 0) has one of these values.
    Only(Sysno, u8, &'static [u64]),
}

/// A filter could not be created or installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the seccomp list of role {0:?} is wrong: {1}")]
    List(Role, seccompiler::BackendError),
    #[error("cannot install the seccomp filter of role {0:?}: {1}; the kernel needs CONFIG_SECCOMP_FILTER")]
    Install(Role, seccompiler::Error),
    /// The signal handler which names forbidden calls could not be installed.
    #[error("cannot handle SIGSYS: {0}")]
    Handler(nix::Error),
}

impl Role {
    #[cfg(test)]
    const ALL: [Role; 10] = [
        Role::Main,
        Role::Signals,
        Role::Api,
        Role::Vcpu,
        Role::Block,
        Role::Net,
        Role::Fs,
        Role::Vsock,
        Role::Mem,
        Role::Quiet,
    ];

    /// The name in the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Main => "main",
            Role::Signals => "signals",
            Role::Api => "api",
            Role::Vcpu => "vcpu",
            Role::Block => "block",
            Role::Net => "net",
            Role::Fs => "fs",
            Role::Vsock => "vsock",
            Role::Mem => "mem",
            Role::Quiet => "quiet",
        }
    }

    /// Installs the filter on the calling thread, permanently. Threads that it creates afterwards inherit the filter.
    pub(crate) fn enter(self) -> Result<(), Error> {
        trap::install(self)?;
        let program = self.program()?;
        seccompiler::apply_filter(&program).map_err(|error| Error::Install(self, error))
    }

    /// The number of different calls that the role may make.
    pub(crate) fn list_len(self) -> usize {
        self.rules().len()
    }

    fn rules(self) -> BTreeMap<i64, Vec<SeccompRule>> {
        let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
        for allow in lists::COMMON.iter().chain(lists::for_role(self)) {
            match allow {
                // An empty list of rules permits any arguments.
                Allow::Any(call) => _ = rules.insert(i64::from(call.id()), vec![]),
                Allow::Only(call, index, values) => rules
                    .entry(i64::from(call.id()))
                    .or_default()
                    .extend(values.iter().map(|value| equals(*index, *value))),
            }
        }
        rules
    }

    fn program(self) -> Result<BpfProgram, Error> {
        let wrong = |error| Error::List(self, error);
        SeccompFilter::new(self.rules(), SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)
            .and_then(BpfProgram::try_from)
            .map_err(wrong)
    }
}

/// Compares the lower 32 bits: the kernel ignores the upper bits of these arguments, such as ioctl numbers.
fn equals(index: u8, value: u64) -> SeccompRule {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
        .expect("an argument's index is at most 5");
    SeccompRule::new(vec![condition]).expect("there is a condition")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_compiles_and_permits_no_program_start() {
        for role in Role::ALL {
            role.program().unwrap();
            let rules = role.rules();
            for never in
                [Sysno::execve, Sysno::execveat, Sysno::ptrace, Sysno::clone, Sysno::fork, Sysno::mount, Sysno::bpf]
            {
                assert!(!rules.contains_key(&i64::from(never.id())), "{role:?} may {never}");
            }
        }
    }

    #[test]
    fn no_role_maps_files() {
        for role in Role::ALL {
            let rules = role.rules();
            assert_eq!(rules[&i64::from(Sysno::mmap.id())], [equals(4, u64::from(u32::MAX))], "{role:?}");
        }
    }

    #[test]
    fn only_the_shared_folders_and_the_api_open_files_or_sockets() {
        for role in Role::ALL {
            let rules = role.rules();
            let opens = rules.contains_key(&i64::from(Sysno::openat.id()));
            assert_eq!(opens, role == Role::Fs, "{role:?}");
        }
    }
}
