//! Losses on the logits of one clip, each with its gradient.

use std::sync::Arc;

/// A caller's own loss: `(logits, target, dlogits) -> loss`; `dlogits` comes zeroed and gets the gradient.
#[derive(Clone)]
pub struct CustomLoss(Arc<LossFunction>);

type LossFunction = dyn Fn(&[f32], usize, &mut [f32]) -> f32 + Send + Sync;

impl CustomLoss {
    /// From a closure.
    pub fn new(f: impl Fn(&[f32], usize, &mut [f32]) -> f32 + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }
}

impl std::fmt::Debug for CustomLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CustomLoss")
    }
}

/// What is minimised, as the mean over a batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Loss {
    /// `-Σ q·log softmax(z)`, q = (1 - ε)·onehot + ε/classes (Szegedy et al. 2015, arXiv 1512.00567, section 7).
    CrossEntropy {
        /// ε, label smoothing.
        smoothing: f32,
    },
    /// One score a clip: `-w·(t·log σ(z) + (1 - t)·log(1 - σ(z)))`, target 1 or 0.
    BinaryCrossEntropy {
        /// Weights of target 0 and target 1.
        weights: [f32; 2],
    },
    /// A caller's own.
    Custom(CustomLoss),
}

impl Loss {
    /// The loss for `scores` scores a clip.
    pub fn for_scores(scores: usize, smoothing: f32) -> Self {
        if scores == 1 { Loss::BinaryCrossEntropy { weights: [1.0; 2] } } else { Loss::CrossEntropy { smoothing } }
    }

    /// Loss of one clip; `dlogits` is overwritten with its gradient times `weight`.
    pub fn value(&self, logits: &[f32], target: usize, weight: f32, dlogits: &mut [f32]) -> f32 {
        match self {
            Loss::CrossEntropy { smoothing } => {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut sum = 0.0f64;
                for (d, z) in dlogits.iter_mut().zip(logits) {
                    let e = ((z - max) as f64).exp();
                    *d = e as f32;
                    sum += e;
                }
                let log_sum = sum.ln();
                let share = *smoothing as f64 / logits.len() as f64;
                let mut loss = 0.0;
                for (k, (d, z)) in dlogits.iter_mut().zip(logits).enumerate() {
                    let q = share + if k == target { 1.0 - *smoothing as f64 } else { 0.0 };
                    let log_p = (z - max) as f64 - log_sum;
                    loss -= q * log_p;
                    *d = ((log_p.exp() - q) * weight as f64) as f32;
                }
                loss as f32
            }
            Loss::BinaryCrossEntropy { weights } => {
                let (z, t) = (logits[0] as f64, target.min(1) as f64);
                let w = weights[target.min(1)] as f64;
                // log(1 + e^z) - t·z, written so that nothing overflows.
                let loss = w * (z.max(0.0) - z * t + (-z.abs()).exp().ln_1p());
                dlogits[0] = ((1.0 / (1.0 + (-z).exp()) - t) * w * weight as f64) as f32;
                loss as f32
            }
            Loss::Custom(f) => {
                dlogits.fill(0.0);
                let loss = f.0(logits, target, dlogits);
                dlogits.iter_mut().for_each(|d| *d *= weight);
                loss
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// f32 in and out, f64 between: a few roundings of 2⁻²⁴.
    const RELATIVE: f64 = 1e-6;

    fn check(loss: &Loss, logits: &[f32], target: usize, oracle: &dyn Fn(&[f64]) -> f64) {
        let mut gradient = vec![0.0; logits.len()];
        let value = loss.value(logits, target, 0.5, &mut gradient);
        let z: Vec<f64> = logits.iter().map(|v| *v as f64).collect();
        assert!((value as f64 - oracle(&z)).abs() <= RELATIVE * oracle(&z).abs().max(1.0));
        for k in 0..z.len() {
            let step = |by: f64| {
                let mut moved = z.clone();
                moved[k] += by;
                oracle(&moved)
            };
            let central = (step(1e-5) - step(-1e-5)) / 2e-5 * 0.5;
            assert!((gradient[k] as f64 - central).abs() <= RELATIVE, "{} {central}", gradient[k]);
        }
    }

    #[test]
    fn losses_agree_with_their_formulas() {
        let logits = [0.3, -1.5, 2.0, 8.0];
        for smoothing in [0.0, 0.1] {
            check(&Loss::CrossEntropy { smoothing }, &logits, 1, &|z| {
                let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
                let smooth = smoothing as f64;
                z.iter()
                    .enumerate()
                    .map(|(k, z)| -(smooth / 4.0 + if k == 1 { 1.0 - smooth } else { 0.0 }) * (z - log_sum))
                    .sum()
            });
        }
        for (z, target) in [(0.4, 1), (-3.0, 1), (2.0, 0)] {
            check(&Loss::BinaryCrossEntropy { weights: [1.0, 3.0] }, &[z], target, &|z| {
                let p = 1.0 / (1.0 + (-z[0]).exp());
                if target == 1 { -3.0 * p.ln() } else { -(1.0 - p).ln() }
            });
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let mut d = [0.0; 2];
        let loss = Loss::CrossEntropy { smoothing: 0.0 }.value(&[1e4, -1e4], 1, 1.0, &mut d);
        assert!(loss.is_finite() && d.iter().all(|d| d.is_finite()));
        let mut d = [0.0];
        assert!(Loss::BinaryCrossEntropy { weights: [1.0; 2] }.value(&[-200.0], 1, 1.0, &mut d).is_finite());
        assert_eq!(d[0], -1.0);
    }
}
