//! Windows that overlap: of a window that is the one before it moved on by some rows, only the rows that are new are computed.
//!
//! The input stands in memory as rows, one a step of time. [`follow`] carries that through the steps of a [`Program`]: a value
//! *slides* where its rows are made from rows ([`RowWindow`]) of values that slide. Of each such value it knows
//!
//! - its shift, in rows, between two windows: that of its input over the stride, which must be whole;
//! - the rows `inside`, into which no padding of any layer below goes: row r + shift of the window before, where both are inside,
//!   is row r of this one.
//!
//! So a step moves rows `inside.start .. inside.end − shift` from behind and computes those above and below, with the same operator
//! cut to these rows ([`crate::ops::Operator::part`]): same kernels, same order of sums, same bits. Values from the first step on that
//! does not allow it are computed by a [`Plan`] of their own, from the values that slide to the output.
//!
//! Where a stride does not divide the shift, it divides that of every second (third, …) window: a stream then keeps that many windows
//! in turn, and each is the successor of the one as many before. Which number takes the fewest multiply-adds is tried out.

use std::ops::Range;
use std::sync::Arc;

use super::arena::Arena;
use super::program::{PlanError, Program, SlotId, StepKind};
use super::schedule::Plan;
use crate::lora::{SharedLayer, SiteStep, SiteWeights};
use crate::ops::rows::RowWindow;
use crate::ops::{MAX_INPUTS, Operator};

/// Slots begin at multiples of this many values, a cache line.
const ALIGNMENT: usize = 16;

/// Why every window is computed whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Blocked {
    /// The first layer already needs the whole window, or more of it than two windows share.
    #[error(
        "windows {hop} of {rows} rows apart share nothing behind node `{node}` ({op}): {what}; try a hop of another length"
    )]
    Node {
        /// Rows of a window.
        rows: usize,
        /// Rows from one window to the next.
        hop: usize,
        /// Node.
        node: String,
        /// ONNX operator.
        op: String,
        /// What it would take.
        what: &'static str,
    },
    /// The rest of the network could not be planned.
    #[error("{0}")]
    Plan(String),
}

/// A slot whose rows move.
#[derive(Clone, Debug)]
struct Track {
    rows: usize,
    shift: usize,
    inside: Range<usize>,
}

/// A step for some rows at a time.
type Parts = Vec<(Range<usize>, Kind)>;

/// What a step runs.
#[derive(Clone, Debug)]
enum Kind {
    Op(Arc<dyn Operator>),
    Site(usize, Box<SiteStep>),
    Shared(usize, Arc<SharedLayer>),
}

impl Kind {
    /// None of a step of a kind that never slides.
    fn of(program: &Program, kind: &StepKind) -> Option<Self> {
        match kind {
            StepKind::Op(op) => Some(Self::Op(op.clone())),
            StepKind::Masked(op) => Some(Self::Op(op.bits.clone())),
            StepKind::Site(site) => Some(Self::Site(*site, Box::new(program.sites[*site].clone()))),
            StepKind::Shared(index, layer) => Some(Self::Shared(*index, layer.clone())),
            StepKind::Weighted(..) | StepKind::Foreign(_) => None,
        }
    }

    fn row_window(&self, rows: usize) -> Option<RowWindow> {
        match self {
            Self::Op(op) => op.row_window(rows),
            Self::Site(_, site) => site.row_window(rows),
            Self::Shared(_, layer) => layer.row_window(rows),
        }
    }

    fn part(&self, rows: usize, range: Range<usize>) -> Option<Self> {
        match self {
            Self::Op(op) => Some(Self::Op(op.part(rows, range)?)),
            Self::Site(index, site) => Some(Self::Site(*index, Box::new(site.part(rows, range)?))),
            Self::Shared(index, layer) => Some(Self::Shared(*index, Arc::new(layer.part(rows, range)?))),
        }
    }

    fn forward_work(&self) -> usize {
        match self {
            Self::Op(op) => op.forward_work(),
            Self::Site(_, site) => site.forward_work(),
            Self::Shared(_, layer) => layer.forward_work(),
        }
    }
}

/// A step for some rows: what it reads and writes, as ranges of the values that slide.
#[derive(Clone, Debug)]
struct Part {
    kind: Kind,
    inputs: usize,
    x: [Range<usize>; MAX_INPUTS],
    y: Range<usize>,
}

impl Part {
    fn run(&self, sites: &[SiteWeights], values: &mut [f32], work: &mut [f32]) {
        let [a, b, c] = self.x.clone();
        let [a, b, c, y] =
            values.get_disjoint_mut([a, b, c, self.y.clone()]).expect("each slot has a place of its own");
        let work = &mut work[..self.kind.forward_work()];
        match &self.kind {
            Kind::Op(op) => {
                let x: [&[f32]; MAX_INPUTS] = [a, b, c];
                op.forward(&x[..self.inputs], y, &mut [], work);
            }
            Kind::Site(index, site) => site.forward(&sites[*index], a, y, &mut [], work),
            Kind::Shared(index, layer) => layer.forward(&sites[*index], a, y, work),
        }
    }
}

/// A step of the part that slides.
#[derive(Clone, Debug)]
struct Step {
    whole: Part,
    /// Rows that move, and where their first value goes.
    moved: (Range<usize>, usize),
    parts: Vec<Part>,
}

/// Which steps slide, for one number of windows in turn.
struct Followed {
    tracks: Vec<Option<Track>>,
    /// Index of the step, its kind, and its parts with their rows.
    steps: Vec<(usize, Kind, Parts)>,
    /// Multiply-adds that a window saves.
    saved: u64,
    /// The first step that does not slide: why, and the times as many windows apart that would do for its stride.
    stop: Option<(usize, &'static str, usize)>,
}

/// Follows the rows of the input through the steps; `hop` rows from one window to its successor.
fn follow(program: &Program, rows: usize, hop: usize) -> Followed {
    let mut out = Followed { tracks: vec![None; program.slots.len()], steps: Vec::new(), saved: 0, stop: None };
    out.tracks[program.input] = Some(Track { rows, shift: hop, inside: 0..rows });
    for (index, step) in program.steps.iter().enumerate() {
        let tracks: Option<Vec<&Track>> = step.x.iter().map(|x| out.tracks[*x].as_ref()).collect();
        let touched = step.x.iter().any(|x| out.tracks[*x].is_some());
        let stop = match tracks.as_deref() {
            Some([first, others @ ..]) if others.iter().all(|o| (o.rows, o.shift) == (first.rows, first.shift)) => {
                let inside = others.iter().fold(first.inside.clone(), |all, other| {
                    all.start.max(other.inside.start)..all.end.min(other.inside.end)
                });
                match slid(program, index, first, inside) {
                    Ok((track, kind, parts)) => {
                        let computed: usize = parts.iter().map(|(range, _)| range.len()).sum();
                        let kept = (track.rows - computed) as u64;
                        out.saved += step.multiply_adds * kept / track.rows as u64;
                        out.tracks[step.y[0]] = Some(track);
                        out.steps.push((index, kind, parts));
                        continue;
                    }
                    Err(stop) => stop,
                }
            }
            _ => ("it joins values of different kinds", 1),
        };
        if touched && out.stop.is_none() {
            out.stop = Some((index, stop.0, stop.1));
        }
    }
    out
}

/// How step `index` slides, or why it does not.
fn slid(
    program: &Program,
    index: usize,
    x: &Track,
    inside: Range<usize>,
) -> Result<(Track, Kind, Parts), (&'static str, usize)> {
    let step = &program.steps[index];
    let none = ("its rows are not made from rows in the order of time", 1);
    let kind = Kind::of(program, &step.kind).filter(|_| step.y.len() == 1).ok_or(none)?;
    let window = kind.row_window(x.rows).ok_or(none)?;
    if window.rows == 0 || !program.slots[step.y[0]].is_multiple_of(window.rows) {
        return Err(none);
    }
    if !x.shift.is_multiple_of(window.stride) {
        return Err(("its stride does not divide the hop", window.stride / gcd(x.shift, window.stride)));
    }
    let shift = x.shift / window.stride;
    let inside = window.inside(inside);
    if inside.len() <= shift {
        return Err(("what padding does not reach is no longer than the hop", 1));
    }
    let ranges = [0..inside.start, inside.end - shift..window.rows];
    let part = |range: Range<usize>| kind.part(x.rows, range.clone()).map(|part| (range, part));
    let parts: Option<Vec<_>> = ranges.into_iter().filter(|range| !range.is_empty()).map(part).collect();
    let parts = parts.ok_or(("rows of padding alone", 1))?;
    Ok((Track { rows: window.rows, shift, inside }, kind, parts))
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// How windows that overlap are computed.
#[derive(Clone, Debug)]
pub struct Sliding {
    steps: Vec<Step>,
    input: Range<usize>,
    /// The values that the rest reads.
    frontier: Vec<Range<usize>>,
    rest: Plan,
    values: usize,
    work: usize,
    turns: usize,
    multiply_adds: u64,
}

/// What one stream of windows has of the windows before.
#[derive(Debug)]
pub struct SlidingState {
    /// Values of the last windows, and whether they are those of the window [`Sliding::turns`] before.
    windows: Vec<(Arena, bool)>,
    next: usize,
    work: Arena,
    rest: Arena,
}

impl SlidingState {
    /// The next window follows none: after a gap.
    pub fn reset(&mut self) {
        self.windows.iter_mut().for_each(|(_, holds)| *holds = false);
    }

    /// A window is passed over.
    pub fn skip(&mut self) {
        self.windows[self.next].1 = false;
        self.next = (self.next + 1) % self.windows.len();
    }
}

impl Sliding {
    /// Of windows of `rows` rows, the first dimension of the input in memory, each `hop` rows behind the one before.
    ///
    /// # Errors
    /// A network of which nothing slides.
    pub fn new(program: &Program, rows: usize, hop: usize) -> Result<Self, Blocked> {
        let blocked = |index: Option<usize>, what| {
            let step = index.and_then(|index| program.steps.get(index));
            let (node, op) = step.map_or((String::new(), String::new()), |s| (s.node.clone(), s.op_type.clone()));
            Blocked::Node { rows, hop, node, op, what }
        };
        if rows == 0 || hop == 0 || hop >= rows || !program.slots[program.input].is_multiple_of(rows) {
            return Err(blocked(Some(0), "they do not overlap"));
        }
        let (mut turns, mut best): (usize, Option<(usize, Followed)>) = (1, None);
        let mut first_stop = None;
        while turns * hop < rows {
            let followed = follow(program, rows, turns * hop);
            first_stop = first_stop.or(followed.stop);
            let factor = followed.stop.map_or(1, |(.., factor)| factor);
            if followed.saved > best.as_ref().map_or(0, |(_, best)| best.saved) {
                best = Some((turns, followed));
            }
            if factor == 1 {
                break;
            }
            turns *= factor;
        }
        match (best, first_stop) {
            (Some((turns, followed)), _) => {
                Self::place(program, rows, turns, followed).map_err(|error| Blocked::Plan(error.to_string()))
            }
            (None, Some((index, what, _))) => Err(blocked(Some(index), what)),
            (None, None) => Err(blocked(None, "there is no layer")),
        }
    }

    fn place(program: &Program, rows: usize, turns: usize, followed: Followed) -> Result<Self, PlanError> {
        let Followed { tracks, steps, saved, .. } = followed;
        let slides = |slot: SlotId| tracks[slot].is_some();
        // Behind the last step that slides, and read by one that does not: from there on the rest is planned.
        let mut frontier: Vec<SlotId> = Vec::new();
        let read = program.steps.iter().filter(|step| !step.y.iter().all(|y| slides(*y))).flat_map(|step| &step.x);
        for slot in read.chain([&program.output]) {
            if slides(*slot) && !frontier.contains(slot) {
                frontier.push(*slot);
            }
        }
        let rest = Plan::new(program, &frontier, &[program.output], false)?;
        let mut values = 0;
        let places: Vec<Range<usize>> = (0..program.slots.len())
            .map(|slot| {
                let len = if slides(slot) { program.slots[slot] } else { 0 };
                let start = values;
                values = (start + len).next_multiple_of(ALIGNMENT);
                start..start + len
            })
            .collect();
        let of_rows = |slot: SlotId, range: Range<usize>| {
            let place = places[slot].clone();
            let row = tracks[slot].as_ref().map_or(0, |track| place.len() / track.rows.max(1));
            place.start + range.start * row..place.start + range.end * row
        };
        let mut work = 0;
        let mut out = Vec::new();
        for (index, kind, parts) in steps {
            let step = &program.steps[index];
            let y = step.y[0];
            let rows_of = |slot: SlotId| tracks[slot].as_ref().map_or(0, |track| track.rows);
            let input_rows = step.x.first().map_or(0, |x| rows_of(*x));
            let Some((window, track)) = kind.row_window(input_rows).zip(tracks[y].as_ref()) else { continue };
            let mut part = |kind: Kind, range: Range<usize>| {
                work = work.max(kind.forward_work());
                let read = window.reads(range.clone(), input_rows);
                let mut x = [0..0, 0..0, 0..0];
                x.iter_mut().zip(&step.x).for_each(|(x, slot)| *x = of_rows(*slot, read.clone()));
                Part { kind, inputs: step.x.len(), x, y: of_rows(y, range) }
            };
            let Track { rows, shift, inside } = track.clone();
            let parts = parts.into_iter().map(|(range, kind)| part(kind, range)).collect();
            let whole = Part {
                x: [0, 1, 2].map(|k| step.x.get(k).map_or(0..0, |x| places[*x].clone())),
                ..part(kind, 0..rows)
            };
            let moved = (of_rows(y, inside.start + shift..inside.end), of_rows(y, inside.start..inside.start).start);
            out.push(Step { whole, moved, parts });
        }
        let total: u64 = program.steps.iter().map(|step| step.multiply_adds).sum();
        debug_assert!(tracks[program.input].as_ref().is_some_and(|track| track.rows == rows));
        Ok(Self {
            steps: out,
            input: places[program.input].clone(),
            frontier: frontier.iter().map(|slot| places[*slot].clone()).collect(),
            rest,
            values,
            work,
            turns,
            multiply_adds: total - saved,
        })
    }

    /// Room for one stream.
    pub fn state(&self) -> SlidingState {
        SlidingState {
            windows: (0..self.turns).map(|_| (Arena::new(self.values), false)).collect(),
            next: 0,
            work: Arena::new(self.work),
            rest: Arena::new(self.rest.arena_len()),
        }
    }

    /// Windows that a stream keeps, in turn.
    pub fn turns(&self) -> usize {
        self.turns
    }

    /// Bytes of a stream's state.
    pub fn state_bytes(&self) -> usize {
        (self.turns * self.values + self.work + self.rest.arena_len()) * size_of::<f32>()
    }

    /// Multiply-adds of a window that has a predecessor.
    pub fn multiply_adds(&self) -> u64 {
        self.multiply_adds
    }

    /// The output for the next window of a stream, all of it in `input`: bit for bit that of the whole network.
    ///
    /// # Errors
    /// Only from operators of the other engine.
    ///
    /// # Panics
    /// If `state` is not of this plan, or `input` not as long as the model's.
    pub fn run<'a>(
        &self,
        sites: &[SiteWeights],
        state: &'a mut SlidingState,
        input: &[f32],
    ) -> Result<&'a [f32], PlanError> {
        let SlidingState { windows, next, work, rest } = state;
        let (values, holds) = &mut windows[*next];
        *next = (*next + 1) % self.turns;
        values[self.input.clone()].copy_from_slice(input);
        for step in &self.steps {
            if *holds {
                let (from, to) = step.moved.clone();
                values.copy_within(from, to);
                step.parts.iter().for_each(|part| part.run(sites, values, work));
            } else {
                step.whole.run(sites, values, work);
            }
        }
        *holds = true;
        for (from, to) in self.frontier.iter().zip(self.rest.inputs()) {
            rest[to.range()].copy_from_slice(&values[from.clone()]);
        }
        self.rest.run(sites, rest)?;
        Ok(self.rest.output(rest, 0))
    }
}
