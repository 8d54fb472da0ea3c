//! A part of a program with every buffer at a fixed place in one arena.

use std::ops::Range;
use std::sync::Arc;

use super::arena::{Buffer, place};
use super::program::{PlanError, Program, SlotId, Step, StepKind};
use crate::graph::Foreign;
use crate::lora::{SharedLayer, SiteStep, SiteWeights};
use crate::ops::{Held, Keeps, MAX_INPUTS, MAX_WEIGHTS, Operator, WeightGradients, Weighted, Weights};

/// A place in the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    offset: usize,
    len: usize,
}

impl Region {
    /// As a range of the arena.
    pub fn range(self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

#[derive(Clone, Debug)]
enum Kind {
    Op(Arc<dyn Operator>),
    Site(usize, Box<SiteStep>),
    Shared(usize, Arc<SharedLayer>),
    Weighted(Arc<dyn Weighted>, [Option<usize>; MAX_WEIGHTS]),
    Foreign(Arc<dyn Foreign>),
}

#[derive(Clone, Debug)]
struct Forward {
    node: String,
    kind: Kind,
    x: Vec<Region>,
    y: Vec<Region>,
    saved: Region,
    work: Region,
}

#[derive(Clone, Debug)]
struct Backward {
    step: usize,
    x: [Region; MAX_INPUTS],
    y: Region,
    dy: Region,
    dx: [Option<Region>; MAX_INPUTS],
    /// Gradients that get their first term here.
    clear: [bool; MAX_INPUTS],
    work: Region,
}

/// Steps from some slots to others, placed in one arena.
#[derive(Clone, Debug)]
pub struct Plan {
    forward: Vec<Forward>,
    backward: Vec<Backward>,
    inputs: Vec<Region>,
    outputs: Vec<Region>,
    seed: Region,
    arena_len: usize,
    accumulators: Vec<Range<usize>>,
    saved_len: usize,
    arena_bound: usize,
    multiply_adds: u64,
    backward_multiply_adds: u64,
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
            let at = |i: usize| step.x.get(i).copied().unwrap_or_default().range();
            let ranges = [at(0), at(1), at(2), step.y[0].range(), step.saved.range(), step.work.range()];
            let [x0, x1, x2, y, saved, work] =
                arena.get_disjoint_mut(ranges).expect("the arena keeps live buffers apart");
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
        Ok(())
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

/// What a buffer is for, while lifetimes are collected.
struct Builder<'a> {
    program: &'a Program,
    from: &'a [SlotId],
    to: &'a [SlotId],
    training: bool,
    /// Steps of the program that this plan runs.
    steps: Vec<usize>,
    buffers: Vec<Buffer>,
}

impl<'a> Builder<'a> {
    fn new(program: &'a Program, from: &'a [SlotId], to: &'a [SlotId], training: bool) -> Self {
        let mut wanted = vec![false; program.slots.len()];
        to.iter().for_each(|s| wanted[*s] = true);
        let mut steps = Vec::new();
        for (index, step) in program.steps.iter().enumerate().rev() {
            if step.y.iter().any(|y| wanted[*y] && !from.contains(y)) {
                steps.push(index);
                step.x.iter().for_each(|x| wanted[*x] = true);
            }
        }
        steps.reverse();
        Self { program, from, to, training, steps, buffers: Vec::new() }
    }

    fn buffer(&mut self, len: usize, first: usize, last: usize) -> usize {
        self.buffers.push(Buffer { len, first, last });
        self.buffers.len() - 1
    }

    fn build(mut self) -> Result<Plan, PlanError> {
        let program = self.program;
        let count = self.steps.len();
        let forward_at = |i: usize| i + 1;
        let loss_at = count + 1;
        let backward_at = |i: usize| loss_at + 1 + (count - 1 - i);
        let gradient_at = program.gradient_slots(self.to[0]);
        let passes = |step: &Step, k: usize| gradient_at[step.x[k]] && Program::differentiates(step, k);
        let slots = program.slots.len();
        let back: Vec<bool> =
            self.steps.iter().map(|s| self.training && program.steps[*s].y.iter().any(|y| gradient_at[*y])).collect();
        if self.training && !back.iter().any(|b| *b) {
            return Err(PlanError::NoSite);
        }

        // What is kept, and so which activations can read their mask from their output.
        let mut kept = vec![false; slots];
        for (i, s) in self.steps.iter().enumerate() {
            let step = &program.steps[*s];
            if back[i] {
                if matches!(step.kind, StepKind::Foreign(_)) {
                    return Err(PlanError::NoGradient { node: step.node.clone(), op: step.op_type.clone() });
                }
                let keeps = program.keeps(step, false);
                step.x.iter().zip(keeps.x).for_each(|(x, k)| kept[*x] |= k);
                step.y.iter().for_each(|y| kept[*y] |= keeps.y);
            }
        }
        let resolved: Vec<(Kind, Keeps)> = self
            .steps
            .iter()
            .enumerate()
            .map(|(i, s)| {
                let step = &program.steps[*s];
                let output_kept = back[i] && kept[step.y[0]];
                let keeps = if back[i] { program.keeps(step, output_kept) } else { Keeps::default() };
                let kind = match &step.kind {
                    StepKind::Op(op) => Kind::Op(op.clone()),
                    StepKind::Weighted(op, of) => Kind::Weighted(op.clone(), *of),
                    StepKind::Masked(op) => Kind::Op(if output_kept { op.output.clone() } else { op.bits.clone() }),
                    StepKind::Site(site) => {
                        let mut own = program.sites[*site].clone();
                        own.set_output_kept(output_kept);
                        Kind::Site(*site, Box::new(own))
                    }
                    StepKind::Shared(index, layer) => Kind::Shared(*index, layer.clone()),
                    StepKind::Foreign(foreign) => Kind::Foreign(foreign.clone()),
                };
                (kind, keeps)
            })
            .collect();

        // Lifetimes of values and of their gradients.
        let mut life: Vec<Option<(usize, usize)>> = vec![None; slots];
        let mut gradient_life: Vec<Option<(usize, usize)>> = vec![None; slots];
        let touch = |life: &mut Option<(usize, usize)>, at: usize| {
            let (first, last) = life.unwrap_or((at, at));
            *life = Some((first.min(at), last.max(at)));
        };
        self.from.iter().for_each(|s| touch(&mut life[*s], 0));
        for (i, s) in self.steps.iter().enumerate() {
            let step = &program.steps[*s];
            let keeps = resolved[i].1;
            for (k, x) in step.x.iter().enumerate() {
                touch(&mut life[*x], forward_at(i));
                if back[i] {
                    if keeps.x.get(k).copied().unwrap_or(false) {
                        touch(&mut life[*x], backward_at(i));
                    }
                    if passes(step, k) {
                        touch(&mut gradient_life[*x], backward_at(i));
                    }
                }
            }
            for y in &step.y {
                touch(&mut life[*y], forward_at(i));
                if back[i] && gradient_at[*y] {
                    touch(&mut gradient_life[*y], backward_at(i));
                    if keeps.y {
                        touch(&mut life[*y], backward_at(i));
                    }
                }
            }
        }
        for to in self.to {
            touch(&mut life[*to], loss_at);
        }
        if self.training {
            touch(&mut gradient_life[self.to[0]], loss_at);
        }

        let mut saved_len: usize = 0;
        let value: Vec<Option<usize>> =
            (0..slots).map(|s| life[s].map(|(first, last)| self.buffer(program.slots[s], first, last))).collect();
        let gradient: Vec<Option<usize>> = (0..slots)
            .map(|s| gradient_life[s].map(|(first, last)| self.buffer(program.slots[s], first, last)))
            .collect();
        let mut extra = Vec::new();
        for (i, (kind, keeps)) in resolved.iter().enumerate() {
            let (forward, backward) = match kind {
                Kind::Op(op) => (op.forward_work(), op.vjp_work()),
                Kind::Weighted(op, _) => (op.forward_work(), op.vjp_work()),
                Kind::Site(_, site) => (site.forward_work(), site.vjp_work()),
                Kind::Shared(_, layer) => (layer.forward_work(), 0),
                Kind::Foreign(_) => (0, 0),
            };
            let saved = self.buffer(keeps.saved, forward_at(i), if back[i] { backward_at(i) } else { forward_at(i) });
            let forward = self.buffer(forward, forward_at(i), forward_at(i));
            let backward = if back[i] { self.buffer(backward, backward_at(i), backward_at(i)) } else { saved };
            saved_len += keeps.saved;
            extra.push((saved, forward, backward));
        }
        saved_len += (0..slots)
            .filter(|s| life[*s].is_some_and(|(_, last)| last > loss_at))
            .map(|s| program.slots[s])
            .sum::<usize>();

        let arena_bound = self.bound(&resolved);
        let (offsets, arena_len) = place(&self.buffers);
        // Asked for once here, where a refusal is an error: elsewhere it would end the process.
        let bytes = arena_len.saturating_mul(size_of::<f32>());
        Vec::<f32>::new().try_reserve_exact(arena_len).map_err(|_| PlanError::Memory { bytes })?;
        let region = |buffer: usize| Region {
            offset: if self.buffers[buffer].len == 0 { 0 } else { offsets[buffer] },
            len: self.buffers[buffer].len,
        };
        let of = |slot: SlotId| value[slot].map(region).unwrap_or_default();
        let gradient_of = |slot: SlotId| gradient[slot].map(region).unwrap_or_default();

        let mut backward = Vec::new();
        let mut started = vec![false; slots];
        started[self.to[0]] = true;
        for i in (0..count).rev().filter(|i| back[*i]) {
            let step = &program.steps[self.steps[i]];
            let keeps = resolved[i].1;
            let mut out = Backward {
                step: i,
                x: [Region::default(); MAX_INPUTS],
                y: if keeps.y { of(step.y[0]) } else { Region::default() },
                dy: gradient_of(step.y[0]),
                dx: [None; MAX_INPUTS],
                clear: [false; MAX_INPUTS],
                work: region(extra[i].2),
            };
            for (k, x) in step.x.iter().enumerate().take(MAX_INPUTS) {
                if keeps.x[k] {
                    out.x[k] = of(*x);
                }
                if passes(step, k) {
                    out.dx[k] = Some(gradient_of(*x));
                    out.clear[k] = !started[*x];
                    started[*x] = true;
                }
            }
            backward.push(out);
        }
        let multiply_adds = self.steps.iter().map(|s| program.steps[*s].multiply_adds).sum();
        let backward_multiply_adds = backward
            .iter()
            .map(|back| {
                let inputs = back.dx.iter().flatten().count() as u64;
                let forward = program.steps[self.steps[back.step]].multiply_adds;
                match &resolved[back.step].0 {
                    Kind::Site(_, site) => site.multiply_adds().1 + inputs * forward,
                    Kind::Weighted(..) => (1 + inputs) * forward,
                    _ => inputs * forward,
                }
            })
            .sum();
        let forward = resolved
            .into_iter()
            .enumerate()
            .map(|(i, (kind, _))| {
                let step = &program.steps[self.steps[i]];
                Forward {
                    node: step.node.clone(),
                    kind,
                    x: step.x.iter().map(|x| of(*x)).collect(),
                    y: step.y.iter().map(|y| of(*y)).collect(),
                    saved: region(extra[i].0),
                    work: region(extra[i].1),
                }
            })
            .collect();
        let mut at = 0;
        let accumulators = program
            .sites
            .iter()
            .map(|site| {
                let start = at;
                at += site.accumulators();
                start..at
            })
            .collect();
        Ok(Plan {
            forward,
            backward,
            inputs: self.from.iter().map(|s| of(*s)).collect(),
            outputs: self.to.iter().map(|s| of(*s)).collect(),
            seed: gradient_of(self.to[0]),
            arena_len,
            accumulators,
            saved_len,
            arena_bound,
            multiply_adds,
            backward_multiply_adds,
        })
    }

    /// [`Plan::arena_bound`], of the steps with what they keep.
    fn bound(&self, resolved: &[(Kind, Keeps)]) -> usize {
        let program = self.program;
        let mut saved = vec![false; program.slots.len()];
        let mut pair = 0;
        for (s, (_, keeps)) in self.steps.iter().zip(resolved) {
            let step = &program.steps[*s];
            for (k, x) in step.x.iter().enumerate() {
                saved[*x] |= step.kind.is_adapted() && keeps.x.get(k).copied().unwrap_or(false);
                pair = pair.max(program.slots[*x] + program.slots[step.y[0]]);
            }
        }
        pair + program.slots.iter().zip(saved).filter(|(_, saved)| *saved).map(|(len, _)| len).sum::<usize>()
    }
}
