//! Merging: an ONNX file that computes by itself what base and adapter compute together.
//!
//! The weights of the adapted nodes are replaced in the bytes of the file, in the type in which it holds them; every
//! other byte stays (see [`crate::onnx::wire`]). Where a tensor has to be added (a weight that other nodes read too,
//! a layer without bias that gets a shift) the smallest edit is made and noted.
//!
//! A layer whose weight the file has as integers becomes a float layer, see `merge/quantised.rs`, and a note says so.
//!
//! There is no unmerge: the frozen file stays as it is, so unmerging exactly is to use that file.

mod head;
mod quantised;

pub use head::with_head;

use super::{Adapter, AdapterError, AdapterSite};
use crate::graph::{Graph, HeadError, Site, ValueId};
use crate::onnx::wire::{self, Contents, Edit, NewNode, Replacement, WireError};

/// A merged model.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The ONNX file.
    pub bytes: Vec<u8>,
    /// What had to be added to the file, a sentence each; empty where only values were replaced.
    pub notes: Vec<String>,
}

/// Why a model could not be merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The file could not be read or changed.
    #[error(transparent)]
    File(#[from] WireError),
    /// The file is not the one that the graph came from.
    #[error("node `{node}` of the graph is not in the ONNX file: merge the very file that was loaded")]
    OtherFile {
        /// Node.
        node: String,
    },
    /// A site that does not fit the graph.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Sites that do not belong to the adapter.
    #[error("the adapter has {adapter} sites and {bound} were bound: bind it to this graph first")]
    Unbound {
        /// Sites of the adapter.
        adapter: usize,
        /// Sites given.
        bound: usize,
    },
    /// The weight reaches its node through a node that others read as well.
    #[error(
        "weight `{tensor}` reaches node `{node}` through `{through}`, which is read elsewhere too: \
         merging would change both; leave the site out with --sites"
    )]
    Shared {
        /// Weight.
        tensor: String,
        /// Adapted node.
        node: String,
        /// What stands in between.
        through: String,
    },
    /// The bias is computed by the model.
    #[error(
        "the bias of node `{node}` is computed by the model, a shift cannot be merged into it; leave the site out with --sites"
    )]
    ComputedBias {
        /// Adapted node.
        node: String,
    },
    /// The scores have no layer that could have more rows.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The scores go through a Reshape whose shape the model computes or uses elsewhere too.
    #[error(
        "the scores are reshaped to `{shape}` in `{node}`, which cannot be changed for them alone: \
         keep the adapter beside the model, or give it a head of its own with --new-head"
    )]
    Reshaped {
        /// What the Reshape gives.
        node: String,
        /// The shape that it reads.
        shape: String,
    },
    /// Infinite or not a number.
    #[error("merged, `{tensor}` has a value that is infinite or not a number; train with a lower --lr or --alpha")]
    NotFinite {
        /// Tensor.
        tensor: String,
    },
}

/// New values for a tensor, and where they go.
struct Change {
    /// The constant that they replace, and the graph's node that reads it; of a new bias, none.
    of: Option<(ValueId, usize)>,
    target: Target,
    name: String,
    values: Vec<f32>,
    shape: Vec<usize>,
}

enum Target {
    /// The tensor itself.
    InPlace,
    /// A new initializer, of the type of the tensor `like`, that this input reads.
    Added { node: usize, input: usize, like: String },
    /// A new initializer, of the type of the tensor `like`, that new nodes read.
    New { like: String },
}

/// Merges `adapter`, bound as `sites`, into the model file that `graph` came from.
///
/// # Errors
/// A file that is not that of the graph, external data, a weight that cannot be changed for one node alone.
pub fn merge(model_bytes: &[u8], graph: &Graph, adapter: &Adapter, sites: &[Site]) -> Result<Merged, MergeError> {
    if adapter.sites.len() != sites.len() {
        return Err(MergeError::Unbound { adapter: adapter.sites.len(), bound: sites.len() });
    }
    let file = Contents::read(model_bytes)?;
    let mut merger = Merger { graph, file: &file, changes: Vec::new(), islands: Vec::new(), notes: Vec::new() };
    for (of_adapter, site) in adapter.sites.iter().zip(sites) {
        of_adapter.check_against(graph, site)?;
        merger.site(of_adapter, site)?;
    }
    let mut edits = Vec::new();
    for change in &merger.changes {
        let tensor = Replacement { name: &change.name, values: &change.values, shape: &change.shape };
        match &change.target {
            Target::InPlace => edits.push(Edit::Replace(tensor)),
            Target::Added { node, input, like } => {
                edits.push(Edit::AddInitializer { tensor, like });
                edits.push(Edit::SetInput { node: *node, input: *input, name: &change.name });
            }
            Target::New { like } => edits.push(Edit::AddInitializer { tensor, like }),
        }
    }
    edits.extend(merger.islands.iter().map(|(node, nodes)| Edit::ReplaceNode { node: *node, nodes }));
    Ok(Merged { bytes: wire::edit(model_bytes, &edits)?, notes: merger.notes })
}

struct Merger<'a> {
    graph: &'a Graph,
    file: &'a Contents<'a>,
    changes: Vec<Change>,
    /// New nodes in the place of one of the file.
    islands: Vec<(usize, Vec<NewNode>)>,
    notes: Vec<String>,
}

impl Merger<'_> {
    fn site(&mut self, of_adapter: &AdapterSite, site: &Site) -> Result<(), MergeError> {
        let node = &self.graph.nodes[site.node];
        let frozen = |value: ValueId| self.graph.values[value].values();
        // A bias that is constant but does not stand in the file (folded by the loader) counts as well.
        let is_conv = matches!(node.op, crate::graph::Op::Conv(..));
        let bias = site.bias.or_else(|| if is_conv { node.inputs.get(2).copied() } else { None });
        // Of a stacked weight, other parts may be merged already.
        let before = self.changes.iter().find(|c| c.of == Some((site.weight, site.node)));
        let weight = before.map(|c| c.values.as_slice().into()).or_else(|| frozen(site.weight)).unwrap_or_default();
        let (weight, new_bias) = of_adapter.merged(site, &weight, bias.and_then(frozen).as_deref());
        if let Some(output) = self.graph.values[site.weight].quantised.as_ref().and_then(|q| q.inside.as_ref()) {
            return self.island(site, output, weight, new_bias);
        }
        self.tensor(site.node, site.weight, weight)?;
        let Some(new_bias) = new_bias else { return Ok(()) };
        match (site.bias, bias) {
            (Some(bias), _) => {
                // The bias of a MatMul is read by the Add behind it.
                let reads = |id: usize| self.graph.nodes[id].inputs.contains(&bias);
                let behind = self.graph.bias_after(site.node, site.outputs).map(|(add, _)| add);
                let reader = if reads(site.node) { Some(site.node) } else { behind.filter(|add| reads(*add)) };
                self.tensor(reader.unwrap_or(site.node), bias, new_bias)
            }
            (None, Some(bias)) if frozen(bias).is_none() => Err(MergeError::ComputedBias { node: node.name.clone() }),
            (None, None) if new_bias.iter().all(|b| *b == 0.0) => Ok(()),
            (None, old) => {
                let weight = self.graph.values[site.weight].name.clone();
                let like = self.graph.values[site.weight].quantised.as_ref().map_or(&weight, |q| &q.scale).clone();
                let index = self.node(site.node)?;
                let shape = vec![new_bias.len()];
                self.add(None, index, 2, &like, format!("{weight}_accentor_bias"), new_bias, shape)?;
                let name = &self.changes[self.changes.len() - 1].name;
                self.notes.push(match old {
                    None => format!("node `{}` had no bias: added `{name}` as its third input", node.name),
                    Some(_) => format!(
                        "the bias of node `{}` is computed from constants: added `{name}` in its place",
                        node.name
                    ),
                });
                Ok(())
            }
        }
    }

    /// The node's index in the file, found by its first output; of several nodes that one of the file became, by that of
    /// the last.
    fn node(&self, id: usize) -> Result<usize, MergeError> {
        let graph = self.graph;
        let output = |id: usize| graph.nodes[id].outputs.first().copied();
        let chain = std::iter::successors(Some(id), |id| {
            graph.only_consumer(output(*id)?).filter(|next| graph.nodes[*next].op_type == graph.nodes[*id].op_type)
        });
        let mut written = chain.filter_map(|id| self.file.writer(&graph.values[output(id)?].name));
        written.next().ok_or_else(|| MergeError::OtherFile { node: graph.nodes[id].name.clone() })
    }

    /// New `values` for the constant `value` that node `id` reads.
    fn tensor(&mut self, id: usize, value: ValueId, values: Vec<f32>) -> Result<(), MergeError> {
        let of = Some((value, id));
        if let Some(at) = self.changes.iter().position(|c| c.of == of) {
            self.finite(&self.changes[at].name, &values)?;
            self.changes[at].values = values;
            return Ok(());
        }
        let name = self.graph.values[value].name.as_str();
        let node_name = &self.graph.nodes[id].name;
        let index = self.node(id)?;
        if let Some(quantised) = &self.graph.values[value].quantised {
            return self.dequantised(index, (value, id), quantised, values);
        }
        let shape = match self.file.tensors.get(name) {
            Some(tensor) => tensor.shape.clone(),
            None => return Err(WireError::NoTensor { name: name.to_owned() }.into()),
        };
        let taken = self.changes.iter().any(|c| c.name == name && matches!(c.target, Target::InPlace));
        if self.file.uses(name) <= 1 && !taken {
            self.reader(index, name, node_name)?;
            self.finite(name, &values)?;
            self.changes.push(Change { of, target: Target::InPlace, name: name.to_owned(), values, shape });
            return Ok(());
        }
        let reader = self.reader(index, name, node_name)?;
        let input = self.file.nodes[reader].inputs.iter().position(|i| *i == name).unwrap_or_default();
        self.add(of, reader, input, name, format!("{name}_accentor"), values, shape)?;
        let added = &self.changes[self.changes.len() - 1].name;
        self.notes.push(format!(
            "`{name}` is read {} times: added `{added}`, which only node `{node_name}` reads",
            self.file.uses(name)
        ));
        Ok(())
    }

    /// The node that reads a tensor for node `index`: itself, or what stands between (a Transpose, an Identity) where
    /// nobody else reads that.
    fn reader(&self, index: usize, tensor: &str, node_name: &str) -> Result<usize, MergeError> {
        let mut node = index;
        for _ in 0..self.file.nodes.len() {
            let inputs = &self.file.nodes[node].inputs;
            if inputs.contains(&tensor) {
                return Ok(node);
            }
            let before = |name: &&&str| self.file.writer(name).is_some_and(|n| self.reaches(n, tensor));
            let Some(through) = inputs.iter().find(before) else { break };
            if self.file.uses(through) > 1 {
                return Err(MergeError::Shared {
                    tensor: tensor.to_owned(),
                    node: node_name.to_owned(),
                    through: (*through).to_owned(),
                });
            }
            node = self.file.writer(through).unwrap_or(index);
        }
        Err(MergeError::OtherFile { node: node_name.to_owned() })
    }

    /// Whether node `node` hands on `tensor`: reads it through what a weight may stand behind. A layer's activation may
    /// depend on the tensor as well, where that is shared.
    fn reaches(&self, mut node: usize, tensor: &str) -> bool {
        for _ in 0..self.file.nodes.len() {
            if !["Identity", "Cast", "Transpose"].contains(&self.file.nodes[node].op_type) {
                return false;
            }
            let inputs = &self.file.nodes[node].inputs;
            if inputs.contains(&tensor) {
                return true;
            }
            match inputs.first().and_then(|i| self.file.writer(i)) {
                Some(before) => node = before,
                None => return false,
            }
        }
        false
    }

    fn add(
        &mut self,
        of: Option<(ValueId, usize)>,
        node: usize,
        input: usize,
        like: &str,
        name: String,
        values: Vec<f32>,
        shape: Vec<usize>,
    ) -> Result<(), MergeError> {
        let free = self.free(&name);
        self.finite(&free, &values)?;
        let target = Target::Added { node, input, like: like.to_owned() };
        self.changes.push(Change { of, target, name: free, values, shape });
        Ok(())
    }

    /// `name`, or that with a number that makes it free.
    fn free(&self, name: &str) -> String {
        let made = |n: &String| self.islands.iter().flat_map(|(_, nodes)| nodes).any(|node| node.outputs.contains(n));
        let is_free = |n: &String| !self.file.is_taken(n) && !self.changes.iter().any(|c| c.name == *n) && !made(n);
        let numbered = |i: usize| if i == 1 { name.to_owned() } else { format!("{name}_{i}") };
        (1..).map(numbered).find(is_free).unwrap_or_default()
    }

    fn finite(&self, tensor: &str, values: &[f32]) -> Result<(), MergeError> {
        match values.iter().all(|v| v.is_finite()) {
            true => Ok(()),
            false => Err(MergeError::NotFinite { tensor: tensor.to_owned() }),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::graph::Op;
    use crate::lora::Delta;
    use crate::lora::folder::tests::{adapter, example};
    use crate::onnx::wire::tests::build::{bytes, floats, model, node, tensor};

    /// The file of a graph, without attributes; `more` are nodes behind it.
    pub(in crate::lora) fn file(graph: &Graph, more: &[Vec<u8>]) -> Vec<u8> {
        let names = |ids: &[usize]| ids.iter().map(|v| graph.values[*v].name.as_str()).collect::<Vec<_>>();
        let mut fields: Vec<Vec<u8>> = graph
            .nodes
            .iter()
            .map(|n| node(&n.op_type, &names(&n.inputs), &names(&n.outputs), &bytes(3, &n.name)))
            .collect();
        for value in &graph.values {
            if let Some(data) = value.values() {
                fields.push(bytes(5, tensor(&value.name, &value.shape, 1, &bytes(9, floats(&data)))));
            }
        }
        fields.extend_from_slice(more);
        fields.push(bytes(12, bytes(1, "y")));
        model(8, &fields)
    }

    /// Whether `values` stand in `file`.
    fn holds(file: &[u8], values: &[f32]) -> bool {
        let bytes = floats(values);
        file.windows(bytes.len()).any(|w| w == bytes)
    }

    fn frozen(graph: &Graph, value: usize) -> std::sync::Arc<[f32]> {
        graph.values[value].values().unwrap()
    }

    #[test]
    fn an_adapter_without_effect_leaves_every_byte() {
        let (graph, sites) = example();
        let spec = crate::lora::AdapterSpec { head: true, ..Default::default() };
        let output = graph.outputs[0];
        let adapter = Adapter::new(&graph, output, &sites, &spec, &mut fastrand::Rng::with_seed(1));
        let file = file(&graph, &[]);
        let merged = merge(&file, &graph, &adapter, &sites).unwrap();
        assert_eq!(merged.bytes, file);
        assert!(merged.notes.is_empty(), "{:?}", merged.notes);
    }

    #[test]
    fn merged_values_stand_in_the_file() {
        let (graph, sites) = example();
        for head in [false, true] {
            let adapter = adapter(head);
            let merged = merge(&file(&graph, &[]), &graph, &adapter, &sites).unwrap();
            for (of_adapter, site) in adapter.sites.iter().zip(&sites) {
                let bias = site.bias.map(|b| frozen(&graph, b));
                let (weight, bias) = of_adapter.merged(site, &frozen(&graph, site.weight), bias.as_deref());
                assert!(holds(&merged.bytes, &weight), "{}", of_adapter.key);
                assert!(bias.is_none_or(|b| holds(&merged.bytes, &b)), "{}", of_adapter.key);
                assert!(!holds(&merged.bytes, &frozen(&graph, site.weight)), "{}", of_adapter.key);
            }
            // The depthwise layer had no bias.
            assert_eq!(merged.notes.len(), 1, "{:?}", merged.notes);
            assert!(merged.notes[0].contains("/dw/Conv") && merged.notes[0].contains("dw.weight_accentor_bias"));
            let contents = Contents::read(&merged.bytes).unwrap();
            assert_eq!(contents.nodes[2].inputs, ["grouped.out", "dw.weight", "dw.weight_accentor_bias"]);
        }
    }

    #[test]
    fn a_shared_weight_stays_for_the_others() {
        let (graph, sites) = example();
        let adapter = adapter(true);
        let more = [
            node("MatMul", &["flat", "onnx::MatMul_7"], &["other"], &[]),
            node("Add", &["other", "fc.bias"], &["z"], &[]),
            bytes(5, tensor("fc.bias_accentor", &[1], 1, &bytes(9, floats(&[0.0])))),
        ];
        let merged = merge(&file(&graph, &more), &graph, &adapter, &sites).unwrap();
        let contents = Contents::read(&merged.bytes).unwrap();
        let inputs = |output| &contents.nodes[contents.writer(output).unwrap()].inputs;
        assert_eq!(inputs("product"), &["flat", "onnx::MatMul_7_accentor"]);
        assert_eq!(inputs("y"), &["product", "fc.bias_accentor_2"]);
        assert_eq!(inputs("other"), &["flat", "onnx::MatMul_7"]);
        assert_eq!(inputs("z"), &["other", "fc.bias"]);
        assert!(holds(&merged.bytes, &frozen(&graph, sites[3].weight)));
        assert!(
            merged.notes.iter().any(|n| n.contains("`onnx::MatMul_7` is read 2 times") && n.contains("/fc/MatMul"))
        );
    }

    #[test]
    fn what_cannot_be_merged_says_why() {
        let (graph, sites) = example();
        let says = |file: &[u8], graph: &Graph, adapter: &Adapter, sites: &[Site], word: &str| {
            let text = merge(file, graph, adapter, sites).unwrap_err().to_string();
            assert!(text.contains(word), "`{word}` is not in: {text}");
        };
        let (good, adapter) = (file(&graph, &[]), adapter(true));
        says(&good[..good.len() - 9], &graph, &adapter, &sites, "damaged");
        says(&good, &graph, &adapter, &sites[1..], "bind it");
        says(&model(8, &[node("Neg", &["x"], &["y"], &[])]), &graph, &adapter, &sites, "not in the ONNX file");
        let mut huge = adapter.clone();
        huge.sites[2].delta = Delta::ScaleShift { scale: vec![f32::MAX; 6], shift: vec![f32::MAX; 6] };
        let mut large = graph.clone();
        large.values[sites[2].weight].constant = Some(vec![9.0; 72].into());
        says(&good, &large, &huge, &sites, "infinite");
        // A weight behind a Transpose that two nodes read.
        let mut behind = graph.clone();
        behind.nodes.retain(|n| !matches!(n.op, Op::MatMul));
        let more = [
            node("Transpose", &["onnx::MatMul_7"], &["turned"], &[]),
            node("MatMul", &["flat", "turned"], &["product"], &[]),
            node("MatMul", &["flat", "turned"], &["other"], &[]),
        ];
        says(&file(&behind, &more), &graph, &adapter, &sites, "`turned`");
        let alone = file(&behind, &more[..2]);
        assert!(merge(&alone, &graph, &adapter, &sites).is_ok());
    }
}
