//! The network as it stands in the ONNX file: its nodes, names, shapes and constants, for one sample.
//!
//! Shapes are logical (ONNX order, batch 1 first); the physical layout is the plan's business. Whatever is a constant
//! in the file (an initializer, a `Constant` node, folded shape arithmetic) is a [`Value`] with data.

mod chain;
mod constant;
mod ending;
mod head;
mod layout;
mod patterns;
mod quantised;
mod recurrent;
#[cfg(feature = "onnx")]
mod shapes;
mod sites;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[cfg(feature = "onnx")]
pub(crate) use chain::fill;
pub use chain::{Chain, ChainError, Frames, Link, Stage};
pub use constant::Constant;
pub use ending::{Ending, EndingKind};
pub use head::{Head, HeadError, NEW_HEAD};
pub use quantised::{Quantisation, Quantised, Spread};
pub use recurrent::RecurrentLayer;
pub use sites::{Choice, Layout, Site, SiteKind, choose};

use crate::ops::binary::BinaryKind;
use crate::ops::fold::FoldKind;
use crate::ops::function::FunctionKind;
use crate::ops::movement::PadMode;
use crate::ops::norm::NormKind;
use crate::ops::quantise::{DynamicPart, Half};
use crate::ops::reduce::ReduceKind;
use crate::ops::resize::AxisMap;
use crate::ops::unary::UnaryKind;

/// Index of a value in [`Graph::values`].
pub type ValueId = usize;
/// Index of a node in [`Graph::nodes`].
pub type NodeId = usize;

/// A frozen network for one sample.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Every tensor.
    pub values: Vec<Value>,
    /// Every node, in an order in which inputs come before their users.
    pub nodes: Vec<Node>,
    /// Model inputs.
    pub inputs: Vec<ValueId>,
    /// Model outputs.
    pub outputs: Vec<ValueId>,
    /// Nodes that are copies of others for another window of frames: they share the weights of those, and their adapter.
    pub copies: BTreeMap<NodeId, NodeId>,
    /// Nodes that no adapter may change.
    pub frozen: BTreeSet<NodeId>,
}

/// A tensor of the network.
#[derive(Clone, Debug)]
pub struct Value {
    /// Name in the file.
    pub name: String,
    /// Logical shape for one sample; the batch dimension, where there is one, is 1.
    pub shape: Vec<usize>,
    /// Element type in the file; in memory everything is f32.
    pub element: Element,
    /// Its data, if it is constant.
    pub constant: Option<Constant>,
    /// Whether the data stands in the file under this name, so that `merge` can replace it.
    pub stored: bool,
    /// The tensor of the file that it is a copy or a transpose of, where the file has it behind such a node.
    pub source: Option<Source>,
    /// The integers of the file that it stands for, where the file has a float weight only in that form.
    pub quantised: Option<Quantised>,
}

/// Where a folded weight comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The tensor that stands in the file.
    pub value: ValueId,
    /// Whether it is read transposed.
    pub transposed: bool,
}

/// Element type of a tensor in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Element {
    /// 32-bit float.
    F32,
    /// 16-bit float, computed in f32.
    F16,
    /// 64-bit float, computed in f32.
    F64,
    /// An integer, held as f32 (exact up to 2²⁴).
    Integer,
    /// An integer that stands for a real number, as QuantizeLinear gives it: a straight-through gradient passes.
    Quantised,
    /// A truth value, held as 0 or 1.
    Bool,
}

impl Element {
    /// Whether a gradient can pass.
    pub fn is_float(self) -> bool {
        matches!(self, Element::F32 | Element::F16 | Element::F64 | Element::Quantised)
    }
}

impl Value {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its data as floats, if it is constant; made anew each time where they are held as integers.
    pub fn values(&self) -> Option<Arc<[f32]>> {
        self.constant.as_ref().map(Constant::values)
    }
}

/// One ONNX node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name in the file, or that of its first output where it has none; not always unique.
    pub name: String,
    /// Operator type as in the file.
    pub op_type: String,
    /// What it computes.
    pub op: Op,
    /// Inputs that are present, in the order of the operator.
    pub inputs: Vec<ValueId>,
    /// Outputs that are present.
    pub outputs: Vec<ValueId>,
}

/// What a node computes, attributes resolved.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Op {
    /// Inputs x `[1, c, (h,) w]`, W, and bias if there is one. A 1-D convolution has height 1.
    Conv(Window, usize),
    /// Inputs x `[1, c, (h,) w]`, W `[c, out / groups, (kh,) kw]`, and bias if there is one; its window and groups.
    ConvTranspose(Window, usize),
    /// Inputs a, b.
    MatMul,
    /// alpha · op(a) · op(b) + beta · c; inputs a, b, and c if there is one.
    Gemm {
        /// Factor of the product.
        alpha: f32,
        /// Factor of c.
        beta: f32,
        /// Whether a is transposed.
        trans_a: bool,
        /// Whether b is transposed.
        trans_b: bool,
    },
    /// Element by element with broadcasting; two inputs.
    Binary(BinaryKind),
    /// Element by element.
    Unary(UnaryKind),
    /// Inputs x, scale, bias, mean, variance; all but x constant.
    BatchNormalization {
        /// Added to the variance.
        epsilon: f32,
    },
    /// Statistics over these logical axes, of which axis 1 is cut into groups; inputs x, and scale and bias where there
    /// are, constants that broadcast to x.
    Norm(NormKind, Vec<usize>, usize),
    /// Over this many channels of axis 1; alpha, beta and bias.
    Lrn(usize, [f32; 3]),
    /// A map along each of these logical axes, and what stands where the output has no place in the input.
    Resize(Arc<[(usize, AxisMap)]>, f32),
    /// Maximum over a window.
    MaxPool(Window),
    /// Mean over a window; whether padding counts.
    AveragePool(Window, bool),
    /// (Σ |x|ᵖ)^(1/p) over a window.
    LpPool(Window, i32),
    /// Over these logical axes, which stay with size 1 or go.
    Reduce(ReduceKind, Vec<usize>),
    /// Same elements in the same order under another shape (Reshape, Flatten, Squeeze, Unsqueeze, Identity, …).
    Reshape,
    /// Output dimension i is input dimension `perm[i]`.
    Transpose(Vec<usize>),
    /// Along a logical axis.
    Concat(usize),
    /// First index and step for each dimension; the output shape says how many.
    Slice(Vec<usize>, Vec<isize>),
    /// Elements added before each dimension (negative: cut); the output shape says how many after.
    Pad(Vec<isize>, PadMode),
    /// Over one axis, or over all from it on (ONNX before opset 13).
    Softmax {
        /// First axis.
        axis: usize,
        /// Whether all axes from `axis` on are one.
        flatten: bool,
        /// LogSoftmax.
        log: bool,
    },
    /// RNN, GRU or LSTM.
    Recurrent(Box<RecurrentLayer>),
    /// Element by element, with a slope of the input.
    Function(FunctionKind),
    /// Inputs condition, x, y: x where the condition is not 0, else y, with broadcasting.
    Where,
    /// Repeated until the output's shape is reached, with leading dimensions added (Expand, Tile).
    Repeat,
    /// Running sum.
    CumSum {
        /// Logical axis.
        axis: usize,
        /// Whether a value is left out of its own sum.
        exclusive: bool,
        /// Whether it runs from the end.
        reverse: bool,
    },
    /// Over these logical axes, which stay with size 1 or go.
    Fold(FoldKind, Vec<usize>),
    /// Inputs data, indices.
    Gather(Indexing),
    /// Inputs data, indices, updates.
    Scatter {
        /// What the indices name.
        indexing: Indexing,
        /// Whether the updates are added; else they replace.
        add: bool,
    },
    /// One half of a quantisation with constant scales.
    Quantise(Half, Quantisation),
    /// A part of a quantisation to the range of the data.
    DynamicQuantise(DynamicPart),
    /// tract's own operator: it runs, and has no gradient.
    Foreign(Arc<dyn Foreign>),
}

/// What indices name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indexing {
    /// Positions along a logical axis (Gather).
    Axis(usize),
    /// The position along a logical axis for each output value (GatherElements, ScatterElements).
    Elements(usize),
    /// Tuples of positions behind so many batch dimensions (GatherND, ScatterND).
    Tuples(usize),
}

/// A sliding window over `[height, width]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Kernel.
    pub kernel: [usize; 2],
    /// Stride.
    pub stride: [usize; 2],
    /// Dilation.
    pub dilation: [usize; 2],
    /// Padding before.
    pub pads_begin: [usize; 2],
    /// Padding after.
    pub pads_end: [usize; 2],
}

/// An operator that runs elsewhere.
pub trait Foreign: Send + Sync + std::fmt::Debug {
    /// Computes the outputs from the inputs, row-major, shapes fixed at load.
    ///
    /// # Errors
    /// The reason, as the other engine gave it.
    fn run(&self, x: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, String>;
}

impl Graph {
    /// Nodes that read `value`.
    pub fn consumers(&self, value: ValueId) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().enumerate().filter(move |(_, n)| n.inputs.contains(&value)).map(|(id, _)| id)
    }

    /// The one node that reads `value`, if there is just one and the value is not a model output.
    pub fn only_consumer(&self, value: ValueId) -> Option<NodeId> {
        if self.outputs.contains(&value) {
            return None;
        }
        let mut consumers = self.consumers(value);
        let first = consumers.next()?;
        let twice = self.nodes[first].inputs.iter().filter(|i| **i == value).count() > 1;
        (consumers.next().is_none() && !twice).then_some(first)
    }

    /// The node that writes `value`.
    pub fn producer(&self, value: ValueId) -> Option<NodeId> {
        self.nodes.iter().position(|n| n.outputs.contains(&value))
    }

    /// Whether `value` is constant.
    pub fn is_constant(&self, value: ValueId) -> bool {
        self.values[value].constant.is_some()
    }

    /// Bytes that the constants take in memory.
    pub fn constant_bytes(&self) -> usize {
        self.values.iter().filter_map(|v| v.constant.as_ref()).map(Constant::bytes).sum()
    }

    /// The node whose weights and adapter node `id` has: itself, unless it is a copy.
    pub fn original(&self, id: NodeId) -> NodeId {
        self.copies.get(&id).copied().unwrap_or(id)
    }

    /// The value of that name.
    pub fn value_named(&self, name: &str) -> Option<ValueId> {
        self.values.iter().position(|v| v.name == name)
    }
}
