//! The order of a run's rounds. Pure.

use std::ops::RangeInclusive;

/// One bench, as the plan needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its name.
    pub bench: &'static str,
    /// The subjects, each with its number of samples so far.
    pub subjects: Vec<(String, usize)>,
    /// How many samples of each are kept.
    pub kept: usize,
    /// Whether a round whose samples are dropped comes first.
    pub warms_up: bool,
}

/// One round of one bench: every subject once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub bench: &'static str,
    /// The subjects in the order they run. The order rotates by one in each round, so that no subject always follows
    /// the same one.
    pub subjects: Vec<String>,
    /// Whether the samples are dropped.
    pub warm_up: bool,
    /// Whether this is the bench's last round.
    pub last: bool,
    /// The round's number, from 0.
    pub round: usize,
}

/// All rounds: first one sample of each bench (after its warm-up), then a second of each, and so on. If time runs out,
/// repetitions are missing instead of whole benches.
pub(crate) fn steps(wanted: &[Wanted]) -> Vec<Step> {
    let most = wanted.iter().map(|wanted| wanted.kept).max().unwrap_or(0);
    (0..most)
        .flat_map(|sample| wanted.iter().filter(move |wanted| sample < wanted.kept).map(move |wanted| (sample, wanted)))
        .flat_map(|(sample, wanted)| rounds(wanted, sample).map(move |round| step(wanted, round)))
        .filter(|step| !step.subjects.is_empty())
        .collect()
}

/// The rounds that yield one sample. The first includes the warm-up.
fn rounds(wanted: &Wanted, sample: usize) -> RangeInclusive<usize> {
    let round = sample + usize::from(wanted.warms_up);
    if sample == 0 { 0..=round } else { round..=round }
}

fn step(wanted: &Wanted, round: usize) -> Step {
    let warm_ups = usize::from(wanted.warms_up);
    Step {
        bench: wanted.bench,
        subjects: turned(&missing(wanted, round), round),
        warm_up: round < warm_ups,
        last: round + 1 == wanted.kept + warm_ups,
        round,
    }
}

/// The subjects whose sample of this round is missing. A subject without all samples warms up again.
fn missing(wanted: &Wanted, round: usize) -> Vec<String> {
    let warm_ups = usize::from(wanted.warms_up);
    let is_there = |there: usize| if round < warm_ups { there >= wanted.kept } else { there > round - warm_ups };
    wanted.subjects.iter().filter(|(_, there)| !is_there(*there)).map(|(name, _)| name.clone()).collect()
}

fn turned(subjects: &[String], by: usize) -> Vec<String> {
    let mut turned = subjects.to_vec();
    turned.rotate_left(by % subjects.len().max(1));
    turned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wanted(bench: &'static str, subjects: &[&str], kept: usize, warms_up: bool) -> Wanted {
        Wanted { bench, subjects: subjects.iter().map(|name| (name.to_string(), 0)).collect(), kept, warms_up }
    }

    #[test]
    fn existing_samples_are_not_taken_again() {
        let there = |a, b| Wanted { subjects: vec![("a".into(), a), ("b".into(), b)], ..wanted("boot", &[], 2, true) };
        let told = |wanted: Wanted| {
            let told = steps(&[wanted]).into_iter().map(|step| (step.subjects.concat(), step.warm_up, step.last));
            told.collect::<Vec<_>>()
        };
        assert_eq!(told(there(2, 2)), []);
        assert_eq!(
            told(there(2, 0)),
            [("b".into(), true, false), ("b".into(), false, false), ("b".into(), false, true)]
        );
        assert_eq!(told(there(1, 0))[1..], [("b".into(), false, false), ("ab".to_string(), false, true)]);
    }

    #[test]
    fn rounds_interleave_and_the_first_is_dropped() {
        let steps = steps(&[wanted("boot", &["a", "b"], 2, true), wanted("idle", &["a", "b"], 1, false)]);
        let told: Vec<_> =
            steps.iter().map(|step| (step.bench, step.subjects.concat(), step.warm_up, step.last)).collect();
        assert_eq!(
            told,
            [
                ("boot", "ab".into(), true, false),
                ("boot", "ba".into(), false, false),
                ("idle", "ab".into(), false, true),
                ("boot", "ab".to_string(), false, true),
            ]
        );
    }

    #[test]
    fn no_subject_is_an_empty_plan() {
        assert_eq!(steps(&[]), []);
        assert_eq!(steps(&[wanted("boot", &[], 3, true)]), []);
    }

    proptest! {
        #[test]
        fn every_subject_gets_its_samples(kept in 1usize..9, warms_up: bool, count in 1usize..5) {
            let names = ["a", "b", "c", "d"];
            let steps = steps(&[wanted("x", &names[..count], kept, warms_up)]);
            prop_assert_eq!(steps.iter().filter(|step| !step.warm_up).count(), kept);
            prop_assert_eq!(steps.iter().filter(|step| step.last).count(), 1);
            for step in &steps {
                let mut sorted = step.subjects.clone();
                sorted.sort();
                prop_assert_eq!(sorted, names[..count].to_vec());
            }
        }
    }
}
