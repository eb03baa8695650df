//! The protocol between the harness and its helper in the guest, over vsock or TCP. The first byte selects the command.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

/// The helper returns each byte at once.
const ECHO: u8 = b'E';
/// The helper reads blocks until the last one, and returns their number.
const SINK: u8 = b'S';
/// The helper sends blocks until the harness closes the connection.
const SOURCE: u8 = b'G';
/// The harness sends MiB and milliseconds, four bytes each. The helper takes this much memory, holds it for this long
/// and frees it. Then it sends one byte.
const FILL: u8 = b'F';

const BLOCK: usize = 64 << 10;
/// A block's first byte.
const MORE: u8 = 1;
const LAST: u8 = 0;

/// Serves one connection until the peer closes it.
pub(super) fn serve(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    match wanted[0] {
        ECHO => echo(stream),
        SINK => sink(stream),
        SOURCE => source(stream),
        FILL => take(stream),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

fn echo(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn sink(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    let mut block = vec![MORE; BLOCK];
    let mut blocks = 0u64;
    while block[0] == MORE {
        stream.read_exact(&mut block)?;
        blocks += 1;
    }
    stream.write_all(&blocks.to_le_bytes())
}

fn source(stream: &mut impl Write) -> std::io::Result<()> {
    let block = vec![MORE; BLOCK];
    loop {
        stream.write_all(&block)?;
    }
}

fn take(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    let mut number = || {
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).map(|()| u32::from_le_bytes(bytes))
    };
    let (mib, hold_ms) = (number()?, number()?);
    let memory = vec![1u8; (mib as usize) << 20]; // not zeros: the kernel would not allocate pages for them
    thread::sleep(Duration::from_millis(hold_ms.into()));
    drop(std::hint::black_box(memory));
    stream.write_all(&[FILL])
}

/// Makes the helper take `mib` of memory, touch all of it, hold it and free it. Returns when it is free.
///
/// # Errors
/// The connection breaks.
pub(crate) fn fill(stream: &mut (impl Read + Write), mib: u32, hold: Duration) -> std::io::Result<()> {
    let hold_ms = u32::try_from(hold.as_millis()).unwrap_or(u32::MAX);
    stream.write_all(&[&[FILL][..], &mib.to_le_bytes(), &hold_ms.to_le_bytes()].concat())?;
    stream.read_exact(&mut [0])
}

/// Bytes per second from here to the helper, until the helper has confirmed the last.
///
/// # Errors
/// The connection breaks, or data was lost.
pub(crate) fn throughput_to(stream: &mut (impl Read + Write), time: Duration) -> anyhow::Result<f64> {
    stream.write_all(&[SINK])?;
    let mut block = vec![MORE; BLOCK];
    let began = Instant::now();
    let mut blocks = 0u64;
    while block[0] == MORE {
        block[0] = if began.elapsed() < time { MORE } else { LAST };
        stream.write_all(&block)?;
        blocks += 1;
    }
    let mut confirmed = [0; 8];
    stream.read_exact(&mut confirmed)?;
    let elapsed = began.elapsed().as_secs_f64();
    ensure!(u64::from_le_bytes(confirmed) == blocks, "the guest counted {confirmed:?} blocks of {blocks}");
    Ok((blocks * BLOCK as u64) as f64 / elapsed)
}

/// Bytes per second from the helper to here.
///
/// # Errors
/// The connection breaks.
pub(crate) fn throughput_from(stream: &mut (impl Read + Write), time: Duration) -> anyhow::Result<f64> {
    stream.write_all(&[SOURCE])?;
    let mut block = vec![0; BLOCK];
    stream.read_exact(&mut block)?; // the time begins when data flows
    let began = Instant::now();
    let mut bytes = 0u64;
    while began.elapsed() < time {
        let read = stream.read(&mut block)?;
        ensure!(read > 0, "the guest closed the connection");
        bytes += read as u64;
    }
    Ok(bytes as f64 / began.elapsed().as_secs_f64())
}

/// The mean time of `count` round trips of one byte, in seconds.
///
/// # Errors
/// The connection breaks.
pub(crate) fn round_trips(stream: &mut (impl Read + Write), count: u32) -> anyhow::Result<f64> {
    stream.write_all(&[ECHO])?;
    let mut byte = [b'x'];
    let began = Instant::now();
    for _ in 0..count {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    Ok(began.elapsed().as_secs_f64() / f64::from(count.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn helper() -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || serve(&mut theirs));
        ours
    }

    #[test]
    fn bytes_flow_both_ways() {
        let time = Duration::from_millis(30);
        assert!(throughput_to(&mut helper(), time).unwrap() > 0.0);
        assert!(throughput_from(&mut helper(), time).unwrap() > 0.0);
        assert!(round_trips(&mut helper(), 20).unwrap() > 0.0);
    }

    #[test]
    fn memory_is_held_for_as_long_as_asked() {
        let (began, hold) = (Instant::now(), Duration::from_millis(20));
        fill(&mut helper(), 1, hold).unwrap();
        assert!(began.elapsed() >= hold);
    }

    #[test]
    fn a_bad_command_and_a_lost_helper_are_errors() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"?").unwrap();
        assert!(serve(&mut theirs).is_err());
        drop(theirs);
        assert!(round_trips(&mut ours, 3).is_err());
    }
}
