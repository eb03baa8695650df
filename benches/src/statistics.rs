//! Medians and their confidence intervals by bootstrap. The generator's seed is fixed, so the same samples always give
//! the same interval. Pure.

/// Resamples of a bootstrap, enough that 50 of them lie beyond each end of a 95 % interval.
const RESAMPLES: usize = 2000;
const SEED: u64 = 0x6761_7272_6574;
/// The share of resamples that lies outside a 95 % interval, on each side.
const TAIL: f64 = 0.025;

/// An estimate with its 95 % confidence interval. The interval is all values if the spread of the samples is unknown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// Whether there were enough samples for an interval.
    pub(crate) fn is_bounded(self) -> bool {
        self.high.is_finite()
    }

    /// Formats the interval with this many digits.
    pub(crate) fn interval(self, digits: usize) -> String {
        if self.is_bounded() {
            format!("[{:.digits$}, {:.digits$}]", self.low, self.high)
        } else {
            "(one sample)".to_owned()
        }
    }

    /// The reciprocal: an estimate of `b / a` from one of `a / b`.
    pub(crate) fn inverse(self) -> Self {
        Self { value: 1.0 / self.value, low: 1.0 / self.high, high: 1.0 / self.low }
    }
}

/// The median of the samples, or the mean of the two in the middle.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The median and its interval. A single sample has no interval, because its spread is unknown.
pub(crate) fn of_median(samples: &[f64]) -> Option<Estimate> {
    let value = median(samples)?;
    let mut random = fastrand::Rng::with_seed(SEED);
    let spread = (samples.len() > 1).then(|| spread(|| resampled_median(samples, &mut random)));
    let (low, high) = spread?;
    Some(Estimate { value, low, high })
}

/// The median of `above` divided by the median of `below`, with its interval; `None` if `below` is zero.
pub(crate) fn of_ratio(above: &[f64], below: &[f64]) -> Option<Estimate> {
    let value = median(above)? / median(below)?;
    if !value.is_finite() || value <= 0.0 {
        return None;
    }
    if above.len().min(below.len()) == 1 {
        return Some(Estimate { value, low: 0.0, high: f64::INFINITY });
    }
    let mut random = fastrand::Rng::with_seed(SEED);
    let (low, high) = spread(|| resampled_median(above, &mut random) / resampled_median(below, &mut random));
    (low.is_finite() && high.is_finite() && low > 0.0).then_some(Estimate { value, low, high })
}

/// The interval without the tails of what `draw` returns.
fn spread(draw: impl FnMut() -> f64) -> (f64, f64) {
    let mut drawn: Vec<f64> = std::iter::repeat_with(draw).take(RESAMPLES).collect();
    drawn.sort_by(f64::total_cmp);
    let tail = (RESAMPLES as f64 * TAIL) as usize;
    (drawn[tail], drawn[RESAMPLES - 1 - tail])
}

fn resampled_median(samples: &[f64], random: &mut fastrand::Rng) -> f64 {
    let drawn: Vec<f64> = samples.iter().map(|_| samples[random.usize(..samples.len())]).collect();
    median(&drawn).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_two() {
        for (samples, expected) in [
            (&[][..], None),
            (&[3.0], Some(3.0)),
            (&[4.0, 1.0], Some(2.5)),
            (&[9.0, 1.0, 5.0], Some(5.0)),
            (&[1.0, 100.0, 2.0, 3.0], Some(2.5)),
        ] {
            assert_eq!(median(samples), expected, "{samples:?}");
        }
    }

    #[test]
    fn too_little_has_no_interval() {
        assert_eq!(of_median(&[]), None);
        assert_eq!(of_median(&[1.0]), None);
        assert_eq!(of_ratio(&[1.0], &[0.0]), None);
        assert_eq!(of_ratio(&[], &[1.0]), None);
        let alone = of_ratio(&[1.0, 2.0], &[3.0]).unwrap();
        assert!(!alone.is_bounded() && !alone.inverse().is_bounded() && alone.value == 0.5);
        assert_eq!(alone.interval(2), "(one sample)");
        assert_eq!(of_ratio(&[6.0; 2], &[2.0; 2]).unwrap().interval(2), "[3.00, 3.00]");
    }

    #[test]
    fn equal_samples_are_certain() {
        assert_eq!(of_median(&[7.0; 5]), Some(Estimate { value: 7.0, low: 7.0, high: 7.0 }));
        assert_eq!(of_ratio(&[6.0; 3], &[2.0; 4]), Some(Estimate { value: 3.0, low: 3.0, high: 3.0 }));
    }

    proptest! {
        #[test]
        fn the_median_is_within_its_interval_and_the_samples(samples in vec(0.1f64..1e9, 2..30)) {
            let estimate = of_median(&samples).unwrap();
            let (least, most) = samples.iter().fold((f64::MAX, f64::MIN), |(a, b), s| (a.min(*s), b.max(*s)));
            prop_assert!(least <= estimate.low && estimate.high <= most);
            prop_assert!(estimate.low <= estimate.value && estimate.value <= estimate.high);
        }

        #[test]
        fn the_same_samples_give_the_same_interval(samples in vec(0.1f64..1e9, 2..30)) {
            prop_assert_eq!(of_median(&samples), of_median(&samples));
        }

        #[test]
        fn a_ratio_scales(above in vec(0.1f64..1e6, 2..20), below in vec(0.1f64..1e6, 2..20)) {
            let once = of_ratio(&above, &below).unwrap();
            let doubled: Vec<f64> = above.iter().map(|sample| sample * 2.0).collect();
            let twice = of_ratio(&doubled, &below).unwrap();
            for (one, two) in [(once.value, twice.value), (once.low, twice.low), (once.high, twice.high)] {
                prop_assert!((two / one - 2.0).abs() < 1e-9);
            }
            prop_assert!(once.inverse().low <= once.inverse().value && once.inverse().value <= once.inverse().high);
        }
    }
}
