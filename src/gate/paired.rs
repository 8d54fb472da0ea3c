//! The same clips with two adapters.

use serde::{Deserialize, Serialize};

/// Pairs up to which all signs are tried; above, the sum is taken as normal.
const EXACT: usize = 12;

/// The same clips before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Clips.
    pub clips: usize,
    /// Found before.
    pub found_before: usize,
    /// Found after.
    pub found_after: usize,
    /// Found after only.
    pub won: usize,
    /// Found before only.
    pub lost: usize,
    /// Mean margin before: score of the label less the highest other score, -1 to 1.
    pub margin_before: f32,
    /// Mean margin after.
    pub margin_after: f32,
    /// Chance of such a gain in margin, or of a larger one, where neither is better.
    pub gain_chance: f32,
    /// Chance of so many clips lost among those that changed, or of more, where neither is better.
    pub loss_chance: f32,
}

impl Paired {
    /// Of margins, clip by clip. A margin above `enough` is as good as that: a sure word is not heard better for being surer.
    pub(super) fn of(before: &[f32], after: &[f32], enough: f32) -> Self {
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len().max(1) as f32;
        let count = |f: &dyn Fn(f32, f32) -> bool| before.iter().zip(after).filter(|(b, a)| f(**b, **a)).count();
        let (won, lost) = (count(&|b, a| b <= 0.0 && a > 0.0), count(&|b, a| b > 0.0 && a <= 0.0));
        let gains: Vec<f64> =
            before.iter().zip(after).map(|(b, a)| f64::from(a.min(enough)) - f64::from(b.min(enough))).collect();
        Self {
            clips: before.len(),
            found_before: count(&|b, _| b > 0.0),
            found_after: count(&|_, a| a > 0.0),
            won,
            lost,
            margin_before: mean(before),
            margin_after: mean(after),
            gain_chance: sign_flips(&gains) as f32,
            loss_chance: at_least(lost as u64, (won + lost) as u64) as f32,
        }
    }
}

/// Chance that the sum is as high where each sign is thrown by a coin: Fisher's permutation test for pairs.
fn sign_flips(gains: &[f64]) -> f64 {
    let sum: f64 = gains.iter().sum();
    if gains.iter().all(|g| *g == 0.0) {
        return 1.0;
    }
    if gains.len() <= EXACT {
        let all = 1u32 << gains.len();
        let of = |signs: u32| -> f64 {
            gains.iter().enumerate().map(|(i, g)| if signs >> i & 1 == 1 { g.abs() } else { -g.abs() }).sum()
        };
        // Sums that rounding alone sets apart are equal.
        let least = sum - 1e-9;
        return (0..all).filter(|signs| of(*signs) >= least).count() as f64 / f64::from(all);
    }
    let deviation = gains.iter().map(|g| g * g).sum::<f64>().sqrt();
    above(sum / deviation)
}

/// Chance of a normal value above `z`: Abramowitz and Stegun 26.2.17, error below 7.5e-8.
fn above(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z.abs());
    let series = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let sum = series.iter().rev().fold(0.0, |sum, c| (sum + c) * t);
    let tail = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum;
    if z >= 0.0 { tail } else { 1.0 - tail }
}

/// Chance of at least `k` of `n` coins.
fn at_least(k: u64, n: u64) -> f64 {
    if k == 0 { 1.0 } else { 1.0 - at_most(k - 1, n, 0.5) }
}

/// Chance of at most `k` of `n` events of chance `p` each.
pub(super) fn at_most(k: u64, n: u64, p: f64) -> f64 {
    if k >= n || p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    // Terms by their logarithms: (1 - p)ⁿ alone may be too small.
    let mut term = n as f64 * (1.0 - p).ln();
    let mut sum = term.exp();
    for i in 1..=k {
        term += ((n - i + 1) as f64 / i as f64).ln() + (p / (1.0 - p)).ln();
        sum += term.exp();
    }
    sum.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binomial_tails() {
        for (k, n, p) in [(0, 5, 0.3), (2, 5, 0.3), (4, 5, 0.3), (7, 20, 0.5)] {
            let choose = |k: u64| (1..=k).map(|i| (n - i + 1) as f64 / i as f64).product::<f64>();
            let exact: f64 =
                (0..=k).map(|i| choose(i) * f64::powi(p, i as i32) * f64::powi(1.0 - p, (n - i) as i32)).sum();
            assert!((at_most(k, n, p) - exact).abs() < 1e-12, "{k} of {n}");
        }
        assert!(at_most(300, 5000, 0.1) < 1e-12, "no underflow to a chance of 1");
    }

    #[test]
    fn gains_and_losses_by_chance() {
        let all_better = Paired::of(&[-0.5; 3], &[0.5; 3], 0.5);
        assert_eq!((all_better.won, all_better.lost, all_better.gain_chance), (3, 0, 0.125));
        assert_eq!(all_better.loss_chance, 1.0);
        let worse = Paired::of(&[0.5; 5], &[-0.5; 5], 0.5);
        assert_eq!((worse.lost, worse.gain_chance), (5, 1.0));
        assert!((worse.loss_chance - 1.0 / 32.0).abs() < 1e-6);
        // Surer than enough is nothing.
        assert_eq!(Paired::of(&[0.6; 4], &[0.9; 4], 0.5).gain_chance, 1.0);
        // The normal form agrees with the exact one where they meet.
        let gains: Vec<f64> = (0..12).map(|i| f64::from(i % 5) - 1.4).collect();
        let z = gains.iter().sum::<f64>() / gains.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!((sign_flips(&gains) - above(z)).abs() < 0.05, "{} {}", sign_flips(&gains), above(z));
        assert!((above(1.644_853_6) - 0.05).abs() < 1e-6 && (above(-1.644_853_6) - 0.95).abs() < 1e-6);
    }
}
