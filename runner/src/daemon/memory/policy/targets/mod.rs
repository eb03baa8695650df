//! Computes how much of the host's memory each machine should hold. Guarantees come first. Claims follow, by weight
//! with a tax on idle memory. The rest is distributed last.
//!
//! The tax is that of VMware ESX (Waldspurger, OSDI 2002): within a share, idle memory costs 1 / (1 - tax) times as
//! much as memory in use. At 75 per cent, a machine with only idle memory has a quarter of its weight.

use super::tuning::IDLE_COST;

/// An untaxed weight of 1; the tax needs fractions of it.
const UNIT: u128 = 1000;

/// The claim of one machine; sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// Memory that it can always have, whatever other machines do.
    pub guaranteed: u64,
    /// The most memory it can have.
    pub promised: u64,
    /// The memory it uses, plus headroom.
    pub wanted: u64,
    /// Its weight when memory beyond the guarantees is shared.
    pub weight: u32,
    /// The memory it holds.
    pub held: u64,
    /// The part of that memory that it uses.
    pub used: u64,
}

impl Claim {
    fn most(&self) -> u64 {
        self.promised.max(self.guaranteed)
    }

    /// How much it wants beyond its guarantee.
    fn beyond(&self) -> u64 {
        self.wanted.min(self.most()).saturating_sub(self.guaranteed)
    }

    /// The weight after the tax on memory that it holds and does not use.
    fn taxed(&self) -> u128 {
        let weight = u128::from(self.weight.max(1)) * UNIT;
        let (held, used) = (u128::from(self.held), u128::from(self.used.min(self.held)));
        match held {
            0 => weight,
            _ => (weight * held / (used + IDLE_COST * (held - used))).max(1),
        }
    }
}

/// The target of each claim, in the claims' order. The sum is at most `room`. Each target is between the guarantee and
/// the promise, unless the guarantees alone exceed `room` (the host has shrunk, or its reserve was raised). Then `room`
/// is divided in proportion to the guarantees.
pub(super) fn targets(room: u64, claims: &[Claim]) -> Vec<u64> {
    let guaranteed: u128 = claims.iter().map(|claim| u128::from(claim.guaranteed)).sum();
    let Some(spare) = u128::from(room).checked_sub(guaranteed) else {
        return claims.iter().map(|claim| part(room, claim.guaranteed.into(), guaranteed)).collect();
    };
    let asked: Vec<_> = claims.iter().map(|claim| (claim.beyond(), claim.taxed())).collect();
    let granted = fill(spare as u64, &asked);
    // A machine may hold idle memory as long as no other machine wants it.
    let left = spare as u64 - granted.iter().sum::<u64>();
    let rest = claims.iter().zip(&granted);
    let rest: Vec<_> =
        rest.map(|(claim, granted)| (claim.most() - claim.guaranteed - granted, claim.taxed())).collect();
    let spread = fill(left, &rest);
    claims.iter().zip(granted).zip(spread).map(|((claim, granted), more)| claim.guaranteed + granted + more).collect()
}

/// Weighted max-min fairness: each machine gets what it wants, or as much per unit of weight as every other machine
/// that gets less than it wants.
fn fill(mut amount: u64, wants: &[(u64, u128)]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..wants.len()).collect();
    // The smallest want per weight is served first; what it leaves goes to the others.
    order.sort_by(|&one, &other| {
        let ((one, one_weight), (other, other_weight)) = (wants[one], wants[other]);
        (u128::from(one) * other_weight).cmp(&(u128::from(other) * one_weight))
    });
    let mut weights: u128 = wants.iter().map(|(_, weight)| weight).sum();
    let mut gets = vec![0; wants.len()];
    for one in order {
        let (want, weight) = wants[one];
        gets[one] = want.min(part(amount, weight, weights));
        amount -= gets[one];
        weights -= weight;
    }
    gets
}

/// `amount` × `share` / `whole`, rounded down; 0 if `whole` is 0.
fn part(amount: u64, share: u128, whole: u128) -> u64 {
    match whole {
        0 => 0,
        _ => (u128::from(amount) * share / whole) as u64,
    }
}

#[cfg(test)]
mod tests;
