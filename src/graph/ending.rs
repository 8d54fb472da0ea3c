//! The ending of a deployed model: the loss sits on the tensor before it.

use super::{Graph, Op, ValueId};
use crate::ops::unary::UnaryKind;

/// What stands between the logits and the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndingKind {
    /// Nothing: the output is the logits.
    Logits,
    /// Softmax over the scores.
    Softmax,
    /// LogSoftmax over the scores.
    LogSoftmax,
    /// A sigmoid for each score.
    Sigmoid,
}

/// Where the loss sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The tensor that the loss is taken on.
    pub logits: ValueId,
    /// What the file does with it.
    pub kind: EndingKind,
}

impl Ending {
    /// Walks back from `output` over reshapes to a Softmax, LogSoftmax or Sigmoid, and returns what it reads.
    pub fn of(graph: &Graph, output: ValueId) -> Self {
        let mut value = output;
        while let Some(node) = graph.producer(value).map(|id| &graph.nodes[id]) {
            let kind = match &node.op {
                Op::Softmax { log: false, .. } => EndingKind::Softmax,
                Op::Softmax { log: true, .. } => EndingKind::LogSoftmax,
                Op::Unary(UnaryKind::Sigmoid) => EndingKind::Sigmoid,
                Op::Reshape => {
                    value = node.inputs[0];
                    continue;
                }
                _ => break,
            };
            let over_all = match &node.op {
                // A softmax inside a network, over something other than all scores, is not an ending.
                Op::Softmax { axis, flatten, .. } => {
                    let shape = &graph.values[value].shape;
                    let over: usize = if *flatten { shape[*axis..].iter().product() } else { shape[*axis] };
                    over == graph.values[value].len()
                }
                _ => true,
            };
            if over_all {
                return Self { logits: node.inputs[0], kind };
            }
            break;
        }
        Self { logits: output, kind: EndingKind::Logits }
    }

    /// Turns logits into the scores that the file's output would give (probabilities where it ends so).
    pub fn scores(&self, logits: &[f32]) -> Vec<f32> {
        let mut scores = logits.to_vec();
        self.to_scores(&mut scores);
        scores
    }

    /// [`Ending::scores`] in place.
    pub(crate) fn to_scores(self, values: &mut [f32]) {
        match self.kind {
            EndingKind::Sigmoid => values.iter_mut().for_each(|z| *z = sigmoid(*z)),
            EndingKind::Logits if values.len() == 1 => values.iter_mut().for_each(|z| *z = sigmoid(*z)),
            _ => softmax(values),
        }
    }
}

/// 1 / (1 + e⁻ᶻ) without overflow.
pub(crate) fn sigmoid(z: f32) -> f32 {
    if z >= 0.0 {
        1.0 / (1.0 + (-z).exp())
    } else {
        let e = z.exp();
        e / (1.0 + e)
    }
}

fn softmax(values: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    values.iter_mut().for_each(|z| *z = (*z - max).exp());
    let sum: f32 = values.iter().sum();
    values.iter_mut().for_each(|e| *e /= sum);
}
