//! Heads: the ONNX file with the classes that an adapter added, before the adapter is merged into it.

use std::sync::Arc;

use super::{MergeError, Merged};
use crate::graph::{Graph, Head, Op, ValueId};
use crate::onnx::wire::{Contents, Replacement, Widening, WireError, widen};

/// The file of `base` with the head of `graph`, which was made from `base`; `output` is the output of `base`. Sizes are
/// changed where the file states them: in the layer's tensors, in the shapes that it gives for its values, in the shape
/// of a Reshape behind the layer.
///
/// # Errors
/// A file that is not that of the graph, external data, scores that are reshaped to a computed shape.
pub fn with_head(file: &[u8], base: &Graph, graph: &Graph, head: &Head, output: ValueId) -> Result<Merged, MergeError> {
    match head {
        Head::Extended => extended(file, base, graph, output),
        Head::New { output } => appended(file, base, graph, output),
    }
}

fn extended(file: &[u8], base: &Graph, graph: &Graph, output: ValueId) -> Result<Merged, MergeError> {
    let contents = Contents::read(file)?;
    let (site, mut axes) = base.head_layer(output)?;
    let (old, new) = (site.outputs, graph.values[output].len());
    // Other outputs that are made of the scores (a softmax beside the logits).
    for node in &base.nodes {
        let Some((_, axis)) = axes.iter().find(|(v, _)| node.inputs.first() == Some(v)) else { continue };
        let known = axes.iter().any(|(v, _)| node.outputs.contains(v));
        let y = &base.values[node.outputs[0]];
        if matches!(node.op, Op::Softmax { .. } | Op::Unary(_)) && !known && y.shape.get(*axis) == Some(&old) {
            axes.push((node.outputs[0], *axis));
        }
    }
    let mut shapes = Vec::new();
    for (value, axis) in &axes {
        let name = base.values[*value].name.as_str();
        let node = contents.writer(name).ok_or_else(|| MergeError::OtherFile { node: name.to_owned() })?;
        let node = &contents.nodes[node];
        let Some(shape) = node.inputs.get(1).filter(|_| node.op_type == "Reshape") else { continue };
        let constant = base.value_named(shape).and_then(|v| base.values[v].values());
        let states = |c: &Arc<[f32]>| c.get(*axis) == Some(&(old as f32));
        if let Some(constant) = constant.filter(states) {
            if !contents.tensors.contains_key(shape) || contents.uses(shape) > 1 {
                let (node, shape) = (name.to_owned(), (*shape).to_owned());
                return Err(MergeError::Reshaped { node, shape });
            }
            let mut constant = constant.to_vec();
            constant[*axis] = new as f32;
            shapes.push((*shape, constant));
        }
    }
    let widened: Vec<ValueId> = graph.widened(base).collect();
    let values: Vec<Arc<[f32]>> = widened.iter().map(|id| graph.values[*id].values().unwrap_or_default()).collect();
    let of = widened.iter().map(|id| &graph.values[*id]).zip(&values);
    let of = of.map(|(v, values)| Replacement { name: &v.name, values, shape: &v.shape });
    let lens: Vec<[usize; 1]> = shapes.iter().map(|(_, values)| [values.len()]).collect();
    let reshapes = shapes.iter().zip(&lens).map(|((name, values), len)| Replacement { name, values, shape: len });
    let widening = Widening {
        tensors: of.chain(reshapes).collect(),
        shapes: axes.iter().map(|(v, axis)| (base.values[*v].name.as_str(), *axis, new)).collect(),
        ..Widening::default()
    };
    let names: Vec<&str> = widened.iter().map(|v| graph.values[*v].name.as_str()).collect();
    let note = format!("classes added: {}; `{}` got {new} rows in place of {old}", new - old, names.join("` and `"));
    Ok(Merged { bytes: widen(file, &widening)?, notes: vec![note] })
}

fn appended(file: &[u8], base: &Graph, graph: &Graph, tensor: &str) -> Result<Merged, MergeError> {
    let contents = Contents::read(file)?;
    let element = base.value_named(tensor).map(|v| base.values[v].element);
    let mut floats = base.values.iter().filter(|v| v.stored && Some(v.element) == element);
    let like = floats.find(|v| contents.tensors.contains_key(v.name.as_str())).map(|v| v.name.as_str());
    let like = like.ok_or_else(|| WireError::NoTensor { name: tensor.to_owned() })?;
    let (nodes, values) = (&graph.nodes[base.nodes.len()..], &graph.values[base.values.len()..]);
    let name = |id: &ValueId| graph.values[*id].name.as_str();
    let constants: Vec<_> = values.iter().filter_map(|v| Some((v, v.values()?))).collect();
    let added = constants.iter().map(|(v, values)| Replacement { name: &v.name, values, shape: &v.shape });
    let output = graph.outputs[0];
    let widening = Widening {
        added: added.collect(),
        like,
        nodes: nodes
            .iter()
            .map(|n| (n.op_type.as_str(), n.inputs.iter().map(name).collect(), name(&n.outputs[0])))
            .collect(),
        output: Some((name(&output), graph.values[output].len())),
        ..Widening::default()
    };
    let note = format!("a new head: node Gemm on `{tensor}`, and `{}` as the last output of the model", name(&output));
    Ok(Merged { bytes: widen(file, &widening)?, notes: vec![note] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{HeadError, NEW_HEAD};
    use crate::lora::folder::tests::example;
    use crate::lora::merge::tests::file;
    use crate::ops::binary::BinaryKind;

    #[test]
    fn new_rows_are_the_mean_of_the_old() {
        let (graph, _) = example();
        let output = graph.outputs[0];
        let extended = graph.extended(output, 5).unwrap();
        let named = |name: &str| extended.values[extended.value_named(name).unwrap()].clone();
        assert_eq!(extended.values[output].shape, [1, 5]);
        assert_eq!(named("onnx::MatMul_7").shape, [6, 5]);
        assert_eq!(named("product").shape, [1, 5]);
        let bias = named("fc.bias").values().unwrap();
        let mean = bias[..3].iter().sum::<f32>() / 3.0;
        assert!(bias[3..].iter().all(|b| (b - mean).abs() < 1e-6), "{bias:?}");
        let weight = named("onnx::MatMul_7").values().unwrap();
        for row in weight.chunks(5) {
            let mean = row[..3].iter().sum::<f32>() / 3.0;
            assert!(row[3..].iter().all(|w| (w - mean).abs() < 1e-6), "{row:?}");
        }
        assert!(matches!(graph.extended(output, 3), Err(HeadError::Classes { needed: 4, found: 3 })));
        assert_eq!(extended.widened(&graph).count(), 2);
    }

    #[test]
    fn what_has_no_rows_says_why() {
        let (mut graph, _) = example();
        let output = graph.outputs[0];
        let add = graph.nodes.len() - 1;
        graph.nodes[add].op = Op::Binary(BinaryKind::Mul);
        let error = graph.extended(output, 4).unwrap_err().to_string();
        assert!(error.contains("/fc/Add") && error.contains("--new-head"), "{error}");
        let error = graph.with_new_head("nothing", 4).unwrap_err().to_string();
        assert!(error.contains("nothing") && error.contains("no such tensor"), "{error}");
        assert!(graph.with_new_head("fc.bias", 4).is_err());
        let headed = graph.with_new_head("dw.out", 4).unwrap();
        let logits = headed.outputs[0];
        let sites = headed.sites(logits);
        assert_eq!(sites.last().unwrap().key, NEW_HEAD);
        assert_eq!((sites.last().unwrap().inputs, sites.last().unwrap().outputs), (6, 4));
    }

    #[test]
    fn the_file_gets_what_the_graph_has() {
        let (graph, _) = example();
        let old = file(&graph, &[]);
        let extended = graph.extended(graph.outputs[0], 5).unwrap();
        let wider = with_head(&old, &graph, &extended, &Head::Extended, graph.outputs[0]).unwrap();
        let contents = Contents::read(&wider.bytes).unwrap();
        assert_eq!(contents.tensors["onnx::MatMul_7"].shape, [6, 5]);
        assert_eq!(contents.tensors["fc.bias"].shape, [5]);
        assert!(wider.notes[0].contains("5 rows in place of 3"), "{:?}", wider.notes);
        let headed = graph.with_new_head("dw.out", 2).unwrap();
        let head = Head::New { output: "dw.out".into() };
        let more = with_head(&old, &graph, &headed, &head, graph.outputs[0]).unwrap();
        let contents = Contents::read(&more.bytes).unwrap();
        assert_eq!(contents.tensors["accentor_head.weight"].shape, [6, 2]);
        let gemm = &contents.nodes[contents.writer("accentor_head.logits").unwrap()];
        assert_eq!(gemm.inputs, ["accentor_head.input", "accentor_head.weight", "accentor_head.bias"]);
        assert_eq!(contents.uses("accentor_head.logits"), 1);
        let other = example().0.with_new_head("dw.out", 2).unwrap();
        assert!(with_head(&more.bytes, &graph, &other, &head, graph.outputs[0]).is_err(), "a second head took a name");
    }
}
