//! Checks a FUSE request of virtio-fs before it is served: whether the server can accept it, and which thread serves
//! it.

use std::io::Read;

use virtiofsd::fuse::{InHeader, Opcode, OutHeader, WriteIn};
use vm_memory::ByteValued;

use crate::virtio::{Chain, FRONT_MAX, Fault, Reader};

/// Which thread serves a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dispatch {
    /// The ring's own thread: the request reads names and attributes, which the host has in memory or reads in one
    /// operation.
    Inline,
    /// The ring's own thread if no other request waits in the ring, else the pool. The request changes data in the
    /// host's memory and rarely waits for the disk. Using another thread costs five more system calls and two more
    /// context switches.
    InlineIfAlone,
    /// The pool: the request waits for the disk.
    Pool,
}

/// An admitted request. The guest can change its memory at any time, so the server gets the copy that was checked. Data
/// that does not fit into the copy (a write's data, the value of a large attribute) is read once, by the server.
#[derive(Debug)]
pub(super) struct Message {
    /// Header and arguments.
    front: Vec<u8>,
    opcode: Option<Opcode>,
}

impl Message {
    /// Reads and checks the request in `chain`.
    pub(super) fn admit(chain: &Chain) -> Result<Self, Fault> {
        let mut reader = chain.reader();
        let header: InHeader = reader.read_obj()?;
        let opcode = Opcode::try_from(header.opcode).ok();
        // The server writes a header into every answer. It panics if it has to split the header off a shorter buffer.
        if has_answer(opcode) && (chain.writable_len() as usize) < size_of::<OutHeader>() {
            return Err(chain.too_short());
        }
        let mut front = header.as_slice().to_vec();
        front.resize(front_max(opcode).min(chain.readable_len() as usize), 0);
        reader.read_exact(&mut front[size_of::<InHeader>()..])?;
        Ok(Self { front, opcode })
    }

    pub(super) fn front(&self) -> &[u8] {
        &self.front
    }

    /// The request's bytes after `front`, in the guest's memory.
    pub(super) fn rest<'c>(&self, chain: &'c Chain) -> Result<Reader<'c>, Fault> {
        Ok(chain.reader().split_at(self.front.len())?.1)
    }

    pub(super) fn dispatch(&self) -> Dispatch {
        dispatch(self.opcode)
    }

    /// Whether the request is FUSE_INIT, with which a driver begins.
    pub(super) fn is_init(&self) -> bool {
        matches!(self.opcode, Some(Opcode::Init))
    }
}

/// The most readable bytes that are copied.
fn front_max(opcode: Option<Opcode>) -> usize {
    match opcode {
        // The kernel reads the data from the guest's memory.
        Some(Opcode::Write) => size_of::<InHeader>() + size_of::<WriteIn>(),
        _ => FRONT_MAX,
    }
}

fn has_answer(opcode: Option<Opcode>) -> bool {
    use Opcode::{BatchForget, Destroy, Forget, Interrupt};
    !matches!(opcode, Some(Forget | BatchForget | Interrupt | Destroy))
}

fn dispatch(opcode: Option<Opcode>) -> Dispatch {
    use Opcode::*;
    match opcode {
        Some(
            Lookup | Getattr | Readlink | Opendir | Readdir | Readdirplus | Releasedir | Statfs | Access | Getxattr
            | Listxattr | Interrupt,
        )
        | None => Dispatch::Inline,
        // A forgotten or released file may be the last reference to a deleted file, which is freed then.
        Some(
            Create | Open | Mknod | Mkdir | Symlink | Link | Rename | Rename2 | Unlink | Rmdir | Setattr | Write
            | Flush | Release | Forget | BatchForget,
        ) => Dispatch::InlineIfAlone,
        Some(_) => Dispatch::Pool,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_wait_for_the_disk_leave_the_rings_thread() {
        for opcode in [Opcode::Read, Opcode::Fsync, Opcode::Fsyncdir, Opcode::Syncfs, Opcode::Fallocate, Opcode::Init] {
            assert_eq!(dispatch(Some(opcode)), Dispatch::Pool, "{opcode:?}");
        }
        for opcode in [Opcode::Write, Opcode::Create, Opcode::Unlink, Opcode::Forget, Opcode::Release] {
            assert_eq!(dispatch(Some(opcode)), Dispatch::InlineIfAlone, "{opcode:?}");
        }
        for opcode in [Opcode::Lookup, Opcode::Getattr, Opcode::Readdirplus] {
            assert_eq!(dispatch(Some(opcode)), Dispatch::Inline, "{opcode:?}");
        }
    }

    #[test]
    fn only_requests_without_an_answer_need_no_room() {
        let silent: Vec<u32> = (0..64).filter(|number| !has_answer(Opcode::try_from(*number).ok())).collect();
        assert_eq!(silent, [2, 36, 38, 42]);
    }
}
