//! AdamW and SGD with momentum over one flat vector of parameters.

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum OptimiserKind {
    /// Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2, as PyTorch has it.
    AdamW {
        /// Decay of the first moment.
        beta1: f32,
        /// Decay of the second moment.
        beta2: f32,
        /// Added to the root of the second moment.
        epsilon: f32,
        /// Decoupled weight decay.
        weight_decay: f32,
    },
    /// `v = momentum·v + g; p -= rate·v`, as PyTorch has it, without dampening.
    Sgd {
        /// Momentum.
        momentum: f32,
        /// L2 penalty, added to the gradient.
        weight_decay: f32,
    },
}

impl Default for OptimiserKind {
    fn default() -> Self {
        OptimiserKind::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
    }
}

/// An optimiser with its moments.
#[derive(Clone, Debug)]
pub struct Optimiser {
    kind: OptimiserKind,
    first: Vec<f32>,
    second: Vec<f32>,
    steps: u32,
}

impl Optimiser {
    /// For `len` parameters.
    pub fn new(kind: OptimiserKind, len: usize) -> Self {
        let second = if matches!(kind, OptimiserKind::AdamW { .. }) { len } else { 0 };
        Self { kind, first: vec![0.0; len], second: vec![0.0; second], steps: 0 }
    }

    /// One step with `rate`.
    pub fn step(&mut self, rate: f32, params: &mut [f32], gradient: &[f32]) {
        self.steps += 1;
        match self.kind {
            OptimiserKind::AdamW { beta1, beta2, epsilon, weight_decay } => {
                let correct = |beta: f32| 1.0 - (beta as f64).powi(self.steps as i32);
                let size = (rate as f64 / correct(beta1)) as f32;
                let root = correct(beta2).sqrt() as f32;
                let keep = 1.0 - rate * weight_decay;
                let moments = self.first.iter_mut().zip(&mut self.second);
                for ((p, g), (m, v)) in params.iter_mut().zip(gradient).zip(moments) {
                    *m = beta1 * *m + (1.0 - beta1) * g;
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                    *p = *p * keep - size * *m / (v.sqrt() / root + epsilon);
                }
            }
            OptimiserKind::Sgd { momentum, weight_decay } => {
                for ((p, g), v) in params.iter_mut().zip(gradient).zip(&mut self.first) {
                    *v = momentum * *v + g + weight_decay * *p;
                    *p -= rate * *v;
                }
            }
        }
    }

    /// Forgets moments and steps.
    pub fn reset(&mut self) {
        self.first.fill(0.0);
        self.second.fill(0.0);
        self.steps = 0;
    }

    /// Moments and steps.
    pub(super) fn state(&self) -> (&[f32], &[f32], u32) {
        (&self.first, &self.second, self.steps)
    }

    /// Takes back what [`Optimiser::state`] gave; says whether it fits.
    pub(super) fn set_state(&mut self, first: &[f32], second: &[f32], steps: u32) -> bool {
        if (first.len(), second.len()) != (self.first.len(), self.second.len()) {
            return false;
        }
        self.first.copy_from_slice(first);
        self.second.copy_from_slice(second);
        self.steps = steps;
        true
    }
}
