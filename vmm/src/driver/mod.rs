//! The state driver: one loop over events, on the main thread.

mod lease;

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use garret_api::vmm::{ExitReason, LastWords, MachineState};

use crate::control::{Command, Event, Refused, Reply, admit};
use crate::machine::Machine;
use lease::{Lease, is_withheld};

/// How long devices may take to finish the requests in flight.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// The interval between attempts to resume devices whose pause timed out.
const RESUME_RETRY: Duration = Duration::from_millis(50);

/// Runs `machine` until it ends, and returns the reason.
pub(crate) fn drive(machine: Machine, events: &Receiver<Event>) -> LastWords {
    let lease = machine.lease().map(|length| Lease::new(length, Instant::now()));
    let mut driver =
        Driver { machine, state: MachineState::Running, devices_resumed: true, lease, panic_printed: false };
    let words = loop {
        let Some(event) = driver.next_event(events) else {
            break words(ExitReason::Failed, "nothing can reach the machine any more");
        };
        match driver.next_step(event) {
            NextStep::End(words) => break words,
            NextStep::Serve(command) => driver.serve(command),
            NextStep::Continue => {}
        }
        if driver.state == MachineState::Stopping {
            break words(ExitReason::Asked, "stopped as asked by the API");
        }
    };
    driver.machine.end(STOP_DEADLINE);
    words
}

struct Driver {
    machine: Machine,
    state: MachineState,
    /// Whether no device is left paused by a failed pause.
    devices_resumed: bool,
    lease: Option<Lease>,
    panic_printed: bool,
}

/// What the driver does after an event.
enum NextStep {
    End(LastWords),
    Serve(Command),
    Continue,
}

fn words(reason: ExitReason, message: impl Into<String>) -> LastWords {
    LastWords { reason, message: message.into() }
}

impl Driver {
    fn next_event(&mut self, events: &Receiver<Event>) -> Option<Event> {
        loop {
            let lease = self.lease_left();
            if lease.is_some_and(|left| left.is_zero()) {
                self.expire_lease();
                continue;
            }
            let retry = (!self.devices_resumed).then_some(RESUME_RETRY);
            match receive(events, retry.into_iter().chain(lease).min()) {
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Timeout) => {
                    self.devices_resumed = self.devices_resumed || self.machine.resume_devices();
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// The time until the lease expires. `None` if there is no lease, or if nothing is withheld from the machine.
    fn lease_left(&self) -> Option<Duration> {
        let lease = self.lease.as_ref()?;
        is_withheld(self.state, &self.machine.memory()).then(|| lease.left(Instant::now()))
    }

    /// No API request came within the lease: resumes the machine and allows all the memory it was promised.
    fn expire_lease(&mut self) {
        tracing::warn!("no API request within the lease: the machine runs and may plug all its memory");
        self.resume();
        self.machine.allow_all_memory();
    }

    fn next_step(&mut self, event: Event) -> NextStep {
        let last_words = match event {
            Event::PowerOff => words(ExitReason::PowerOff, "the guest powered off"),
            Event::Panicked => words(ExitReason::Panic, "the guest's kernel panicked: see the console log"),
            // A kernel without a driver for the panic device, or one that panics before it has loaded that driver,
            // prints the panic and then resets.
            Event::Reset if self.panic_printed => {
                words(ExitReason::Panic, "the guest's kernel panicked and reset the machine: see the console log")
            }
            Event::Reset => words(ExitReason::Reboot, "the guest reset the machine"),
            Event::Failed(why) => words(ExitReason::Failed, why),
            Event::Terminate => words(ExitReason::Asked, "stopped as asked by a signal"),
            Event::PanicPrinted => {
                self.panic_printed = true;
                return NextStep::Continue;
            }
            Event::Command(command) => return NextStep::Serve(command),
        };
        NextStep::End(last_words)
    }

    fn serve(&mut self, command: Command) {
        if let Some(lease) = &mut self.lease {
            lease.renew(Instant::now());
        }
        let admitted = admit(self.state, &command);
        match command {
            Command::Describe(reply) => answer(reply, Ok(self.machine.describe(self.state))),
            Command::Metrics(reply) => answer(reply, Ok(self.machine.metrics())),
            Command::Memory(reply) => answer(reply, Ok(self.machine.memory())),
            Command::SetMemory(target, reply) => answer(
                reply,
                admitted.and_then(|()| {
                    self.machine.set_memory(target).map_err(|error| Refused::Invalid(error.to_string()))?;
                    Ok(self.machine.memory())
                }),
            ),
            Command::Pause(reply) => answer(reply, admitted.and_then(|()| self.pause())),
            Command::Resume(reply) => answer(reply, admitted.map(|()| self.resume())),
            Command::PowerButton(reply) => answer(reply, admitted.and_then(|()| self.press_power_button())),
            Command::Shutdown(reply) => answer(reply, admitted.map(|()| self.state = MachineState::Stopping)),
        }
    }

    fn press_power_button(&self) -> Result<(), Refused> {
        let failed = |error| Refused::Failed(format!("cannot press the power button: {error}"));
        self.machine.press_power_button().map_err(failed)
    }

    fn pause(&mut self) -> Result<(), Refused> {
        if self.state == MachineState::Running {
            let paused = self.machine.pause(STOP_DEADLINE);
            self.devices_resumed = paused.is_ok();
            paused.map_err(|busy| Refused::Failed(busy.to_string()))?;
            self.state = MachineState::Paused;
        }
        Ok(())
    }

    fn resume(&mut self) {
        if self.state == MachineState::Paused {
            self.machine.resume();
            self.state = MachineState::Running;
        }
    }
}

/// The next event. Waits at most `wait`, or without a limit.
fn receive(events: &Receiver<Event>, wait: Option<Duration>) -> Result<Event, RecvTimeoutError> {
    match wait {
        Some(wait) => events.recv_timeout(wait),
        None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, Refused>) {
    let _ = reply.send(result);
}
