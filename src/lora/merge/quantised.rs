//! Layers whose weight the file has as integers: merged, they are float layers.
//!
//! Where a DequantizeLinear gives the weight, the layer reads a new float tensor in its place. Where a node reads the
//! integers itself, that node becomes a float layer between the halves of a quantisation:
//!
//! | node | becomes |
//! |---|---|
//! | QLinearConv, QLinearMatMul, QGemm | DequantizeLinear → Conv, MatMul, Gemm → QuantizeLinear |
//! | MatMulInteger or ConvInteger → Cast → Mul | DequantizeLinear → MatMul or Conv, in the place of the Mul |
//! | DynamicQuantizeMatMul | DynamicQuantizeLinear → DequantizeLinear → MatMul → Add |
//! | MatMulIntegerToFloat | DequantizeLinear → MatMul → Add |
//! | MatMulNBits | MatMul → Add |
//!
//! The integers stay in the file, so that nothing else changes; whoever optimises the file drops what nothing reads.

use super::{Change, MergeError, Merger, Target};
use crate::graph::{NodeId, Quantised, Site, ValueId};
use crate::onnx::wire::NewNode;

impl Merger<'_> {
    /// New `values` in the place of what a DequantizeLinear gives node `index` of the file; `of` says the value and its
    /// reader in the graph.
    pub(super) fn dequantised(
        &mut self,
        index: usize,
        of: (ValueId, NodeId),
        quantised: &Quantised,
        values: Vec<f32>,
    ) -> Result<(), MergeError> {
        let value = &self.graph.values[of.0];
        let node_name = self.file.nodes[index].outputs.first().copied().unwrap_or_default();
        let reader = self.reader(index, &value.name, node_name)?;
        let input = self.file.nodes[reader].inputs.iter().position(|i| *i == value.name).unwrap_or(1);
        let name = format!("{}_accentor", quantised.float_name());
        self.add(Some(of), reader, input, &quantised.scale, name, values, value.shape.clone())?;
        let added = &self.changes[self.changes.len() - 1].name;
        self.notes.push(format!(
            "the layer that gives `{node_name}` is a float layer now: it reads `{added}` in place of the integers `{}`",
            quantised.tensor
        ));
        Ok(())
    }

    /// A float layer in the place of the node that gives `output` and reads its weight as integers.
    pub(super) fn island(
        &mut self,
        site: &Site,
        output: &str,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
    ) -> Result<(), MergeError> {
        let node = &self.graph.nodes[site.node];
        let other = || MergeError::OtherFile { node: node.name.clone() };
        let at = self.file.writer(output).ok_or_else(other)?;
        let old = &self.file.nodes[at];
        let input = |i: usize| old.inputs.get(i).filter(|n| !n.is_empty()).map(|n| (*n).to_owned());
        let Some(quantised) = &self.graph.values[site.weight].quantised else { return Err(other()) };
        let like = quantised.scale.clone();
        let name = quantised.float_name().to_owned();
        let w =
            self.initializer(&format!("{name}_accentor"), &like, weight, self.graph.values[site.weight].shape.clone())?;

        // A bias in integers becomes a float with the layer; one in floats is changed where it stands.
        let own = |b: &&ValueId| {
            self.graph.values[**b].quantised.as_ref().is_some_and(|q| q.inside.as_deref() == Some(output))
        };
        let of_layer = node.inputs.get(2).filter(own).copied();
        let frozen = of_layer.and_then(|b| self.graph.values[b].values());
        let may_have_one = ["QLinearConv", "QGemm"].contains(&old.op_type);
        let b = match (bias, frozen) {
            (Some(new), _) if may_have_one => Some(new),
            (Some(new), None) => match site.bias {
                Some(b) => {
                    let add = self.graph.bias_after(site.node, site.outputs).map(|(add, _)| add);
                    self.tensor(add.unwrap_or(site.node), b, new)?;
                    None
                }
                None if new.iter().all(|b| *b == 0.0) => None,
                None => Some(new),
            },
            (_, old) => old.map(|b| b.to_vec()),
        };
        let b = match b {
            Some(values) => {
                let shape = vec![values.len()];
                Some(self.initializer(&format!("{name}_accentor_bias"), &like, values, shape)?)
            }
            None => None,
        };

        let part = |part: &str| self.free(&format!("{output}_accentor_{part}"));
        let (x, y) = (part("x"), part("y"));
        let new = |op_type, inputs: Vec<Option<String>>, output: &str, attributes_of| NewNode {
            op_type,
            name: format!("{output}_{op_type}"),
            inputs: inputs.into_iter().flatten().collect(),
            outputs: vec![output.to_owned()],
            attributes_of,
        };
        let (w, b, t) = (Some(w), b, Some(x.clone()));
        let mut nodes = Vec::new();
        match old.op_type {
            "QLinearConv" => {
                nodes.push(new("DequantizeLinear", vec![input(0), input(1), input(2)], &x, None));
                nodes.push(new("Conv", vec![t, w, b], &y, Some(at)));
                nodes.push(new("QuantizeLinear", vec![Some(y), input(6), input(7)], output, None));
            }
            "QLinearMatMul" => {
                let left = old.inputs.first() == Some(&quantised.tensor.as_str());
                let from = if left { 3 } else { 0 };
                nodes.push(new("DequantizeLinear", vec![input(from), input(from + 1), input(from + 2)], &x, None));
                nodes.push(new("MatMul", if left { vec![w, t] } else { vec![t, w] }, &y, None));
                nodes.push(new("QuantizeLinear", vec![Some(y), input(6), input(7)], output, None));
            }
            "QGemm" => {
                nodes.push(new("DequantizeLinear", vec![input(0), input(1), input(2)], &x, None));
                let scale = input(7);
                let product = if scale.is_some() { y.as_str() } else { output };
                nodes.push(new("Gemm", vec![t, w, b], product, Some(at)));
                if scale.is_some() {
                    nodes.push(new("QuantizeLinear", vec![Some(y), scale, input(8)], output, None));
                }
            }
            "MatMulIntegerToFloat" => {
                nodes.push(new("DequantizeLinear", vec![input(0), input(2), input(4)], &x, None));
                product_and_bias(&mut nodes, &new, [t, w], input(6), &y, output);
            }
            "DynamicQuantizeMatMul" => {
                let (q, s, z) = (part("quantised"), part("scale"), part("zero_point"));
                let mut dynamic = new("DynamicQuantizeLinear", vec![input(0)], &q, None);
                dynamic.outputs.extend([s.clone(), z.clone()]);
                nodes.push(dynamic);
                nodes.push(new("DequantizeLinear", vec![Some(q), Some(s), Some(z)], &x, None));
                product_and_bias(&mut nodes, &new, [t, w], input(4), &y, output);
            }
            "MatMulNBits" => product_and_bias(&mut nodes, &new, [input(0), w], input(5), &y, output),
            "Mul" => {
                let writer = |name: &str| self.file.writer(name);
                let cast = old.inputs.iter().filter_map(|i| writer(i)).find(|n| self.file.nodes[*n].op_type == "Cast");
                let cast = cast.and_then(|c| self.file.nodes[c].inputs.first());
                let product = cast.and_then(|i| writer(i)).ok_or_else(other)?;
                let inputs = &self.file.nodes[product].inputs;
                let dynamic = inputs.first().and_then(|i| writer(i)).map(|n| &self.file.nodes[n]);
                let scale = dynamic.filter(|n| n.op_type == "DynamicQuantizeLinear").and_then(|n| n.outputs.get(1));
                let scale = match scale {
                    Some(scale) => (*scale).to_owned(),
                    None => self.initializer(&format!("{name}_accentor_one"), &like, vec![1.0], vec![])?,
                };
                let text = |i: usize| inputs.get(i).filter(|n| !n.is_empty()).map(|n| (*n).to_owned());
                nodes.push(new("DequantizeLinear", vec![text(0), Some(scale), text(2)], &x, None));
                if self.file.nodes[product].op_type == "ConvInteger" {
                    nodes.push(new("Conv", vec![t, w, b], output, Some(product)));
                } else {
                    nodes.push(new("MatMul", vec![t, w], output, None));
                }
            }
            _ => return Err(other()),
        }
        self.notes.push(format!(
            "the layer that gives `{output}` is a float layer now: {} in place of {}",
            nodes.iter().map(|n| n.op_type).collect::<Vec<_>>().join(" → "),
            old.op_type
        ));
        self.islands.push((at, nodes));
        Ok(())
    }

    /// A new float tensor of the type of the file's tensor `like`; gives its name.
    fn initializer(
        &mut self,
        name: &str,
        like: &str,
        values: Vec<f32>,
        shape: Vec<usize>,
    ) -> Result<String, MergeError> {
        let name = self.free(name);
        self.finite(&name, &values)?;
        self.changes.push(Change {
            of: None,
            target: Target::New { like: like.to_owned() },
            name: name.clone(),
            values,
            shape,
        });
        Ok(name)
    }
}

/// MatMul, and Add where there is a bias.
fn product_and_bias(
    nodes: &mut Vec<NewNode>,
    new: &impl Fn(&'static str, Vec<Option<String>>, &str, Option<usize>) -> NewNode,
    [a, b]: [Option<String>; 2],
    bias: Option<String>,
    y: &str,
    output: &str,
) {
    let product = if bias.is_some() { y } else { output };
    nodes.push(new("MatMul", vec![a, b], product, None));
    if bias.is_some() {
        nodes.push(new("Add", vec![Some(y.to_owned()), bias], output, None));
    }
}
