//! Another sampling rate: a polyphase filter, the same as `scipy.signal.resample_poly` with its defaults.
//!
//! The taps are a sinc cut off at the lower of the two Nyquist rates under a Kaiser window (beta 5) of ten zero crossings a side:
//! `y[m] = Σ_k x[k] · h[m·down − k·up]`, with `h` symmetric about 0, so that nothing is delayed. The models of the keyword family were trained
//! on clips made by that function; a steeper filter would change the highest mel bands of 8 kHz recordings.

use super::{Audio, MAX_VALUES, RATES_HZ, SourceError};

/// Zero crossings of the sinc on each side.
const CROSSINGS: usize = 10;
/// Shape of the Kaiser window.
const KAISER_BETA: f64 = 5.0;
/// Independent sums of a dot product, which lets it run in SIMD registers with one order everywhere.
const LANES: usize = 8;

/// The clip at another rate: `round(samples · rate_hz / audio.rate_hz)` samples, without delay.
///
/// # Errors
/// A rate outside [`RATES_HZ`], or a result of more than [`MAX_VALUES`] samples.
pub fn resample(audio: &Audio, rate_hz: u32) -> Result<Audio, SourceError> {
    for rate_hz in [audio.rate_hz, rate_hz] {
        if !RATES_HZ.contains(&rate_hz) {
            return Err(SourceError::Rate { rate_hz });
        }
    }
    if audio.rate_hz == rate_hz {
        return Ok(audio.clone());
    }
    let samples = resample_by(&audio.samples, rate_hz as usize, audio.rate_hz as usize)
        .ok_or(SourceError::TooLong { samples: audio.samples.len(), from_hz: audio.rate_hz, to_hz: rate_hz })?;
    Ok(Audio { samples, rate_hz })
}

/// `round(len · up / down)` samples at `up / down` times the rate; `None` where that is more than [`MAX_VALUES`] or a factor is 0.
pub(crate) fn resample_by(samples: &[f32], up: usize, down: usize) -> Option<Vec<f32>> {
    let common = gcd(up, down);
    if up == 0 || down == 0 {
        return None;
    }
    let (up, down) = (up / common, down / common);
    let length = (samples.len() as u128 * up as u128 + down as u128 / 2) / down as u128;
    let length = usize::try_from(length).ok().filter(|&length| length <= MAX_VALUES)?;
    if up == down {
        return Some(samples.to_vec());
    }
    let taps = Taps::new(up, down);
    let mut resampled = Vec::with_capacity(length);
    // m·down = whole·up + phase, kept without multiplying.
    let (mut whole, mut phase) = (0usize, 0usize);
    for _ in 0..length {
        resampled.push(taps.at(samples, whole, phase));
        phase += down;
        whole += phase / up;
        phase %= up;
    }
    Some(resampled)
}

/// Most samples that [`Resampler::take`] turns at once.
const CHUNK: usize = 1024;

/// [`resample`] for sound as it comes: the same samples, bit for bit, each as soon as the filter has those that it reaches
/// for (ten of the slower rate). Nothing is allocated after it is made.
#[derive(Debug)]
pub struct Resampler {
    taps: Option<Taps>,
    up: usize,
    down: usize,
    /// What a later sample may still reach for.
    held: Vec<f32>,
    /// The next sample lies at `whole + phase / up` of `held`.
    whole: usize,
    phase: usize,
    output: Vec<f32>,
}

impl Resampler {
    /// From one rate to another.
    ///
    /// # Errors
    /// A rate outside [`RATES_HZ`].
    pub fn new(from_hz: u32, to_hz: u32) -> Result<Self, SourceError> {
        for rate_hz in [from_hz, to_hz] {
            if !RATES_HZ.contains(&rate_hz) {
                return Err(SourceError::Rate { rate_hz });
            }
        }
        let common = gcd(to_hz as usize, from_hz as usize);
        let (up, down) = (to_hz as usize / common, from_hz as usize / common);
        let taps = (up != down).then(|| Taps::new(up, down));
        let held = Vec::with_capacity(taps.as_ref().map_or(0, |taps| taps.width + CHUNK));
        let output = Vec::with_capacity(CHUNK * up / down + 2);
        Ok(Self { taps, up, down, held, whole: 0, phase: 0, output })
    }

    /// Takes samples from the front of `block` and puts what they become in the place of [`Resampler::output`]; false when
    /// the block is used up.
    pub fn take(&mut self, block: &mut &[f32]) -> bool {
        self.output.clear();
        let (taken, rest) = block.split_at(block.len().min(CHUNK));
        *block = rest;
        if taken.is_empty() {
            return false;
        }
        let Some(taps) = &self.taps else {
            self.output.extend_from_slice(taken);
            return true;
        };
        self.held.extend_from_slice(taken);
        while self.whole + taps.width - taps.before <= self.held.len() {
            self.output.push(taps.at(&self.held, self.whole, self.phase));
            self.phase += self.down;
            self.whole += self.phase / self.up;
            self.phase %= self.up;
        }
        let passed = self.whole.saturating_sub(taps.before).min(self.held.len());
        self.held.copy_within(passed.., 0);
        self.held.truncate(self.held.len() - passed);
        self.whole -= passed;
        true
    }

    /// What the last [`Resampler::take`] gave.
    pub fn output(&self) -> &[f32] {
        &self.output
    }

    /// Forgets what came so far: after a gap in the sound.
    pub fn reset(&mut self) {
        (self.whole, self.phase) = (0, 0);
        self.held.clear();
        self.output.clear();
    }
}

/// The filter, one row of taps a phase.
#[derive(Debug)]
struct Taps {
    /// `[phases, width]`.
    rows: Vec<f32>,
    width: usize,
    /// How many samples before the current one the row starts.
    before: usize,
}

impl Taps {
    fn new(up: usize, down: usize) -> Self {
        let slower = up.max(down);
        let half = CROSSINGS * slower;
        let cutoff = 1.0 / slower as f64;
        let scale = 1.0 / bessel_i0(KAISER_BETA);
        let prototype = |distance: usize| {
            let x = distance as f64 * cutoff * std::f64::consts::PI;
            let sinc = if distance == 0 { 1.0 } else { x.sin() / x };
            let inside = 1.0 - (distance as f64 / half as f64).powi(2);
            sinc * bessel_i0(KAISER_BETA * inside.max(0.0).sqrt()) * scale
        };
        let one_side: Vec<f64> = (0..=half).map(prototype).collect();
        let total = 2.0 * one_side.iter().sum::<f64>() - one_side[0];
        let gain = up as f64 / total;

        let before = half / up;
        let width = before + half.div_ceil(up) + 1;
        let mut rows = vec![0.0; up * width];
        for (phase, row) in rows.chunks_exact_mut(width).enumerate() {
            for (j, tap) in row.iter_mut().enumerate() {
                // The tap of sample `whole - before + j` lies at phase - (j - before)·up.
                let distance = (phase + before * up).abs_diff(j * up);
                if let Some(value) = one_side.get(distance) {
                    *tap = (value * gain) as f32;
                }
            }
        }
        Self { rows, width, before }
    }

    fn at(&self, samples: &[f32], whole: usize, phase: usize) -> f32 {
        let row = &self.rows[phase * self.width..(phase + 1) * self.width];
        let skip = self.before.saturating_sub(whole);
        let first = (whole + skip).saturating_sub(self.before);
        let Some(rest) = samples.get(first..) else {
            return 0.0;
        };
        let count = rest.len().min(self.width.saturating_sub(skip));
        dot(&rest[..count], &row[skip.min(self.width)..][..count])
    }
}

/// A dot product summed in [`LANES`] strands, then in their order.
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (x_blocks, y_blocks) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let tail: f32 = x_blocks.remainder().iter().zip(y_blocks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in x_blocks.zip(y_blocks) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum::<f32>() + tail
}

/// The modified Bessel function of order 0, by its power series.
fn bessel_i0(x: f64) -> f64 {
    let quarter = x * x / 4.0;
    let (mut term, mut sum, mut k) = (1.0, 1.0, 1.0);
    while term > sum * 1e-17 {
        term *= quarter / (k * k);
        sum += term;
        k += 1.0;
    }
    sum
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sine(rate_hz: u32, samples: usize, tone_hz: f64) -> Audio {
        let at = |n: usize| (0.5 * (2.0 * std::f64::consts::PI * tone_hz * n as f64 / f64::from(rate_hz)).sin()) as f32;
        Audio { samples: (0..samples).map(at).collect(), rate_hz }
    }

    /// Kaiser's ripple at beta 5 with ten crossings is below this share of full scale.
    const RIPPLE: f32 = 2e-3;

    #[test]
    fn a_sine_stays_the_sine_without_delay() {
        for (from, to) in [
            (8000, 16000),
            (44100, 16000),
            (48000, 16000),
            (22050, 16000),
            (16000, 48000),
            (11025, 16000),
            (192000, 16000),
        ] {
            let count = from as usize / 4 + 1;
            let out = resample(&sine(from, count, 440.0), to).unwrap();
            assert_eq!(out.samples.len(), (count as f64 * f64::from(to) / f64::from(from)).round() as usize);
            let want = sine(to, out.samples.len(), 440.0);
            // The ends lack neighbours; ten crossings of the slower rate.
            let edge = 12 * to.max(from) as usize / from as usize + 12;
            for n in edge..out.samples.len() - edge {
                assert!((out.samples[n] - want.samples[n]).abs() < RIPPLE, "{from} -> {to} at {n}");
            }
        }
    }

    #[test]
    fn a_tone_above_the_new_nyquist_is_gone() {
        let out = resample(&sine(48000, 12000, 12000.0), 16000).unwrap();
        assert!(out.samples[100..3900].iter().all(|v| v.abs() < RIPPLE));
    }

    #[test]
    fn equals_scipy_resample_poly() {
        // scipy.signal.resample_poly(x, up, down) of f32, scipy 1.17.1, which rounds the length up.
        let x = [1.0, -2.0, 3.0, 0.5, 0.0, 4.0, -1.0, 2.0];
        let scipy: [(usize, usize, &[f32]); 5] = [
            (
                2,
                1,
                &[
                    1.000517,
                    -0.9453023,
                    -2.001035,
                    -0.04411754,
                    3.001553,
                    3.330279,
                    0.5002587,
                    -1.634093,
                    0.0,
                    3.368823,
                    4.00207,
                    1.229656,
                    -1.000517,
                    -0.003169298,
                    2.001035,
                    1.805035,
                ],
            ),
            (1, 2, &[-0.03113426, 0.7325816, 1.425151, 1.238902]),
            (
                3,
                2,
                &[
                    1.000606, -1.562565, -0.9994569, 3.001819, 2.605081, -1.277204, 0.0, 4.041752, 2.332606, -1.000606,
                    0.7563467, 2.168086,
                ],
            ),
            (160, 441, &[0.05259982, 1.027731, 1.386438]),
            (
                441,
                160,
                &[
                    1.000675,
                    -0.3538793,
                    -1.73126,
                    -1.877727,
                    -0.3449842,
                    2.006577,
                    3.564827,
                    3.190358,
                    1.148896,
                    -1.010103,
                    -1.589854,
                    -0.05874377,
                    2.49138,
                    4.158509,
                    3.722603,
                    1.613862,
                    -0.4725198,
                    -1.007599,
                    0.1321367,
                    1.691389,
                    2.242543,
                    1.417184,
                    0.05971869,
                ],
            ),
        ];
        for (up, down, want) in scipy {
            let got = resample_by(&x, up, down).unwrap();
            assert!(got.len().abs_diff(want.len()) <= 1);
            for (g, w) in got.iter().zip(want) {
                assert!((g - w).abs() < 1e-5, "{up}/{down}: {got:?} is not {want:?}");
            }
        }
    }

    #[test]
    fn same_rate_empty_and_absurd() {
        let clip = sine(16000, 100, 100.0);
        assert_eq!(resample(&clip, 16000).unwrap(), clip);
        assert!(resample(&Audio { samples: vec![], rate_hz: 8000 }, 16000).unwrap().samples.is_empty());
        assert_eq!(resample(&Audio { samples: vec![0.5], rate_hz: 768_000 }, 1000).unwrap().samples.len(), 0);
        assert!(matches!(resample(&clip, 0), Err(SourceError::Rate { rate_hz: 0 })));
        assert!(matches!(resample(&Audio { samples: vec![], rate_hz: 999 }, 16000), Err(SourceError::Rate { .. })));
        assert!(matches!(
            resample(&Audio { samples: vec![0.0; 100_000], rate_hz: 1000 }, 768_000),
            Err(SourceError::TooLong { .. })
        ));
        assert!(resample_by(&[1.0], 0, 1).is_none() && resample_by(&[1.0], 1, 0).is_none());
    }

    #[test]
    fn blocks_of_any_size_give_the_bits_of_the_whole_clip() {
        let mut rng = fastrand::Rng::with_seed(3);
        let samples: Vec<f32> = (0..9000).map(|_| rng.f32() - 0.5).collect();
        for (from, to) in [
            (8000, 16000),
            (44100, 16000),
            (48000, 16000),
            (16000, 16000),
            (16000, 48000),
            (768_000, 1000),
            (16001, 16000),
        ] {
            let whole = resample(&Audio { samples: samples.clone(), rate_hz: from }, to).unwrap().samples;
            let mut resampler = Resampler::new(from, to).unwrap();
            let capacity = (resampler.held.capacity(), resampler.output.capacity());
            for longest in [1, 37, 9000] {
                resampler.reset();
                let (mut at, mut found) = (0, Vec::new());
                while at < samples.len() {
                    let end = samples.len().min(at + rng.usize(0..=longest));
                    let mut block = &samples[at..end];
                    while resampler.take(&mut block) {
                        found.extend_from_slice(resampler.output());
                    }
                    at = end;
                }
                let late = (20 * from.max(to)).div_ceil(from) as usize + 1;
                assert!(found.len() + late >= whole.len(), "{from} -> {to}: {} of {}", found.len(), whole.len());
                assert!(found[..] == whole[..found.len()], "{from} -> {to}, blocks up to {longest}");
            }
            assert_eq!(capacity, (resampler.held.capacity(), resampler.output.capacity()));
        }
        assert!(matches!(Resampler::new(16_000, 0), Err(SourceError::Rate { rate_hz: 0 })));
    }

    #[test]
    fn awkward_ratios_stay_in_bounds() {
        for (from, to) in [(1000, 16000), (15999, 16000), (16001, 16000), (7999, 11025)] {
            let out = resample(&sine(from, 333, 100.0), to).unwrap();
            assert!(out.samples.iter().all(|v| v.is_finite() && v.abs() < 1.0));
        }
    }
}
