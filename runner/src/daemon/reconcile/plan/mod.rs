//! Chooses the next action for one machine: a pure function of actual and desired state.

use garret_api::runner::Desired;

/// One machine as its driver sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Observed {
    /// The state of its VMM.
    pub vmm: Vmm,
    /// It ended without a request, and its next try is not due. Until then, only a request starts it.
    pub failed: bool,
    pub environments: Vec<Environment>,
}

/// The state of one machine's VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vmm {
    /// There is none.
    Absent,
    /// It runs; the agent has not been set up yet.
    Booting,
    /// Like `Booting`, but started before this driver: the machine may hold workspaces.
    Adopted,
    /// It runs and the agent is set up.
    Ready,
    /// It has ended; its files on the host remain.
    Dead,
}

/// One environment: its actual and desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Environment {
    pub id: String,
    /// Its desired state.
    pub goal: Goal,
    /// The run that was requested last.
    pub generation: u64,
    /// The run that the status is about.
    pub observed_generation: u64,
    /// The work on it at this moment.
    pub work: Option<Work>,
    /// That work began a short time ago.
    pub beginning: bool,
}

/// The desired state of a machine or an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// It should run.
    Run,
    /// It should be stopped.
    Stop,
    /// It should be removed.
    Remove,
}

impl Goal {
    /// Reads the goal from the fields of a stored row.
    pub(super) fn new(desired: Desired, removed: bool) -> Self {
        match (removed, desired) {
            (true, _) => Goal::Remove,
            (false, Desired::Running) => Goal::Run,
            (false, Desired::Stopped) => Goal::Stop,
        }
    }
}

/// Work on an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// The goal that it carries out.
    pub goal: Goal,
    /// The run that it belongs to.
    pub generation: u64,
}

/// The next action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing: wait until something changes.
    Wait,
    /// Start the VMM.
    Launch,
    /// Wait for the agent and send it the host's settings.
    AwaitAgent,
    /// Power the machine off.
    Halt,
    /// Find out why the VMM ended, and clean up.
    CleanUp,
    /// Remove the machine and its data.
    Delete,
    /// Cancel the work on this environment.
    Cancel(String),
    /// Start this work on this environment.
    Begin(String, Work),
}

/// How many environments of one machine start at once.
const BEGINNING_MAX: usize = 4;

/// Returns the next action. Carrying it out changes `observed`, so repeating this ends in `Wait`.
pub(super) fn next_action(observed: &Observed, goal: Goal) -> Action {
    match (observed.vmm, goal) {
        (Vmm::Dead, _) => Action::CleanUp,
        (Vmm::Booting | Vmm::Adopted | Vmm::Ready, Goal::Stop | Goal::Remove) => Action::Halt,
        (Vmm::Absent, Goal::Remove) => Action::Delete,
        (Vmm::Absent, Goal::Stop) => Action::Wait,
        (Vmm::Absent, Goal::Run) if observed.failed => Action::Wait,
        (Vmm::Absent, Goal::Run) => Action::Launch,
        (Vmm::Booting, Goal::Run) => Action::AwaitAgent,
        // An agent that cannot be set up does not keep a workspace.
        (Vmm::Adopted, Goal::Run) => {
            let mut removed = observed.environments.iter().filter(|environment| environment.goal == Goal::Remove);
            removed.find_map(next_step).unwrap_or(Action::AwaitAgent)
        }
        (Vmm::Ready, Goal::Run) => {
            let beginning = observed.environments.iter().filter(|environment| environment.beginning).count();
            let mut steps = observed.environments.iter().filter_map(next_step);
            let admitted = |step: &Action| match step {
                Action::Begin(_, work) => work.goal != Goal::Run || beginning < BEGINNING_MAX,
                _ => true,
            };
            steps.find(admitted).unwrap_or(Action::Wait)
        }
    }
}

fn next_step(environment: &Environment) -> Option<Action> {
    let wanted = Work { goal: environment.goal, generation: environment.generation };
    let pending = environment.goal == Goal::Remove || environment.generation != environment.observed_generation;
    match environment.work {
        Some(work) if work == wanted => None,
        Some(_) => Some(Action::Cancel(environment.id.clone())),
        None if pending => Some(Action::Begin(environment.id.clone(), wanted)),
        None => None,
    }
}

#[cfg(test)]
mod tests;
