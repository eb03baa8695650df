use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
/// Each of the two rounds may lose a byte to rounding.
const ROUNDING: u64 = 2;

fn claim(guaranteed: u64, promised: u64, wanted: u64, weight: u32) -> Claim {
    let [guaranteed, promised, wanted] = [guaranteed, promised, wanted].map(|mib| mib * MIB);
    Claim { guaranteed, promised, wanted, weight, held: wanted, used: wanted }
}

fn in_mib(room: u64, claims: &[Claim]) -> Vec<u64> {
    targets(room * MIB, claims).iter().map(|target| target / MIB).collect()
}

#[test]
fn demand_is_served_before_the_rest_is_shared() {
    let busy = claim(256, 4096, 2000, 100);
    let resting = claim(256, 4096, 300, 100);
    assert_eq!(in_mib(3000, &[busy, resting]), [2350, 650]);
    assert_eq!(in_mib(20_000, &[busy, resting]), [4096, 4096]);
    assert_eq!(in_mib(3000, &[busy]), [3000]);
    assert_eq!(in_mib(3000, &[]), [0; 0]);
    assert_eq!(in_mib(1512, &[claim(256, 4096, 256, 100), claim(256, 4096, 256, 300)]), [506, 1006]);
}

#[test]
fn memory_beyond_the_guarantees_is_shared_by_weight() {
    let (light, heavy) = (claim(256, 4096, 4096, 100), claim(256, 4096, 4096, 300));
    assert_eq!(in_mib(2512, &[light, heavy]), [756, 1756]);
}

#[test]
fn idle_memory_is_taxed() {
    let busy = claim(0, 4096, 4096, 100);
    let idle = Claim { used: 0, ..busy };
    assert_eq!(in_mib(1000, &[busy, idle]), [800, 200]);
    let half = Claim { used: 2048 * MIB, ..busy };
    assert_eq!(half.taxed(), 40_000);
}

#[test]
fn too_many_guarantees_are_cut_in_proportion() {
    assert_eq!(in_mib(1000, &[claim(1000, 4000, 0, 1), claim(3000, 4000, 4000, 10_000)]), [250, 750]);
    assert_eq!(in_mib(0, &[claim(0, 4000, 4000, 1)]), [0]);
}

fn any_claim() -> impl Strategy<Value = Claim> {
    (0..4096u64, 0..16_384u64, 0..20_000u64, 0..=10_000u32, 0..16_384u64, 0..=100u64).prop_map(
        |(guaranteed, promised, wanted, weight, held, used)| {
            let held = held * MIB;
            Claim { held, used: held / 100 * used, ..claim(guaranteed, promised, wanted, weight) }
        },
    )
}

proptest! {
    #[test]
    fn targets_keep_their_bounds(room in 0..2_000_000u64, claims in prop::collection::vec(any_claim(), 0..200)) {
        let room = room * MIB;
        let targets = targets(room, &claims);
        prop_assert!(targets.iter().sum::<u64>() <= room);
        let guaranteed: u64 = claims.iter().map(|claim| claim.guaranteed).sum();
        for (claim, &target) in claims.iter().zip(&targets) {
            prop_assert!(target <= claim.most());
            if guaranteed <= room {
                prop_assert!(target >= claim.guaranteed);
            } else {
                let fair = claim.guaranteed as u128 * u128::from(room) / u128::from(guaranteed);
                prop_assert!(u128::from(target).abs_diff(fair) <= 1);
            }
        }
    }

    #[test]
    fn no_memory_lies_idle_that_a_machine_may_have(
        spare in 0..2_000_000u64, claims in prop::collection::vec(any_claim(), 1..50),
    ) {
        let room = claims.iter().map(|claim| claim.guaranteed).sum::<u64>() + spare * MIB;
        let given: u64 = targets(room, &claims).iter().sum();
        let most = claims.iter().map(Claim::most).sum::<u64>().min(room);
        prop_assert!(given + ROUNDING * claims.len() as u64 >= most, "{given} of {most}");
    }

    #[test]
    fn no_machine_starves(spare in 64..10_000u64, claims in prop::collection::vec(any_claim(), 1..200)) {
        let room = claims.iter().map(|claim| claim.guaranteed).sum::<u64>() + spare * MIB;
        for (claim, target) in claims.iter().zip(targets(room, &claims)) {
            prop_assert!(claim.beyond() == 0 || target > claim.guaranteed, "{claim:?} has {target}");
        }
    }

    #[test]
    fn a_machine_below_its_wish_gets_the_fair_share(
        spare in 0..100_000u64, claims in prop::collection::vec(any_claim(), 1..50),
    ) {
        let room = claims.iter().map(|claim| claim.guaranteed).sum::<u64>() + spare * MIB;
        let weights: u128 = claims.iter().map(Claim::taxed).sum();
        for (claim, target) in claims.iter().zip(targets(room, &claims)) {
            let fair = part(spare * MIB, claim.taxed(), weights);
            prop_assert!(target - claim.guaranteed + ROUNDING * 50 >= claim.beyond().min(fair));
        }
    }

    #[test]
    fn a_liar_takes_no_more_than_by_the_greatest_claim(
        room in 0..400_000u64,
        mut claims in prop::collection::vec(any_claim(), 2..50),
        wanted in 0..20_000u64,
        used in 0..=100u64,
    ) {
        // The host measures `held`; `wanted` and `used` depend on the guest's report.
        claims[0].used = claims[0].held;
        claims[0].wanted = 20_000 * MIB;
        let honest = targets(room * MIB, &claims);
        claims[0].used = claims[0].held / 100 * used;
        claims[0].wanted = wanted * MIB;
        let lied = targets(room * MIB, &claims);
        for (honest, lied) in honest.iter().zip(&lied).skip(1) {
            prop_assert!(lied + ROUNDING * 50 >= *honest, "{lied} instead of {honest}");
        }
    }
}
