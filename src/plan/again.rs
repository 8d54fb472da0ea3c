//! Which values are computed again on the way back in place of being kept (Chen et al. 2016, "Training deep nets with sublinear
//! memory cost", arXiv 1604.06174).
//!
//! Only where what is kept is well above what training cannot do without ([`super::Plan::arena_bound`]): in transformers, whose
//! attention and activations keep as much again. The values that cost least for the memory that they free go first. What is
//! computed again has the bits that it had.

use super::builder::{Builder, Event, Layout};

/// A plan that needs no more than this many times its bound is small enough.
pub(super) const ENOUGH: f64 = 1.27;

/// The most multiply-adds of a step that may be computed again, as a share of those without.
const COST: f64 = 0.15;

/// The largest values that are looked at: a plan has to be made in a moment.
const CANDIDATES: usize = 512;

/// A value that is written counts as that many multiply-adds.
const VALUE_COST: u64 = 4;

/// The layout with fewer values kept, where `whole` has more than `enough` at one time.
pub(super) fn choose(builder: &Builder, whole: &Layout, enough: f64) -> Option<Layout> {
    if whole.peak() as f64 <= enough {
        return None;
    }
    let program = builder.program;
    let budget = (COST * cost(builder, whole, |event| !matches!(event, Event::Again(_)))) as u64;
    let again = |layout: &Layout| cost(builder, layout, |event| matches!(event, Event::Again(_))) as u64;
    let mut dropped = vec![false; program.slots.len()];
    let mut kept: Vec<usize> = (0..dropped.len()).filter(|s| builder.kept[*s] && program.slots[*s] > 0).collect();
    kept.sort_by_key(|slot| std::cmp::Reverse(program.slots[*slot]));
    kept.truncate(CANDIDATES);
    // Each by itself: what it costs for a value less.
    let mut candidates: Vec<(f64, usize)> = Vec::new();
    for slot in kept {
        dropped[slot] = true;
        if let Some(layout) = builder.layout(&dropped) {
            candidates.push((again(&layout) as f64 / program.slots[slot] as f64, slot));
        }
        dropped[slot] = false;
    }
    candidates.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut best = None;
    let mut peak = whole.peak();
    for (_, slot) in candidates {
        dropped[slot] = true;
        match builder.layout(&dropped) {
            Some(layout) if layout.peak() < peak && again(&layout) <= budget => {
                peak = layout.peak();
                best = Some(layout);
            }
            _ => dropped[slot] = false,
        }
        if peak as f64 <= enough {
            break;
        }
    }
    best
}

/// Multiply-adds of those events; a step on the way back counts as it does on the way there.
fn cost(builder: &Builder, layout: &Layout, counts: impl Fn(&Event) -> bool) -> f64 {
    let one = |event: &Event| match event {
        Event::Forward(i) | Event::Again(i) | Event::Back(i) => {
            let step = builder.step(*i);
            step.multiply_adds + VALUE_COST * step.y.iter().map(|y| builder.program.slots[*y] as u64).sum::<u64>()
        }
        Event::Loss => 0,
    };
    layout.events.iter().filter(|event| counts(event)).map(one).sum::<u64>() as f64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::lora::{Adaptation, SiteStep, SiteWeights};
    use crate::ops::Operator;
    use crate::ops::binary::{Binary, BinaryKind};
    use crate::ops::conv::{Conv, ConvWeights};
    use crate::ops::conv_geometry::ConvGeometry;
    use crate::ops::matmul::MatMul;
    use crate::ops::norm::{Norm, NormKind};
    use crate::ops::softmax::Softmax;
    use crate::ops::unary::{Activation, Unary, UnaryKind};
    use crate::plan::program::{Program, SlotId, Step, StepKind};
    use crate::plan::{Arena, Plan};

    const ROWS: usize = 24;
    const WIDTH: usize = 16;

    /// A transformer with random weights, from its first slot on.
    struct Net {
        program: Program,
        weights: Vec<SiteWeights>,
        rng: fastrand::Rng,
    }

    impl Net {
        fn new() -> Self {
            let program = Program {
                slots: vec![ROWS * WIDTH],
                steps: Vec::new(),
                sites: Vec::new(),
                channels: Vec::new(),
                shared: Vec::new(),
                whole: Vec::new(),
                input: 0,
                output: 0,
            };
            Self { program, weights: Vec::new(), rng: fastrand::Rng::with_seed(3) }
        }

        fn random(&mut self, len: usize) -> Vec<f32> {
            (0..len).map(|_| self.rng.f32() - 0.5).collect()
        }

        fn step(&mut self, kind: StepKind, x: &[SlotId], len: usize, multiply_adds: u64) -> SlotId {
            self.program.slots.push(len);
            let y = self.program.slots.len() - 1;
            let (node, op_type) = (format!("n{y}"), String::new());
            self.program.steps.push(Step { node, op_type, kind, x: x.to_vec(), y: vec![y], multiply_adds });
            y
        }

        fn op(&mut self, op: impl Operator + 'static, x: &[SlotId], multiply_adds: u64) -> SlotId {
            let len = op.output_len();
            self.step(StepKind::Op(Arc::new(op)), x, len, multiply_adds)
        }

        fn dense(&mut self, x: SlotId, inputs: usize, outputs: usize) -> SlotId {
            let geometry = ConvGeometry::dense(ROWS, inputs, outputs);
            let rows = self.random(inputs * outputs);
            let weights = Arc::new(ConvWeights::new(&geometry, &rows, self.random(outputs)));
            let multiply_adds = geometry.multiply_adds();
            let conv = Conv::new(geometry, Activation::None);
            let site = SiteStep::new(conv, false, weights, 1.0, Adaptation::LowRank { rank: 2, scale: 2.0 });
            let mut prepared = site.weights();
            site.prepare(&self.random(site.parameters()), &mut prepared, true);
            self.weights.push(prepared);
            self.program.sites.push(site);
            self.step(StepKind::Site(self.weights.len() - 1), &[x], ROWS * outputs, multiply_adds)
        }

        fn add_and_norm(&mut self, a: SlotId, b: SlotId) -> SlotId {
            let shape = [ROWS, WIDTH];
            let sum = self.op(Binary::new(BinaryKind::Add, &shape, &shape), &[a, b], 0);
            self.op(Norm::new(NormKind::Standard { epsilon: 1e-5 }, &shape, &[1]), &[sum], 0)
        }

        fn layer(&mut self, x: SlotId) -> SlotId {
            let [q, k, v] = [0; 3].map(|_| self.dense(x, WIDTH, WIDTH));
            let product = (ROWS * ROWS * WIDTH) as u64;
            let scores = self.op(MatMul::new(&[ROWS, WIDTH], &[WIDTH, ROWS]), &[q, k], product);
            let shares = self.op(Softmax::new(ROWS, ROWS, 1, false), &[scores], 0);
            let seen = self.op(MatMul::new(&[ROWS, ROWS], &[ROWS, WIDTH]), &[shares, v], product);
            let y = self.dense(seen, WIDTH, WIDTH);
            let x = self.add_and_norm(x, y);
            let wide = self.dense(x, WIDTH, 4 * WIDTH);
            let gate = self.op(Unary::new(UnaryKind::Sigmoid, ROWS * 4 * WIDTH), &[wide], 0);
            let shape = [ROWS, 4 * WIDTH];
            let open = self.op(Binary::new(BinaryKind::Mul, &shape, &shape), &[wide, gate], 0);
            let y = self.dense(open, 4 * WIDTH, WIDTH);
            self.add_and_norm(x, y)
        }

        /// Output and sums of the gradients.
        fn run(&self, plan: &Plan) -> (Vec<f32>, Vec<f32>) {
            // What nobody has written yet is no number.
            let mut arena = Arena::new(plan.arena_len());
            arena.fill(f32::NAN);
            let input: Vec<f32> = (0..ROWS * WIDTH).map(|i| (i * 7 % 13) as f32 / 6.5 - 1.0).collect();
            plan.forward(&self.weights, &mut arena, &input).unwrap();
            let output = plan.output(&arena, 0).to_vec();
            let (_, dy) = plan.seed(&mut arena);
            dy.iter_mut().enumerate().for_each(|(i, dy)| *dy = (i * 5 % 11) as f32 / 5.5 - 1.0);
            let mut sums = vec![0.0; plan.accumulators_len()];
            plan.backward(&self.weights, &mut arena, &mut sums);
            (output, sums)
        }
    }

    #[test]
    fn what_is_computed_again_has_its_bits() {
        let mut net = Net::new();
        for _ in 0..3 {
            net.program.output = net.layer(net.program.output);
        }
        let plan = |enough: f64| {
            let to = [net.program.output];
            Builder::new(&net.program, &[0], &to, true).within(enough).unwrap()
        };
        let whole = plan(f64::MAX);
        let expected = net.run(&whole);
        assert!(expected.1.iter().all(|v| v.is_finite()) && expected.1.iter().any(|v| *v != 0.0));
        let (mut least, mut most) = (whole.arena_len(), whole.backward_multiply_adds());
        for enough in [2.0, 1.6, 1.4, 0.0] {
            let less = plan(enough);
            assert_eq!(net.run(&less), expected, "{enough}");
            assert!(less.arena_len() <= least && less.backward_multiply_adds() >= most, "{enough}");
            assert_eq!(less.multiply_adds(), whole.multiply_adds());
            (least, most) = (less.arena_len(), less.backward_multiply_adds());
        }
        assert!(10 * least < 7 * whole.arena_len(), "{least} values of {}", whole.arena_len());
        let budget = (COST * (whole.multiply_adds() + whole.backward_multiply_adds()) as f64) as u64;
        assert!(most <= whole.backward_multiply_adds() + 2 * budget, "{most}");
    }
}
