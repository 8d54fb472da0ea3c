//! Classes that the file does not have: more rows of its last layer, or a new dense layer on one of its tensors.

use serde::{Deserialize, Serialize};

use super::{Ending, Graph, Layout, Node, Op, Site, SiteKind, Value, ValueId};
use crate::ops::binary::BinaryKind;

/// How a model got classes that its file lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// The last layer of the file has more rows.
    Extended,
    /// A dense layer of its own.
    New {
        /// The tensor of the file that it reads.
        output: String,
    },
}

/// Why a model cannot have other classes.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// The scores are not the plain result of a layer.
    #[error(
        "the last layer of output `{output}` cannot have more rows: {reason}; \
         put a new head on a tensor of the model with --new-head TENSOR"
    )]
    NoLayer {
        /// The output.
        output: String,
        /// What stands in the way.
        reason: String,
    },
    /// A tensor that cannot carry a head.
    #[error(
        "a new head cannot read `{name}`: {reason}; `accentor inspect` lists outputs and tensors, --new-head takes one of them"
    )]
    Tensor {
        /// The tensor asked for.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Fewer classes than a head needs.
    #[error("a head needs {needed} labels or more, found {found}")]
    Classes {
        /// At least.
        needed: usize,
        /// Given.
        found: usize,
    },
}

/// Name of a new head's node, and the beginning of the names of its tensors.
pub const NEW_HEAD: &str = "accentor_head";

impl Graph {
    /// The layer whose rows are the scores of `output`, and the axis of the classes in each value from it to `output`.
    ///
    /// # Errors
    /// What stands between a layer and the scores.
    pub fn head_layer(&self, output: ValueId) -> Result<(Site, Vec<(ValueId, usize)>), HeadError> {
        let logits = Ending::of(self, output).logits;
        let scores = self.values[logits].len();
        let name = || self.values[output].name.clone();
        let no_layer = |reason: String| HeadError::NoLayer { output: name(), reason };
        if scores < 2 {
            return Err(no_layer("it has one score, which says yes or no".into()));
        }
        // From the output back to the layer, through what leaves each class by itself.
        let mut way = vec![output];
        let site = loop {
            let value = way[way.len() - 1];
            let id = self.producer(value).ok_or_else(|| no_layer("no layer gives it".into()))?;
            let node = &self.nodes[id];
            let between = || no_layer(format!("node `{}` ({}) stands between it and a layer", node.name, node.op_type));
            if let Some(site) = self.layer(id) {
                if site.outputs != scores || site.groups != 1 || site.kind == SiteKind::Depthwise {
                    let what = format!(
                        "node `{}` ({}) has {} outputs for {scores} scores",
                        node.name, node.op_type, site.outputs
                    );
                    return Err(no_layer(what));
                }
                break site;
            }
            let plain = |v: ValueId| self.values[v].len() == scores;
            way.push(match &node.op {
                Op::Reshape | Op::Softmax { .. } | Op::Unary(_) if plain(node.inputs[0]) => node.inputs[0],
                Op::Transpose(_) | Op::Reduce(..) => node.inputs[0],
                Op::Binary(kind) => {
                    let x = node.inputs.iter().copied().find(|i| !self.is_constant(*i)).ok_or_else(between)?;
                    let c = node.inputs.iter().copied().find(|i| self.is_constant(*i)).ok_or_else(between)?;
                    let bias = *kind == BinaryKind::Add && self.values[c].len() == scores;
                    let behind = self.producer(x).and_then(|id| self.layer(id));
                    let is_bias = bias && behind.is_some_and(|site| site.bias == Some(c));
                    if self.values[x].shape != self.values[value].shape || !(is_bias || self.values[c].len() == 1) {
                        return Err(between());
                    }
                    x
                }
                _ => return Err(between()),
            });
        };
        let node = &self.nodes[site.node];
        for value in [Some(site.weight), site.bias].into_iter().flatten() {
            let v = &self.values[value];
            let copies = |other: &Value| other.source.is_some_and(|s| s.value == value);
            let readers =
                self.nodes.iter().filter(|n| n.inputs.iter().any(|i| *i == value || copies(&self.values[*i])));
            if v.quantised.is_some() {
                return Err(no_layer(format!("`{}` stands in the file as integers", v.name)));
            }
            if !v.stored || readers.count() > 1 {
                let why = if v.stored { "is read by other nodes too" } else { "does not stand in the file by itself" };
                return Err(no_layer(format!("`{}` of node `{}` {why}", v.name, node.name)));
            }
        }
        let unnamed = match &node.op {
            Op::Conv(..) | Op::Gemm { .. } if site.bias.is_none() => node.inputs.get(2),
            _ => None,
        };
        if let Some(bias) = unnamed.filter(|b| self.values[**b].len() != 1) {
            return Err(no_layer(format!("the bias `{}` is computed or scaled", self.values[*bias].name)));
        }
        // And forward again, with the axis of the classes.
        let mut axis = match (&node.op, site.layout) {
            (Op::Conv(..), _) => 1,
            (Op::MatMul, _) if !self.is_constant(node.inputs[1]) => self.values[node.outputs[0]].shape.len() - 2,
            _ => self.values[node.outputs[0]].shape.len() - 1,
        };
        let mut axes = Vec::new();
        for value in way.iter().rev() {
            let shape = &self.values[*value].shape;
            if let Some(id) = self.producer(*value).filter(|id| *id != site.node) {
                let between = || {
                    no_layer(format!("node `{}` ({}) mixes its classes", self.nodes[id].name, self.nodes[id].op_type))
                };
                axis = match &self.nodes[id].op {
                    Op::Reshape => shape.iter().position(|d| *d == scores).ok_or_else(between)?,
                    Op::Transpose(perm) => perm.iter().position(|p| *p == axis).ok_or_else(between)?,
                    Op::Reduce(_, gone) if gone.contains(&axis) => return Err(between()),
                    Op::Reduce(_, gone) if shape.len() != self.values[self.nodes[id].inputs[0]].shape.len() => {
                        axis - gone.iter().filter(|g| **g < axis).count()
                    }
                    _ => axis,
                };
            }
            if shape.get(axis) != Some(&scores) {
                return Err(no_layer(format!("`{}` has shape {shape:?}", self.values[*value].name)));
            }
            axes.push((*value, axis));
        }
        Ok((site, axes))
    }

    /// What `--head` trains: the layer whose rows are the scores of `output`, else the last dense layer before it.
    pub fn head_site(&self, output: ValueId) -> Option<Site> {
        let sites = self.sites(output);
        let rows = self.head_layer(output).ok().map(|(site, _)| site.node);
        let at = sites.iter().rposition(|s| Some(s.node) == rows);
        at.or_else(|| sites.iter().rposition(|s| s.kind == SiteKind::Dense)).map(|i| sites[i].clone())
    }

    /// The graph with `scores` scores: new rows of the last layer, each the mean of the old ones.
    ///
    /// # Errors
    /// As [`Graph::head_layer`]; not more scores than there are.
    pub fn extended(&self, output: ValueId, scores: usize) -> Result<Self, HeadError> {
        let (site, axes) = self.head_layer(output)?;
        if scores <= site.outputs {
            return Err(HeadError::Classes { needed: site.outputs + 1, found: scores });
        }
        let mut graph = self.clone();
        axes.iter().for_each(|(value, axis)| graph.values[*value].shape[*axis] = scores);
        let rows_last = site.layout == Layout::InOut;
        graph.values[site.weight].widen(if rows_last { 1 } else { 0 }, scores);
        // What the node reads, where that is a copy or a transpose of the file's tensor.
        for value in &mut graph.values {
            if let Some(source) = value.source.filter(|s| s.value == site.weight) {
                value.widen(usize::from(rows_last != source.transposed), scores);
            }
        }
        if let Some(bias) = site.bias {
            let last = self.values[bias].shape.len().saturating_sub(1);
            graph.values[bias].widen(last, scores);
        }
        Ok(graph)
    }

    /// The graph with a dense layer of `scores` scores on `tensor`, which becomes its output. The layer starts with
    /// zeros.
    ///
    /// # Errors
    /// A tensor that is not there, is constant, is not of floats, or has no batch of 1 first.
    pub fn with_new_head(&self, tensor: &str, scores: usize) -> Result<Self, HeadError> {
        let wrong = |reason: String| HeadError::Tensor { name: tensor.to_owned(), reason };
        let missing = || {
            let names = self.values.iter().filter(|v| v.constant.is_none()).map(|v| v.name.as_str());
            let near = crate::features::nearest(tensor, &names.collect::<Vec<_>>());
            let near = near.map(|n| format!(" (did you mean `{n}`?)")).unwrap_or_default();
            wrong(format!("the model has no such tensor{near}"))
        };
        let x = self.value_named(tensor).ok_or_else(missing)?;
        let of = self.values[x].clone();
        if of.constant.is_some() || !of.element.is_float() || self.inputs.contains(&x) {
            return Err(wrong("it is constant, an input, or holds no floats".into()));
        }
        if of.shape.len() < 2 || of.shape[0] != 1 || of.is_empty() {
            return Err(wrong(format!("expected shape [batch, features], found {:?}", of.shape)));
        }
        let features = of.len();
        let mut graph = self.clone();
        let mut value = |name: &str, shape: Vec<usize>, constant: bool| {
            let taken = |name: &str| self.values.iter().any(|v| v.name == name);
            let numbered = |i: usize| if i == 1 { name.to_owned() } else { format!("{name}{i}") };
            let name = (1..).map(numbered).find(|n| !taken(n)).unwrap_or_default();
            let zeros = || vec![0.0; shape.iter().product()].into();
            let constant = constant.then(zeros);
            graph.values.push(Value {
                name,
                stored: constant.is_some(),
                constant,
                source: None,
                quantised: None,
                shape,
                ..of.clone()
            });
            graph.values.len() - 1
        };
        let weight = value(&format!("{NEW_HEAD}.weight"), vec![features, scores], true);
        let bias = value(&format!("{NEW_HEAD}.bias"), vec![scores], true);
        let flat = if of.shape.len() == 2 { x } else { value(&format!("{NEW_HEAD}.input"), vec![1, features], false) };
        let logits = value(&format!("{NEW_HEAD}.logits"), vec![1, scores], false);
        if flat != x {
            let (name, op_type) = (format!("{NEW_HEAD}.flatten"), String::from("Flatten"));
            graph.nodes.push(Node { name, op_type, op: Op::Reshape, inputs: vec![x], outputs: vec![flat] });
        }
        let op = Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false };
        let (name, op_type) = (NEW_HEAD.to_owned(), String::from("Gemm"));
        graph.nodes.push(Node { name, op_type, op, inputs: vec![flat, weight, bias], outputs: vec![logits] });
        graph.outputs = vec![logits];
        Ok(graph)
    }

    /// The constants of the file that `base`, from which this graph was made, has in another size.
    pub fn widened<'a>(&'a self, base: &'a Self) -> impl Iterator<Item = ValueId> + 'a {
        let pairs = self.values.iter().zip(&base.values).enumerate();
        pairs.filter(|(_, (new, old))| new.stored && new.shape != old.shape).map(|(id, _)| id)
    }
}

impl Value {
    /// Makes dimension `axis` larger; what is new is the mean over that axis.
    fn widen(&mut self, axis: usize, size: usize) {
        let Some(old) = self.values() else { return };
        let (from, inner) = (self.shape[axis], self.shape[axis + 1..].iter().product::<usize>());
        let mut values = Vec::with_capacity(old.len() / from.max(1) * size);
        for block in old.chunks_exact((from * inner).max(1)) {
            values.extend_from_slice(block);
            let mean: Vec<f32> = (0..inner)
                .map(|i| (block[i..].iter().step_by(inner).map(|v| f64::from(*v)).sum::<f64>() / from as f64) as f32)
                .collect();
            (from..size).for_each(|_| values.extend_from_slice(&mean));
        }
        self.constant = Some(values.into());
        self.shape[axis] = size;
    }
}
