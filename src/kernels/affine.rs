//! f32 to and from one byte a value, with a lowest value and a step for some channels each: `x ≈ low + step·q`, q in 0..=255.
//!
//! Values lie `[positions, channels]`. The extremes of a group's values are met to a rounding and each value to half a step,
//! `(high - low)/510`; a group that never goes below 0 and reaches it (what comes out of Relu) has its zeros exact.

/// The largest magnitude that is encoded: twice of it, which 255 steps may come to, is below the largest f32.
pub const LARGEST: f32 = f32::MAX / 4.0;

/// The highest q.
const TOP: f32 = 255.0;

/// Which channels share a scale: runs of `shared`, the last one shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    channels: usize,
    shared: usize,
}

/// A scale serves at least so many values, where there are so many: its eight bytes are then no more than a quarter of theirs.
const LEAST: usize = 32;

impl Groups {
    /// A scale a channel for `len` values of `channels` channels, or for a few neighbours where each has few values.
    pub fn new(len: usize, channels: usize) -> Self {
        let channels = channels.max(1);
        let positions = (len / channels).max(1);
        Self { channels, shared: LEAST.div_ceil(positions).min(channels) }
    }

    /// Bytes of `len` values: lowest values, steps, one byte each.
    pub fn bytes(self, len: usize) -> usize {
        2 * self.scales() + len
    }

    /// Bytes of the lowest values, or of the steps.
    fn scales(self) -> usize {
        self.channels.div_ceil(self.shared) * size_of::<f32>()
    }

    /// Writes `x` into [`Groups::bytes`] bytes; no magnitude is above [`LARGEST`].
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn encode(self, x: &[f32], out: &mut [u8]) {
        let (low, rest) = out.split_at_mut(self.scales());
        let (step, q) = rest.split_at_mut(self.scales());
        for (group, (low_place, step_place)) in low.as_chunks_mut().0.iter_mut().zip(step.as_chunks_mut().0).enumerate()
        {
            let first = group * self.shared;
            let columns = first..(first + self.shared).min(self.channels);
            let values = x.chunks_exact(self.channels).flat_map(|row| &row[columns.clone()]);
            let (low, high) = values.fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
            let step = (high - low) / TOP;
            *low_place = low.to_le_bytes();
            *step_place = step.to_le_bytes();
            let inverse = if step > 0.0 { 1.0 / f64::from(step) } else { 0.0 };
            for (row, q) in x.chunks_exact(self.channels).zip(q.chunks_exact_mut(self.channels)) {
                for (x, q) in row[columns.clone()].iter().zip(&mut q[columns.clone()]) {
                    *q = ((f64::from(*x) - f64::from(low)) * inverse).round() as u8;
                }
            }
        }
    }

    /// Reads what [`Groups::encode`] wrote.
    ///
    /// # Panics
    /// If `bytes` is shorter.
    pub fn decode(self, bytes: &[u8], x: &mut [f32]) {
        let (low, rest) = bytes.split_at(self.scales());
        let (step, q) = rest.split_at(self.scales());
        let (low, step) = (low.as_chunks().0, step.as_chunks().0);
        for (row, q) in x.chunks_exact_mut(self.channels).zip(q.chunks_exact(self.channels)) {
            if self.shared == 1 {
                for (((x, q), low), step) in row.iter_mut().zip(q).zip(low).zip(step) {
                    *x = f32::from_le_bytes(*low) + f32::from_le_bytes(*step) * f32::from(*q);
                }
                continue;
            }
            let groups = row.chunks_mut(self.shared).zip(q.chunks(self.shared));
            for (((row, q), low), step) in groups.zip(low).zip(step) {
                let (low, step) = (f32::from_le_bytes(*low), f32::from_le_bytes(*step));
                row.iter_mut().zip(q).for_each(|(x, q)| *x = low + step * f32::from(*q));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the largest magnitude: low, step and their sum are rounded to 2⁻²⁴ each, step 255 times over.
    const ROUNDING: f64 = 4.0 * f32::EPSILON as f64;

    #[test]
    fn each_value_is_met_to_half_a_step() {
        let mut rng = fastrand::Rng::with_seed(3);
        for (positions, channels) in [(1, 1), (1, 64), (3, 50), (7, 5), (31, 2), (40, 33), (125, 64), (32, 1), (0, 4)] {
            let scale: Vec<f32> = (0..channels).map(|_| (rng.f32() * 12.0 - 6.0).exp2()).collect();
            let x: Vec<f32> = (0..positions * channels).map(|i| (rng.f32() - 0.3) * scale[i % channels]).collect();
            let groups = Groups::new(x.len(), channels);
            let mut bytes = vec![0; groups.bytes(x.len())];
            groups.encode(&x, &mut bytes);
            let mut y = vec![f32::NAN; x.len()];
            groups.decode(&bytes, &mut y);
            for (i, (x_i, y_i)) in x.iter().zip(&y).enumerate() {
                let group = i % channels / groups.shared;
                let same = (0..x.len()).filter(|j| j % channels / groups.shared == group).map(|j| f64::from(x[j]));
                let (low, high) = same.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
                let bound = (high - low) / 510.0 + ROUNDING * low.abs().max(high.abs());
                let error = (f64::from(*x_i) - f64::from(*y_i)).abs();
                assert!(error <= bound, "{positions}x{channels} at {i}: {error:e} of {bound:e}");
            }
        }
    }

    #[test]
    fn a_scale_serves_enough_values_or_one_channel() {
        assert_eq!(Groups::new(125 * 64, 64), Groups { channels: 64, shared: 1 });
        assert_eq!(Groups::new(64, 64), Groups { channels: 64, shared: LEAST });
        assert_eq!(Groups::new(10, 10), Groups { channels: 10, shared: 10 });
        assert_eq!(Groups::new(0, 0).bytes(0), 8);
        // 25x5 positions of 64 channels: 6% more than a byte a value.
        assert_eq!(Groups::new(125 * 64, 64).bytes(125 * 64), 8000 + 2 * 4 * 64);
    }

    #[test]
    fn constants_zeros_and_the_widest_range_come_back() {
        for x in [vec![0.0; 40], vec![-3.25; 40], [vec![0.0; 20], vec![7.0; 20]].concat()] {
            let groups = Groups::new(x.len(), 1);
            let (mut bytes, mut y) = (vec![0; groups.bytes(x.len())], vec![f32::NAN; x.len()]);
            groups.encode(&x, &mut bytes);
            groups.decode(&bytes, &mut y);
            assert_eq!(x[..20], y[..20]);
        }
        let x = [-LARGEST, LARGEST, 0.0];
        let groups = Groups::new(3, 1);
        let (mut bytes, mut y) = (vec![0; groups.bytes(3)], vec![f32::NAN; 3]);
        groups.encode(&x, &mut bytes);
        groups.decode(&bytes, &mut y);
        assert!(y.iter().all(|y| y.is_finite()), "{y:?}");
    }
}
