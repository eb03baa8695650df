//! The arbiter over simulated hosts: many machines under recorded-like and generated loads, with guests that do as they
//! are asked, guests that lie, and guests that do nothing.
//!
//! The model is coarse: each step is one second, and memory has no pages. A guest uses what its load wants. It keeps
//! half of what the load frees as cold cache, and gives up cold memory when it is squeezed or unplugged. The host swaps
//! out cold memory first; other memory that the load wants faults back.

use std::collections::BTreeMap;
use std::time::Duration;

use garret_api::MachineId;
use garret_api::runner::Means;
use proptest::prelude::*;

use super::arbiter::{History, decide};
use super::model::{Decision, GuestView, HostView, MachineView, Order};
use crate::daemon::testing::id;

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
/// How much a load can touch, a guest can reclaim and a host can fault back per second.
const TOUCH: u64 = 512 * MIB;
const RECLAIM: u64 = 256 * MIB;
const FAULT: u64 = 64 * MIB;
/// Memory that a guest's kernel uses.
const KERNEL: u64 = 32 * MIB;
/// Memory that the host's own programs use.
const HOST_PROGRAMS: u64 = 120 * MIB;
/// A guest that gets no memory for this many seconds kills a process.
const KILLS_AFTER: u32 = 10;

/// What a machine's processes use, over time.
#[derive(Clone, Debug)]
enum Load {
    /// A constant amount, in MiB.
    Steady(u64),
    /// A repeating shape: MiB for this many seconds each.
    Shape(&'static [u64], u64),
    /// Grows by this many MiB per second, and starts again when all memory is used.
    Leak(u64),
    /// A random amount up to the given one, changed after the given number of seconds.
    Chance(u64, u64, u64),
    /// Another load with up to 5 per cent of random noise.
    Noisy(Box<Load>, u64),
}

/// The shape of an editor with its language server: opened, indexing, then in use.
const EDITOR: Load = Load::Shape(&[60, 180, 420, 700, 650, 480, 500, 520, 470, 510, 490, 300], 30);
/// The shape of a parallel build that ends in a link, then nothing.
const COMPILE: Load = Load::Shape(&[90, 600, 1100, 1400, 1350, 1500, 1250, 1420, 1900, 2300, 400, 90, 90, 90], 15);
/// The shape of a test suite that starts and ends a process for each test.
const TESTS: Load = Load::Shape(&[200, 900, 1400, 250, 1000, 1500, 220], 6);
/// An unused machine.
const IDLE: Load = Load::Steady(70);

impl Load {
    fn at(&self, second: u64, promised: u64) -> u64 {
        let mib = match self {
            Load::Steady(mib) => *mib,
            Load::Shape(shape, each) => shape[(second / each) as usize % shape.len()],
            Load::Leak(pace) => 100 + pace * second % (promised / MIB),
            Load::Chance(seed, most, each) => chance(seed ^ (second / each)) % most.max(&1),
            Load::Noisy(load, seed) => {
                let mib = load.at(second, promised) / MIB;
                mib - mib / 20 + chance(seed ^ second) % (mib / 10 + 1)
            }
        };
        (mib * MIB).min(promised - 2 * KERNEL)
    }
}

/// A pseudorandom number (splitmix64).
fn chance(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How a guest behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Behavior {
    /// Does as it is asked.
    Honest,
    /// Reports this and does not shrink.
    Liar(GuestView),
    /// Its agent and its driver have stopped; its load still runs.
    Hung,
}

#[derive(Clone, Debug)]
struct Machine {
    view: MachineView,
    load: Load,
    behavior: Behavior,
    active: u64,
    cold: u64,
    squeeze: Option<u64>,
    short: bool,
    short_for: u32,
    /// How often its orders changed, plus its notices.
    changes: u32,
}

impl Machine {
    fn new(number: u32, promised: u64, guaranteed: u64, load: Load) -> Self {
        let (promised, guaranteed, boot) = (promised * MIB, guaranteed * MIB, 256 * MIB);
        let view = MachineView { promised, guaranteed, weight: 100, boot, ..MachineView::new(id(number)) };
        let view = MachineView { limit: boot, plugged: boot, ..view };
        let (active, cold, squeeze, short, short_for, changes) = (0, 0, None, false, 0, 0);
        Self { view, load, behavior: Behavior::Honest, active, cold, squeeze, short, short_for, changes }
    }

    fn held(&self) -> u64 {
        self.active + self.cold
    }

    /// Simulates one second. Returns how much faulted back.
    fn run(&mut self, second: u64) -> u64 {
        if self.view.paused {
            self.view.cpus = 0.0;
            return 0;
        }
        let wanted = self.load.at(second, self.view.promised);
        self.view.cpus = if wanted > 100 * MIB { 0.5 } else { 0.001 };
        self.plug();
        self.touch(wanted);
        self.reclaim();
        let faulted = self.view.swapped.saturating_sub(self.cold).min(FAULT);
        self.view.swapped -= faulted;
        self.settle();
        faulted
    }

    /// The driver follows the limit; it shrinks only as far as memory is not in use.
    fn plug(&mut self) {
        if self.behavior != Behavior::Hung {
            self.view.plugged = self.view.limit.max((self.active + KERNEL).min(self.view.plugged));
        }
        self.cold = self.cold.min(self.view.plugged - KERNEL - self.active);
    }

    fn touch(&mut self, wanted: u64) {
        let there = self.view.plugged - KERNEL;
        let reached = wanted.min(self.active + TOUCH).min(there);
        self.short_for = if reached == there && wanted > there { self.short_for + 1 } else { 0 };
        self.cold = (self.cold + self.active.saturating_sub(reached) / 2).min(there - reached);
        self.active = reached;
        self.short = self.view.plugged - KERNEL - reached < (self.view.plugged / 8).min(128 * MIB);
    }

    /// The agent reclaims cold memory, slowly by itself and quickly when squeezed.
    fn reclaim(&mut self) {
        if self.behavior == Behavior::Honest {
            let above = self.squeeze.map_or(0, |target| self.held().saturating_sub(target).min(RECLAIM));
            self.cold = self.cold.saturating_sub(above.max(self.cold / 100));
        }
    }

    fn settle(&mut self) {
        self.view.swapped = self.view.swapped.min(self.held());
        self.view.resident = self.held() - self.view.swapped;
        let available = self.view.plugged - KERNEL - self.active;
        let honest = GuestView {
            free: available - self.cold,
            available,
            cold: self.cold,
            short: self.short,
            ..GuestView::default()
        };
        self.view.guest = match self.behavior {
            _ if self.view.paused => None,
            Behavior::Honest => Some(honest),
            Behavior::Liar(word) => Some(word),
            Behavior::Hung => None,
        };
    }

    /// The host swaps out this much, if the machine has it.
    fn swap_out(&mut self, bytes: u64) {
        self.view.swapped += bytes.min(self.view.resident);
        self.settle();
    }
}

struct Simulation {
    host: HostView,
    machines: Vec<Machine>,
    history: History,
    second: u64,
    psi: bool,
}

impl Simulation {
    /// A host of `total` MiB, with as much swap as admission would require.
    fn new(total: u64, machines: Vec<Machine>) -> Self {
        let promised: u64 = machines.iter().map(|machine| machine.view.promised).sum();
        let swap = promised.saturating_sub(total * MIB) + 512 * MIB;
        let reserve = (total / 20).max(256) * MIB;
        let host = HostView { total: total * MIB, swap_total: swap, reserve, ..HostView::default() };
        Self { host, machines, history: History::default(), second: 0, psi: true }
    }

    fn run(&mut self, seconds: u64) -> Vec<Decision> {
        (0..seconds).map(|_| self.step()).collect()
    }

    fn step(&mut self) -> Decision {
        let faulted: u64 = self.machines.iter_mut().map(|machine| machine.run(self.second)).sum();
        self.second += 1;
        self.kernel_swaps();
        self.measure(faulted);
        let views: Vec<MachineView> = self.machines.iter().map(|machine| machine.view).collect();
        let decision = decide(&mut self.history, &self.host, &views, SECOND);
        self.check(&views, &decision);
        decision.orders.iter().for_each(|order| self.apply(order));
        for notice in &decision.notices {
            self.machine(notice.id).changes += 1;
        }
        decision
    }

    /// How often something has changed for the machines.
    fn changes(&self) -> u32 {
        self.machines.iter().map(|machine| machine.changes).sum()
    }

    fn machine(&mut self, id: MachineId) -> &mut Machine {
        self.machines.iter_mut().find(|machine| machine.view.id == id).unwrap()
    }

    fn resident(&self) -> u64 {
        self.machines.iter().map(|machine| machine.view.resident).sum()
    }

    fn swap_free(&self) -> u64 {
        let used: u64 = self.machines.iter().map(|machine| machine.view.swapped).sum();
        self.host.swap_total.saturating_sub(used)
    }

    /// The kernel's own reclaim when no memory is left: from all machines in proportion. There must be free swap.
    fn kernel_swaps(&mut self) {
        let most = self.host.total - HOST_PROGRAMS - self.host.total / 50;
        let (resident, swap_free) = (self.resident(), self.swap_free());
        let above = resident.saturating_sub(most);
        assert!(above <= swap_free, "second {}: the host's OOM killer would fire", self.second);
        for machine in &mut self.machines {
            machine
                .swap_out((u128::from(above) * u128::from(machine.view.resident) / u128::from(resident.max(1))) as u64);
        }
    }

    fn measure(&mut self, faulted: u64) {
        let low = self.host.total / 20;
        self.host.available = self.host.total.saturating_sub(HOST_PROGRAMS + self.resident());
        self.host.swap_free = self.swap_free();
        let stalls = 40.0 * (low.saturating_sub(self.host.available) as f64 / low as f64);
        let some = (stalls + 5.0 * (faulted / FAULT) as f64).min(100.0);
        let average = |old: Option<f64>, new: f64| Some(old.unwrap_or(0.0) * 0.9 + new * 0.1);
        if self.psi {
            self.host.pressure_some = average(self.host.pressure_some, some);
            self.host.pressure_full = average(self.host.pressure_full, some / 4.0);
        }
    }

    fn apply(&mut self, order: &Order) {
        match *order {
            Order::Limit { id, bytes } => {
                let machine = self.machine(id);
                machine.view.limit = bytes;
                machine.changes += 1;
            }
            Order::Squeeze { id, target } => {
                let machine = self.machine(id);
                machine.changes += u32::from(machine.squeeze != target);
                machine.squeeze = target;
            }
            Order::Swap { id, bytes } => self.machine(id).swap_out(bytes),
            Order::Pause { id } => self.machine(id).view.paused = true,
            Order::Resume { id } => self.machine(id).view.paused = false,
        }
    }

    /// Invariants that hold in every cycle.
    fn check(&self, views: &[MachineView], decision: &Decision) {
        let capacity = self.host.total - self.host.reserve;
        let guaranteed: u64 = views.iter().map(|view| view.guaranteed).sum();
        assert!(guaranteed <= capacity, "a load that admission refuses");
        assert!(decision.targets.values().sum::<u64>() <= capacity);
        let by_id: BTreeMap<MachineId, &MachineView> = views.iter().map(|view| (view.id, view)).collect();
        for (id, &target) in &decision.targets {
            let view = by_id[id];
            assert!(target >= view.guaranteed && target <= view.promised.max(view.guaranteed), "{view:?}: {target}");
        }
        let mut swapped = 0;
        for order in &decision.orders {
            match *order {
                Order::Limit { id, bytes } => assert!(bytes >= by_id[&id].boot && bytes <= by_id[&id].promised),
                Order::Squeeze { id, target } => {
                    assert!(target.is_none_or(|target| target >= by_id[&id].guaranteed));
                }
                Order::Swap { id, bytes } => {
                    let view = by_id[&id];
                    // Below a machine's guarantee, only memory that an idle machine does not touch is taken.
                    let untouched = !decision.squeezed.contains_key(&id) && view.cpus < 0.25 && !view.needed;
                    assert!(untouched || bytes + view.guaranteed <= view.resident);
                    swapped += bytes;
                }
                Order::Pause { id } => assert!(!by_id[&id].needed && !by_id[&id].paused),
                Order::Resume { .. } => {}
            }
        }
        assert!(swapped <= self.host.swap_free);
        let paused = decision.squeezed.values().filter(|&&means| means == Means::Paused).count();
        assert!(2 * paused <= views.len(), "{paused} of {} are paused", views.len());
        for machine in self.machines.iter().filter(|machine| machine.behavior == Behavior::Honest) {
            let (view, second) = (&machine.view, self.second);
            assert!(machine.short_for < KILLS_AFTER, "second {second}: a process of {view:?} is killed");
        }
    }
}

fn four_developers() -> Vec<Machine> {
    let loads = [EDITOR, COMPILE, TESTS, IDLE];
    (1000..).zip(loads).map(|(number, load)| Machine::new(number, 4096, 512, load)).collect()
}

/// Like [`four_developers`], with constant loads that want more memory than there is.
fn steady(loads: &[u64]) -> Vec<Machine> {
    (1000..).zip(loads).map(|(number, &mib)| Machine::new(number, 4096, 512, Load::Steady(mib))).collect()
}

#[test]
fn bursts_get_their_memory_within_a_second() {
    let mut simulation = Simulation::new(16_000, vec![Machine::new(1000, 8192, 512, Load::Shape(&[80, 6000], 100))]);
    simulation.run(100);
    let mut late = 0;
    for _ in 0..100 {
        simulation.step();
        late += u32::from(simulation.machines[0].short_for > 0);
    }
    assert!(late <= 1, "{late} s late");
}

#[test]
fn a_day_of_four_developers() {
    for psi in [true, false] {
        let mut simulation = Simulation::new(4000, four_developers());
        simulation.psi = psi;
        let decisions = simulation.run(3600);
        let pauses =
            decisions.iter().filter(|decision| decision.squeezed.values().any(|&means| means == Means::Paused));
        assert_eq!(pauses.count(), 0);
    }
}

#[test]
fn the_idle_are_squeezed_before_the_busy() {
    let mut machines = steady(&[70, 70]);
    machines[0].load = Load::Shape(&[3000, 3000, 3000, 80, 80, 80, 80, 80], 10);
    machines[1].load = Load::Shape(&[80, 80, 80, 80, 2300, 2300, 2300, 2300], 10);
    let mut simulation = Simulation::new(4000, machines);
    let decisions = simulation.run(60);
    let mut notices = decisions.iter().flat_map(|decision| &decision.notices);
    let first = notices.find(|notice| notice.means == Means::Guest).unwrap();
    assert_eq!(first.id, id(1000), "{first:?}");
    assert!(simulation.machines[1].view.resident >= 2300 * MIB);
}

#[test]
fn a_steady_load_ends_in_no_more_changes() {
    for loads in [[900, 700, 500, 70], [3000, 100, 100, 70], [70, 70, 70, 70], [1200, 1000, 700, 500]] {
        let mut simulation = Simulation::new(4000, steady(&loads));
        simulation.run(600);
        let before = simulation.changes();
        let targets = simulation.step().targets;
        assert_eq!(simulation.run(300).pop().unwrap().targets, targets, "{loads:?}");
        assert_eq!(simulation.changes(), before, "{loads:?}");
    }
}

/// The load always exceeds the host's memory: machines take turns, and change less and less often.
#[test]
fn too_great_a_load_takes_turns() {
    for loads in [[1600, 1600, 1600, 70], [2500, 2500, 2500, 2500], [3500, 1500, 300, 300]] {
        let mut simulation = Simulation::new(4000, steady(&loads));
        simulation.run(900);
        let before = simulation.changes();
        simulation.run(3600);
        let changes = simulation.changes() - before;
        assert!(changes <= 600, "{loads:?}: {changes} changes in an hour");
    }
}

#[test]
fn noise_changes_little() {
    for (loads, most) in [([600, 500, 400, 70], 10), ([1300, 1100, 600, 300], 120)] {
        let mut machines = steady(&loads);
        for (seed, machine) in (1000..).zip(&mut machines) {
            machine.load = Load::Noisy(Box::new(machine.load.clone()), seed);
        }
        let mut simulation = Simulation::new(4000, machines);
        simulation.run(300);
        let before = simulation.changes();
        simulation.run(3600);
        let changes = simulation.changes() - before;
        assert!(changes <= most, "{loads:?}: {changes} changes in an hour");
    }
}

#[test]
fn a_leak_takes_nothing_that_others_use() {
    let mut machines = four_developers();
    machines[3].load = Load::Leak(10);
    let mut simulation = Simulation::new(4000, machines);
    for _ in 0..1200 {
        let decision = simulation.step();
        for (id, &used) in &decision.working_sets {
            let fair = used.min((simulation.host.total - simulation.host.reserve) / 8);
            assert!(decision.targets[id] >= fair, "{id} has {} of {used}", decision.targets[id]);
        }
    }
}

/// A guest whose agent and driver have stopped still shrinks, by host swap. Other machines are not swapped for it.
#[test]
fn a_hung_guest_is_swapped_out() {
    let mut machines = steady(&[3000, 800, 700, 70]);
    machines[1].load = Load::Shape(&[80, 1500], 100);
    machines[2].load = Load::Shape(&[80, 700], 90);
    let mut simulation = Simulation::new(4000, machines);
    simulation.run(90);
    simulation.machine(id(1000)).behavior = Behavior::Hung;
    simulation.machine(id(1000)).load = IDLE;
    let decisions = simulation.run(100);
    let swapped = decisions.iter().flat_map(|decision| {
        decision.orders.iter().filter_map(|order| match order {
            Order::Swap { id, .. } if decision.squeezed.contains_key(id) => Some(*id),
            _ => None,
        })
    });
    let swapped: Vec<MachineId> = swapped.collect();
    assert!(!swapped.is_empty() && swapped.iter().all(|&swapped| swapped == id(1000)), "{swapped:?}");
    assert!(simulation.host.available > simulation.host.total / 10, "{:?}", simulation.host);
}

/// Whatever one guest reports and holds, other guests get their fair shares and the kernel kills no process.
#[test]
fn a_lying_guest_hurts_only_itself() {
    let (most, none) =
        (GuestView::default(), GuestView { free: u64::MAX, available: u64::MAX, ..GuestView::default() });
    let cold = GuestView { cold: u64::MAX, ..most };
    for word in [most, none, cold, GuestView { short: true, ..most }, GuestView { short: true, ..none }] {
        let mut machines = steady(&[3800, 800, 700, 70]);
        machines[0].behavior = Behavior::Liar(word);
        let mut simulation = Simulation::new(4000, machines);
        for _ in 0..600 {
            let decision = simulation.step();
            for id in (1001..1004).map(id) {
                let used = simulation.machine(id).active;
                assert!(decision.targets[&id] >= used, "{word:?}: {id} has {}", decision.targets[&id]);
            }
        }
        let swapped: u64 = (1001..1004).map(|number| simulation.machine(id(number)).view.swapped).sum();
        assert_eq!(swapped, 0, "{word:?}");
    }
}

#[test]
fn needed_machine_is_resumed_at_once() {
    let mut simulation = Simulation::new(4000, steady(&[2500, 2500, 2500, 2500]));
    let paused = (0..600).find_map(|_| {
        let squeezed = simulation.step().squeezed;
        squeezed.into_iter().find(|&(_, means)| means == Means::Paused)
    });
    let (id, _) = paused.expect("a paused machine");
    assert!(simulation.machine(id).view.paused);
    simulation.machine(id).view.needed = true;
    simulation.step();
    assert!(!simulation.machine(id).view.paused);
    simulation.run(600);
    assert!(!simulation.machine(id).view.paused);
}

/// No machine stays paused forever, and every machine gets to use its guarantee.
#[test]
fn no_machine_starves_under_too_great_a_load() {
    let mut simulation = Simulation::new(4000, steady(&[2500, 2500, 2500, 2500]));
    let mut ran = [0; 4];
    for _ in 0..3600 {
        simulation.step();
        for (ran, machine) in ran.iter_mut().zip(&simulation.machines) {
            *ran += u32::from(!machine.view.paused && machine.view.resident >= machine.view.guaranteed);
        }
    }
    assert!(ran.iter().all(|&seconds| seconds >= 600), "{ran:?}");
}

/// The runner is killed in the middle: its state is lost, its orders remain in effect.
#[test]
fn a_new_history_reaches_the_same_end() {
    for loads in [[900, 700, 500, 70], [3000, 100, 100, 70], [1200, 1000, 700, 500]] {
        for seconds in [2, 5, 20, 100] {
            let mut kept = Simulation::new(4000, steady(&loads));
            let mut restarted = Simulation::new(4000, steady(&loads));
            kept.run(seconds + 900);
            restarted.run(seconds);
            restarted.history = History::default();
            restarted.run(900);
            let (kept, restarted) = (kept.step(), restarted.step());
            assert_eq!((kept.targets, kept.squeezed), (restarted.targets, restarted.squeezed), "{loads:?} {seconds}");
        }
    }
}

#[test]
fn machine_paused_by_a_killed_runner_is_resumed() {
    let mut simulation = Simulation::new(4000, steady(&[70, 70]));
    simulation.run(10);
    simulation.machine(id(1001)).view.paused = true;
    simulation.history = History::default();
    simulation.run(20);
    assert!(!simulation.machine(id(1001)).view.paused);
}

fn any_load() -> impl Strategy<Value = Load> {
    prop_oneof![
        Just(EDITOR),
        Just(COMPILE),
        Just(TESTS),
        Just(IDLE),
        (1..40u64).prop_map(Load::Leak),
        (any::<u64>(), 100..4000u64, 1..120u64).prop_map(|(seed, most, each)| Load::Chance(seed, most, each)),
        any::<u64>().prop_map(|seed| Load::Noisy(Box::new(EDITOR), seed)),
    ]
}

fn any_behavior() -> impl Strategy<Value = Behavior> {
    let words = (prop::array::uniform3(any::<u64>()), any::<bool>());
    let word = words.prop_map(|([free, available, cold], short)| GuestView {
        free,
        available,
        cold,
        short,
        ..GuestView::default()
    });
    prop_oneof![20 => Just(Behavior::Honest), 1 => Just(Behavior::Hung), 1 => word.prop_map(Behavior::Liar)]
}

fn any_machine() -> impl Strategy<Value = Machine> {
    let sizes = (1..=16u64, 1..=8u64, 1..=10_000u32, any::<bool>());
    (sizes, any_load(), any_behavior()).prop_map(|((promised, guaranteed, weight, needed), load, behavior)| {
        let promised = 256 + promised * 512;
        let mut machine = Machine::new(0, promised, (guaranteed * 128).max(256).min(promised), load);
        (machine.view.weight, machine.view.needed, machine.behavior) = (weight, needed, behavior);
        machine
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// All invariants of [`Simulation::check`], with hundreds of machines that were promised two to six times the
    /// host's memory.
    #[test]
    fn guarantees_hold_whatever_comes(
        mut machines in prop::collection::vec(any_machine(), 1..300), overcommit in 2..=6u64, psi: bool,
    ) {
        (0..).zip(&mut machines).for_each(|(number, machine)| machine.view.id = id(number));
        let sum = |size: fn(&Machine) -> u64| machines.iter().map(size).sum::<u64>() / MIB;
        let (promised, guaranteed) = (sum(|machine| machine.view.promised), sum(|machine| machine.view.guaranteed));
        // The reserve is a twentieth, and the guarantees fit beside it.
        let total = (promised / overcommit).max(guaranteed * 20 / 19 + 600);
        let mut simulation = Simulation::new(total, machines);
        simulation.psi = psi;
        simulation.run(240);
    }
}
