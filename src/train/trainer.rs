//! One training step: clips through the plan, gradients summed in a fixed order, one move of the optimiser.

use std::ops::Range;
use std::sync::Arc;

use super::cache::{Layout, Records};
use super::evaluate::predicted;
use super::{
    CacheFormat, CacheOptions, Cached, CheckpointError, ClipInput, Examples, Loss, Optimiser, OptimiserKind, TrainError,
};
use crate::graph::{Ending, Graph, Site, ValueId};
use crate::lora::{Adapter, SiteWeights};
use crate::plan::{Arena, Plan, Program};

/// A batch is cut into this many parts, whose gradients are summed one after the other: the same bytes for any number
/// of threads up to it.
pub(crate) const PARTS: usize = 4;

/// A clip for a step: what the frozen prefix gives for it, and its label index. Where one is taken, `(&[f32], usize)` will do.
pub type Clip<'a> = (ClipInput<'a>, usize);

/// Trains one adapter on one frozen graph.
#[derive(Debug)]
pub struct Trainer {
    adapter: Adapter,
    bound: Vec<Site>,
    program: Program,
    prefix: Option<Plan>,
    plan: Plan,
    ranges: Vec<Range<usize>>,
    params: Vec<f32>,
    gradient: Vec<f32>,
    total: Vec<f32>,
    weights: Vec<SiteWeights>,
    prepared: bool,
    workers: Vec<Worker>,
    pool: Option<Arc<rayon::ThreadPool>>,
    optimiser: Optimiser,
    loss: Loss,
    clip_norm: Option<f32>,
    classes: usize,
}

/// Runs the frozen prefix on examples one by one and keeps what it gives, see [`Trainer::cache_writer`].
#[derive(Debug)]
pub struct CacheWriter<'a> {
    trainer: &'a Trainer,
    records: Records,
    arena: Arena,
    values: Vec<f32>,
    variants: usize,
    targets: Vec<usize>,
}

impl CacheWriter<'_> {
    /// Adds an example: the inputs of its variants one behind the other, and its label index.
    ///
    /// # Errors
    /// A wrong length, a label beyond the scores, an operator of the other engine that fails, a value that the format cannot
    /// hold, a file that cannot be written.
    pub fn push(&mut self, inputs: &[f32], target: usize) -> Result<(), TrainError> {
        let trainer = self.trainer;
        let len = trainer.program.slot_len(trainer.program.input);
        if inputs.len() != len * self.variants {
            return Err(TrainError::Length { expected: len * self.variants, found: inputs.len() });
        }
        trainer.check_target(target)?;
        for variant in 0..self.variants {
            let input = &inputs[variant * len..][..len];
            match &trainer.prefix {
                Some(prefix) => {
                    prefix.forward(&[], &mut self.arena, input)?;
                    prefix.copy_outputs(&self.arena, &mut self.values);
                    self.records.push(&self.values, self.targets.len())?;
                }
                None => self.records.push(input, self.targets.len())?,
            }
        }
        self.targets.push(target);
        Ok(())
    }

    fn check_len(&self, found: usize) -> Result<(), TrainError> {
        let expected = self.trainer.program.slot_len(self.trainer.program.input);
        if found == expected { Ok(()) } else { Err(TrainError::Length { expected, found }) }
    }

    /// What was added.
    pub fn finish(self) -> Cached {
        self.records.finish(self.variants, self.targets)
    }
}

/// What a thread works in.
#[derive(Debug)]
struct Worker {
    arena: Arena,
    accumulators: Vec<f32>,
    /// A clip of a cache in a file.
    record: Vec<u8>,
    loss: f64,
    failed: Option<TrainError>,
}

impl Worker {
    /// Runs the forward pass on a clip.
    fn forward(&mut self, plan: &Plan, weights: &[SiteWeights], input: ClipInput) -> Result<(), TrainError> {
        match input {
            ClipInput::Values(values) => plan.forward(weights, &mut self.arena, values)?,
            ClipInput::Cached(cached) => {
                cached.read(&mut self.record, plan.inputs().iter().map(|r| r.range()), &mut self.arena)?;
                plan.run(weights, &mut self.arena)?;
            }
        }
        Ok(())
    }
}

/// Each worker takes `size` clips. Joined, not spawned: a join keeps its job on the stack.
fn each_part<C: Sync>(workers: &mut [Worker], clips: &[C], size: usize, part: &(impl Fn(&mut Worker, &[C]) + Sync)) {
    match workers {
        [] => {}
        [worker] => part(worker, clips),
        _ => {
            let half = workers.len() / 2;
            let (first, second) = workers.split_at_mut(half);
            let (before, behind) = clips.split_at(half * size);
            rayon::join(|| each_part(first, before, size, part), || each_part(second, behind, size, part));
        }
    }
}

impl Trainer {
    /// For `adapter`, bound to `sites` of `graph` in its order; the loss sits on the logits of `ending`.
    ///
    /// # Errors
    /// A gradient that cannot pass, no site, threads that cannot start.
    pub fn new(
        graph: &Graph,
        input: ValueId,
        ending: Ending,
        adapter: Adapter,
        sites: Vec<Site>,
        threads: usize,
    ) -> Result<Self, TrainError> {
        let adapted: Vec<_> =
            sites.iter().zip(&adapter.sites).map(|(s, a)| (s.clone(), a.delta.adaptation())).collect();
        let program = Program::for_training(graph, input, ending.logits, &adapted)?;
        let boundary = program.boundary();
        let plan = Plan::new(&program, &boundary, &[program.output], true)?;
        let prefix = if boundary == [program.input] {
            None
        } else {
            Some(Plan::new(&program, &[program.input], &boundary, false)?)
        };
        let mut at = 0;
        let ranges: Vec<Range<usize>> = program
            .sites()
            .iter()
            .map(|s| {
                let start = at;
                at += s.parameters();
                start..at
            })
            .collect();
        let mut params = vec![0.0; at];
        for ((site, bound), range) in adapter.sites.iter().zip(&sites).zip(&ranges) {
            site.delta.to_parameters(bound, &mut params[range.clone()]);
        }
        let threads = threads.clamp(1, PARTS);
        let pool = (threads > 1)
            .then(|| rayon::ThreadPoolBuilder::new().num_threads(threads).build().map(Arc::new))
            .transpose()
            .map_err(|e| TrainError::Threads { threads, reason: e.to_string() })?;
        let worker = || Worker {
            arena: Arena::new(plan.arena_len()),
            accumulators: vec![0.0; plan.accumulators_len()],
            record: Vec::new(),
            loss: 0.0,
            failed: None,
        };
        let classes = graph.values[ending.logits].len();
        Ok(Self {
            workers: (0..threads).map(|_| worker()).collect(),
            gradient: vec![0.0; at],
            total: vec![0.0; plan.accumulators_len()],
            weights: program.sites().iter().map(|s| s.weights()).collect(),
            optimiser: Optimiser::new(OptimiserKind::default(), at),
            prepared: false,
            loss: Loss::for_scores(classes, 0.0),
            clip_norm: None,
            adapter,
            bound: sites,
            program,
            prefix,
            plan,
            ranges,
            params,
            pool,
            classes,
        })
    }

    /// Runs `f` on one of the trainer's own threads, where it has several: steps in there start without a call from outside,
    /// which costs a wake-up and, once in some dozens, an allocation. [`Trainer::fit`] does this.
    pub fn on_own_threads<R: Send>(&mut self, f: impl FnOnce(&mut Self) -> R + Send) -> R {
        match self.pool.clone() {
            Some(pool) => pool.install(|| f(self)),
            None => f(self),
        }
    }

    /// Takes another optimiser, with fresh moments.
    pub fn set_optimiser(&mut self, kind: OptimiserKind) {
        self.optimiser = Optimiser::new(kind, self.params.len());
    }

    /// Takes another loss.
    pub fn set_loss(&mut self, loss: Loss) {
        self.loss = loss;
    }

    /// Scales the gradient down to this norm where it is larger.
    pub fn set_clip_norm(&mut self, norm: Option<f32>) {
        self.clip_norm = norm;
    }

    /// Scores of the model.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Values that a cached clip has.
    pub fn cached_len(&self) -> usize {
        self.plan.input_len()
    }

    /// Bytes of one arena; each thread has one.
    pub fn arena_bytes(&self) -> usize {
        self.plan.arena_len() * size_of::<f32>()
    }

    /// Bytes that a clip needs at least: the inputs of the adapted layers, and the largest pair that lives beside them. An
    /// arena also holds masks, workspace, and what packing leaves between buffers.
    pub fn arena_bound_bytes(&self) -> usize {
        self.plan.arena_bound() * size_of::<f32>()
    }

    /// The plan of a step.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan of the frozen prefix, if there is one.
    pub fn prefix(&self) -> Option<&Plan> {
        self.prefix.as_ref()
    }

    /// The lowered program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Trainable values.
    pub fn parameters(&self) -> usize {
        self.params.len()
    }

    /// Bytes that a cached clip takes in a format.
    pub fn cached_bytes(&self, format: CacheFormat) -> usize {
        self.layout(format).bytes()
    }

    fn layout(&self, format: CacheFormat) -> Layout {
        let program = &self.program;
        let tensors = program.boundary();
        Layout::new(format, tensors.iter().map(|s| (program.slot_len(*s), program.slot_channels(*s))))
    }

    /// Runs the frozen prefix once for each input and keeps what it gives in memory, as it is.
    ///
    /// # Errors
    /// A wrong length, a label beyond the scores, an operator of the other engine that fails.
    pub fn cache(&mut self, examples: &Examples) -> Result<Cached, TrainError> {
        self.cache_as(examples, &CacheOptions::default())
    }

    /// [`Trainer::cache`] in a format and a place of the caller's choice.
    ///
    /// # Errors
    /// As [`Trainer::cache`]; a value that the format cannot hold, too little memory, a file that cannot be written.
    pub fn cache_as(&mut self, examples: &Examples, options: &CacheOptions) -> Result<Cached, TrainError> {
        let (variants, shared) = (examples.variants(), self.prefix.is_none() && *options == CacheOptions::default());
        let mut writer = self.cache_writer(variants, if shared { 0 } else { examples.len() }, options)?;
        writer.check_len(examples.input_len())?;
        examples.targets().iter().try_for_each(|target| self.check_target(*target))?;
        if shared {
            let targets = examples.targets().to_vec();
            return Ok(Cached::shared(self.layout(options.format), examples.inputs().clone(), variants, targets));
        }
        for index in 0..examples.len() {
            writer.push(examples.example(index), examples.target(index))?;
        }
        Ok(writer.finish())
    }

    /// For examples that come one by one, `examples` of them: those that memory does not hold, with a cache in a file.
    ///
    /// # Errors
    /// Too little memory, a file that cannot be made.
    pub fn cache_writer(
        &self,
        variants: usize,
        examples: usize,
        options: &CacheOptions,
    ) -> Result<CacheWriter<'_>, TrainError> {
        let variants = variants.max(1);
        let clips = examples.saturating_mul(variants);
        Ok(CacheWriter {
            trainer: self,
            records: Records::new(self.layout(options.format), options.folder.as_ref(), clips)?,
            arena: Arena::new(self.prefix.as_ref().map_or(0, Plan::arena_len)),
            values: vec![0.0; if self.prefix.is_some() { self.plan.input_len() } else { 0 }],
            variants,
            targets: Vec::new(),
        })
    }

    fn check_clip(&self, input: ClipInput) -> Result<(), TrainError> {
        let (expected, found) = (self.plan.input_len(), input.len());
        let fits = match input {
            ClipInput::Values(_) => true,
            ClipInput::Cached(cached) => cached.fits(self.plan.inputs().iter().map(|r| r.range().len())),
        };
        if found == expected && fits { Ok(()) } else { Err(TrainError::Uncached { expected, found }) }
    }

    fn check_target(&self, found: usize) -> Result<(), TrainError> {
        let classes = self.classes.max(2);
        if found < classes { Ok(()) } else { Err(TrainError::Target { found, classes }) }
    }

    fn prepare(&mut self) {
        if !self.prepared {
            for ((site, weights), range) in self.program.sites().iter().zip(&mut self.weights).zip(&self.ranges) {
                site.prepare(&self.params[range.clone()], weights, true);
            }
            self.prepared = true;
        }
    }

    /// Loss and gradient of a batch, without a step; the gradient stays until the next call.
    ///
    /// # Errors
    /// An empty batch; a clip that is not from [`Trainer::cache`]; a label beyond the scores; an operator of the other
    /// engine that fails.
    pub fn gradient<'a, I>(&mut self, batch: &[(I, usize)]) -> Result<f32, TrainError>
    where
        I: Into<ClipInput<'a>> + Copy + Sync,
    {
        if batch.is_empty() {
            return Err(TrainError::Empty);
        }
        for (input, target) in batch {
            self.check_clip((*input).into())?;
            self.check_target(*target)?;
        }
        self.prepare();
        self.total.fill(0.0);
        let (plan, weights, loss) = (&self.plan, &self.weights, &self.loss);
        let weight = 1.0 / batch.len() as f32;
        let size = batch.len().div_ceil(PARTS);
        let mut sum = 0.0;
        let part = |worker: &mut Worker, clips: &[(I, usize)]| {
            worker.accumulators.fill(0.0);
            worker.loss = 0.0;
            for (input, target) in clips {
                if let Err(error) = worker.forward(plan, weights, (*input).into()) {
                    worker.failed = Some(error);
                    return;
                }
                let (logits, dlogits) = plan.seed(&mut worker.arena);
                worker.loss += loss.value(logits, *target, weight, dlogits) as f64;
                plan.backward(weights, &mut worker.arena, &mut worker.accumulators);
            }
        };
        for round in batch.chunks(size * self.workers.len()) {
            let parts = round.len().div_ceil(size);
            let workers = &mut self.workers[..parts];
            match &self.pool {
                Some(pool) if parts > 1 => pool.install(|| each_part(workers, round, size, &part)),
                _ => each_part(workers, round, size, &part),
            }
            for worker in workers {
                if let Some(error) = worker.failed.take() {
                    return Err(error);
                }
                self.total.iter_mut().zip(&worker.accumulators).for_each(|(t, a)| *t += a);
                sum += worker.loss;
            }
        }
        self.gradient.fill(0.0);
        for (index, (site, range)) in self.program.sites().iter().zip(&self.ranges).enumerate() {
            let accumulators = &self.total[self.plan.accumulators()[index].clone()];
            let gradient = &mut self.gradient[range.clone()];
            site.finish(&self.params[range.clone()], &mut self.weights[index], accumulators, gradient);
        }
        Ok((sum / batch.len() as f64) as f32)
    }

    /// One step of the optimiser on a batch; returns the loss before it.
    ///
    /// # Errors
    /// As [`Trainer::gradient`].
    pub fn step<'a, I>(&mut self, batch: &[(I, usize)], rate: f32) -> Result<f32, TrainError>
    where
        I: Into<ClipInput<'a>> + Copy + Sync,
    {
        let loss = self.gradient(batch)?;
        if let Some(limit) = self.clip_norm {
            let norm = self.gradient.iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
            if norm > limit as f64 {
                let factor = (limit as f64 / norm) as f32;
                self.gradient.iter_mut().for_each(|g| *g *= factor);
            }
        }
        self.optimiser.step(rate, &mut self.params, &self.gradient);
        self.prepared = false;
        Ok(loss)
    }

    /// Logits of one cached clip.
    ///
    /// # Errors
    /// A clip that is not from [`Trainer::cache`]; an operator of the other engine that fails.
    pub fn logits<'a>(&mut self, input: impl Into<ClipInput<'a>>) -> Result<Vec<f32>, TrainError> {
        let input = input.into();
        self.check_clip(input)?;
        self.prepare();
        let worker = &mut self.workers[0];
        worker.forward(&self.plan, &self.weights, input)?;
        Ok(self.plan.output(&worker.arena, 0).to_vec())
    }

    /// Correct clips and mean cross-entropy (whatever loss is trained with) on cached examples, first variant of each.
    ///
    /// # Errors
    /// As [`Trainer::logits`].
    pub fn evaluate(&mut self, examples: &Cached) -> Result<(usize, f64), TrainError> {
        let (mut correct, mut sum) = (0, 0.0);
        let plain = Loss::for_scores(self.classes, 0.0);
        let mut scratch = vec![0.0; self.classes];
        for index in 0..examples.len() {
            let logits = self.logits(examples.input(index, 0))?;
            sum += plain.value(&logits, examples.target(index), 1.0, &mut scratch) as f64;
            correct += usize::from(predicted(&logits) == examples.target(index));
        }
        Ok((correct, sum / examples.len().max(1) as f64))
    }

    /// The adapter with the present parameters.
    pub fn adapter(&self) -> Adapter {
        let mut adapter = self.adapter.clone();
        for ((site, bound), range) in adapter.sites.iter_mut().zip(&self.bound).zip(&self.ranges) {
            site.delta.from_parameters(bound, &self.params[range.clone()]);
        }
        adapter
    }

    /// Writes into the adapter what it was trained with.
    pub(super) fn describe(&mut self, examples: usize, steps: usize) {
        self.adapter.examples = examples;
        self.adapter.steps = steps;
    }

    /// The adapter as the trainer was given it.
    pub(super) fn given_adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Moments and steps of the optimiser.
    pub(super) fn moments(&self) -> (&[f32], &[f32], u32) {
        self.optimiser.state()
    }

    /// Takes parameters and what [`Trainer::moments`] gave back.
    pub(super) fn go_on(
        &mut self,
        params: &[f32],
        first: &[f32],
        second: &[f32],
        steps: u32,
    ) -> Result<(), CheckpointError> {
        if params.len() != self.params.len() || !self.optimiser.set_state(first, second, steps) {
            return Err(CheckpointError::Contradiction);
        }
        self.params.copy_from_slice(params);
        self.prepared = false;
        Ok(())
    }

    /// The gradient of the last batch, in the shapes of the adapter's tensors.
    pub fn gradients(&self) -> Adapter {
        let mut adapter = self.adapter.clone();
        for ((site, bound), range) in adapter.sites.iter_mut().zip(&self.bound).zip(&self.ranges) {
            site.delta.from_parameters(bound, &self.gradient[range.clone()]);
        }
        adapter
    }

    /// The gradient of the last batch as one vector, in the order of [`Trainer::snapshot`]: for a caller's own optimiser,
    /// or for sums over devices.
    pub fn gradient_values(&self) -> &[f32] {
        &self.gradient
    }

    /// The parameters as one vector.
    pub fn snapshot(&self) -> Vec<f32> {
        self.params.clone()
    }

    /// Takes parameters back that [`Trainer::snapshot`] gave; the optimiser starts afresh.
    ///
    /// # Errors
    /// Another number of parameters.
    pub fn restore(&mut self, params: &[f32]) -> Result<(), TrainError> {
        let (expected, found) = (self.params.len(), params.len());
        if found != expected {
            return Err(TrainError::Parameters { expected, found });
        }
        self.params.copy_from_slice(params);
        self.optimiser.reset();
        self.prepared = false;
        Ok(())
    }
}
