//! How much memory a file may take: what its tensors add up to is known before any of them is made.
//!
//! tract folds constants while it infers shapes, and looks at the size of a result when it has it: a node of a few
//! bytes may ask for any amount. [`Guarded`] looks before. What is folded stays in memory, so its sum is held below the
//! limit too.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tract_onnx::pb::GraphProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::optim::CONST_FOLD_MEM_BUDGET;
use tract_onnx::tract_hir::infer::{Factoid, InferenceNode, InferenceOp};
use tract_onnx::tract_hir::internal::{self, EvalContext, EvalOp, OutletId, StaticName, TypedOp};

use super::OnnxError;
use super::load::Facts;
use crate::graph::{Graph, Op};

/// More than a model for a device takes, for one sample.
const DEFAULT_LIMIT: u64 = 4 << 30;
/// Copies of a constant while a file is read: its bytes, tract's tensor, the plan's values, the packed weight.
const COPIES: u64 = 4;
/// Operators whose values say how many of them they give: an index or a value for each at most.
const CHOOSING: [&str; 3] = ["Compress", "NonMaxSuppression", "NonZero"];
/// An index has 8 bytes for each dimension, and a truth value has one byte.
const MOST_RANK: u64 = 64;
/// Every value is held as f32.
const BYTES: u64 = 4;

/// The limit of a load: what was asked for, else the default or what the system can give.
pub(super) fn limit(asked: Option<u64>) -> u64 {
    asked.unwrap_or_else(|| available().map_or(DEFAULT_LIMIT, |bytes| bytes.min(DEFAULT_LIMIT)))
}

/// Bytes that the system can give to this process, where it says so: what is free, and what is left of its address space.
fn available() -> Option<u64> {
    let number = |text: &str, name: &str, at: usize| -> Option<u64> {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line[name.len()..].split_whitespace().nth(at)?.parse().ok()
    };
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let free = number(&read("/proc/meminfo")?, "MemAvailable:", 0)? << 10;
    let space = || {
        let most = number(&read("/proc/self/limits")?, "Max address space", 0)?;
        let taken = number(&read("/proc/self/status")?, "VmSize:", 0)? << 10;
        Some(most.saturating_sub(taken))
    };
    Some(space().map_or(free, |space| space.min(free)))
}

/// A file that is larger than the limit is not read at all.
pub(super) fn check_file(path: &Path, limit: u64) -> Result<(), OnnxError> {
    match std::fs::metadata(path) {
        Ok(about) if about.len() > limit => Err(OnnxError::Memory {
            bytes: about.len(),
            limit,
            largest: format!("the file itself is {} MiB", about.len() >> 20),
        }),
        _ => Ok(()),
    }
}

/// What the tensors of the file add up to, constants once for every copy of them.
pub(super) fn check(file: &GraphProto, facts: &Facts, limit: u64) -> Result<(), OnnxError> {
    let stored = file.initializer.iter().map(|t| &t.name);
    let inputs = file.input.iter().map(|i| &i.name);
    let computed = file.node.iter().flat_map(|n| &n.output);
    let mut seen = HashSet::new();
    let (mut sum, mut largest) = (0u64, (0u64, String::new()));
    for name in stored.chain(inputs).chain(computed).filter(|n| !n.is_empty()) {
        let Some((shape, _, value)) = facts.of(name).filter(|_| seen.insert(name)) else { continue };
        let copies = if value.is_some() { COPIES } else { 1 };
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
        let bytes = elements.and_then(|n| n.checked_mul(BYTES * copies)).unwrap_or(u64::MAX);
        sum = sum.saturating_add(bytes);
        if bytes > largest.0 {
            largest = (bytes, format!("the largest is `{name}` of shape {shape:?}"));
        }
    }
    if sum > limit {
        return Err(OnnxError::Memory { bytes: sum, limit, largest: largest.1 });
    }
    Ok(())
}

/// What convolutions and pools work on beside their values: a padded plane, and a number for each tap.
pub(super) fn check_windows(graph: &Graph, limit: u64) -> Result<(), OnnxError> {
    for node in &graph.nodes {
        let (Op::Conv(window, _)
        | Op::ConvTranspose(window, _)
        | Op::MaxPool(window)
        | Op::AveragePool(window, _)
        | Op::LpPool(window, _)) = &node.op
        else {
            continue;
        };
        // A transposed convolution pads what it writes.
        let planes = [node.inputs[0], node.outputs[0]].map(|v| graph.values[v].shape.as_slice());
        let largest = |at: fn(&[usize]) -> usize| planes.map(at).into_iter().max().unwrap_or(0) as u64;
        let side = |size: u64, d: usize| size + (window.pads_begin[d] + window.pads_end[d]) as u64;
        let height = side(largest(|s| if s.len() == 4 { s[2] } else { 1 }), 0);
        let width = side(largest(|s| s.last().copied().unwrap_or(0)), 1);
        let channels = largest(|s| s.get(1).copied().unwrap_or(0));
        let product = |all: &[u64]| all.iter().fold(1u64, |n, d| n.saturating_mul(*d));
        let taps = product(&[window.kernel[0] as u64, window.kernel[1] as u64, size_of::<usize>() as u64]);
        let bytes = product(&[height, width, channels, BYTES]).max(taps);
        if bytes > limit {
            let largest = format!("`{}` ({}) pads a plane to {height} x {width}", node.name, node.op_type);
            return Err(OnnxError::Memory { bytes, limit, largest });
        }
    }
    Ok(())
}

/// Puts a [`Guarded`] around every node of the model.
pub(super) fn guard(model: &mut InferenceModel, limit: u64) {
    let budget = Arc::new(AtomicU64::new(limit));
    for node in &mut model.nodes {
        if node.op_is::<tract_onnx::tract_hir::ops::konst::Const>() || node.inputs.is_empty() {
            continue;
        }
        let (budget, counted) = (budget.clone(), Arc::new(AtomicBool::new(false)));
        let op = node.op.clone();
        node.op = Box::new(Guarded { op, budget, counted });
    }
}

/// An operator that is folded only if what it gives is small, or no larger than what it reads, and the budget of the model
/// allows for it.
#[derive(Clone, Debug)]
struct Guarded {
    op: Box<dyn InferenceOp>,
    budget: Arc<AtomicU64>,
    counted: Arc<AtomicBool>,
}

impl PartialEq for Guarded {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.counted, &other.counted)
    }
}

impl Eq for Guarded {}

impl internal::Op for Guarded {
    fn name(&self) -> StaticName {
        self.op.name()
    }

    fn as_typed(&self) -> Option<&dyn TypedOp> {
        None
    }
}

impl EvalOp for Guarded {
    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.op.eval(ctx, inputs)
    }

    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        self.op.eval_out_of_plan(inputs)
    }
}

/// Inputs, outputs and observed outlets.
type Told = (TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>);

impl InferenceOp for Guarded {
    fn infer(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<Told> {
        let told = self.op.infer_facts(inputs.clone(), outputs.clone(), observed.clone())?;
        if !told.0.iter().all(|i| i.value.is_concrete()) || self.may_fold(&told) {
            return self.op.infer(inputs, outputs, observed);
        }
        Ok(told)
    }

    fn observe_outlets(&self, model: &InferenceModel, node: &InferenceNode) -> TractResult<Vec<OutletId>> {
        self.op.observe_outlets(model, node)
    }

    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<Told> {
        self.op.infer_facts(inputs, outputs, observed)
    }

    fn nboutputs(&self) -> TractResult<usize> {
        self.op.nboutputs()
    }

    fn as_op(&self) -> &dyn internal::Op {
        self
    }

    fn as_op_mut(&mut self) -> &mut dyn internal::Op {
        self
    }
}

impl Guarded {
    fn may_fold(&self, (inputs, outputs, _): &Told) -> bool {
        // A graph inside computes what no shape tells.
        if ["If", "Loop", "Scan"].contains(&&*self.op.name()) {
            return false;
        }
        let all = |facts: &[InferenceFact]| facts.iter().try_fold(0u64, |sum, f| sum.checked_add(bytes(f)?));
        let Some(read) = all(inputs) else { return false };
        let given = match all(outputs) {
            Some(given) => given,
            None if CHOOSING.contains(&&*self.op.name()) => read.saturating_mul(MOST_RANK),
            None => return false,
        };
        if given > read.max(CONST_FOLD_MEM_BUDGET) {
            return false;
        }
        let spend = |left: u64| left.checked_sub(given);
        self.counted.swap(true, Ordering::Relaxed)
            || self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

/// Bytes of a tensor, where its shape is known.
fn bytes(fact: &InferenceFact) -> Option<u64> {
    let size = fact.datum_type.concretize().map_or(8, |dt| dt.size_of()) as u64;
    let shape = match fact.value.concretize() {
        Some(value) => value.shape().to_vec(),
        None => fact.shape.as_concrete_finite().ok()??.to_vec(),
    };
    shape.iter().try_fold(size, |n, d| n.checked_mul(*d as u64))
}
