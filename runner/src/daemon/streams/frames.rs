//! WebSocket frames (RFC 6455 §5.2), as far as needed to add a close frame between two of them.

/// The longest payload of a control frame, in bytes.
const CONTROL_MAX: usize = 125;
/// The opcode of a close frame.
const CLOSE: u8 = 8;
/// The status "going away" (§7.4.1).
const GOING_AWAY: u16 = 1001;

/// Where in its frames a sender is. Any bytes are frames of some kind; their reader judges them.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The present frame's header while it is not complete: at most 13 bytes.
    header: Vec<u8>,
    /// Bytes of the payload that follow.
    payload: u64,
    closed: bool,
}

impl Frames {
    /// Takes note of what was sent.
    pub(super) fn scan(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = usize::try_from(self.payload).map_or(bytes.len(), |payload| payload.min(bytes.len()));
            self.payload -= skipped as u64;
            let Some((next, rest)) = bytes[skipped..].split_first() else { return };
            bytes = rest;
            self.header.push(*next);
            if self.header.len() == header_length(&self.header) {
                self.closed |= self.header[0] & 0x0f == CLOSE;
                self.payload = payload_length(&self.header);
                self.header.clear();
            }
        }
    }

    /// The most bytes that can be sent without leaving the present frame; 0 between two frames.
    pub(super) fn rest(&self) -> usize {
        match usize::try_from(self.payload).unwrap_or(usize::MAX) {
            0 if self.header.is_empty() => 0,
            0 => header_length(&self.header) - self.header.len(),
            payload => payload,
        }
    }

    /// Whether a close frame was sent.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

/// The length of a header that begins with these bytes, as far as they tell.
fn header_length(header: &[u8]) -> usize {
    let Some(second) = header.get(1) else { return 2 };
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    2 + length + mask
}

/// The payload's length by a whole header.
fn payload_length(header: &[u8]) -> u64 {
    let bytes = match header[1] & 0x7f {
        126 => &header[2..4],
        127 => &header[2..10],
        _ => return u64::from(header[1] & 0x7f),
    };
    bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte))
}

/// A close frame with this reason, of which it holds 123 bytes.
pub(super) fn close_frame(reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_MAX - 2)];
    let length = u8::try_from(2 + reason.len()).unwrap_or_default();
    [&[0x80 | CLOSE, length], &GOING_AWAY.to_be_bytes()[..], reason.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with this opcode and header, and a payload of this length.
    fn frame(opcode: u8, header: &[u8], payload: usize) -> Vec<u8> {
        [&[0x80 | opcode], header, &vec![0x88; payload]].concat()
    }

    #[test]
    fn boundaries_are_found_wherever_the_bytes_are_cut() {
        for (bytes, closed) in [
            (frame(2, &[0], 0), false),
            (frame(1, &[5], 5), false),
            (frame(2, &[126, 1, 0], 256), false),
            (frame(2, &[127, 0, 0, 0, 0, 0, 1, 0, 0], 65_536), false),
            (frame(2, &[0x83, 1, 2, 3, 4], 3), false),
            (frame(2, &[0xfe, 0, 126, 1, 2, 3, 4], 126), false),
            (frame(8, &[2], 2), true),
            ([frame(9, &[1], 1), frame(2, &[126, 0, 200], 200)].concat(), false),
            ([frame(2, &[1], 1), frame(8, &[0], 0)].concat(), true),
        ] {
            for cut in 0..bytes.len().min(400) {
                let mut frames = Frames::default();
                frames.scan(&bytes[..cut]);
                assert!(frames.rest() <= bytes.len() - cut, "{cut} of {bytes:?}");
                // The rest, in pieces that never leave a frame.
                let mut at = cut;
                while frames.rest() > 0 {
                    let piece = frames.rest();
                    frames.scan(&bytes[at..at + piece]);
                    at += piece;
                }
                frames.scan(&bytes[at..]);
                assert_eq!((frames.rest(), frames.is_closed()), (0, closed), "{cut} of {bytes:?}");
            }
        }
    }

    #[test]
    fn any_length_is_counted_and_nothing_is_kept() {
        let mut frames = Frames::default();
        frames.scan(&frame(2, &[127, 255, 255, 255, 255, 255, 255, 255, 255], 1000));
        assert_eq!((frames.payload, frames.header.len()), (u64::MAX - 1000, 0));
    }

    #[test]
    fn a_reason_is_cut_between_two_characters() {
        for (reason, kept) in [("why".to_string(), 3), ("x".repeat(200), 123), ("ü".repeat(100), 122)] {
            let bytes = close_frame(&reason);
            let mut frames = Frames::default();
            frames.scan(&bytes);
            assert_eq!((frames.rest(), frames.is_closed(), bytes.len()), (0, true, 4 + kept));
            assert!(std::str::from_utf8(&bytes[4..]).is_ok());
        }
    }
}
