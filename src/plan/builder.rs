//! Lifetimes of the buffers of a plan, and its steps on them.

use super::again::{ENOUGH, choose};
use super::arena::{Buffer, place};
use super::program::{PlanError, Program, SlotId, Step, StepKind};
use super::schedule::{Backward, Forward, Kind, Plan, Region, Return};
use crate::ops::{Keeps, MAX_INPUTS};

/// Steps one behind the other that are computed again for one value, at most.
const DEPTH: usize = 64;

/// What happens, one after the other; indices are those of [`Builder::steps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Forward(usize),
    Loss,
    /// A forward step once more, for the way back.
    Again(usize),
    Back(usize),
}

/// Buffers with their lifetimes; those of a step come in the order in which it happens.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Event n happens at time n + 1; the inputs are there at time 0.
    pub(super) events: Vec<Event>,
    buffers: Vec<Buffer>,
    /// Buffer of each slot on the way there.
    value: Vec<Option<usize>>,
    /// Buffer of each slot on the way back, where it is another: the value is computed again.
    again: Vec<Option<usize>>,
    gradient: Vec<Option<usize>>,
    /// What each step saves.
    saved: Vec<usize>,
    /// Scratch of each event.
    work: Vec<usize>,
    /// Values kept for the way back.
    saved_len: usize,
}

impl Layout {
    /// The most values that are alive at one time.
    pub(super) fn peak(&self) -> usize {
        let mut change = vec![0isize; self.events.len() + 2];
        for buffer in &self.buffers {
            change[buffer.first] += buffer.len as isize;
            change[buffer.last + 1] -= buffer.len as isize;
        }
        let mut alive = 0;
        change.into_iter().fold(0, |peak, change| {
            alive += change;
            peak.max(alive)
        }) as usize
    }
}

/// Collects what a plan runs and keeps.
pub(super) struct Builder<'a> {
    pub(super) program: &'a Program,
    from: &'a [SlotId],
    to: &'a [SlotId],
    training: bool,
    /// Steps of the program that this plan runs.
    steps: Vec<usize>,
    /// Of each: whether it runs on the way back, how it runs, and what it keeps for that.
    back: Vec<bool>,
    resolved: Vec<(Kind, Keeps)>,
    /// Slots that a gradient reaches.
    gradient_at: Vec<bool>,
    /// Slots that are kept for the way back.
    pub(super) kept: Vec<bool>,
    /// The only step that writes a slot, where that may run again.
    producer: Vec<Option<usize>>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(program: &'a Program, from: &'a [SlotId], to: &'a [SlotId], training: bool) -> Self {
        let slots = program.slots.len();
        let mut wanted = vec![false; slots];
        to.iter().for_each(|s| wanted[*s] = true);
        let mut steps = Vec::new();
        for (index, step) in program.steps.iter().enumerate().rev() {
            if step.y.iter().any(|y| wanted[*y] && !from.contains(y)) {
                steps.push(index);
                step.x.iter().for_each(|x| wanted[*x] = true);
            }
        }
        steps.reverse();
        let gradient_at = program.gradient_slots(to[0]);
        let back = steps.iter().map(|s| training && program.steps[*s].y.iter().any(|y| gradient_at[*y])).collect();
        let (kept, producer) = (vec![false; slots], vec![None; slots]);
        Self { program, from, to, training, steps, back, resolved: Vec::new(), gradient_at, kept, producer }
    }

    pub(super) fn step(&self, i: usize) -> &'a Step {
        &self.program.steps[self.steps[i]]
    }

    fn passes(&self, step: &Step, k: usize) -> bool {
        self.gradient_at[step.x[k]] && Program::differentiates(step, k)
    }

    pub(super) fn build(self) -> Result<Plan, PlanError> {
        self.within(ENOUGH)
    }

    /// With values computed again until no more than `enough` times the bound is left.
    pub(super) fn within(mut self, enough: f64) -> Result<Plan, PlanError> {
        if self.training && !self.back.iter().any(|b| *b) {
            return Err(PlanError::NoSite);
        }
        self.resolve()?;
        let bound = self.bound();
        let none = vec![false; self.program.slots.len()];
        let whole = self.layout(&none).expect("nothing is computed again");
        let (mut offsets, mut arena_len) = place(&whole.buffers);
        let mut layout = whole;
        if let Some(less) = choose(&self, &layout, bound as f64 * enough) {
            let placed = place(&less.buffers);
            if placed.1 < arena_len {
                ((offsets, arena_len), layout) = (placed, less);
            }
        }
        // Asked for once here, where a refusal is an error: elsewhere it would end the process.
        let bytes = arena_len.saturating_mul(size_of::<f32>());
        Vec::<f32>::new().try_reserve_exact(arena_len).map_err(|_| PlanError::Memory { bytes })?;
        Ok(self.plan(&layout, &offsets, arena_len, bound))
    }

    /// What is kept, and so which activations can read their mask from their output.
    fn resolve(&mut self) -> Result<(), PlanError> {
        let program = self.program;
        let mut outputs_kept = vec![false; program.slots.len()];
        for i in (0..self.steps.len()).filter(|i| self.back[*i]) {
            let step = self.step(i);
            if matches!(step.kind, StepKind::Foreign(_)) {
                return Err(PlanError::NoGradient { node: step.node.clone(), op: step.op_type.clone() });
            }
            let keeps = program.keeps(step, false);
            step.x.iter().zip(keeps.x).for_each(|(x, k)| outputs_kept[*x] |= k);
            step.y.iter().for_each(|y| outputs_kept[*y] |= keeps.y);
        }
        let mut writers = vec![0; program.slots.len()];
        for i in 0..self.steps.len() {
            let step = self.step(i);
            let output_kept = self.back[i] && outputs_kept[step.y[0]];
            let keeps = if self.back[i] { program.keeps(step, output_kept) } else { Keeps::default() };
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
            step.x.iter().zip(keeps.x).for_each(|(x, k)| self.kept[*x] |= k);
            step.y.iter().for_each(|y| {
                self.kept[*y] |= keeps.y;
                writers[*y] += 1;
                let runs_again = matches!(kind, Kind::Op(_) | Kind::Site(..)) && writers[*y] == 1;
                self.producer[*y] = runs_again.then_some(i);
            });
            self.resolved.push((kind, keeps));
        }
        Ok(())
    }

    /// Lifetimes, where the slots of `dropped` are not kept but computed again; none if that cannot be.
    pub(super) fn layout(&self, dropped: &[bool]) -> Option<Layout> {
        let (slots, count) = (self.program.slots.len(), self.steps.len());
        let mut lives = Lives {
            of: self,
            dropped,
            events: Vec::with_capacity(2 * count + 1),
            value: vec![None; slots],
            again: vec![None; slots],
            gradient: vec![None; slots],
        };
        self.from.iter().for_each(|s| touch(&mut lives.value[*s], 0));
        for i in 0..count {
            lives.events.push(Event::Forward(i));
            let (step, now) = (self.step(i), lives.events.len());
            step.x.iter().chain(&step.y).for_each(|slot| touch(&mut lives.value[*slot], now));
        }
        lives.events.push(Event::Loss);
        let loss = lives.events.len();
        self.to.iter().for_each(|to| touch(&mut lives.value[*to], loss));
        if self.training {
            touch(&mut lives.gradient[self.to[0]], loss);
        }
        let mut returned = vec![None; count];
        for i in (0..count).rev().filter(|i| self.back[*i]) {
            let (step, keeps) = (self.step(i), self.resolved[i].1);
            let inputs = step.x.iter().zip(keeps.x).filter(|(_, keep)| *keep).map(|(x, _)| *x);
            let outputs = step.y.iter().filter(|y| keeps.y && self.gradient_at[**y]).copied();
            let read: Vec<SlotId> = inputs.chain(outputs).collect();
            for slot in &read {
                lives.provide(*slot, DEPTH)?;
            }
            lives.events.push(Event::Back(i));
            let now = lives.events.len();
            returned[i] = Some(now);
            read.iter().for_each(|slot| lives.use_at(*slot, now));
            for k in (0..step.x.len()).filter(|k| self.passes(step, *k)) {
                touch(&mut lives.gradient[step.x[k]], now);
            }
            for y in step.y.iter().filter(|y| self.gradient_at[**y]) {
                touch(&mut lives.gradient[*y], now);
            }
        }
        Some(lives.layout(loss, &returned))
    }

    /// Scratch of step `i`.
    fn work(&self, i: usize, back: bool) -> usize {
        match &self.resolved[i].0 {
            Kind::Op(op) if back => op.vjp_work(),
            Kind::Op(op) => op.forward_work(),
            Kind::Weighted(op, _) if back => op.vjp_work(),
            Kind::Weighted(op, _) => op.forward_work(),
            Kind::Site(_, site) if back => site.vjp_work(),
            Kind::Site(_, site) => site.forward_work(),
            Kind::Shared(_, layer) if !back => layer.forward_work(),
            Kind::Shared(..) | Kind::Foreign(_) => 0,
        }
    }

    fn plan(self, layout: &Layout, offsets: &[usize], arena_len: usize, arena_bound: usize) -> Plan {
        let program = self.program;
        let region = |buffer: usize| {
            let len = layout.buffers[buffer].len;
            Region { offset: if len == 0 { 0 } else { offsets[buffer] }, len }
        };
        let of = |slot: SlotId| layout.value[slot].map(region).unwrap_or_default();
        // On the way back.
        let late = |slot: SlotId| layout.again[slot].map_or_else(|| of(slot), region);
        let gradient_of = |slot: SlotId| layout.gradient[slot].map(region).unwrap_or_default();

        let mut started = vec![false; program.slots.len()];
        started[self.to[0]] = true;
        let (mut forward, mut backward) = (Vec::new(), Vec::new());
        let (mut multiply_adds, mut backward_multiply_adds) = (0, 0);
        for (event, work) in layout.events.iter().zip(&layout.work) {
            let work = region(*work);
            match *event {
                Event::Loss => {}
                Event::Forward(i) | Event::Again(i) => {
                    let (step, again) = (self.step(i), matches!(event, Event::Again(_)));
                    let at = |slots: &[SlotId]| slots.iter().map(|s| if again { late(*s) } else { of(*s) }).collect();
                    let forth = Forward {
                        node: step.node.clone(),
                        kind: self.resolved[i].0.clone(),
                        x: at(&step.x),
                        y: at(&step.y),
                        // Saved the first time.
                        saved: if again { Region::default() } else { region(layout.saved[i]) },
                        work,
                    };
                    if again {
                        backward.push(Return::Again(forth));
                        backward_multiply_adds += step.multiply_adds;
                    } else {
                        forward.push(forth);
                        multiply_adds += step.multiply_adds;
                    }
                }
                Event::Back(i) => {
                    let (step, keeps) = (self.step(i), self.resolved[i].1);
                    let mut out = Backward {
                        step: i,
                        x: [Region::default(); MAX_INPUTS],
                        y: if keeps.y { late(step.y[0]) } else { Region::default() },
                        dy: gradient_of(step.y[0]),
                        dx: [None; MAX_INPUTS],
                        clear: [false; MAX_INPUTS],
                        work,
                    };
                    let mut inputs = 0;
                    for (k, x) in step.x.iter().enumerate().take(MAX_INPUTS) {
                        if keeps.x[k] {
                            out.x[k] = late(*x);
                        }
                        if self.passes(step, k) {
                            out.dx[k] = Some(gradient_of(*x));
                            out.clear[k] = !started[*x];
                            started[*x] = true;
                            inputs += 1;
                        }
                    }
                    backward.push(Return::Back(out));
                    backward_multiply_adds += match &self.resolved[i].0 {
                        Kind::Site(_, site) => site.multiply_adds().1 + inputs * step.multiply_adds,
                        Kind::Weighted(..) => (1 + inputs) * step.multiply_adds,
                        _ => inputs * step.multiply_adds,
                    };
                }
            }
        }
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
        Plan {
            forward,
            backward,
            inputs: self.from.iter().map(|s| of(*s)).collect(),
            outputs: self.to.iter().map(|s| of(*s)).collect(),
            seed: gradient_of(self.to[0]),
            arena_len,
            accumulators,
            saved_len: layout.saved_len,
            arena_bound,
            multiply_adds,
            backward_multiply_adds,
        }
    }

    /// [`Plan::arena_bound`], of the steps with what they keep.
    fn bound(&self) -> usize {
        let program = self.program;
        let mut saved = vec![false; program.slots.len()];
        let mut pair = 0;
        for (i, (_, keeps)) in self.resolved.iter().enumerate() {
            let step = self.step(i);
            for (k, x) in step.x.iter().enumerate() {
                saved[*x] |= step.kind.is_adapted() && keeps.x.get(k).copied().unwrap_or(false);
                pair = pair.max(program.slots[*x] + program.slots[step.y[0]]);
            }
        }
        pair + program.slots.iter().zip(saved).filter(|(_, saved)| *saved).map(|(len, _)| len).sum::<usize>()
    }
}

/// First and last time of a buffer.
type Life = Option<(usize, usize)>;

fn touch(life: &mut Life, at: usize) {
    let (first, last) = life.unwrap_or((at, at));
    *life = Some((first.min(at), last.max(at)));
}

/// Lifetimes while they are collected.
struct Lives<'a, 'b> {
    of: &'a Builder<'b>,
    dropped: &'a [bool],
    events: Vec<Event>,
    value: Vec<Life>,
    again: Vec<Life>,
    gradient: Vec<Life>,
}

impl Lives<'_, '_> {
    /// Whether what the way there left is still there.
    fn is_there(&self, slot: SlotId) -> bool {
        (self.of.kept[slot] && !self.dropped[slot]) || self.of.from.contains(&slot)
    }

    fn use_at(&mut self, slot: SlotId, at: usize) {
        let there = self.is_there(slot);
        touch(if there { &mut self.value[slot] } else { &mut self.again[slot] }, at);
    }

    /// Computes `slot` again, and before it what that reads, unless it is there; `depth` steps are allowed for that.
    fn provide(&mut self, slot: SlotId, depth: usize) -> Option<()> {
        if self.is_there(slot) || self.again[slot].is_some() {
            return Some(());
        }
        let producer = self.of.producer[slot].filter(|_| depth > 0)?;
        let step = self.of.step(producer);
        for x in &step.x {
            self.provide(*x, depth - 1)?;
        }
        self.events.push(Event::Again(producer));
        let now = self.events.len();
        step.x.iter().chain([&slot]).for_each(|slot| self.use_at(*slot, now));
        Some(())
    }

    /// The buffers of these lives. `returned`: when each step runs on the way back.
    fn layout(self, loss: usize, returned: &[Option<usize>]) -> Layout {
        let of = self.of;
        let mut buffers = Vec::new();
        let mut buffer = |len: usize, first: usize, last: usize| {
            buffers.push(Buffer { len, first, last });
            buffers.len() - 1
        };
        let len = |slot: usize| of.program.slots[slot];
        let mut all = |lives: &[Life]| -> Vec<Option<usize>> {
            let place = |(slot, life): (usize, &Life)| life.map(|(first, last)| buffer(len(slot), first, last));
            lives.iter().enumerate().map(place).collect()
        };
        let (value, again, gradient) = (all(&self.value), all(&self.again), all(&self.gradient));
        let saved =
            (0..of.steps.len()).map(|i| buffer(of.resolved[i].1.saved, i + 1, returned[i].unwrap_or(i + 1))).collect();
        let work = self.events.iter().enumerate().map(|(n, event)| match *event {
            Event::Forward(i) | Event::Again(i) => buffer(of.work(i, false), n + 1, n + 1),
            Event::Back(i) => buffer(of.work(i, true), n + 1, n + 1),
            Event::Loss => buffer(0, n + 1, n + 1),
        });
        let work = work.collect();
        let kept = self.value.iter().enumerate().filter(|(_, life)| life.is_some_and(|(_, last)| last > loss));
        let saved_len = of.resolved.iter().map(|(_, keeps)| keeps.saved).sum::<usize>()
            + kept.map(|(slot, _)| len(slot)).sum::<usize>();
        Layout { events: self.events, buffers, value, again, gradient, saved, work, saved_len }
    }
}
