//! The first line of a client on the Unix socket: `CONNECT <port>\n`.

/// The longest line of a client, with its newline: the word, a space and ten digits, and some room.
pub(super) const LINE_MAX: usize = 32;

/// The result of parsing the bytes received so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// No newline yet.
    Incomplete,
    /// A whole line of `len` bytes that asks for the guest's `port`.
    Connect {
        /// The guest's port.
        port: u32,
        /// The line's length with its newline; the bytes after it are payload.
        len: usize,
    },
    /// Not a line of this protocol.
    Bad,
}

/// Parses the line at the beginning of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Line {
    let seen = &bytes[..bytes.len().min(LINE_MAX)];
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() >= LINE_MAX { Line::Bad } else { Line::Incomplete };
    };
    let port = std::str::from_utf8(&seen[..end])
        .ok()
        .and_then(|line| line.strip_suffix('\r').unwrap_or(line).strip_prefix("CONNECT "))
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok());
    match port {
        Some(port) => Line::Connect { port, len: end + 1 },
        None => Line::Bad,
    }
}

/// The answer after the guest has accepted; it contains the connection's port on the host's side.
pub(super) fn accepted(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_valid_lines_name_a_port() {
        let table: [(&[u8], Line); 14] = [
            (b"", Line::Incomplete),
            (b"CONNECT 10", Line::Incomplete),
            (b"CONNECT 1024\n", Line::Connect { port: 1024, len: 13 }),
            (b"CONNECT 1024\r\n", Line::Connect { port: 1024, len: 14 }),
            (b"CONNECT 4294967295\nGET /", Line::Connect { port: u32::MAX, len: 19 }),
            (b"CONNECT 4294967296\n", Line::Bad),
            (b"CONNECT -1\n", Line::Bad),
            (b"CONNECT +1\n", Line::Bad),
            (b"CONNECT \n", Line::Bad),
            (b"CONNECT 1 2\n", Line::Bad),
            (b"connect 1\n", Line::Bad),
            (b"\n", Line::Bad),
            (b"\xff\xfe\n", Line::Bad),
            (b"CONNECT 0000000000000000000000000001024\n", Line::Bad),
        ];
        for (bytes, line) in table {
            assert_eq!(parse(bytes), line, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_and_long_ones_never_wait(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let line = parse(&bytes);
            if bytes.len() >= LINE_MAX {
                prop_assert_ne!(line, Line::Incomplete);
            }
            if let Line::Connect { len, .. } = line {
                prop_assert_eq!(bytes[len - 1], b'\n');
            }
        }

        #[test]
        fn every_port_is_read_wherever_the_stream_is_cut(port: u32, cut in 0usize..19) {
            let line = format!("CONNECT {port}\n");
            prop_assert_eq!(parse(line.as_bytes()), Line::Connect { port, len: line.len() });
            if cut < line.len() {
                prop_assert_eq!(parse(&line.as_bytes()[..cut]), Line::Incomplete);
            }
        }
    }
}
