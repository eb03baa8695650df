//! The power button, which ends a guest whose agent does not answer.

use garret_api::vmm::ExitReason;

use crate::stage::{Machine, init_beside};

#[test]
fn paused_guest_powers_off_when_it_resumes() {
    let mut machine = Machine::start(init_beside(""));
    machine.wait_for("the agent runs", 1);
    machine.post("/v1/pause");
    machine.post("/v1/power-button");
    machine.post("/v1/resume");
    let end = machine.end();
    assert_eq!(end.words.reason, ExitReason::PowerOff, "{}\n{}", end.stderr, end.console);
}

#[test]
fn hung_agent_does_not_keep_the_guest_from_powering_off() {
    // This shell stands for a container that needs 4 s to end.
    let container = "(trap 'echo container ends; sleep 4; echo container has ended; exit' TERM; \
                     while :; do sleep 0.1; done) &";
    let hang = "kill -STOP $(pgrep -f 'garret-agent [a]gent'); echo the agent hangs";
    let mut machine = Machine::start(init_beside(&format!("{container} {hang}")));
    machine.wait_for("the agent hangs", 1);
    machine.post("/v1/power-button");
    machine.wait_for("container ends", 1);
    let end = machine.end();
    assert_eq!(end.words.reason, ExitReason::PowerOff, "{}\n{}", end.stderr, end.console);
    assert!(end.console.contains("container has ended"), "{}", end.console);
}
