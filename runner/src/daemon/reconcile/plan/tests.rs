use proptest::prelude::*;

use super::*;

fn observed(vmm: Vmm, failed: bool) -> Observed {
    Observed { vmm, failed, environments: Vec::new() }
}

#[test]
fn the_machine_comes_first() {
    use {Action::*, Goal::*, Vmm::*};
    for (vmm, failed, goal, action) in [
        (Absent, false, Run, Launch),
        (Absent, true, Run, Wait),
        (Absent, false, Stop, Wait),
        (Absent, true, Stop, Wait),
        (Absent, false, Remove, Delete),
        (Absent, true, Remove, Delete),
        (Booting, false, Run, AwaitAgent),
        (Booting, false, Stop, Halt),
        (Booting, false, Remove, Halt),
        (Adopted, false, Run, AwaitAgent),
        (Adopted, false, Stop, Halt),
        (Adopted, false, Remove, Halt),
        (Ready, false, Run, Wait),
        (Ready, false, Stop, Halt),
        (Ready, false, Remove, Halt),
        (Dead, false, Run, CleanUp),
        (Dead, false, Stop, CleanUp),
        (Dead, false, Remove, CleanUp),
    ] {
        assert_eq!(next_action(&observed(vmm, failed), goal), action, "{vmm:?} {failed} {goal:?}");
    }
}

#[test]
fn work_on_an_environment_follows_its_goal() {
    let work = |goal, generation| Some(Work { goal, generation });
    let id = || "e".to_string();
    for (goal, generation, seen, now, action) in [
        (Goal::Run, 1, 0, None, Action::Begin(id(), work(Goal::Run, 1).unwrap())),
        (Goal::Run, 1, 1, None, Action::Wait),
        (Goal::Run, 1, 0, work(Goal::Run, 1), Action::Wait),
        (Goal::Run, 2, 0, work(Goal::Run, 1), Action::Cancel(id())),
        (Goal::Stop, 2, 1, None, Action::Begin(id(), work(Goal::Stop, 2).unwrap())),
        (Goal::Stop, 2, 1, work(Goal::Run, 1), Action::Cancel(id())),
        (Goal::Stop, 2, 2, None, Action::Wait),
        (Goal::Remove, 2, 2, None, Action::Begin(id(), work(Goal::Remove, 2).unwrap())),
        (Goal::Remove, 2, 1, work(Goal::Run, 2), Action::Cancel(id())),
        (Goal::Remove, 2, 2, work(Goal::Remove, 2), Action::Wait),
    ] {
        let environment =
            Environment { id: id(), goal, generation, observed_generation: seen, work: now, beginning: false };
        let observed = Observed { environments: vec![environment], ..observed(Vmm::Ready, false) };
        assert_eq!(next_action(&observed, Goal::Run), action, "{observed:?}");
    }
}

#[test]
fn workspaces_go_before_an_adopted_agent_is_set_up() {
    let environment = |goal, work| Environment {
        id: "e".into(),
        goal,
        generation: 1,
        observed_generation: 0,
        work,
        beginning: false,
    };
    let work = Work { goal: Goal::Remove, generation: 1 };
    for (vmm, goal, now, action) in [
        (Vmm::Adopted, Goal::Remove, None, Action::Begin("e".into(), work)),
        (Vmm::Adopted, Goal::Remove, Some(work), Action::AwaitAgent),
        (Vmm::Adopted, Goal::Run, None, Action::AwaitAgent),
        (Vmm::Adopted, Goal::Stop, None, Action::AwaitAgent),
        (Vmm::Booting, Goal::Remove, None, Action::AwaitAgent),
    ] {
        let observed = Observed { environments: vec![environment(goal, now)], ..observed(vmm, false) };
        assert_eq!(next_action(&observed, Goal::Run), action, "{observed:?}");
    }
}

#[test]
fn one_busy_environment_does_not_hold_up_another() {
    let run = |id: &str, work| Environment {
        id: id.into(),
        goal: Goal::Run,
        generation: 1,
        observed_generation: 0,
        work,
        beginning: work.is_some(),
    };
    let busy = Some(Work { goal: Goal::Run, generation: 1 });
    let observed = Observed { environments: vec![run("a", busy), run("b", None)], ..observed(Vmm::Ready, false) };
    assert!(matches!(next_action(&observed, Goal::Run), Action::Begin(id, _) if id == "b"));
}

#[test]
fn few_environments_start_at_once_while_others_stop() {
    let environment = |at: usize, goal, busy: bool| {
        let work = busy.then_some(Work { goal, generation: 1 });
        Environment { id: at.to_string(), goal, generation: 1, observed_generation: 0, work, beginning: busy }
    };
    for (busy, waiting, begins) in
        [(3, Goal::Run, true), (4, Goal::Run, false), (4, Goal::Stop, true), (4, Goal::Remove, true)]
    {
        let mut environments: Vec<_> = (0..busy).map(|at| environment(at, Goal::Run, true)).collect();
        environments.push(environment(busy, waiting, false));
        let observed = Observed { environments, ..observed(Vmm::Ready, false) };
        let action = next_action(&observed, Goal::Run);
        assert_eq!(matches!(action, Action::Begin(..)), begins, "{busy} {waiting:?}");
    }
}

/// Applies the effect that a perfect driver would achieve.
fn carry_out(observed: &mut Observed, action: &Action) {
    let find = |observed: &mut Observed, id: &str| {
        observed.environments.iter().position(|environment| environment.id == id).unwrap()
    };
    match action {
        Action::Wait | Action::Delete => {}
        Action::Launch => observed.vmm = Vmm::Booting,
        Action::AwaitAgent => observed.vmm = Vmm::Ready,
        Action::Halt => observed.vmm = Vmm::Dead,
        Action::CleanUp => {
            observed.vmm = Vmm::Absent;
            observed.environments.iter_mut().for_each(|environment| environment.work = None);
        }
        Action::Cancel(id) => {
            let at = find(observed, id);
            observed.environments[at].work = None;
        }
        Action::Begin(id, work) => {
            let at = find(observed, id);
            match work.goal {
                Goal::Remove => drop(observed.environments.remove(at)),
                _ => observed.environments[at].observed_generation = work.generation,
            }
        }
    }
}

fn goals() -> impl Strategy<Value = Goal> {
    prop_oneof![Just(Goal::Run), Just(Goal::Stop), Just(Goal::Remove)]
}

proptest! {
    #[test]
    fn actions_end_in_wait(
        vmm in prop_oneof![
            Just(Vmm::Absent), Just(Vmm::Booting), Just(Vmm::Adopted), Just(Vmm::Ready), Just(Vmm::Dead)
        ],
        failed: bool,
        goal in goals(),
        environments in prop::collection::vec((goals(), 0u64..3, 0u64..3, prop::option::of((goals(), 0u64..3))), 0..4),
    ) {
        let environments = environments
            .into_iter()
            .enumerate()
            .map(|(at, (goal, generation, observed_generation, work))| Environment {
                id: at.to_string(),
                goal,
                generation,
                observed_generation,
                work: work.map(|(goal, generation)| Work { goal, generation }),
                beginning: false,
            })
            .collect();
        let mut observed = Observed { vmm, failed, environments };
        for _ in 0..20 {
            let action = next_action(&observed, goal);
            if matches!(action, Action::Wait | Action::Delete) {
                prop_assert_eq!(action == Action::Delete, goal == Goal::Remove);
                return Ok(());
            }
            carry_out(&mut observed, &action);
        }
        prop_assert!(false, "no end: {:?}", observed);
    }
}
