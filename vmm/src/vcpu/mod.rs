//! One thread per virtual CPU: it enters the guest, serves its exits, and pauses on request.

mod exits;
mod gate;
mod kick;

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

pub(crate) use exits::ExitCounters;
use exits::Reason;
use gate::{Gate, Phase};

use crate::bus::Bus;
use crate::control::{Event, Events};
use crate::seccomp::Role;
use crate::thread;

/// The handlers of a vCPU's exits.
#[derive(Clone)]
pub(crate) struct Buses {
    /// Port I/O.
    pub ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
}

/// All vCPUs of a machine, created paused.
pub(crate) struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    gate: Arc<Gate>,
    counters: Vec<Arc<ExitCounters>>,
}

impl Vcpus {
    /// A thread for each of `vcpus`, waiting for [`Vcpus::resume`].
    pub(crate) fn spawn(vcpus: Vec<VcpuFd>, buses: &Buses, events: &Events) -> io::Result<Self> {
        kick::install_handler()?;
        let gate = Arc::new(Gate::new());
        let counters: Vec<_> = vcpus.iter().map(|_| Arc::new(ExitCounters::default())).collect();
        let threads = vcpus.into_iter().zip(&counters).enumerate().map(|(index, (fd, counters))| {
            let vcpu = Vcpu {
                fd,
                buses: buses.clone(),
                events: events.clone(),
                gate: gate.clone(),
                counters: counters.clone(),
            };
            thread::spawn(&format!("vcpu{index}"), Role::Vcpu, move || run(vcpu))
        });
        let threads = threads.collect::<io::Result<_>>()?;
        Ok(Self { threads, gate, counters })
    }

    pub(crate) fn resume(&self) {
        self.gate.open();
    }

    /// Returns whether all of them are paused within `deadline`. If not, resume them.
    pub(crate) fn pause(&self, deadline: Duration) -> bool {
        self.gate.close(Phase::Paused, deadline, || self.kick())
    }

    /// Ends the threads. Returns false if one does not end within `deadline`: it is left behind.
    pub(crate) fn stop(mut self, deadline: Duration) -> bool {
        let ended = self.gate.close(Phase::Stopped, deadline, || self.kick());
        if ended {
            for thread in self.threads.drain(..) {
                let _ = thread.join(); // never an error: panics are caught on the thread
            }
        }
        ended
    }

    /// Exits to user space by reason, of all vCPUs.
    pub(crate) fn exits(&self) -> std::collections::BTreeMap<String, u64> {
        exits::total(&self.counters)
    }

    fn kick(&self) {
        for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
            kick::kick(thread);
        }
    }
}

/// Runs the vCPU. A panic in an exit's handler is a bug of the VMM: it must not leave the machine hanging.
fn run(vcpu: Vcpu) {
    let events = vcpu.events.clone();
    if std::panic::catch_unwind(AssertUnwindSafe(|| vcpu.run())).is_err() {
        events.send(Event::Failed("a bug in garret-vmm stopped a virtual CPU: see its log".to_owned()));
    }
}

struct Vcpu {
    fd: VcpuFd,
    buses: Buses,
    events: Events,
    gate: Arc<Gate>,
    counters: Arc<ExitCounters>,
}

/// Whether the guest continues.
enum Next {
    Enter,
    CheckGate,
    Ended(Event),
}

impl Vcpu {
    fn run(mut self) {
        let gate = self.gate.clone();
        let _ticket = gate.join();
        let _kickable = kick::register(&mut self.fd);
        while gate.wait() == Phase::Running {
            let ended = loop {
                match self.enter() {
                    Next::Enter => {}
                    Next::CheckGate => break None,
                    Next::Ended(event) => break Some(event),
                }
            };
            if let Some(event) = ended {
                return self.events.send(event);
            }
            // Tells the guest that it was paused, so that its watchdogs do not fire. The call fails in a guest without
            // kvm-clock.
            let _ = self.fd.kvmclock_ctrl();
        }
    }

    /// One entry and the exit that ends it.
    fn enter(&mut self) -> Next {
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) => return self.interrupted(error.into()),
        };
        let (reason, next) = match exit {
            VcpuExit::IoIn(port, data) => (Reason::io(self.buses.ports.read(port.into(), data)), Next::Enter),
            VcpuExit::IoOut(port, data) => (Reason::io(self.buses.ports.write(port.into(), data)), Next::Enter),
            VcpuExit::MmioRead(address, data) => (Reason::mmio(self.buses.mmio.read(address, data)), Next::Enter),
            VcpuExit::MmioWrite(address, data) => (Reason::mmio(self.buses.mmio.write(address, data)), Next::Enter),
            VcpuExit::Hlt => (Reason::Hlt, Next::Enter),
            VcpuExit::Intr => (Reason::Interrupted, Next::CheckGate),
            // A triple fault: a kernel resets a PC this way when all other ways have failed.
            VcpuExit::Shutdown => (Reason::Shutdown, Next::Ended(Event::Reset)),
            VcpuExit::SystemEvent(kind, _) => (Reason::Other, Next::Ended(system_event(kind))),
            VcpuExit::FailEntry(why, cpu) => (Reason::Internal, failed(format!("entry failed on CPU {cpu}: {why:#x}"))),
            VcpuExit::InternalError => (Reason::Internal, failed("KVM could not emulate an instruction".into())),
            other => (Reason::Other, failed(format!("unexpected exit {other:?}"))),
        };
        self.counters.count(reason);
        next
    }

    fn interrupted(&mut self, error: io::Error) -> Next {
        match error.kind() {
            io::ErrorKind::Interrupted => {
                self.fd.set_kvm_immediate_exit(0);
                self.counters.count(Reason::Interrupted);
                Next::CheckGate
            }
            io::ErrorKind::WouldBlock => Next::Enter, // a waiting processor got its start-up signal
            _ => failed(format!("KVM_RUN: {error}")),
        }
    }
}

/// What the guest asked KVM for, for example with Hyper-V's crash registers.
fn system_event(kind: u32) -> Event {
    match kind {
        KVM_SYSTEM_EVENT_SHUTDOWN => Event::PowerOff,
        KVM_SYSTEM_EVENT_CRASH => Event::Panicked,
        _ => Event::Reset,
    }
}

fn failed(what: String) -> Next {
    Next::Ended(Event::Failed(format!("a virtual CPU stopped: {what}")))
}
