//! One QEMU with its virtiofsd processes, and the streams that connect it with this program.

use super::{Options, boot_files::BootFiles, tsc};
use anyhow::Context;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, Command};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// Debian's QEMU includes its own.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

const MONITOR: &str = "monitor.sock";
/// How long the monitor's output is read. It answers at once and leaves the connection open.
const MONITOR_ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// A report of the host.
pub(super) enum Event {
    /// It has booted and the runner has started. The command begins.
    Up,
    /// It still runs.
    Alive,
    /// The command's exit status.
    Status(u8),
    /// The emulator has ended.
    Gone,
}

/// A running emulator. Its processes end with the thread that started them, so none outlives this program.
pub(super) struct Emulator {
    qemu: Child,
    daemons: Vec<Child>,
    control: Lines<BufReader<tokio::net::UnixStream>>,
    output: Vec<JoinHandle<()>>,
    terminal: Option<Termios>,
}

impl Emulator {
    /// Starts the emulator and the servers of its shares.
    pub(super) fn start(options: &Options, files: &BootFiles) -> anyhow::Result<Self> {
        let (control, control_inside) = UnixStream::pair()?;
        let (stdout, stdout_inside) = UnixStream::pair()?;
        let (stderr, stderr_inside) = UnixStream::pair()?;
        let mut arguments = Arguments::default();
        machine(&mut arguments, options, files);
        let mut daemons = vec![share(&mut arguments, files, "host", files.path())?];
        if let Some(folder) = &files.share {
            daemons.push(share(&mut arguments, files, "share", folder)?);
        }
        // QEMU inherits the far ends of the socket pairs. They are closed here after it has started.
        for (name, socket) in [("control", &control_inside), ("stdout", &stdout_inside), ("stderr", &stderr_inside)] {
            fcntl_setfd(socket, FdFlags::empty())?;
            arguments.add("-chardev", format!("socket,id={name},fd={}", socket.as_fd().as_raw_fd()));
            arguments.add("-device", format!("virtserialport,chardev={name},name={name}"));
        }
        let interactive = options.interactive();
        arguments.add("-chardev", if interactive { "stdio,id=terminal,signal=off" } else { "null,id=terminal" });
        arguments.add("-device", "virtconsole,chardev=terminal");

        let log = File::create(files.log("qemu.log"))?;
        let mut command = dying_with_us(&files.emulator);
        command.args(arguments.0).stderr(log);
        if !interactive {
            // Ctrl-C is for this program, which then ends the emulator.
            command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        }
        let terminal = interactive.then(|| tcgetattr(std::io::stdin())).transpose()?;
        let qemu = command.spawn().context("cannot run setpriv")?;
        Ok(Self {
            qemu,
            daemons,
            control: BufReader::new(unblocked(control)?).lines(),
            output: vec![
                spawn_blocking(|| copy(stdout, std::io::stdout())),
                spawn_blocking(|| copy(stderr, std::io::stderr())),
            ],
            terminal,
        })
    }

    /// Waits for the host's next report.
    pub(super) async fn next(&mut self) -> anyhow::Result<Event> {
        match self.control.next_line().await? {
            None => Ok(Event::Gone),
            Some(line) if line == "up" => Ok(Event::Up),
            Some(line) if line == "alive" => Ok(Event::Alive),
            Some(line) => match line.strip_prefix("status ").map(str::parse) {
                Some(Ok(status)) => Ok(Event::Status(status)),
                _ => anyhow::bail!("the emulated host says {line:?}"),
            },
        }
    }

    /// Writes the state of a hung host's processor to the logs. If it is halted and its `IRR` has an unmasked
    /// interrupt, it has lost that interrupt.
    pub(super) async fn examine(&self, files: &BootFiles) -> std::io::Result<()> {
        let mut monitor = tokio::net::UnixStream::connect(files.log(MONITOR)).await?;
        monitor.write_all(b"info status\ninfo registers\ninfo lapic\ninfo pic\n").await?;
        let mut answer = Vec::new();
        // The monitor stays open.
        let _ = timeout(MONITOR_ANSWERS_WITHIN, monitor.read_to_end(&mut answer)).await;
        std::fs::write(files.log("hang.log"), answer)
    }

    /// Waits until the emulator has ended by itself and all output has been copied.
    pub(super) async fn ended(&mut self) {
        let _ = self.qemu.wait().await;
        for task in self.output.drain(..) {
            let _ = task.await;
        }
    }

    /// Ends all processes that still run, and restores the terminal.
    pub(super) async fn kill(mut self) {
        for child in std::iter::once(&mut self.qemu).chain(&mut self.daemons) {
            let _ = child.kill().await;
        }
        if let Some(terminal) = &self.terminal {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, terminal);
        }
    }
}

/// QEMU's command line.
#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.extend([option.into(), value.into()]);
    }

    /// Adds a value with a path. QEMU reads a doubled comma as one.
    fn add_path(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        self.add(option, format!("{before}{}{after}", path.display().to_string().replace(',', ",,")));
    }
}

fn machine(arguments: &mut Arguments, options: &Options, files: &BootFiles) {
    let accelerator: &[(&str, &str)] = if options.icount {
        &[
            ("-accel", "tcg,thread=single"),
            ("-icount", "shift=0,sleep=off"),
            ("-seed", "7"),
            ("-rtc", "base=2026-01-01,clock=vm"),
        ]
    } else {
        &[("-accel", "tcg,thread=multi,tb-size=1024")]
    };
    // One processor. With two, guests had triple faults, and sometimes the host failed ("Oops: int3"). That was before
    // the patches of `integration/emulator`. A machine with two cores runs two hosts.
    arguments.add("-smp", "1");
    for (option, value) in accelerator {
        arguments.add(option, *value);
    }
    // Debian's package contains the firmware.
    for folder in ["/usr/share/qemu", "/usr/share/seabios"] {
        arguments.add("-L", folder);
    }
    arguments.add("-machine", "q35,memory-backend=memory,graphics=off,vmport=off");
    // Fast string instructions are not announced. The kernels then clear and copy memory by `rep stosq` and `rep
    // movsq`, eight bytes per step. The emulator executes every string instruction step by step.
    arguments.add("-cpu", "max,+svm,-erms,-fsrm");
    // A virtiofsd accesses the host's memory, so that memory must be shareable.
    arguments.add("-m", format!("{}", options.memory));
    arguments.add("-object", format!("memory-backend-memfd,id=memory,size={}M,share=on", options.memory));
    arguments.0.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
    arguments.add("-display", "none");
    arguments.add_path("-kernel", "", &files.kernel, "");
    arguments.add_path("-initrd", "", &files.initramfs, "");
    // `norandmaps`: a program at the same addresses in each run is translated only once, which saves 5 % of the CPU
    // time.
    let mut append =
        "console=ttyS0 loglevel=4 tsc=reliable clocksource=tsc mitigations=off random.trust_cpu=on panic=-1 \
                      norandmaps"
            .to_owned();
    if !options.icount {
        // The emulated time-stamp counter is this machine's own. The host's calibration of it fails when this machine
        // is busy: its clock then ran twice as fast, and all its deadlines came too early.
        append += &format!(" tsc_early_khz={}", tsc::khz());
    }
    arguments.add("-append", append);
    arguments.add_path("-monitor", "unix:", &files.log(MONITOR), ",server=on,wait=off");
    arguments.add_path("-serial", "file:", &files.log("console.log"), "");
    // Nothing is written back: writes go to a temporary file without a name.
    for disk in [&files.root, &files.swap()] {
        arguments.add_path("-drive", "if=virtio,format=raw,snapshot=on,cache=unsafe,discard=unmap,file=", disk, "");
    }
    arguments.add("-netdev", "user,id=net,ipv6=off");
    arguments.add("-device", "virtio-net-pci,netdev=net,romfile=");
    arguments.add("-device", "virtio-rng-pci");
    arguments.add("-device", "virtio-serial-pci");
}

/// A virtiofsd for one folder. It ends when QEMU closes the connection.
fn share(arguments: &mut Arguments, files: &BootFiles, tag: &str, folder: &Path) -> anyhow::Result<Child> {
    let path = files.log(&format!("{tag}.sock"));
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fcntl_setfd(&listener, FdFlags::empty())?;
    let log = File::create(files.log(&format!("virtiofsd-{tag}.log")))?;
    let mut source = OsString::from("source=");
    source.push(folder);
    let daemon = dying_with_us(VIRTIOFSD)
        .arg(format!("--fd={}", listener.as_fd().as_raw_fd()))
        .arg("-o")
        .arg(source)
        .args(["-o", "cache=auto", "-o", "xattr", "-f"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {VIRTIOFSD} (make setup installs it)"))?;
    arguments.add_path("-chardev", &format!("socket,id={tag},path="), &path, "");
    arguments.add("-device", format!("vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024"));
    Ok(daemon)
}

/// A command that the kernel kills when this thread ends for any reason.
fn dying_with_us(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).kill_on_drop(true);
    command
}

fn unblocked(stream: UnixStream) -> anyhow::Result<tokio::net::UnixStream> {
    stream.set_nonblocking(true)?;
    Ok(tokio::net::UnixStream::from_std(stream)?)
}

fn copy(mut from: UnixStream, mut to: impl Write) {
    // The reader of our output may have ended. The command continues.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.flush();
}
