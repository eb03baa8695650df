//! A minimal client of QEMU's monitor (QMP).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::Control;

const DEADLINE: Duration = Duration::from_secs(30);
/// The most events that may come between a command and its answer.
const EVENTS: usize = 1000;

/// The virtio-mem device's id on the command line.
const VIRTIO_MEM: &str = "/machine/peripheral/plug";

/// The monitor's socket. Each command uses a connection of its own.
pub(super) struct Qmp(pub PathBuf);

impl Qmp {
    /// Sends one command, and returns its result.
    ///
    /// # Errors
    /// QEMU refuses, or does not answer.
    pub(super) fn command(&self, name: &str, arguments: &Value) -> anyhow::Result<Value> {
        let mut session = Session::open(&self.0).with_context(|| format!("QMP {}", self.0.display()))?;
        session.command("qmp_capabilities", &json!({}))?;
        session.command(name, arguments)
    }
}

struct Session(BufReader<UnixStream>);

impl Session {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let mut session = Self(BufReader::new(stream));
        session.line()?; // the greeting
        Ok(session)
    }

    fn command(&mut self, name: &str, arguments: &Value) -> anyhow::Result<Value> {
        let command = json!({"execute": name, "arguments": arguments});
        self.0.get_mut().write_all(format!("{command}\n").as_bytes())?;
        for _ in 0..EVENTS {
            let mut line = self.line()?;
            if let Some(error) = line.get("error") {
                bail!("{name}: {}", error["desc"].as_str().unwrap_or("refused"));
            }
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
        }
        bail!("{name}: QEMU sent events and no answer")
    }

    fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            bail!("QEMU closed the monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Control for Qmp {
    /// QEMU reports how much the guest keeps, so this first reads the guest's memory size.
    fn set_balloon(&self, mib: u32) -> anyhow::Result<()> {
        let memory = self.memory()?;
        let keep = memory.saturating_sub(u64::from(mib) << 20);
        self.command("balloon", &json!({"value": keep})).map(drop)
    }

    fn balloon_mib(&self) -> anyhow::Result<u32> {
        let kept = self.command("query-balloon", &json!({}))?["actual"].as_u64().context("query-balloon")?;
        Ok(u32::try_from(self.memory()?.saturating_sub(kept) >> 20)?)
    }

    fn plug(&self, mib: u32) -> anyhow::Result<()> {
        let value = u64::from(mib) << 20;
        self.command("qom-set", &json!({"path": VIRTIO_MEM, "property": "requested-size", "value": value})).map(drop)
    }

    fn plugged_mib(&self) -> anyhow::Result<Option<u32>> {
        let devices = self.command("query-memory-devices", &json!({}))?;
        let devices = devices.as_array().context("query-memory-devices")?;
        let size = devices.iter().find(|device| device["type"] == "virtio-mem").map(|device| &device["data"]["size"]);
        size.map(|size| Ok(u32::try_from(size.as_u64().context("virtio-mem has no size")? >> 20)?)).transpose()
    }
}

impl Qmp {
    fn memory(&self) -> anyhow::Result<u64> {
        let summary = self.command("query-memory-size-summary", &json!({}))?;
        summary["base-memory"].as_u64().context("query-memory-size-summary")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// Answers each line of one connection by the next of the answers, with an event before each.
    fn monitor(connections: Vec<Vec<Value>>) -> (tempfile::TempDir, Qmp) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for answers in connections {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(b"{\"QMP\": {}}\n").unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                for answer in [json!({"return": {}})].into_iter().chain(answers) {
                    lines.next().unwrap().unwrap();
                    stream.write_all(format!("{{\"event\": \"RESUME\"}}\n{answer}\n").as_bytes()).unwrap();
                }
            }
        });
        (folder, Qmp(path))
    }

    #[test]
    fn a_balloon_is_what_the_guest_does_not_keep() {
        let kept = vec![json!({"return": {"actual": 300 << 20}})];
        let (_folder, qmp) = monitor(vec![kept, vec![json!({"return": {"base-memory": 512 << 20}})]]);
        assert_eq!(qmp.balloon_mib().unwrap(), 212);
    }

    #[test]
    fn plugged_memory_is_that_of_virtio_mem() {
        let pmem = json!({"type": "virtio-pmem", "data": {"size": 7 << 20}});
        let plugged = json!({"type": "virtio-mem", "data": {"size": 128 << 20}});
        let answers = [json!({"return": [pmem, plugged]}), json!({"return": [pmem]})];
        let (_folder, qmp) = monitor(answers.map(|answer| vec![answer]).into());
        assert_eq!(qmp.plugged_mib().unwrap(), Some(128));
        assert_eq!(qmp.plugged_mib().unwrap(), None);
    }

    #[test]
    fn a_refusal_is_an_error_with_its_text() {
        let (_folder, qmp) = monitor(vec![vec![json!({"error": {"class": "x", "desc": "no balloon device"}})]]);
        let error = qmp.command("balloon", &json!({"value": 1})).unwrap_err().to_string();
        assert_eq!(error, "balloon: no balloon device");
    }
}
