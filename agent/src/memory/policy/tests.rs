use super::generations::{Generation, Pages};
use super::*;
use crate::memory::tuning::{MIB, PAUSE, PAUSE_SQUEEZED, SHARE, SHARE_IDLE, SHARE_SQUEEZED, STEP_MAX, STEP_PART};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A guest of 4 GiB, half of it in use, with one new generation every 30 s.
struct Guest {
    now: u64,
    /// CPUs in use.
    cpus: f64,
    busy: Duration,
    refaults: u64,
    stall: Duration,
    memory: Meminfo,
    lrus: Option<Vec<Lru>>,
    target: Option<u64>,
    policy: Policy,
}

fn lru(memcg: u32, path: &str, anon: u64, file: u64) -> Lru {
    let generation = |seq, age, pages| Generation { seq, age: seconds(age), pages };
    let old = Pages { anon, file };
    let young = Pages { anon: 1000, file: 1000 };
    let generations = vec![
        generation(4, 100, old),
        generation(5, 61, Pages::default()),
        generation(6, 60, young),
        generation(7, 5, young),
    ];
    Lru { memcg, path: path.into(), node: 0, generations }
}

impl Guest {
    fn new(lrus: Option<Vec<Lru>>) -> Self {
        let memory = Meminfo {
            total: 4096 * MIB,
            free: 2048 * MIB,
            available: 3000 * MIB,
            swap_total: 4096 * MIB,
            swap_free: 4096 * MIB,
            inactive_file: 640 * MIB,
            slab: 10 * MIB,
        };
        Self {
            now: 0,
            cpus: 0.5,
            busy: Duration::ZERO,
            refaults: 0,
            stall: Duration::ZERO,
            memory,
            lrus,
            target: None,
            policy: Policy::new(),
        }
    }

    fn after(&mut self, time: u64) -> Plan {
        self.now += time;
        self.busy += seconds(time).mul_f64(self.cpus);
        self.policy.plan(&Snapshot {
            now: seconds(self.now),
            memory: self.memory,
            counters: Counters {
                memory_stall: Some(self.stall),
                cpu_stall: Some(Duration::ZERO),
                busy: self.busy,
                refaults: self.refaults,
            },
            stall_avg10: Some(0.0),
            lrus: self.lrus.clone(),
            target: self.target,
        })
    }

    /// The guest two minutes later, with the measurements of that time.
    fn settled(mut self) -> Self {
        for _ in 0..24 {
            self.after(5);
        }
        self
    }
}

/// The evictions of a plan, one command each.
fn commands(plan: &Plan) -> Vec<String> {
    plan.evict.iter().map(|eviction| eviction.command(eviction.pages)).collect()
}

#[test]
fn the_coldest_first_and_only_page_cache_of_the_protected() {
    let lrus =
        vec![lru(1, "/", 0, 500), lru(7, "/c", 2000, 900), lru(9, "/garret/exec", 9999, 700), lru(8, "/d", 9, 9)];
    let mut guest = Guest::new(Some(lrus));
    // Pressure is not known yet, and file pages are not known for a minute.
    assert_eq!(commands(&guest.after(0)), [""; 0]);
    assert_eq!(commands(&guest.after(5)), ["- 7 0 5 200 2000"]);
    let mut guest = guest.settled();
    guest.policy = Policy::new();
    let mut plans: Vec<_> = (0..13).map(|_| guest.after(5)).collect();
    assert_eq!(
        commands(&plans.pop().unwrap()),
        ["- 7 0 5 0 900", "- 7 0 5 200 2000", "- 9 0 5 0 700", "- 1 0 5 0 500"]
    );
    assert_eq!(plans[1].cold, 2009 * PAGE);
}

#[test]
fn files_that_come_after_a_taking_are_young() {
    let mut guest = Guest::new(Some(vec![lru(7, "/c", 0, 1000)]));
    let mut round = || {
        let plan = guest.after(5);
        guest.policy.cold_pages.note_taken(&plan.evict, u64::MAX);
        plan.asked / PAGE
    };
    let taken: Vec<_> = (0..40).map(|_| round()).collect();
    // There are always a thousand pages: in this test's kernel, as many pages arrive as were taken.
    assert_eq!(taken[..12], [0; 12]);
    assert_eq!(taken[12..26], [1000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1000]);
}

#[test]
fn a_step_is_bounded_and_swap_is_not_filled() {
    let mut guest = Guest::new(Some(vec![lru(7, "/c", 1 << 20, 0)]));
    guest.after(0);
    let plan = guest.after(5);
    assert_eq!(plan.asked, 4096 * MIB / STEP_PART / PAGE * PAGE);
    assert_eq!(plan.pause, PAUSE_MORE);
    guest.memory.swap_free = 266 * MIB;
    assert_eq!(guest.after(5).asked, 10 * MIB);
    guest.memory.swap_free = 0;
    assert_eq!(guest.after(5).asked, 0);
}

#[test]
fn refaults_and_stalls_make_it_wait_longer_each_time() {
    let mut guest = Guest::new(Some(vec![lru(7, "/c", 1 << 20, 0)]));
    guest.after(0);
    let mut waits = Vec::new();
    for round in 0..4 {
        let mut waited = 0;
        match round % 2 {
            0 => guest.refaults += 1000,
            _ => guest.stall += Duration::from_millis(100),
        }
        while guest.after(5).asked == 0 {
            waited += 5;
        }
        waits.push(waited);
    }
    assert_eq!(waits, [10, 20, 40, 80]);
}

#[test]
fn an_idle_guest_ages_faster_and_drops_names_after_a_while() {
    let mut young = lru(7, "/c", 5000, 0);
    for (generation, age) in young.generations.iter_mut().zip([60, 45, 30, 15]) {
        generation.age = seconds(age);
    }
    let mut guest = Guest::new(Some(vec![young]));
    guest.after(0);
    let plan = guest.after(5);
    assert_eq!((plan.cold, plan.age.len(), plan.extra_work_allowed), (0, 0, false));
    guest.cpus = 0.01;
    let plan = guest.after(5);
    assert_eq!((plan.cold, plan.extra_work_allowed), (5000 * PAGE, true));
    assert_eq!(plan.age, ["+ 7 0 7 1 1"]);
    guest.memory.slab = 100 * MIB;
    let drops: Vec<_> = (0..100).filter(|_| guest.after(10).drop_slab).collect();
    assert_eq!(drops, [5], "once, a minute after it became idle, and not again for what is left");
    guest.memory.slab = 200 * MIB;
    assert!(guest.after(10).drop_slab);
}

#[test]
fn expensive_aging_becomes_rare() {
    let mut old = lru(7, "/c", 5000, 0);
    old.generations[3].age = seconds(40);
    let mut guest = Guest::new(Some(vec![old, lru(8, "/d", 0, 0)]));
    let plan = guest.after(0);
    assert_eq!(plan.age, ["+ 7 0 7 1 1"]);
    let cost = Duration::from_millis(110);
    guest.policy.done(seconds(0), &plan, &Outcome { aging: cost, all: cost, ..Outcome::default() });
    assert_eq!(guest.after(5).age, [""; 0]);
}

#[test]
fn no_aging_while_tasks_wait_for_a_cpu() {
    let mut old = lru(7, "/c", 5000, 0);
    old.generations[3].age = seconds(40);
    let mut guest = Guest::new(Some(vec![old]));
    guest.after(5);
    let mut snapshot =
        Snapshot { now: seconds(10), memory: guest.memory, lrus: guest.lrus.clone(), ..Snapshot::default() };
    snapshot.counters.cpu_stall = Some(seconds(4));
    assert_eq!(guest.policy.plan(&snapshot).age, [""; 0]);
}

#[test]
fn a_squeeze_takes_what_is_cold_and_then_the_coldest() {
    let mut guest = Guest::new(Some(vec![lru(7, "/c", 0, 5120)]));
    for _ in 0..13 {
        guest.policy.backoff.resisted(seconds(guest.now));
        guest.after(5);
    }
    guest.target = Some(2000 * MIB);
    let plan = guest.after(0);
    assert_eq!(commands(&plan), ["- 7 0 5 0 5120"]);
    assert_eq!(plan.reclaim, Some(Reclaim { bytes: 12 * MIB, anon: true }));
    assert_eq!((plan.asked, plan.squeezed, plan.extra_work_allowed), (STEP_SQUEEZED, true, true));
    guest.policy.cold_pages.note_taken(&plan.evict, u64::MAX);
    guest.memory.free = 2096 * MIB;
    let plan = guest.after(5);
    assert_eq!((plan.asked, plan.squeezed), (0, false));
    // Far above the target: one step per round.
    guest.target = Some(64 * MIB);
    assert_eq!(guest.after(5).asked, STEP_SQUEEZED);
    guest.target = Some(10_000 * MIB);
    assert_eq!(guest.after(5).asked, 0);
}

#[test]
fn a_squeeze_that_yields_nothing_is_tried_ever_more_seldom() {
    let mut guest = Guest::new(Some(vec![lru(7, "/c", 0, 0)]));
    guest.target = Some(64 * MIB);
    let mut tries = Vec::new();
    for second in 0..100 {
        let plan = guest.after(1);
        if plan.asked > 0 {
            tries.push(second);
        }
        let outcome = Outcome { asked: plan.asked, ..Outcome::default() };
        let pause = guest.policy.done(seconds(guest.now), &plan, &outcome);
        assert!(pause >= if plan.asked > 0 { PAUSE_SQUEEZED } else { PAUSE_MORE });
    }
    assert_eq!(tries, [0, 1, 3, 7, 15, 31, 63]);
    guest.target = Some(65 * MIB);
    assert!(guest.after(1).asked > 0, "a new target is tried at once");
}

#[test]
fn a_squeeze_spares_a_guest_that_is_stalled_already() {
    let mut guest = Guest::new(Some(vec![]));
    let mut snapshot =
        Snapshot { memory: guest.memory, stall_avg10: Some(12.0), target: Some(MIB), ..Snapshot::default() };
    assert_eq!(guest.policy.plan(&snapshot).asked, 0);
    snapshot.stall_avg10 = Some(9.0);
    assert_eq!(guest.policy.plan(&snapshot).asked, STEP_SQUEEZED);
}

#[test]
fn a_squeeze_backs_off_when_memory_comes_back() {
    let mut guest = Guest::new(Some(vec![]));
    let mut snapshot = Snapshot { memory: guest.memory, target: Some(64 * MIB), ..Snapshot::default() };
    let mut taken = Vec::new();
    for second in 0..100 {
        snapshot.now = seconds(second);
        if guest.policy.plan(&snapshot).asked > 0 {
            taken.push(second);
            snapshot.counters.refaults += 5000;
        }
    }
    assert_eq!(taken, [0, 1, 13, 35, 77]);
}

#[test]
fn work_without_time_is_done_in_the_next_round() {
    let mut guest = Guest::new(Some(vec![lru(7, "/c", 0, 900), lru(9, "/d", 0, 700)])).settled();
    let plan = guest.after(5);
    assert_eq!(commands(&plan), ["- 7 0 5 0 900", "- 9 0 5 0 700"]);
    let outcome = Outcome { asked: 800 * PAGE, reclaimed: 800 * PAGE, ..Outcome::default() };
    guest.policy.done(seconds(guest.now), &plan, &outcome);
    assert_eq!(commands(&guest.after(1)), ["- 9 0 5 0 700", "- 7 0 5 0 100"]);
    guest.policy.done(seconds(guest.now), &plan, &Outcome { asked: plan.asked, ..outcome });
    assert_eq!(commands(&guest.after(1)), [""; 0]);
}

#[test]
fn pages_of_removed_groups_are_reclaimed_as_files() {
    let mut guest = Guest::new(Some(vec![lru(0, "/libpod_parent/gone", 0, 3000)]));
    guest.after(0);
    let plan = guest.after(5);
    assert_eq!((plan.evict.len(), plan.reclaim), (0, Some(Reclaim { bytes: 4000 * PAGE, anon: false })));
}

#[test]
fn without_generations_a_little_is_taken_if_there_is_enough() {
    let guest = Guest::new(None);
    let mut policy = Policy::new();
    let mut snapshot = Snapshot { memory: guest.memory, ..Snapshot::default() };
    policy.plan(&snapshot);
    snapshot.now = seconds(5);
    let plan = policy.plan(&snapshot);
    assert_eq!((plan.cold, plan.reclaim), (0, Some(Reclaim { bytes: 10 * MIB, anon: false })));
    snapshot.now = seconds(10);
    snapshot.memory.available = 500 * MIB;
    assert_eq!(policy.plan(&snapshot).reclaim, None);
}

#[test]
fn the_loop_keeps_to_its_part_of_a_cpu() {
    let plan = |share| Plan { pause: PAUSE, share, ..Plan::default() };
    let cases = [(SHARE, 5, 2000), (SHARE, 100, 20_000), (SHARE_IDLE, 500, 10_000), (SHARE_SQUEEZED, 100, 2000)];
    for (share, cost, pause) in cases {
        let outcome = Outcome { all: Duration::from_millis(cost), ..Outcome::default() };
        let got = Policy::new().done(Duration::ZERO, &plan(share), &outcome);
        assert_eq!(got.as_millis(), pause, "{share} {cost}");
    }
}

fn any_lru() -> impl proptest::strategy::Strategy<Value = Lru> {
    use proptest::prelude::*;
    let generation = (0..200u64, 0..1u64 << 32, 0..1u64 << 32).prop_map(|(age, anon, file)| Generation {
        seq: age,
        age: seconds(age),
        pages: Pages { anon, file },
    });
    let generations = proptest::collection::vec(generation, 0..5);
    (0..3u32, generations).prop_map(|(memcg, generations)| Lru { memcg, path: "/x".into(), node: 0, generations })
}

proptest::proptest! {
    #[test]
    fn no_round_takes_more_than_a_step(
        lrus in proptest::collection::vec(proptest::collection::vec(any_lru(), 0..4), 1..20),
        targets in proptest::collection::vec(proptest::option::of(0..1u64 << 33), 20),
    ) {
        let mut guest = Guest::new(None);
        for (lrus, target) in lrus.into_iter().zip(targets) {
            guest.lrus = Some(lrus);
            guest.target = target;
            let plan = guest.after(30);
            assert!(plan.asked <= STEP_MAX);
            let pause = guest.policy.done(seconds(guest.now), &plan, &Outcome::default());
            assert!(pause >= PAUSE_SQUEEZED);
        }
    }
}
