//! Recurrent layers in the graph.

use super::{Graph, Layout, NodeId, Site, SiteKind};
use crate::ops::recurrent::Recurrence;

/// An RNN, GRU or LSTM: its inputs begin with x, W and R.
#[derive(Clone, Debug)]
pub struct RecurrentLayer {
    /// What it computes.
    pub recurrence: Recurrence,
    /// Whether the batch comes before the steps and the directions (`layout` 1).
    pub batch_first: bool,
    /// Where the bias stands among the inputs.
    pub bias: Option<usize>,
    /// Where the initial h and the initial c stand among the inputs.
    pub initial: [Option<usize>; 2],
    /// Where the peepholes stand among the inputs.
    pub peepholes: Option<usize>,
    /// Where Y, the last h and the last c stand among the outputs.
    pub outputs: [Option<usize>; 3],
}

impl RecurrentLayer {
    /// Position of W among the inputs.
    pub const W: usize = 1;
    /// Position of R among the inputs.
    pub const R: usize = 2;
}

impl Graph {
    /// The weights of recurrent node `id`, one site for W and one for R of each direction, with their keys.
    ///
    /// Exporters name these weights at will, so that the key is the node's name with `.W` or `.R` (`.W_reverse`, `.R_reverse`
    /// for the second direction); where the initializer kept the path of a module's weight (`gru.weight_ih_l0`), it is that.
    pub(super) fn recurrent_sites(&self, id: NodeId) -> Vec<Site> {
        let node = &self.nodes[id];
        let super::Op::Recurrent(layer) = &node.op else { return Vec::new() };
        if node.inputs.first().is_none_or(|x| self.is_constant(*x)) {
            return Vec::new();
        }
        let mut sites = Vec::new();
        for (part, _) in layer.recurrence.reverse.iter().enumerate() {
            for (input, name) in [(RecurrentLayer::W, "W"), (RecurrentLayer::R, "R")] {
                let Some(weight) = node.inputs.get(input).copied() else { continue };
                let initializer = self.values[weight].name.as_str();
                let [_, outputs, inputs] = self.values[weight].shape[..] else { continue };
                let path = initializer.rsplit_once('.').is_some_and(|(_, tensor)| tensor.starts_with("weight"));
                let stem = if path { initializer.to_owned() } else { format!("{}.{name}", node.name) };
                let key = if part == 0 { stem } else { format!("{stem}_reverse") };
                if inputs == 0 || outputs == 0 {
                    continue;
                }
                sites.push(Site {
                    key,
                    node: id,
                    weight,
                    bias: None,
                    kind: SiteKind::Recurrent,
                    layout: Layout::Stacked { part },
                    inputs,
                    outputs,
                    kernel: [1, 1],
                    groups: 1,
                });
            }
        }
        sites
    }
}
