//! A graph lowered to steps on physical buffers.

use std::sync::Arc;

use super::lower::{Lowering, Tiling};
use crate::graph::{Foreign, Graph, Site, ValueId};
use crate::lora::{Adaptation, SharedLayer, SiteStep};
use crate::ops::{Keeps, MAX_WEIGHTS, Operator, Weighted};

/// Index of a buffer of a [`Program`].
pub type SlotId = usize;

/// Why a graph cannot be planned or a plan cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A gradient would have to pass through an operator that has none.
    #[error(
        "no gradient through node `{node}` ({op}): it lies between an adapted layer and the loss; \
         choose sites behind it with --sites, see `accentor inspect`"
    )]
    NoGradient {
        /// Node.
        node: String,
        /// ONNX operator.
        op: String,
    },
    /// A shape that the operator cannot have.
    #[error("node `{node}` ({op}): {what}")]
    Unsupported {
        /// Node.
        node: String,
        /// ONNX operator.
        op: String,
        /// What was found and what would do.
        what: String,
    },
    /// An operator of the other engine failed.
    #[error("node `{node}` failed: {reason}")]
    Foreign {
        /// Node.
        node: String,
        /// The engine's words.
        reason: String,
    },
    /// The model's output does not depend on the input.
    #[error("output `{0}` is a constant: nothing to compute")]
    Constant(String),
    /// The system has not the memory that the plan needs.
    #[error(
        "a pass needs {} MiB of memory, more than this system gives; take a smaller input, or adapt only the last layers with --sites",
        .bytes >> 20
    )]
    Memory {
        /// Bytes of the arena.
        bytes: usize,
    },
    /// None of the sites lies before the loss.
    #[error("no adapted layer lies before the loss: choose others with --sites, see `accentor inspect`")]
    NoSite,
}

/// A step of a program.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) node: String,
    pub(crate) op_type: String,
    pub(crate) kind: StepKind,
    pub(crate) x: Vec<SlotId>,
    pub(crate) y: Vec<SlotId>,
    /// Multiply-adds of a forward pass.
    pub(crate) multiply_adds: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum StepKind {
    /// A frozen operator.
    Op(Arc<dyn Operator>),
    /// A frozen operator whose fused activation reads its mask from the output if that is kept anyway.
    Masked(MaskedOp),
    /// Adapted layer of that index.
    Site(usize),
    /// Frozen layer that adapters share, at that index of the shared sites.
    Shared(usize, Arc<SharedLayer>),
    /// An operator with several weights, of which those are adapted that have the index of a site.
    Weighted(Arc<dyn Weighted>, [Option<usize>; MAX_WEIGHTS]),
    Foreign(Arc<dyn Foreign>),
}

impl StepKind {
    /// Whether an adapter changes what it computes.
    pub(crate) fn is_adapted(&self) -> bool {
        matches!(self, Self::Site(_) | Self::Shared(..) | Self::Weighted(..))
    }
}

/// Built in two forms: mask saved as bits, or read from the kept output.
#[derive(Clone, Debug)]
pub(crate) struct MaskedOp {
    pub(crate) bits: Arc<dyn Operator>,
    pub(crate) output: Arc<dyn Operator>,
}

/// What a step is, for people.
#[derive(Clone, Debug)]
pub struct StepInfo {
    /// ONNX node.
    pub node: String,
    /// ONNX operator.
    pub op_type: String,
    /// Multiply-adds of a forward pass.
    pub multiply_adds: u64,
    /// Whether it depends on an adapted layer.
    pub adapted: bool,
}

/// A graph lowered to steps, from one input to one value.
#[derive(Clone, Debug)]
pub struct Program {
    pub(crate) slots: Vec<usize>,
    pub(crate) steps: Vec<Step>,
    pub(crate) sites: Vec<SiteStep>,
    /// Size of the innermost dimension of each slot: its channels or features, where it has such.
    pub(crate) channels: Vec<usize>,
    pub(crate) shared: Vec<Option<Arc<SharedLayer>>>,
    /// Slots of whole numbers and truth values, which no gradient passes.
    pub(crate) whole: Vec<SlotId>,
    /// Slot of the model input.
    pub input: SlotId,
    /// Slot of the value asked for, row-major.
    pub output: SlotId,
}

impl Program {
    /// Lowers what `output` needs. `sites` are the adapted layers, in the order in which parameters are given.
    ///
    /// # Errors
    /// An operator with a shape that it cannot have.
    pub fn new(
        graph: &Graph,
        input: ValueId,
        output: ValueId,
        sites: &[(Site, Adaptation)],
    ) -> Result<Self, PlanError> {
        Lowering::new(graph, sites).run(input, output)
    }

    /// [`Program::new`] whose rows need not have the same bits wherever they stand in a window: it slides less, and its
    /// convolutions may take two outputs at a time along the rows too.
    ///
    /// # Errors
    /// An operator with a shape that it cannot have.
    pub fn for_training(
        graph: &Graph,
        input: ValueId,
        output: ValueId,
        sites: &[(Site, Adaptation)],
    ) -> Result<Self, PlanError> {
        Lowering::new(graph, sites).tiling(Tiling::All).run(input, output)
    }

    /// [`Program::new`] for inference with adapters that come with the call: `sites` are the layers that any of them may
    /// change, all frozen.
    ///
    /// # Errors
    /// An operator with a shape that it cannot have.
    pub fn shared(graph: &Graph, input: ValueId, output: ValueId, sites: &[Site]) -> Result<Self, PlanError> {
        Lowering::new(graph, &[]).shared(sites).run(input, output)
    }

    /// The layers of [`Program::shared`], in the order of its sites; none for one that `output` does not depend on.
    pub fn shared_layers(&self) -> &[Option<Arc<SharedLayer>>] {
        &self.shared
    }

    /// The adapted layers.
    pub fn sites(&self) -> &[SiteStep] {
        &self.sites
    }

    /// Number of values in `slot`.
    pub fn slot_len(&self, slot: SlotId) -> usize {
        self.slots[slot]
    }

    /// Channels or features of `slot`: they lie innermost.
    pub fn slot_channels(&self, slot: SlotId) -> usize {
        self.channels[slot]
    }

    /// Which slots depend on an adapted layer.
    pub fn adapted_slots(&self) -> Vec<bool> {
        let mut adapted = vec![false; self.slots.len()];
        for step in &self.steps {
            if step.kind.is_adapted() || step.x.iter().any(|x| adapted[*x]) {
                step.y.iter().for_each(|y| adapted[*y] = true);
            }
        }
        adapted
    }

    /// Which slots a gradient has to reach: a path of inputs that are differentiated leads from an adapted layer to them,
    /// and from them to slot `to`.
    pub(crate) fn gradient_slots(&self, to: SlotId) -> Vec<bool> {
        let mut from_site = vec![false; self.slots.len()];
        for step in &self.steps {
            let passes = |(k, x): (usize, &SlotId)| from_site[*x] && Self::differentiates(step, k);
            if step.kind.is_adapted() || step.x.iter().enumerate().any(passes) {
                step.y.iter().for_each(|y| from_site[*y] = true);
            }
            step.y.iter().filter(|y| self.whole.contains(y)).for_each(|y| from_site[*y] = false);
        }
        let mut to_loss = vec![false; self.slots.len()];
        to_loss[to] = true;
        for step in self.steps.iter().rev() {
            if step.y.iter().any(|y| to_loss[*y] && from_site[*y]) {
                let passed = step.x.iter().enumerate().filter(|(k, _)| Self::differentiates(step, *k));
                passed.for_each(|(_, x)| to_loss[*x] = true);
            }
        }
        from_site.iter().zip(to_loss).map(|(from, to)| *from && to).collect()
    }

    /// Whether a gradient passes to input `k` of a step.
    pub(crate) fn differentiates(step: &Step, k: usize) -> bool {
        let passes = match &step.kind {
            StepKind::Op(op) => op.differentiates(),
            StepKind::Masked(op) => op.bits.differentiates(),
            StepKind::Weighted(op, _) => op.differentiates(),
            StepKind::Site(_) | StepKind::Shared(..) | StepKind::Foreign(_) => return true,
        };
        passes.get(k).copied().unwrap_or(true)
    }

    /// The slots where the frozen prefix ends: computed without any adapted layer, read by what depends on one.
    pub fn boundary(&self) -> Vec<SlotId> {
        let adapted = self.adapted_slots();
        let constant = self.constant_slots();
        let mut boundary = Vec::new();
        for step in &self.steps {
            if step.y.iter().any(|y| adapted[*y]) {
                for x in &step.x {
                    if !adapted[*x] && !constant[*x] && !boundary.contains(x) {
                        boundary.push(*x);
                    }
                }
            }
        }
        boundary.sort_unstable();
        boundary
    }

    /// Slots that hold constants: recomputed where they are needed, never cached.
    pub(crate) fn constant_slots(&self) -> Vec<bool> {
        let mut constant = vec![false; self.slots.len()];
        for step in &self.steps {
            if step.x.iter().all(|x| constant[*x]) && !step.kind.is_adapted() {
                step.y.iter().for_each(|y| constant[*y] = true);
            }
        }
        constant[self.input] = false;
        constant
    }

    /// Every step in order.
    pub fn info(&self) -> Vec<StepInfo> {
        let adapted = self.adapted_slots();
        self.steps
            .iter()
            .map(|s| StepInfo {
                node: s.node.clone(),
                op_type: s.op_type.clone(),
                multiply_adds: s.multiply_adds,
                adapted: s.y.iter().any(|y| adapted[*y]),
            })
            .collect()
    }

    pub(crate) fn keeps(&self, step: &Step, output_kept: bool) -> Keeps {
        match &step.kind {
            StepKind::Op(op) => op.keeps(),
            StepKind::Weighted(op, _) => op.keeps(),
            StepKind::Masked(op) if output_kept => op.output.keeps(),
            StepKind::Masked(op) => op.bits.keeps(),
            StepKind::Site(site) => {
                let mut site = self.sites[*site].clone();
                site.set_output_kept(output_kept);
                site.keeps()
            }
            StepKind::Shared(..) | StepKind::Foreign(_) => Keeps::default(),
        }
    }
}
