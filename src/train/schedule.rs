//! Learning rate over the steps of a run.

/// How the rate moves, as a factor of its peak.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Schedule {
    /// Always the peak.
    Constant,
    /// Up in a line over `warmup` of the steps, down in half a cosine to zero.
    Cosine {
        /// Share of the steps.
        warmup: f32,
    },
    /// Half a cosine up from 1/25 over `warmup` of the steps, half a cosine down to 1/250,000 (Smith and Topin 2017, arXiv
    /// 1708.07120, with PyTorch's constants).
    OneCycle {
        /// Share of the steps.
        warmup: f32,
    },
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule::OneCycle { warmup: 0.3 }
    }
}

impl Schedule {
    /// Factor for `step` (from 0) of `steps`.
    pub fn factor(self, step: usize, steps: usize) -> f32 {
        let at = step as f32 / steps.saturating_sub(1).max(1) as f32;
        let cosine =
            |from: f32, to: f32, share: f32| to + (from - to) * (1.0 + (std::f32::consts::PI * share).cos()) / 2.0;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine { warmup } if at < warmup => (step + 1) as f32 / (warmup * steps as f32).max(1.0),
            Schedule::Cosine { warmup } => cosine(1.0, 0.0, (at - warmup) / (1.0 - warmup).max(f32::EPSILON)),
            Schedule::OneCycle { warmup } if at < warmup => cosine(0.04, 1.0, at / warmup),
            Schedule::OneCycle { warmup } => cosine(1.0, 4e-6, (at - warmup) / (1.0 - warmup).max(f32::EPSILON)),
        }
        .min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_peak_and_ends_near_zero() {
        for schedule in [Schedule::Cosine { warmup: 0.1 }, Schedule::OneCycle { warmup: 0.3 }] {
            for steps in [1, 2, 7, 100] {
                let factors: Vec<f32> = (0..steps).map(|s| schedule.factor(s, steps)).collect();
                assert!(factors.iter().all(|f| (0.0..=1.0).contains(f)), "{schedule:?} {factors:?}");
            }
            let factors: Vec<f32> = (0..101).map(|s| schedule.factor(s, 101)).collect();
            assert!(factors.iter().any(|f| *f > 0.999) && factors[100] < 1e-3);
        }
    }
}
