//! The id of a machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most characters of an id.
const LENGTH_MAX: usize = 32;
/// The digits of new ids: letters and digits that are not mistaken for each other.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Names a machine for as long as it exists: in paths of the API, and as its folders, control group and network
/// namespace.
///
/// A new id is `m` and 26 random characters of `0` to `9` and `a` to `z` without `i`, `l`, `o` and `u`. A machine of a
/// version without ids has the name that it had there: at most 32 letters, digits, `-`, `_`, `.` and `@`, first a letter
/// or digit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(into = "String", try_from = "String")]
#[schema(value_type = String, pattern = "^[A-Za-z0-9][A-Za-z0-9_.@-]{0,31}$", example = "m7k2p9x4c8w3t6e1h5r0qzyvnbd")]
pub struct MachineId([u8; LENGTH_MAX]);

impl MachineId {
    /// How many random bytes an id is made of. Of each, 5 bits count.
    pub const RANDOM_BYTES: usize = 26;

    /// An id of these random bytes.
    pub fn from_random(random: [u8; Self::RANDOM_BYTES]) -> Self {
        let mut text = [0; LENGTH_MAX];
        text[0] = b'm';
        for (digit, byte) in text[1..].iter_mut().zip(random) {
            *digit = DIGITS[usize::from(byte % 32)];
        }
        Self(text)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(LENGTH_MAX);
        // Only ASCII is ever stored.
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

/// A text that is no machine's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a machine")]
pub struct InvalidMachineId;

impl FromStr for MachineId {
    type Err = InvalidMachineId;

    fn from_str(text: &str) -> Result<Self, InvalidMachineId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
        if text.len() > LENGTH_MAX
            || !text.starts_with(|first: char| first.is_ascii_alphanumeric())
            || !text.bytes().all(allowed)
        {
            return Err(InvalidMachineId);
        }
        let mut id = [0; LENGTH_MAX];
        id[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(id))
    }
}

impl TryFrom<String> for MachineId {
    type Error = InvalidMachineId;

    fn try_from(text: String) -> Result<Self, InvalidMachineId> {
        text.parse()
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> Self {
        id.as_str().into()
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_are_valid_and_never_look_like_a_uid() {
        for random in [[0; 26], [255; 26], std::array::from_fn(|index| (index as u8).wrapping_mul(31))] {
            let id = MachineId::from_random(random);
            assert_eq!(id.as_str().parse(), Ok(id));
            assert!(id.as_str().len() == 27 && id.as_str().starts_with('m'), "{id}");
        }
        let ids: [MachineId; 2] = [31, 32].map(|byte| MachineId::from_random([byte; 26]));
        assert_eq!(ids.map(|id| id.to_string()), ["mzzzzzzzzzzzzzzzzzzzzzzzzzz", "m00000000000000000000000000"]);
    }

    #[test]
    fn names_of_earlier_machines_are_ids_and_paths_are_not() {
        for name in ["alice", "1001", "Alice", "a.b@example-c_d", &"a".repeat(32)] {
            assert_eq!(name.parse::<MachineId>().unwrap().to_string(), name);
        }
        for text in ["", ".", "..", "-a", "_a", "@a", "a/b", "a b", "a\0", "ä", &"a".repeat(33)] {
            assert_eq!(text.parse::<MachineId>(), Err(InvalidMachineId), "{text:?}");
        }
    }

    #[test]
    fn an_id_is_text_in_json_and_is_checked_there() {
        let id: MachineId = "alice".parse().unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"alice\"");
        assert_eq!(serde_json::from_str::<MachineId>("\"alice\"").unwrap(), id);
        assert!(serde_json::from_str::<MachineId>("\"../alice\"").unwrap_err().to_string().contains("not the id"));
    }
}
