//! Hardware addresses as text.

/// Reads `aa:bb:cc:dd:ee:ff`. A group address (the first byte is odd) belongs to no interface.
pub(super) fn parse(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_six_pairs_of_digits() {
        assert_eq!(parse("02:00:5e:10:00:fF"), Some([2, 0, 0x5E, 0x10, 0, 0xFF]));
        for wrong in [
            "",
            "02",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:00",
            "2:0:5e:10:0:ff",
            "02:00:5e:10:00:fg",
            "+2:00:5e:10:00:ff",
            "02-00-5e-10-00-ff",
            "03:00:5e:10:00:ff",
            "ff:ff:ff:ff:ff:ff",
            " 02:00:5e:10:00:ff",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_address_is_read_back(mut mac in any::<[u8; 6]>()) {
            mac[0] &= 0xFE;
            let text = mac.map(|byte| format!("{byte:02x}")).join(":");
            prop_assert_eq!(parse(&text), Some(mac));
        }

        #[test]
        fn any_text_is_judged(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
