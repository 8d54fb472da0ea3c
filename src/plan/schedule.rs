//! A part of a program with every buffer at a fixed place in one arena.

use std::ops::Range;
use std::sync::Arc;

use super::builder::Builder;
use super::program::{PlanError, Program, SlotId};
use crate::graph::Foreign;
use crate::lora::{SharedLayer, SiteStep, SiteWeights};
use crate::ops::{Held, MAX_INPUTS, MAX_WEIGHTS, Operator, WeightGradients, Weighted, Weights};

/// A place in the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    pub(super) offset: usize,
    pub(super) len: usize,
}

impl Region {
    /// As a range of the arena.
    pub fn range(self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Op(Arc<dyn Operator>),
    Site(usize, Box<SiteStep>),
    Shared(usize, Arc<SharedLayer>),
    Weighted(Arc<dyn Weighted>, [Option<usize>; MAX_WEIGHTS]),
    Foreign(Arc<dyn Foreign>),
}

#[derive(Clone, Debug)]
pub(super) struct Forward {
    pub(super) node: String,
    pub(super) kind: Kind,
    pub(super) x: Vec<Region>,
    pub(super) y: Vec<Region>,
    pub(super) saved: Region,
    pub(super) work: Region,
}

#[derive(Clone, Debug)]
pub(super) struct Backward {
    pub(super) step: usize,
    pub(super) x: [Region; MAX_INPUTS],
    pub(super) y: Region,
    pub(super) dy: Region,
    pub(super) dx: [Option<Region>; MAX_INPUTS],
    /// Gradients that get their first term here.
    pub(super) clear: [bool; MAX_INPUTS],
    pub(super) work: Region,
}

/// A step of the way back.
#[derive(Clone, Debug)]
pub(super) enum Return {
    /// Computes a value again that was not kept.
    Again(Forward),
    Back(Backward),
}

/// Steps from some slots to others, placed in one arena.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) forward: Vec<Forward>,
    pub(super) backward: Vec<Return>,
    pub(super) inputs: Vec<Region>,
    pub(super) outputs: Vec<Region>,
    pub(super) seed: Region,
    pub(super) arena_len: usize,
    pub(super) accumulators: Vec<Range<usize>>,
    pub(super) saved_len: usize,
    pub(super) arena_bound: usize,
    pub(super) multiply_adds: u64,
    pub(super) backward_multiply_adds: u64,
}

impl Plan {
    /// Plans the steps that compute `to` from `from`; with `training`, also the way back from `to[0]` to the lowest
    /// adapted layer.
    ///
    /// # Errors
    /// With `training`: an operator without gradient between an adapted layer and `to[0]`, or no adapted layer.
    pub fn new(program: &Program, from: &[SlotId], to: &[SlotId], training: bool) -> Result<Self, PlanError> {
        Builder::new(program, from, to, training).build()
    }

    /// Values in the arena.
    pub fn arena_len(&self) -> usize {
        self.arena_len
    }

    /// Values kept from the forward pass for the backward pass: site inputs, outputs, masks and indices.
    pub fn saved_len(&self) -> usize {
        self.saved_len
    }

    /// Values without which nothing can run: the inputs of adapted layers that are kept for their gradients, and the largest
    /// input and output of one step.
    pub fn arena_bound(&self) -> usize {
        self.arena_bound
    }

    /// Multiply-adds of the forward pass.
    pub fn multiply_adds(&self) -> u64 {
        self.multiply_adds
    }

    /// Multiply-adds of the backward pass; 0 for a plan without one.
    pub fn backward_multiply_adds(&self) -> u64 {
        self.backward_multiply_adds
    }

    /// Where the inputs stand in the arena, for [`Plan::run`].
    pub fn inputs(&self) -> &[Region] {
        &self.inputs
    }

    /// Values of all inputs together.
    pub fn input_len(&self) -> usize {
        self.inputs.iter().map(|r| r.len).sum()
    }

    /// Values of all outputs together.
    pub fn output_len(&self) -> usize {
        self.outputs.iter().map(|r| r.len).sum()
    }

    /// Where the gradients of each site are added, in one buffer of [`Plan::accumulators_len`] values.
    pub fn accumulators(&self) -> &[Range<usize>] {
        &self.accumulators
    }

    /// Length of the buffer that gradients are added to.
    pub fn accumulators_len(&self) -> usize {
        self.accumulators.last().map_or(0, |r| r.end)
    }

    /// Runs the steps on one sample: `input` holds the `from` slots one behind the other.
    ///
    /// # Errors
    /// Only from operators of the other engine.
    ///
    /// # Panics
    /// If `arena` or `input` is shorter than the plan says.
    pub fn forward(&self, sites: &[SiteWeights], arena: &mut [f32], input: &[f32]) -> Result<(), PlanError> {
        let mut at = 0;
        for region in &self.inputs {
            arena[region.range()].copy_from_slice(&input[at..at + region.len]);
            at += region.len;
        }
        self.run(sites, arena)
    }

    /// [`Plan::forward`] with the inputs in their places already.
    ///
    /// # Errors
    /// As [`Plan::forward`].
    ///
    /// # Panics
    /// As [`Plan::forward`].
    pub fn run(&self, sites: &[SiteWeights], arena: &mut [f32]) -> Result<(), PlanError> {
        for step in &self.forward {
            if let Kind::Foreign(foreign) = &step.kind {
                let x: Vec<Vec<f32>> = step.x.iter().map(|r| arena[r.range()].to_vec()).collect();
                let failed = |reason| PlanError::Foreign { node: step.node.clone(), reason };
                let y = foreign.run(&x).map_err(failed)?;
                for (region, y) in step.y.iter().zip(y) {
                    arena[region.range()].copy_from_slice(&y);
                }
                continue;
            }
            self.compute(step, sites, arena);
        }
        Ok(())
    }

    /// One step that is not of the other engine.
    fn compute(&self, step: &Forward, sites: &[SiteWeights], arena: &mut [f32]) {
        let at = |i: usize| step.x.get(i).copied().unwrap_or_default().range();
        let ranges = [at(0), at(1), at(2), step.y[0].range(), step.saved.range(), step.work.range()];
        let [x0, x1, x2, y, saved, work] = arena.get_disjoint_mut(ranges).expect("the arena keeps live buffers apart");
        match &step.kind {
            Kind::Op(op) => {
                let x: [&[f32]; MAX_INPUTS] = [x0, x1, x2];
                op.forward(&x[..step.x.len()], y, saved, work);
            }
            Kind::Site(index, site) => site.forward(&sites[*index], x0, y, saved, work),
            Kind::Shared(index, layer) => layer.forward(&sites[*index], x0, y, work),
            Kind::Weighted(op, of) => {
                let x: [&[f32]; MAX_INPUTS] = [x0, x1, x2];
                op.forward_with(&weights(sites, of), &x[..step.x.len()], y, saved, work);
            }
            Kind::Foreign(_) => {}
        }
    }

    /// Output `index`, after [`Plan::forward`].
    pub fn output<'a>(&self, arena: &'a [f32], index: usize) -> &'a [f32] {
        &arena[self.outputs[index].range()]
    }

    /// Copies all outputs to `out`, one behind the other.
    pub fn copy_outputs(&self, arena: &[f32], out: &mut [f32]) {
        let mut at = 0;
        for region in &self.outputs {
            out[at..at + region.len].copy_from_slice(&arena[region.range()]);
            at += region.len;
        }
    }

    /// The first output and its gradient, which the caller fills before [`Plan::backward`].
    pub fn seed<'a>(&self, arena: &'a mut [f32]) -> (&'a [f32], &'a mut [f32]) {
        let ranges = [self.outputs[0].range(), self.seed.range()];
        let [y, dy] = arena.get_disjoint_mut(ranges).expect("the arena keeps live buffers apart");
        (y, dy)
    }

    /// Runs the way back, adding each site's gradients to its range of `accumulators`.
    ///
    /// # Panics
    /// If a slice is shorter than the plan says.
    pub fn backward(&self, sites: &[SiteWeights], arena: &mut [f32], accumulators: &mut [f32]) {
        for back in &self.backward {
            let back = match back {
                Return::Again(step) => {
                    self.compute(step, sites, arena);
                    continue;
                }
                Return::Back(back) => back,
            };
            let step = &self.forward[back.step];
            // A gradient that gets its first term here is written, by an operator with one input, or cleared before.
            let written = back.clear[0] && step.x.len() == 1 && !matches!(step.kind, Kind::Weighted(..));
            for (dx, clear) in back.dx.iter().zip(back.clear) {
                if let (Some(dx), true, false) = (dx, clear, written) {
                    arena[dx.range()].fill(0.0);
                }
            }
            let wanted = back.dx.map(|dx| dx.is_some());
            let dx = |i: usize| back.dx[i].unwrap_or_default().range();
            let ranges = [
                back.x[0].range(),
                back.x[1].range(),
                back.x[2].range(),
                back.y.range(),
                step.saved.range(),
                back.dy.range(),
                dx(0),
                dx(1),
                dx(2),
                back.work.range(),
            ];
            let [x0, x1, x2, y, saved, dy, dx0, dx1, dx2, work] =
                arena.get_disjoint_mut(ranges).expect("the arena keeps live buffers apart");
            match &step.kind {
                Kind::Op(op) if written && wanted[0] => op.vjp_first(x0, y, saved, dy, dx0, work),
                Kind::Op(op) => {
                    let x: [&[f32]; MAX_INPUTS] = [x0, x1, x2];
                    let mut dx = [wanted[0].then_some(dx0), wanted[1].then_some(dx1), wanted[2].then_some(dx2)];
                    let inputs = step.x.len();
                    op.vjp(&x[..inputs], y, saved, dy, &mut dx[..inputs], work);
                }
                Kind::Site(index, site) => {
                    let accumulators = &mut accumulators[self.accumulators[*index].clone()];
                    site.vjp(&sites[*index], x0, y, saved, dy, wanted[0].then_some(dx0), written, accumulators, work);
                }
                Kind::Weighted(op, of) => {
                    let x: [&[f32]; MAX_INPUTS] = [x0, x1, x2];
                    let mut dx = [wanted[0].then_some(dx0), wanted[1].then_some(dx1), wanted[2].then_some(dx2)];
                    let ranges = of.map(|site| site.map_or(0..0, |site| self.accumulators[site].clone()));
                    let places = accumulators.get_disjoint_mut(ranges).expect("each site has accumulators of its own");
                    let mut dw = WeightGradients::default();
                    for ((dw, place), site) in dw.iter_mut().zip(places).zip(of) {
                        *dw = site.map(|_| place);
                    }
                    let inputs = step.x.len();
                    op.vjp_with(&weights(sites, of), dw, &x[..inputs], y, saved, dy, &mut dx[..inputs], work);
                }
                Kind::Shared(..) | Kind::Foreign(_) => {}
            }
        }
    }
}

/// The prepared weights of the sites that a step holds.
fn weights<'a>(sites: &'a [SiteWeights], of: &[Option<usize>; MAX_WEIGHTS]) -> Weights<'a> {
    let held = |site: usize| match sites[site].held() {
        Held::Merged(weights) if weights.w.is_empty() => None,
        held => Some(held),
    };
    of.map(|site| site.and_then(held))
}
