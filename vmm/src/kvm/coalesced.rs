//! The ring in which KVM collects writes that may wait.

#![allow(unsafe_code)] // a page shared with the kernel

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::VcpuFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::Error;

const PAGE: usize = 4096;
/// Entries in the ring's page, as KVM counts them.
const ENTRIES: u32 = ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

/// The machine's one ring (all its vCPUs share it); KVM adds at the end, the owner of this value takes at the front.
pub struct CoalescedRing {
    page: NonNull<kvm_coalesced_mmio_ring>,
}

// SAFETY: the page is not tied to a thread, and `&mut self` makes its one reader exclusive.
unsafe impl Send for CoalescedRing {}

impl CoalescedRing {
    /// The ring, mapped from any of the machine's vCPUs.
    pub fn map(vcpu: &VcpuFd) -> Result<Self, Error> {
        // SAFETY: the descriptor is open as long as `vcpu` is borrowed.
        let vcpu = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let offset = u64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE as u64;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page =
            unsafe { mmap(null_mut(), PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, vcpu, offset) };
        let page =
            page.map_err(|source| Error::Call { what: "map the ring of coalesced writes", source: source.into() })?;
        let page = NonNull::new(page.cast()).ok_or(Error::Lacks("coalesced port writes"))?;
        Ok(Self { page })
    }

    /// Takes the oldest write: where it went, its data, and how many bytes of them count.
    pub fn take(&mut self) -> Option<(u64, [u8; 8], usize)> {
        let ring = self.page.as_ptr();
        // SAFETY: both indices are aligned words of the mapped page; only the kernel writes `last`, only we write `first`.
        let (first, last) =
            unsafe { (AtomicU32::from_ptr(&raw mut (*ring).first), AtomicU32::from_ptr(&raw mut (*ring).last)) };
        let at = first.load(Ordering::Relaxed) % ENTRIES;
        // Acquire: the entry is read after the index which published it.
        if at == last.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: `at` is below ENTRIES, so the entry lies in the page; the kernel does not touch it before `first` moves on.
        let entry = unsafe { (&raw const (*ring).coalesced_mmio).cast::<kvm_coalesced_mmio>().add(at as usize).read() };
        first.store((at + 1) % ENTRIES, Ordering::Release);
        Some((entry.phys_addr, entry.data, (entry.len as usize).min(8)))
    }
}

impl Drop for CoalescedRing {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nothing borrows from it.
        let _ = unsafe { munmap(self.page.as_ptr().cast(), PAGE) };
    }
}
