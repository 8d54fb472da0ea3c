//! Whether clips sound like the owner's earlier ones: by the features alone, for sound need not be kept.
//!
//! Of each clip the mean and the deviation over time of every coefficient; of these the mean difference between two sets,
//! word by word, over words that both have, in units of the deviation within a set and word. What is left is voice,
//! microphone and room. A set that is as far from the earlier clips as other people's are is not the owner's.

use serde::{Deserialize, Serialize};

use crate::train::Examples;

/// Clips a set has at least.
const LEAST_CLIPS: usize = 5;
/// Words that all sets have at least. Five clips of one word by jackson (FSDD), recorded on two days, are up to 1.1 of the
/// distance of others apart; of ten words, .7.
const LEAST_WORDS: usize = 3;

/// How far the fresh clips are from the owner's earlier ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Likeness {
    /// Distance from the fresh to the earlier clips, in deviations within a word.
    pub fresh: f32,
    /// Distance from the clips of others to the earlier clips.
    pub others: f32,
}

impl Likeness {
    /// Of fresh clips, measured by the distance of others; none where the features have no time, or a set too few clips of
    /// words that all sets have.
    pub(super) fn of(owner: &Examples, earlier: usize, others: &Examples) -> Option<Self> {
        let mut wide = owner.input_shape().iter().copied().filter(|d| *d > 1);
        let frames = wide.next().filter(|_| wide.next().is_some())?;
        let all = |examples: &Examples, from: usize, to: usize| -> Vec<(usize, Vec<f32>)> {
            (from..to).map(|i| (examples.target(i), summary(examples.input(i, 0), frames))).collect()
        };
        let sets = [all(owner, 0, earlier), all(owner, earlier, owner.len()), all(others, 0, others.len())];
        let has = |set: &[(usize, Vec<f32>)], label: usize| set.iter().any(|(l, _)| *l == label);
        let mut labels: Vec<usize> = owner.targets().to_vec();
        labels.sort_unstable();
        labels.dedup();
        labels.retain(|label| sets.iter().all(|set| has(set, *label)));
        let sets = sets.map(|set| set.into_iter().filter(|(l, _)| labels.contains(l)).collect::<Vec<_>>());
        if labels.len() < LEAST_WORDS || sets.iter().any(|set| set.len() < LEAST_CLIPS) {
            return None;
        }
        let width = sets[0][0].1.len();
        let means = sets.each_ref().map(|set| labels.iter().map(|l| mean(set, *l, width)).collect::<Vec<_>>());
        let mut squares = vec![0.0; width];
        let mut free = 0.0;
        for (set, means) in sets.iter().zip(&means).take(2) {
            for (label, values) in set {
                let at = labels.iter().position(|l| l == label)?;
                squares.iter_mut().zip(values).zip(&means[at]).for_each(|((s, v), m)| *s += (v - m) * (v - m));
            }
            free += set.len() as f32 - labels.len() as f32;
        }
        // A word said once tells nothing of the deviation within it.
        if free < LEAST_CLIPS as f32 {
            return None;
        }
        let distance = |set: &[Vec<f32>]| {
            let coefficient = |j: usize| {
                let gap = set.iter().zip(&means[0]).map(|(a, b)| a[j] - b[j]).sum::<f32>() / labels.len() as f32;
                gap * gap / (squares[j] / free).max(f32::MIN_POSITIVE)
            };
            ((0..width).map(coefficient).sum::<f32>() / width as f32).sqrt()
        };
        Some(Self { fresh: distance(&means[1]), others: distance(&means[2]) })
    }

    /// The distance of the fresh clips as a share of that of others.
    pub fn ratio(&self) -> f32 {
        self.fresh / self.others.max(f32::MIN_POSITIVE)
    }
}

/// Mean and deviation over time of each coefficient of `[frames, coefficients]`.
fn summary(input: &[f32], frames: usize) -> Vec<f32> {
    let width = input.len() / frames;
    let over = |f: &dyn Fn(usize, f32) -> f32| -> Vec<f32> {
        let column = |j: usize| input.iter().skip(j).step_by(width).map(|v| f(j, *v)).sum::<f32>() / frames as f32;
        (0..width).map(column).collect()
    };
    let mut means = over(&|_, v| v);
    let deviations = over(&|j, v| (v - means[j]) * (v - means[j]));
    means.extend(deviations.into_iter().map(f32::sqrt));
    means
}

/// Mean of the clips of a label.
fn mean(set: &[(usize, Vec<f32>)], label: usize, width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    let mut count = 0.0;
    for (_, values) in set.iter().filter(|(l, _)| *l == label) {
        sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
        count += 1.0;
    }
    sum.iter().map(|s| s / count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clips of four words, `[6 frames, 2]`, of a voice that is `offset` away.
    fn voice(out: &mut Examples, count: usize, offset: f32, rng: &mut fastrand::Rng) {
        for i in 0..count {
            let word = i % 4;
            let clip: Vec<f32> = (0..12).map(|v| offset + word as f32 * (v % 3) as f32 + rng.f32() - 0.5).collect();
            out.push(&clip, word).unwrap();
        }
    }

    #[test]
    fn another_voice_is_as_far_as_others_are() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut others = Examples::with_shape(&[1, 6, 2], 1);
        voice(&mut others, 20, 3.0, &mut rng);
        for (offset, low, high) in [(0.0, 0.0, 0.3), (3.0, 0.8, 1.2)] {
            let mut owner = Examples::with_shape(&[1, 6, 2], 1);
            voice(&mut owner, 12, 0.0, &mut rng);
            voice(&mut owner, 12, offset, &mut rng);
            let ratio = Likeness::of(&owner, 12, &others).unwrap().ratio();
            assert!((low..high).contains(&ratio), "{offset}: {ratio}");
            assert_eq!(Likeness::of(&owner, 2, &others), None, "too few");
        }
        assert_eq!(Likeness::of(&Examples::new(4, 1), 0, &Examples::new(4, 1)), None, "no time");
    }
}
