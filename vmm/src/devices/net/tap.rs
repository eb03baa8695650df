//! A TAP interface: Ethernet frames to and from the host's network stack.
#![allow(unsafe_code, reason = "ioctls")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use super::header::{HEADER, Offloads};

const TUN: &str = "/dev/net/tun";
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a TAP cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TapError {
    #[error("network interface {name}: there is none; create the TAP first")]
    Missing { name: String },
    #[error("network interface {name}: cannot open {TUN}: {source}")]
    Tun { name: String, source: io::Error },
    #[error("network interface {name}: it is in use by another machine; stop that one first")]
    InUse { name: String },
    #[error("network interface {name}: it does not belong to the machine's user; create it with that owner")]
    NotOurs { name: String },
    /// It is not a TAP, or it is a TAP of another kind.
    #[error("network interface {name}: it is not a TAP with a packet header (vnet_hdr) and one queue")]
    NotATap { name: String },
    #[error("network interface {name}: {step}: {source}")]
    Host { name: String, step: &'static str, source: io::Error },
}

/// An attached TAP. Reads and writes do not block.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    /// The largest frame without its Ethernet header.
    pub mtu: u16,
}

impl Tap {
    /// Attaches to the existing interface `name`. No capability is needed if the interface belongs to this process's
    /// user.
    pub(super) fn attach(name: &str) -> Result<Self, TapError> {
        let failed = |step, source| TapError::Host { name: name.to_owned(), step, source };
        let mtu = mtu(name)?;
        let tun = |source| TapError::Tun { name: name.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN).map_err(tun)?;
        let mut request = request(name)?;
        request.ifr_ifru.ifru_flags = FLAGS as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`.
        let attached = result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) });
        attached.map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => TapError::InUse { name: name.to_owned() },
            Some(libc::EPERM) => TapError::NotOurs { name: name.to_owned() },
            Some(libc::EINVAL) => TapError::NotATap { name: name.to_owned() },
            _ => failed("cannot attach", error),
        })?;
        let header = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one `int`.
        result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &header) })
            .map_err(|error| failed("cannot set the header's length", error))?;
        let tap = Self { file, mtu };
        tap.set_offloads(Offloads::default()).map_err(|error| failed("cannot set the offloads", error))?;
        Ok(tap)
    }

    /// Sets the work that the kernel may leave undone in the frames that it delivers.
    pub(super) fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let bits = [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
        ];
        let bits = bits.into_iter().filter(|(on, _)| *on).fold(0, |bits, (_, bit)| bits | bit);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        result(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(bits)) })
    }
}

/// The interface's MTU. This also checks that the interface exists: attaching to an unknown name would create a new
/// interface.
fn mtu(name: &str) -> Result<u16, TapError> {
    let failed = |source: io::Error| TapError::Host { name: name.to_owned(), step: "cannot ask for its MTU", source };
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(|errno| failed(errno.into()))?;
    if netdevice::name_to_index(&socket, name).is_err() {
        return Err(TapError::Missing { name: name.to_owned() });
    }
    let mut request = request(name)?;
    // SAFETY: SIOCGIFMTU reads and writes one `ifreq`.
    result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &mut request) }).map_err(failed)?;
    // SAFETY: the kernel has just filled in this member.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn request(name: &str) -> Result<libc::ifreq, TapError> {
    // SAFETY: an `ifreq` of zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, and a name must not be empty or hold one itself.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(TapError::Missing { name: name.to_owned() });
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn result(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
