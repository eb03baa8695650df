//! Chooses the next action for one machine: a pure function of actual and desired state.

use garret_api::runner::Desired;

/// One machine as its driver sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The state of its VMM.
    pub vmm: Vmm,
    /// It ended without a request, and its next try is not due. Until then, only a request starts it.
    pub failed: bool,
    /// Its environments.
    pub environments: Vec<Environment>,
}

/// The state of one machine's VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
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
pub struct Environment {
    /// Its id.
    pub id: String,
    /// Its desired state.
    pub wish: Wish,
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
pub enum Wish {
    /// It should run.
    Run,
    /// It should be stopped.
    Stand,
    /// It should be removed.
    Vanish,
}

impl Wish {
    /// Reads the wish from the fields of a stored row.
    pub fn new(desired: Desired, removed: bool) -> Self {
        match (removed, desired) {
            (true, _) => Wish::Vanish,
            (false, Desired::Running) => Wish::Run,
            (false, Desired::Stopped) => Wish::Stand,
        }
    }
}

/// Work on an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// The wish that it carries out.
    pub wish: Wish,
    /// The run that it belongs to.
    pub generation: u64,
}

/// The next action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing: wait until something changes.
    Rest,
    /// Start the VMM.
    Launch,
    /// Wait for the agent and send it the host's settings.
    Greet,
    /// Power the machine off.
    Halt,
    /// Find out why the VMM ended, and clean up.
    Bury,
    /// Remove the machine and its data.
    Erase,
    /// Cancel the work on this environment.
    Cancel(String),
    /// Start this work on this environment.
    Begin(String, Work),
}

/// How many environments of one machine start at once.
const BEGINNING_MAX: usize = 4;

/// Returns the next action. Carrying it out changes `observed`, so repeating this ends in `Rest`.
pub fn next_action(observed: &Observed, wish: Wish) -> Action {
    match (observed.vmm, wish) {
        (Vmm::Dead, _) => Action::Bury,
        (Vmm::Booting | Vmm::Adopted | Vmm::Ready, Wish::Stand | Wish::Vanish) => Action::Halt,
        (Vmm::Absent, Wish::Vanish) => Action::Erase,
        (Vmm::Absent, Wish::Stand) => Action::Rest,
        (Vmm::Absent, Wish::Run) if observed.failed => Action::Rest,
        (Vmm::Absent, Wish::Run) => Action::Launch,
        (Vmm::Booting, Wish::Run) => Action::Greet,
        // An agent that cannot be set up does not keep a workspace.
        (Vmm::Adopted, Wish::Run) => {
            let mut removed = observed.environments.iter().filter(|environment| environment.wish == Wish::Vanish);
            removed.find_map(next_step).unwrap_or(Action::Greet)
        }
        (Vmm::Ready, Wish::Run) => {
            let beginning = observed.environments.iter().filter(|environment| environment.beginning).count();
            let mut steps = observed.environments.iter().filter_map(next_step);
            let admitted = |step: &Action| match step {
                Action::Begin(_, work) => work.wish != Wish::Run || beginning < BEGINNING_MAX,
                _ => true,
            };
            steps.find(admitted).unwrap_or(Action::Rest)
        }
    }
}

fn next_step(environment: &Environment) -> Option<Action> {
    let wanted = Work { wish: environment.wish, generation: environment.generation };
    let pending = environment.wish == Wish::Vanish || environment.generation != environment.observed_generation;
    match environment.work {
        Some(work) if work == wanted => None,
        Some(_) => Some(Action::Cancel(environment.id.clone())),
        None if pending => Some(Action::Begin(environment.id.clone(), wanted)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn observed(vmm: Vmm, failed: bool) -> Observed {
        Observed { vmm, failed, environments: Vec::new() }
    }

    #[test]
    fn the_machine_comes_first() {
        use {Action::*, Vmm::*, Wish::*};
        for (vmm, failed, wish, action) in [
            (Absent, false, Run, Launch),
            (Absent, true, Run, Rest),
            (Absent, false, Stand, Rest),
            (Absent, true, Stand, Rest),
            (Absent, false, Vanish, Erase),
            (Absent, true, Vanish, Erase),
            (Booting, false, Run, Greet),
            (Booting, false, Stand, Halt),
            (Booting, false, Vanish, Halt),
            (Adopted, false, Run, Greet),
            (Adopted, false, Stand, Halt),
            (Adopted, false, Vanish, Halt),
            (Ready, false, Run, Rest),
            (Ready, false, Stand, Halt),
            (Ready, false, Vanish, Halt),
            (Dead, false, Run, Bury),
            (Dead, false, Stand, Bury),
            (Dead, false, Vanish, Bury),
        ] {
            assert_eq!(next_action(&observed(vmm, failed), wish), action, "{vmm:?} {failed} {wish:?}");
        }
    }

    #[test]
    fn an_environment_is_brought_where_it_should_be() {
        let work = |wish, generation| Some(Work { wish, generation });
        let id = || "e".to_string();
        for (wish, generation, seen, now, action) in [
            (Wish::Run, 1, 0, None, Action::Begin(id(), work(Wish::Run, 1).unwrap())),
            (Wish::Run, 1, 1, None, Action::Rest),
            (Wish::Run, 1, 0, work(Wish::Run, 1), Action::Rest),
            (Wish::Run, 2, 0, work(Wish::Run, 1), Action::Cancel(id())),
            (Wish::Stand, 2, 1, None, Action::Begin(id(), work(Wish::Stand, 2).unwrap())),
            (Wish::Stand, 2, 1, work(Wish::Run, 1), Action::Cancel(id())),
            (Wish::Stand, 2, 2, None, Action::Rest),
            (Wish::Vanish, 2, 2, None, Action::Begin(id(), work(Wish::Vanish, 2).unwrap())),
            (Wish::Vanish, 2, 1, work(Wish::Run, 2), Action::Cancel(id())),
            (Wish::Vanish, 2, 2, work(Wish::Vanish, 2), Action::Rest),
        ] {
            let environment =
                Environment { id: id(), wish, generation, observed_generation: seen, work: now, beginning: false };
            let observed = Observed { environments: vec![environment], ..observed(Vmm::Ready, false) };
            assert_eq!(next_action(&observed, Wish::Run), action, "{observed:?}");
        }
    }

    #[test]
    fn an_adopted_machine_loses_workspaces_before_its_agent_is_set_up() {
        let environment = |wish, work| Environment {
            id: "e".into(),
            wish,
            generation: 1,
            observed_generation: 0,
            work,
            beginning: false,
        };
        let work = Work { wish: Wish::Vanish, generation: 1 };
        for (vmm, wish, now, action) in [
            (Vmm::Adopted, Wish::Vanish, None, Action::Begin("e".into(), work)),
            (Vmm::Adopted, Wish::Vanish, Some(work), Action::Greet),
            (Vmm::Adopted, Wish::Run, None, Action::Greet),
            (Vmm::Adopted, Wish::Stand, None, Action::Greet),
            (Vmm::Booting, Wish::Vanish, None, Action::Greet),
        ] {
            let observed = Observed { environments: vec![environment(wish, now)], ..observed(vmm, false) };
            assert_eq!(next_action(&observed, Wish::Run), action, "{observed:?}");
        }
    }

    #[test]
    fn one_busy_environment_does_not_hold_up_another() {
        let run = |id: &str, work| Environment {
            id: id.into(),
            wish: Wish::Run,
            generation: 1,
            observed_generation: 0,
            work,
            beginning: work.is_some(),
        };
        let busy = Some(Work { wish: Wish::Run, generation: 1 });
        let observed = Observed { environments: vec![run("a", busy), run("b", None)], ..observed(Vmm::Ready, false) };
        assert!(matches!(next_action(&observed, Wish::Run), Action::Begin(id, _) if id == "b"));
    }

    #[test]
    fn environments_come_up_a_few_at_a_time_while_others_stop() {
        let environment = |at: usize, wish, busy: bool| {
            let work = busy.then_some(Work { wish, generation: 1 });
            Environment { id: at.to_string(), wish, generation: 1, observed_generation: 0, work, beginning: busy }
        };
        for (busy, waiting, begins) in
            [(3, Wish::Run, true), (4, Wish::Run, false), (4, Wish::Stand, true), (4, Wish::Vanish, true)]
        {
            let mut environments: Vec<_> = (0..busy).map(|at| environment(at, Wish::Run, true)).collect();
            environments.push(environment(busy, waiting, false));
            let observed = Observed { environments, ..observed(Vmm::Ready, false) };
            let action = next_action(&observed, Wish::Run);
            assert_eq!(matches!(action, Action::Begin(..)), begins, "{busy} {waiting:?}");
        }
    }

    /// Applies the effect that a perfect driver would achieve.
    fn carry_out(observed: &mut Observed, action: &Action) {
        let find = |observed: &mut Observed, id: &str| {
            observed.environments.iter().position(|environment| environment.id == id).unwrap()
        };
        match action {
            Action::Rest | Action::Erase => {}
            Action::Launch => observed.vmm = Vmm::Booting,
            Action::Greet => observed.vmm = Vmm::Ready,
            Action::Halt => observed.vmm = Vmm::Dead,
            Action::Bury => {
                observed.vmm = Vmm::Absent;
                observed.environments.iter_mut().for_each(|environment| environment.work = None);
            }
            Action::Cancel(id) => {
                let at = find(observed, id);
                observed.environments[at].work = None;
            }
            Action::Begin(id, work) => {
                let at = find(observed, id);
                match work.wish {
                    Wish::Vanish => drop(observed.environments.remove(at)),
                    _ => observed.environments[at].observed_generation = work.generation,
                }
            }
        }
    }

    fn wishes() -> impl Strategy<Value = Wish> {
        prop_oneof![Just(Wish::Run), Just(Wish::Stand), Just(Wish::Vanish)]
    }

    proptest! {
        #[test]
        fn it_comes_to_rest(
            vmm in prop_oneof![
                Just(Vmm::Absent), Just(Vmm::Booting), Just(Vmm::Adopted), Just(Vmm::Ready), Just(Vmm::Dead)
            ],
            failed: bool,
            wish in wishes(),
            environments in prop::collection::vec((wishes(), 0u64..3, 0u64..3, prop::option::of((wishes(), 0u64..3))), 0..4),
        ) {
            let environments = environments
                .into_iter()
                .enumerate()
                .map(|(at, (wish, generation, observed_generation, work))| Environment {
                    id: at.to_string(),
                    wish,
                    generation,
                    observed_generation,
                    work: work.map(|(wish, generation)| Work { wish, generation }),
                    beginning: false,
                })
                .collect();
            let mut observed = Observed { vmm, failed, environments };
            for _ in 0..20 {
                let action = next_action(&observed, wish);
                if matches!(action, Action::Rest | Action::Erase) {
                    prop_assert_eq!(action == Action::Erase, wish == Wish::Vanish);
                    return Ok(());
                }
                carry_out(&mut observed, &action);
            }
            prop_assert!(false, "no rest: {:?}", observed);
        }
    }
}
