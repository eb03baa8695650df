//! The lists of permitted system calls: every other call ends the process. Sorted; a comment gives the reason for a
//! call if it is not obvious.

use ioctls::*;
use syscalls::Sysno;

use super::Allow::{self, Any, Only};
use super::Role;

/// The descriptor of a mapping without a file.
const NO_FILE: u64 = u32::MAX as u64;

/// The calls that every thread's runtime needs: memory, locks, time, and the end of the thread.
pub(super) const COMMON: &[Allow] = &[
    Any(Sysno::brk),
    Any(Sysno::clock_gettime), // where the vDSO cannot answer
    Any(Sysno::close),
    Any(Sysno::epoll_ctl),
    Any(Sysno::epoll_pwait),
    Any(Sysno::epoll_wait),
    Any(Sysno::exit),
    Any(Sysno::exit_group),
    Any(Sysno::futex),
    Any(Sysno::getpid),
    Any(Sysno::getrandom), // hash maps
    Any(Sysno::gettid),
    Any(Sysno::madvise),
    Only(Sysno::mmap, 4, &[NO_FILE]), // a mapped file would outlive its descriptor, and its workspace
    Any(Sysno::mprotect),
    Any(Sysno::mremap),
    Any(Sysno::munmap),
    Any(Sysno::poll),
    Any(Sysno::read),
    Any(Sysno::restart_syscall),
    Any(Sysno::rt_sigprocmask),
    Any(Sysno::rt_sigreturn),
    Any(Sysno::sched_yield),
    Any(Sysno::sigaltstack), // the end of a thread
    Any(Sysno::tgkill),      // abort
    Any(Sysno::write),
    Any(Sysno::writev),
];

/// The calls that `role` needs in addition to [`COMMON`].
pub(super) fn for_role(role: Role) -> &'static [Allow] {
    match role {
        Role::Main => MAIN,
        Role::Signals => &[],
        Role::Api => API,
        Role::Vcpu => VCPU,
        Role::Block => BLOCK,
        Role::Net => NET,
        Role::Fs => FS,
        Role::Vsock => VSOCK,
        Role::Mem => MEM,
        Role::Quiet => QUIET,
    }
}

const MAIN: &[Allow] = &[
    Any(Sysno::unlink), // the sockets, at the end
];

const API: &[Allow] = &[
    Any(Sysno::accept4),
    Any(Sysno::fcntl),
    Any(Sysno::getsockopt),
    Any(Sysno::getsockname),
    Any(Sysno::getpeername),
    Any(Sysno::recvfrom),
    Any(Sysno::sendto),
    Any(Sysno::setsockopt),
    Any(Sysno::shutdown),
];

/// A vCPU programs interrupts and doorbells for the guest, and writes the serial console's log.
const VCPU: &[Allow] = &[
    Any(Sysno::ftruncate),
    Only(Sysno::ioctl, 1, &[KVM_IOEVENTFD, KVM_IRQFD, KVM_KVMCLOCK_CTRL, KVM_RUN, KVM_SET_GSI_ROUTING]),
    Any(Sysno::pread64),
    Any(Sysno::pwrite64),
];

const BLOCK: &[Allow] = &[
    Any(Sysno::clock_nanosleep), // before it calls io_uring again
    Any(Sysno::fallocate),
    Any(Sysno::fdatasync),
    Any(Sysno::io_uring_enter),
    Any(Sysno::preadv),
    Any(Sysno::preadv2),
    Any(Sysno::pwritev),
    Any(Sysno::pwritev2),
    Any(Sysno::timerfd_settime),
];

const NET: &[Allow] = &[Only(Sysno::ioctl, 1, &[TUNSETOFFLOAD]), Any(Sysno::readv), Any(Sysno::timerfd_settime)];

/// The calls that virtiofsd's passthrough file system makes for the guest, below its folder.
const FS: &[Allow] = &[
    Any(Sysno::copy_file_range),
    Any(Sysno::dup), // a flush closes a copy
    Any(Sysno::fallocate),
    Any(Sysno::fchmod),
    Any(Sysno::fchmodat),
    Any(Sysno::fchownat),
    Any(Sysno::fcntl), // copies of descriptors
    Any(Sysno::fdatasync),
    Any(Sysno::fstatfs),
    Any(Sysno::fsync),
    Any(Sysno::ftruncate),
    Any(Sysno::getdents64),
    Any(Sysno::getegid),
    Any(Sysno::geteuid),
    Any(Sysno::linkat),
    Any(Sysno::lseek),
    Any(Sysno::mkdirat),
    Any(Sysno::mknodat),
    Any(Sysno::openat),
    Any(Sysno::openat2),
    Any(Sysno::preadv), // glibc calls it for `preadv2` without flags
    Any(Sysno::preadv2),
    Any(Sysno::pwritev),
    Any(Sysno::pwritev2),
    Any(Sysno::readlinkat),
    Any(Sysno::renameat2),
    Any(Sysno::statx),
    Any(Sysno::symlinkat),
    Any(Sysno::syncfs),
    Any(Sysno::umask), // a new driver gets a new server
    Any(Sysno::unlinkat),
    Any(Sysno::utimensat),
];

const VSOCK: &[Allow] = &[
    Any(Sysno::accept4),
    Any(Sysno::connect), // the guest reaches the sockets beside the machine's own
    Any(Sysno::readv),
    Any(Sysno::recvfrom),
    Any(Sysno::sendto),
    Any(Sysno::shutdown),
    Only(Sysno::socket, 0, &[libc::AF_UNIX as u64]),
    Any(Sysno::timerfd_settime),
];

const MEM: &[Allow] = &[Only(Sysno::ioctl, 1, &[KVM_SET_USER_MEMORY_REGION])];

const QUIET: &[Allow] = &[
    Any(Sysno::ftruncate), // the console's log, with the two below
    Any(Sysno::pread64),
    Any(Sysno::pwrite64),
    Any(Sysno::timerfd_settime),
];

/// ioctl numbers, from the kernel's headers: `_IO*(type, number, size)`.
mod ioctls {
    const WRITE: u64 = 1 << 30;

    const fn number(direction: u64, kind: u8, number: u8, size: usize) -> u64 {
        direction | ((size as u64) << 16) | ((kind as u64) << 8) | number as u64
    }

    pub(super) const KVM_RUN: u64 = number(0, 0xAE, 0x80, 0);
    pub(super) const KVM_KVMCLOCK_CTRL: u64 = number(0, 0xAE, 0xAD, 0);
    pub(super) const KVM_SET_USER_MEMORY_REGION: u64 =
        number(WRITE, 0xAE, 0x46, size_of::<kvm_bindings::kvm_userspace_memory_region>());
    pub(super) const KVM_IRQFD: u64 = number(WRITE, 0xAE, 0x76, size_of::<kvm_bindings::kvm_irqfd>());
    pub(super) const KVM_IOEVENTFD: u64 = number(WRITE, 0xAE, 0x79, size_of::<kvm_bindings::kvm_ioeventfd>());
    pub(super) const KVM_SET_GSI_ROUTING: u64 = number(WRITE, 0xAE, 0x6A, size_of::<kvm_bindings::kvm_irq_routing>());
    pub(super) const TUNSETOFFLOAD: u64 = number(WRITE, b'T', 208, size_of::<u32>());
}
