//! Where adapters may sit: the nodes whose weights are constants of the file.

use regex_lite::Regex;

use super::{Graph, Indexing, NodeId, Op, ValueId};
use crate::ops::binary::BinaryKind;

/// A node that an adapter can change.
#[derive(Clone, Debug)]
pub struct Site {
    /// Name in adapter files: the module path in the initializer's name where that ends in `.weight`, else the node's.
    pub key: String,
    /// The node.
    pub node: NodeId,
    /// Weight.
    pub weight: ValueId,
    /// Bias in the file, if the layer has one.
    pub bias: Option<ValueId>,
    /// What kind of layer it is.
    pub kind: SiteKind,
    /// How the file lays the weight out.
    pub layout: Layout,
    /// Input features: channels of all groups, or width of the dense input. A transposed convolution counts as the
    /// convolution from its output to its input, which has the same weight: its output channels are the inputs here.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
    /// Kernel; `[1, 1]` for a dense layer.
    pub kernel: [usize; 2],
    /// Groups; 1 for a dense layer.
    pub groups: usize,
}

/// Kinds of layers that adapters change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SiteKind {
    /// Convolution, also grouped: a low-rank pair, A with the kernel, B 1 x 1.
    Conv,
    /// Transposed convolution: a low-rank pair, `A [r, out / groups, kernel]` and `B [in, r / groups, 1 x 1]`, so that
    /// B·A has the weight's own form `[in, out / groups, kernel]`. PEFT (0.21) has no such layer.
    ConvTranspose,
    /// MatMul or Gemm: a low-rank pair.
    Dense,
    /// Depthwise convolution: a scale and a shift a channel.
    Depthwise,
    /// Input or recurrent weight of one direction of an RNN, GRU or LSTM: a low-rank pair over all gates.
    Recurrent,
    /// Matrix of which Gather takes rows: a low-rank pair, `A [r, rows]` and `B [width, r]`.
    Embedding,
}

/// Order of a weight's dimensions in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[out, in / groups, kh, kw]` or, 1-D, `[out, in / groups, k]`.
    OutInKernel,
    /// `[in, out]`: MatMul.
    InOut,
    /// `[out, in]`: Gemm with `transB`, MatMul with the weight on the left.
    OutIn,
    /// One `[out, in]` of `[parts, out, in]`: a direction of a recurrent layer.
    Stacked {
        /// Which.
        part: usize,
    },
    /// `[in, out]`: the rows of an embedding.
    Rows,
}

impl Layout {
    /// PEFT's names of A and B.
    pub fn pair_names(self) -> [&'static str; 2] {
        if self == Layout::Rows { ["lora_embedding_A", "lora_embedding_B"] } else { ["lora_A", "lora_B"] }
    }
}

impl Site {
    /// Values that one output reads: taps times input channels of a group.
    pub fn patch(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.inputs / self.groups
    }

    /// The rank used for `rank`: at most min(in, out) of a group, and a multiple of the groups.
    pub fn capped_rank(&self, rank: usize) -> usize {
        let limit = self.patch().min(self.outputs / self.groups).max(1);
        let per_group = rank.div_ceil(self.groups).clamp(1, limit);
        per_group * self.groups
    }

    /// Trainable parameters for `rank`.
    pub fn parameters(&self, rank: usize) -> usize {
        match self.kind {
            SiteKind::Depthwise => 2 * self.outputs,
            _ => {
                let rank = self.capped_rank(rank);
                rank * self.patch() + rank / self.groups * self.outputs
            }
        }
    }

    /// Shape of A for a total `rank`, as PEFT writes it.
    pub fn a_shape(&self, graph: &Graph, rank: usize) -> Vec<usize> {
        match self.layout {
            Layout::OutInKernel => {
                let mut shape = graph.values[self.weight].shape.clone();
                shape[0] = rank;
                shape
            }
            _ => vec![rank, self.inputs],
        }
    }

    /// Shape of B for a total `rank`, as PEFT writes it.
    pub fn b_shape(&self, graph: &Graph, rank: usize) -> Vec<usize> {
        let mut shape = vec![self.outputs, rank / self.groups];
        if self.layout == Layout::OutInKernel {
            shape.resize(graph.values[self.weight].shape.len(), 1);
        }
        shape
    }
}

/// Which sites to adapt.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Choice {
    /// Every convolution that is not depthwise, every dense layer and every weight of a recurrent one. Embeddings are left
    /// out, as by PEFT's `all-linear`.
    #[default]
    Auto,
    /// Every site, depthwise layers and embeddings too.
    All,
    /// The last third of those that `Auto` takes, rounded down, but one at least: what lies before is frozen, run once a clip
    /// and cached.
    LastThird,
    /// No site: only a head is trained.
    None,
    /// Sites whose node name or key the pattern finds.
    Matching(Box<Regex>),
}

impl Choice {
    /// `auto`, `all`, `last-third`, `none`, or a regular expression over node names and keys.
    ///
    /// # Errors
    /// What is wrong with the expression.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Choice::Auto),
            "all" => Ok(Choice::All),
            "last-third" => Ok(Choice::LastThird),
            "none" => Ok(Choice::None),
            pattern => Regex::new(pattern).map(|r| Choice::Matching(Box::new(r))).map_err(|e| e.to_string()),
        }
    }
}

/// The sites of `sites` that `choice` takes.
pub fn choose(graph: &Graph, sites: &[Site], choice: &Choice) -> Vec<Site> {
    let taken = |site: &&Site| match choice {
        Choice::Auto | Choice::LastThird => !matches!(site.kind, SiteKind::Depthwise | SiteKind::Embedding),
        Choice::All => true,
        Choice::None => false,
        Choice::Matching(regex) => regex.is_match(&graph.nodes[site.node].name) || regex.is_match(&site.key),
    };
    let mut chosen: Vec<Site> = sites.iter().filter(taken).cloned().collect();
    if matches!(choice, Choice::LastThird) {
        let third = (chosen.len() / 3).max(1);
        chosen.drain(..chosen.len().saturating_sub(third));
    }
    chosen
}

impl Graph {
    /// Every site between the inputs and `output`, in the order of the nodes.
    pub fn sites(&self, output: ValueId) -> Vec<Site> {
        let needed = self.ancestors(output);
        let mut sites: Vec<Site> = Vec::new();
        for (id, node) in self.nodes.iter().enumerate() {
            let own = needed[id] && !self.copies.contains_key(&id) && !self.frozen.contains(&id);
            let layer = self.layer(id).into_iter().chain(self.recurrent_sites(id));
            for mut site in layer.filter(|site| own && self.values[site.weight].is_in_file()) {
                let initializer = &self.values[site.weight];
                let name = initializer.quantised.as_ref().map_or(initializer.name.as_str(), |q| q.float_name());
                if site.key.is_empty() {
                    site.key = match name.strip_suffix(".weight") {
                        Some(module) if !module.is_empty() => module.to_owned(),
                        _ => node.name.clone(),
                    };
                }
                let taken = |key: &str| sites.iter().any(|s| s.key == key);
                if taken(&site.key) {
                    let free = (2..).map(|i| format!("{}#{i}", site.key)).find(|k| !taken(k));
                    site.key = free.unwrap_or_default();
                }
                sites.push(site);
            }
        }
        sites
    }

    /// The nodes without a gradient between the inputs and `output` that a gradient would have to pass, each with the nodes
    /// before it that none reaches.
    pub fn blocked(&self, output: ValueId) -> Vec<(NodeId, Vec<NodeId>)> {
        let passes = |value: &ValueId| self.values[*value].element.is_float() && !self.is_constant(*value);
        let before = |from: ValueId| {
            let mut reached = vec![false; self.values.len()];
            reached[from] = true;
            let mut nodes = Vec::new();
            for (id, node) in self.nodes.iter().enumerate().rev() {
                if node.outputs.iter().any(|o| reached[*o]) {
                    nodes.push(id);
                    node.inputs.iter().filter(|i| passes(i)).for_each(|i| reached[*i] = true);
                }
            }
            nodes
        };
        let foreign = |id: &NodeId| matches!(self.nodes[*id].op, Op::Foreign(_));
        let mut found: Vec<(NodeId, Vec<NodeId>)> = before(output)
            .into_iter()
            .filter(foreign)
            .map(|id| {
                let mut nodes: Vec<NodeId> =
                    self.nodes[id].inputs.iter().filter(|i| passes(i)).flat_map(|i| before(*i)).collect();
                nodes.sort_unstable();
                nodes.dedup();
                (id, nodes)
            })
            .collect();
        found.sort_unstable_by_key(|(id, _)| *id);
        found
    }

    /// Which nodes `value` depends on.
    pub fn ancestors(&self, value: ValueId) -> Vec<bool> {
        let mut wanted = vec![false; self.values.len()];
        wanted[value] = true;
        let mut needed = vec![false; self.nodes.len()];
        for (id, node) in self.nodes.iter().enumerate().rev() {
            if node.outputs.iter().any(|o| wanted[*o]) {
                needed[id] = true;
                node.inputs.iter().for_each(|i| wanted[*i] = true);
            }
        }
        needed
    }

    /// Node `id` as a layer with a constant weight, stored in the file or not; the key is left empty.
    pub fn layer(&self, id: NodeId) -> Option<Site> {
        let node = &self.nodes[id];
        // The weight as the file has it: what an Identity or Transpose hands on counts as its source.
        let weight_at = |i: usize| {
            let value = *node.inputs.get(i)?;
            let v = &self.values[value];
            let constant = v.constant.is_some() && v.element.is_float();
            constant.then(|| v.source.map_or((value, false), |s| (s.value, s.transposed)))
        };
        let activation = |i: usize| node.inputs.get(i).is_some_and(|v| !self.is_constant(*v));
        let matrix = |i: usize| node.inputs.get(i).is_some_and(|v| self.values[*v].shape.len() == 2);
        let mut site = Site {
            key: String::new(),
            node: id,
            weight: 0,
            bias: None,
            kind: SiteKind::Dense,
            layout: Layout::InOut,
            inputs: 0,
            outputs: 0,
            kernel: [1, 1],
            groups: 1,
        };
        let (weight, transposed, out_in) = match &node.op {
            Op::Conv(window, groups) | Op::ConvTranspose(window, groups) if activation(0) => {
                let (weight, _) = weight_at(1)?;
                site.layout = Layout::OutInKernel;
                site.kernel = window.kernel;
                site.groups = *groups;
                let shape = &self.values[weight].shape;
                (site.inputs, site.outputs) = (shape[1] * groups, shape[0]);
                let depthwise = *groups > 1 && shape[1] == 1;
                site.kind = match node.op {
                    Op::ConvTranspose(..) => SiteKind::ConvTranspose,
                    _ if depthwise => SiteKind::Depthwise,
                    _ => SiteKind::Conv,
                };
                (weight, false, false)
            }
            Op::Gemm { trans_b, .. } if activation(0) => weight_at(1).map(|(w, t)| (w, t, *trans_b))?,
            Op::MatMul if activation(0) && matrix(1) => weight_at(1).map(|(w, t)| (w, t, false))?,
            Op::MatMul if activation(1) && matrix(0) => weight_at(0).map(|(w, t)| (w, t, true))?,
            Op::Gather(Indexing::Axis(0)) if matrix(0) && activation(1) => {
                let (weight, transposed) = weight_at(0)?;
                if transposed {
                    return None;
                }
                (site.kind, site.layout) = (SiteKind::Embedding, Layout::Rows);
                (site.inputs, site.outputs) = (self.values[weight].shape[0], self.values[weight].shape[1]);
                (weight, false, false)
            }
            _ => return None,
        };
        site.weight = weight;
        if !matches!(site.layout, Layout::OutInKernel | Layout::Rows) {
            site.layout = if out_in != transposed { Layout::OutIn } else { Layout::InOut };
            let shape = &self.values[weight].shape;
            (site.inputs, site.outputs) =
                if site.layout == Layout::OutIn { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
        }
        let stored = |b: &ValueId| self.values[*b].is_in_file();
        site.bias = match &node.op {
            Op::Conv(..) | Op::ConvTranspose(..) => node.inputs.get(2).copied().filter(stored),
            Op::Gemm { beta, .. } => {
                let fits = |b: &ValueId| *beta == 1.0 && self.values[*b].len() == site.outputs;
                node.inputs.get(2).copied().filter(stored).filter(fits)
            }
            Op::MatMul if activation(0) => self.bias_after(id, site.outputs).map(|(_, bias)| bias).filter(stored),
            _ => None,
        };
        (site.inputs > 0 && site.outputs > 0).then_some(site)
    }

    /// The Add behind MatMul `id` that is its bias: a constant of `[outputs]` (or `[1, outputs]`), and nothing else
    /// reads the product.
    pub fn bias_after(&self, id: NodeId, outputs: usize) -> Option<(NodeId, ValueId)> {
        let product = self.nodes[id].outputs[0];
        let add = self.only_consumer(product)?;
        let node = &self.nodes[add];
        if !matches!(node.op, Op::Binary(BinaryKind::Add)) {
            return None;
        }
        let bias = *node.inputs.iter().find(|i| **i != product)?;
        let shape = &self.values[bias].shape;
        let is_row = shape.last() == Some(&outputs) && self.values[bias].len() == outputs;
        let fits = self.values[node.outputs[0]].shape == self.values[product].shape;
        (self.is_constant(bias) && is_row && fits).then_some((add, bias))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::graph::{Element, Foreign, Node, Value};

    #[derive(Debug)]
    struct Elsewhere;

    impl Foreign for Elsewhere {
        fn run(&self, x: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, String> {
            Ok(x.to_vec())
        }
    }

    /// first → between → last, with values of this type before the last.
    fn graph(element: Element) -> Graph {
        let mut graph = Graph::default();
        for (name, constant) in [("x", false), ("a", true), ("b", false), ("c", false), ("d", true), ("y", false)] {
            graph.values.push(Value {
                name: name.into(),
                shape: if constant { vec![2, 2] } else { vec![1, 2] },
                element: if name == "c" { element } else { Element::F32 },
                constant: constant.then(|| [1.0, 0.0, 0.0, 1.0].into()),
                stored: constant,
                source: None,
                quantised: None,
            });
        }
        for (name, op, inputs, output) in [
            ("first", Op::MatMul, vec![0, 1], 2),
            ("between", Op::Foreign(Arc::new(Elsewhere)), vec![2], 3),
            ("last", Op::MatMul, vec![3, 4], 5),
        ] {
            let (name, op_type) = (name.into(), String::from("Test"));
            graph.nodes.push(Node { name, op_type, op, inputs, outputs: vec![output] });
        }
        (graph.inputs, graph.outputs) = (vec![0], vec![5]);
        graph
    }

    #[test]
    fn what_no_gradient_reaches_is_known() {
        assert_eq!(graph(Element::F32).blocked(5), [(1, vec![0])]);
        // No gradient would pass whole numbers anyway.
        assert_eq!(graph(Element::Integer).blocked(5), []);
    }
}
