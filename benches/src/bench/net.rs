//! The network over a TAP: iperf3 in both directions, and round trips of one byte by TCP.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::work::Work;
use super::{Bench, Measurement, Sampled};
use crate::guest;
use crate::lab::Lab;
use crate::process::run;
use crate::result::Unit;
use crate::subject::{Machine, Subject};

const TAP: &str = "gb0";
const HOST: &str = "198.18.0.1";
const GUEST: &str = "198.18.0.2";
/// Servers in the guest start to listen a moment after the guest reports that it is ready.
const CONNECT: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(100);

pub(super) struct Net;

impl Bench for Net {
    fn name(&self) -> &'static str {
        "net"
    }

    fn run(&self, lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Sampled> {
        let folder = lab.folder()?;
        let variables =
            [("GUEST_ADDRESS", GUEST.to_owned()), ("TOOLS", "/dev/vdc".to_owned()), ("HELPER", "/dev/vdd".to_owned())];
        let job = lab.job_disk(folder.path(), &variables, guest::NET)?;
        let disks = vec![lab.data_disk(folder.path())?, job, lab.tools_disk()?, lab.helper_disk()];
        let _tap = Tap::make()?;
        let machine = Machine { disks, tap: Some(TAP.to_owned()), ..lab.machine(guest::CMDLINE) };
        let mut work = Work::start(lab, subject, &machine, folder.path())?;
        work.until_ready()?;

        let mut stream = work.running.wait("TCP", CONNECT, AGAIN, |_| Ok(connect().ok()))?;
        let trip = guest::round_trips(&mut stream, lab.scale.round_trips).context("round trips")?;
        let seconds = lab.scale.transfer_s.to_string();
        let client = ["-c", GUEST, "-p", "5201", "-J", "-t", &seconds];
        let to = work.running.wait("iperf3", CONNECT, AGAIN, |_| Ok(run("iperf3", &client).ok()))?;
        let from = run("iperf3", &[&client[..], &["-R"]].concat())?;
        let measurements = vec![
            Measurement::more("to_guest_rate", Unit::BytesPerSecond, received(&to)?).with("iperf3, TCP"),
            Measurement::more("from_guest_rate", Unit::BytesPerSecond, received(&from)?).with("iperf3 -R, TCP"),
            Measurement::less("round_trip_seconds", Unit::Seconds, trip)
                .with(format!("one byte by TCP, mean of {}", lab.scale.round_trips)),
        ];
        Ok(Sampled { setup: work.running.setup.clone(), measurements })
    }
}

fn connect() -> anyhow::Result<TcpStream> {
    let address = format!("{GUEST}:{}", guest::PORT).parse()?;
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CONNECT))?;
    stream.set_write_timeout(Some(CONNECT))?;
    Ok(stream)
}

/// Bytes per second that the receiver counted, from iperf3's JSON.
fn received(json: &str) -> anyhow::Result<f64> {
    let report: Value = serde_json::from_str(json).context("iperf3's report")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.context("iperf3's report has no end.sum_received.bits_per_second")? / 8.0)
}

/// The interface, removed when dropped.
struct Tap;

impl Tap {
    fn make() -> anyhow::Result<Self> {
        let _ = run("ip", &["link", "delete", TAP]); // left by a run that was killed
        run("ip", &["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])?;
        let tap = Self;
        run("ip", &["address", "add", &format!("{HOST}/30"), "dev", TAP])?;
        run("ip", &["link", "set", TAP, "up"])?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = run("ip", &["link", "delete", TAP]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_iperf3_become_bytes() {
        assert_eq!(received(r#"{"end": {"sum_received": {"bits_per_second": 8000.0}}}"#).unwrap(), 1000.0);
        assert!(received(r#"{"error": "refused"}"#).is_err());
        assert!(received("").is_err());
    }
}
