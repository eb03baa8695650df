//! A page that the guest reads while the VMM writes it.

use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

#[repr(C, align(4096))]
struct Words([AtomicU32; PAGE / 4]);

/// One page of zeros. The guest may read it at any time, so it is written in whole words.
pub(crate) struct SharedPage(Box<Words>);

impl SharedPage {
    /// The address of the page in this process.
    pub(crate) fn address(&self) -> u64 {
        (&raw const *self.0) as u64
    }

    /// Writes the whole words of `bytes` to the beginning of the page; bytes beyond the page are left out.
    pub(crate) fn write(&self, bytes: &[u8]) {
        for (word, bytes) in self.0.0.iter().zip(bytes.as_chunks().0) {
            word.store(u32::from_le_bytes(*bytes), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
impl SharedPage {
    /// The whole page, as the guest reads it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.0.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
    }
}

impl Default for SharedPage {
    fn default() -> Self {
        Self(Box::new(Words([const { AtomicU32::new(0) }; PAGE / 4])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_page_has_its_data_and_zeros() {
        let page = SharedPage::default();
        assert_eq!(page.address() % PAGE as u64, 0);
        page.write(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(page.bytes()[..10], [1, 2, 3, 4, 5, 6, 7, 8, 0, 0]);
        page.write(&vec![0xFF; 2 * PAGE]);
        assert_eq!(page.bytes(), vec![0xFF; PAGE]);
    }
}
