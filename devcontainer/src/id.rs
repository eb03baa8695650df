//! The value of `${devcontainerId}`.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// `${devcontainerId}` for a container found by these labels: the SHA-256 of the labels as compact JSON with sorted
/// keys, as a number in base 32 (digits `0-9a-v`), padded to 52 digits (specification, "devcontainerId").
pub fn devcontainer_id(labels: &BTreeMap<String, String>) -> String {
    let json = serde_json::to_vec(labels).expect("a map of strings is JSON");
    base_32(&Sha256::digest(&json))
}

/// 256 bits as 52 digits of 5 bits; the first digit holds the topmost bit only.
fn base_32(hash: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let bit = |index: usize| hash[index / 8] >> (7 - index % 8) & 1;
    let leading = 52 * 5 - hash.len() * 8;
    (0..52usize)
        .map(|digit| {
            let value = (digit * 5..digit * 5 + 5)
                .fold(0u8, |value, index| value << 1 | index.checked_sub(leading).map_or(0, bit));
            char::from(DIGITS[usize::from(value)])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_32_is_the_number_written_out() {
        assert_eq!(base_32(&[0; 32]), "0".repeat(52));
        assert_eq!(base_32(&[0xff; 32]), format!("1{}", "v".repeat(51)));
        let mut one = [0; 32];
        one[31] = 33;
        assert_eq!(base_32(&one), format!("{}11", "0".repeat(50)));
    }
}
