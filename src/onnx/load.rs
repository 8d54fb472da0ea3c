//! File → decoded model → analysed model → graph.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, type_proto};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::{OutletId, Tensor};

use super::attributes::Attributes;
use super::convert::Converter;
use super::{OnnxError, infer, memory, quantised};
use crate::graph::{Constant, Element, Graph, Value, ValueId};

/// What the file leaves open.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The input that is fed; the only one without.
    pub input: Option<String>,
    /// Its shape with batch 1 first, where the file leaves more than the batch open.
    pub input_shape: Option<Vec<usize>>,
    /// Shape of what the input will be fed, where it is known: dimensions that the file and `input_shape` leave open get
    /// what fits.
    pub fed: Option<Vec<usize>>,
    /// Outputs to keep, by name; any tensor of the file may be named. All of the file's outputs without.
    pub outputs: Vec<String>,
    /// Bytes that the tensors of the model may take for one sample, each constant with its copies. 4 GiB without, or what
    /// the system can give.
    pub memory_limit: Option<u64>,
}

/// Reads an ONNX file, with external data only from inside its folder.
///
/// # Errors
/// Every way in which the file can be wrong; see [`OnnxError`].
pub fn load(path: &Path, options: &LoadOptions) -> Result<Graph, OnnxError> {
    memory::check_file(path, memory::limit(options.memory_limit))?;
    let bytes = std::fs::read(path).map_err(|source| OnnxError::Read { path: path.to_owned(), source })?;
    guarded(|| {
        let proto = decode(&bytes)?;
        drop(bytes);
        convert(proto, path.parent(), options)
    })
}

/// [`load`] from memory; `folder` is where external data may lie.
///
/// # Errors
/// As [`load`].
pub fn load_bytes(bytes: &[u8], folder: Option<&Path>, options: &LoadOptions) -> Result<Graph, OnnxError> {
    guarded(|| convert(decode(bytes)?, folder, options))
}

/// tract panics on some files; a panic here is one more way in which a file can be wrong.
fn guarded(load: impl FnOnce() -> Result<Graph, OnnxError>) -> Result<Graph, OnnxError> {
    let result = catch_unwind(AssertUnwindSafe(load));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(OnnxError::Analysis(format!("the loader stopped: {}", text.unwrap_or("no reason given"))))
    })
}

fn decode(mut bytes: &[u8]) -> Result<ModelProto, OnnxError> {
    tract_onnx::onnx().proto_model_for_read(&mut bytes).map_err(|e| OnnxError::Malformed(brief(&e)))
}

fn convert(mut proto: ModelProto, folder: Option<&Path>, options: &LoadOptions) -> Result<Graph, OnnxError> {
    let mut onnx =
        tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_output_types(true).with_ignore_value_info(true);
    let input = prepare(&mut proto, options)?;
    let empty = GraphProto::default();
    let file = proto.graph.as_ref().unwrap_or(&empty);
    check_external(file, folder)?;
    check_order(file)?;
    check_filled(file)?;
    super::types::widen(&mut proto, folder)?;
    for op in quantised::OPERATORS.iter().chain(&infer::OWN) {
        onnx.op_register.0.remove(*op);
    }

    let folder = folder.map(|f| if f.as_os_str().is_empty() { Path::new(".") } else { f }).and_then(Path::to_str);
    let opset =
        proto.opset_import.iter().find(|o| o.domain.is_empty() || o.domain == "ai.onnx").map_or(1, |o| o.version);
    let limit = memory::limit(options.memory_limit);
    let analysis = infer::analyse(&onnx, &mut proto, folder, opset, limit)?;
    let facts = analysis.facts();
    memory::check(proto.graph.as_ref().unwrap_or(&empty), &facts, limit)?;
    // From here on tract's copies count.
    for tensor in proto.graph.iter_mut().flat_map(|g| &mut g.initializer) {
        tensor.raw_data = Vec::new();
    }
    let file = proto.graph.as_ref().unwrap_or(&empty);

    let mut converter = Converter::new(&facts, opset, &proto);
    converter.run(file, &input)?;
    let names: Vec<String> = if options.outputs.is_empty() {
        file.output.iter().map(|o| o.name.clone()).collect()
    } else {
        options.outputs.clone()
    };
    let mut graph = converter.finish(&names);
    for name in names {
        let found = || file.output.iter().map(|o| o.name.clone()).collect();
        let missing = || OnnxError::NoSuchTensor { what: "output", name: name.clone(), found: found() };
        graph.outputs.push(graph.value_named(&name).ok_or_else(missing)?);
    }
    let misfit = graph.nodes.iter().find_map(|n| Some((n, graph.misfit(n)?)));
    if let Some((node, what)) = misfit {
        return Err(OnnxError::Node { node: node.name.clone(), op: node.op_type.clone(), what });
    }
    memory::check_windows(&graph, limit)?;
    graph.recognise();
    Ok(graph)
}

/// Error chain on one line, without the dump of nodes that tract adds.
pub(super) fn brief(error: &TractError) -> String {
    let mut text = error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
    if let Some((at, _)) = text.char_indices().nth(600) {
        text.truncate(at);
        text.push('…');
    }
    text.replace('\n', " ")
}

/// Fixes the shape of the input to one sample and returns its name.
fn prepare(proto: &mut ModelProto, options: &LoadOptions) -> Result<String, OnnxError> {
    let graph = proto.graph.as_mut().filter(|g| !g.node.is_empty());
    let graph = graph.ok_or_else(|| OnnxError::Malformed("it holds no graph with nodes".into()))?;
    if graph.output.is_empty() {
        return Err(OnnxError::Malformed("it names no output".into()));
    }
    let constants: Vec<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    let names: Vec<String> = graph.input.iter().map(|i| i.name.clone()).filter(|n| !constants.contains(n)).collect();
    let name = match &options.input {
        Some(name) if names.contains(name) => name.clone(),
        Some(name) => return Err(OnnxError::NoSuchTensor { what: "input", name: name.clone(), found: names }),
        None => match names.as_slice() {
            [name] => name.clone(),
            _ => return Err(OnnxError::Inputs { found: names }),
        },
    };
    let batch_at = batch_axis(graph, &name);
    for input in graph.input.iter_mut().filter(|i| names.contains(&i.name)) {
        let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) else {
            return Err(OnnxError::Malformed(format!("input `{}` has no tensor type", input.name)));
        };
        let dims = tensor.shape.get_or_insert_default();
        // Some exporters write an open dimension as -1.
        let negative = |d: &Dimension| matches!(d.value, Some(DimValue::DimValue(v)) if v < -1);
        if dims.dim.iter().any(negative) {
            let shape = describe(&dims.dim).join(", ");
            let what = format!("shape [{shape}] has a negative dimension; export the model again");
            return Err(OnnxError::Node { node: input.name.clone(), op: "input".into(), what });
        }
        let fed = input.name == name;
        if let (true, Some(shape)) = (fed, &options.input_shape) {
            if !dims.dim.is_empty() && dims.dim.len() != shape.len() {
                let found = describe(&dims.dim);
                let what = format!("`input_shape` has {} dimensions, the file {}: {found:?}", shape.len(), found.len());
                return Err(OnnxError::Node { node: input.name.clone(), op: "input".into(), what });
            }
            dims.dim = shape.iter().map(|d| fixed(*d as i64)).collect();
        }
        if let (true, None, Some(shape)) = (fed, &options.input_shape, &options.fed) {
            let size = |d: &Dimension| match d.value {
                Some(DimValue::DimValue(v)) if v > 0 => usize::try_from(v).ok(),
                _ => None,
            };
            let open: Vec<Option<usize>> = dims.dim.iter().map(size).collect();
            if let Some(filled) = crate::graph::fill(&open, shape) {
                dims.dim = filled.iter().map(|d| fixed(*d as i64)).collect();
            }
        }
        let free = |d: &Dimension| !matches!(d.value, Some(DimValue::DimValue(v)) if v > 0);
        let batch = |d: &Dimension| free(d) || matches!(d.value, Some(DimValue::DimValue(v)) if v > 1);
        if fed && dims.dim.len() > 1 && dims.dim.get(batch_at).is_some_and(batch) && options.input_shape.is_none() {
            dims.dim[batch_at] = fixed(1);
        }
        if dims.dim.is_empty() || dims.dim.iter().any(free) {
            return Err(OnnxError::FreeShape { input: input.name.clone(), shape: describe(&dims.dim) });
        }
        let sizes = dims.dim.iter().map(|d| if let Some(DimValue::DimValue(v)) = d.value { v } else { 0 });
        if !is_possible(&sizes.collect::<Vec<i64>>()) {
            let shape = describe(&dims.dim).join(", ");
            let what = format!("shape [{shape}] has more than {MAX_ELEMENTS} values; give a smaller `input_shape`");
            return Err(OnnxError::Node { node: input.name.clone(), op: "input".into(), what });
        }
    }
    Ok(name)
}

/// The dimension of input `name` that is the batch: the first, or the second where a recurrent layer reads its steps from it.
fn batch_axis(graph: &GraphProto, name: &str) -> usize {
    let recurrent = |n: &NodeProto| matches!(n.op_type.as_str(), "RNN" | "GRU" | "LSTM");
    let batch_first = |n: &NodeProto| Attributes(n).int("layout").unwrap_or(0) != 0;
    let reads = |n: &NodeProto| n.input.first().is_some_and(|x| x == name);
    usize::from(graph.node.iter().any(|n| recurrent(n) && reads(n) && !batch_first(n)))
}

fn fixed(size: i64) -> Dimension {
    Dimension { denotation: String::new(), value: Some(DimValue::DimValue(size)) }
}

fn describe(dims: &[Dimension]) -> Vec<String> {
    dims.iter()
        .map(|d| match &d.value {
            Some(DimValue::DimValue(v)) => v.to_string(),
            Some(DimValue::DimParam(p)) => p.clone(),
            None => "?".into(),
        })
        .collect()
}

/// External data must lie inside the model's folder, as long as its tensor; tract reads it there.
fn check_external(graph: &GraphProto, folder: Option<&Path>) -> Result<(), OnnxError> {
    let attributes = || graph.node.iter().flat_map(|n| &n.attribute);
    for inner in attributes().flat_map(|a| a.g.iter().chain(&a.graphs)) {
        check_external(inner, folder)?;
    }
    let tensors = attributes().flat_map(|a| a.t.iter().chain(&a.tensors));
    for tensor in graph.initializer.iter().chain(tensors) {
        check_size(tensor)?;
        if tensor.data_location != Some(DataLocation::External as i32) {
            check_values(tensor)?;
            continue;
        }
        let wrong = |reason: String| OnnxError::ExternalData { tensor: tensor.name.clone(), reason };
        let location = tensor.external_data.iter().find(|e| e.key == "location").map(|e| e.value.as_str());
        let location = location.ok_or_else(|| wrong("no location is given".into()))?;
        let plain = Path::new(location)
            .components()
            .all(|c| matches!(c, std::path::Component::Normal(_) | std::path::Component::CurDir));
        if !plain {
            return Err(wrong(format!(
                "`{location}` lies outside the model's folder; put the file beside the model and name it there"
            )));
        }
        let folder = folder.ok_or_else(|| wrong("the model was read from memory".into()))?;
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let place = |path: &Path| path.canonicalize().ok();
        if let (Some(home), Some(data)) = (place(folder), place(&folder.join(location)))
            && !data.starts_with(home)
        {
            return Err(wrong(format!(
                "`{location}` is a link out of the model's folder; put the file itself beside the model"
            )));
        }
        let about = std::fs::metadata(folder.join(location)).ok().filter(std::fs::Metadata::is_file);
        let Some(about) = about else {
            return Err(wrong(format!("`{location}` is missing from the model's folder; copy it there")));
        };
        let number = |key: &str, default: u64| match tensor.external_data.iter().find(|e| e.key == key) {
            Some(entry) => entry
                .value
                .parse()
                .map_err(|_| wrong(format!("its {key} in `{location}` is `{}`, no number", entry.value))),
            None => Ok(default),
        };
        let offset = number("offset", 0)?;
        let length = number("length", about.len().saturating_sub(offset))?;
        if offset.checked_add(length).is_none_or(|end| end > about.len()) {
            let has = about.len();
            let what =
                format!("`{location}` has {has} bytes, expected {length} from byte {offset}; copy the file again");
            return Err(wrong(what));
        }
        if let Some(wanted) = stored_bytes(tensor).filter(|w| *w != length) {
            return Err(wrong(format!(
                "`{location}` holds {length} bytes of it, expected {wanted}; copy the file again"
            )));
        }
    }
    Ok(())
}

/// A tensor inside the file has as many values as its dimensions say.
fn check_values(tensor: &TensorProto) -> Result<(), OnnxError> {
    let Some(wanted) = stored_bytes(tensor) else { return Ok(()) };
    let elements = tensor.dims.iter().product::<i64>().unsigned_abs();
    let typed = [
        tensor.float_data.len(),
        tensor.int32_data.len(),
        tensor.int64_data.len(),
        tensor.double_data.len(),
        tensor.uint64_data.len(),
    ];
    let found = match tensor.raw_data.len() {
        // So many values of the one list that is there, each as wide as the type says.
        0 => typed.iter().sum::<usize>() as u64 * wanted.checked_div(elements).unwrap_or(1),
        bytes => bytes as u64,
    };
    if found != wanted {
        let what =
            format!("tensor `{}` of dimensions {:?} needs {wanted} bytes and has {found}", tensor.name, tensor.dims);
        return Err(OnnxError::Malformed(what));
    }
    Ok(())
}

/// Bytes that a tensor's values take, for the types that weights have.
fn stored_bytes(tensor: &TensorProto) -> Option<u64> {
    use tract_onnx::pb::tensor_proto::DataType;
    let bytes = match DataType::try_from(tensor.data_type).ok()? {
        DataType::Bool | DataType::Int8 | DataType::Uint8 => 1,
        DataType::Float16 | DataType::Bfloat16 | DataType::Int16 | DataType::Uint16 => 2,
        DataType::Float | DataType::Int32 | DataType::Uint32 => 4,
        DataType::Double | DataType::Int64 | DataType::Uint64 => 8,
        _ => return None,
    };
    Some(tensor.dims.iter().product::<i64>().unsigned_abs() * bytes)
}

/// More elements than this in one tensor cannot come from a model for a device: 2³¹ values are 8 GiB.
const MAX_ELEMENTS: i64 = 1 << 31;

fn check_size(tensor: &TensorProto) -> Result<(), OnnxError> {
    match is_possible(&tensor.dims) {
        true => Ok(()),
        false => {
            Err(OnnxError::Malformed(format!("tensor `{}` has impossible dimensions {:?}", tensor.name, tensor.dims)))
        }
    }
}

/// Whether a tensor may have these dimensions: none negative, at most [`MAX_ELEMENTS`] values.
pub(super) fn is_possible(dims: &[i64]) -> bool {
    let elements = dims.iter().try_fold(1i64, |n, d| if *d < 0 { None } else { n.checked_mul(*d) });
    elements.is_some_and(|n| n <= MAX_ELEMENTS)
}

/// tract fills constants while it analyses: no node may ask for one that memory cannot hold.
fn check_filled(graph: &GraphProto) -> Result<(), OnnxError> {
    let constants = graph
        .node
        .iter()
        .filter(|n| n.op_type == "Constant")
        .filter_map(|n| Some((n.output.first()?.as_str(), n.attribute.iter().find_map(|a| a.t.as_ref())?)));
    let tensors: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|t| (t.name.as_str(), t)).chain(constants).collect();
    for node in &graph.node {
        let at = match node.op_type.as_str() {
            "ConstantOfShape" => 0,
            "Expand" | "Tile" => 1,
            _ => continue,
        };
        let Some(tensor) = node.input.get(at).and_then(|i| tensors.get(i.as_str())) else { continue };
        let raw = tensor
            .raw_data
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
        let dims: Vec<i64> = tensor.int64_data.iter().copied().chain(raw).map(|d| d.max(1)).collect();
        if !is_possible(&dims) {
            let what = format!(
                "it asks for a tensor of shape {dims:?}, more than {MAX_ELEMENTS} values; export the model again"
            );
            return Err(OnnxError::Node { node: node.name.clone(), op: node.op_type.clone(), what });
        }
    }
    Ok(())
}

/// Inputs before their users, as ONNX asks; this also rules out cycles.
fn check_order(graph: &GraphProto) -> Result<(), OnnxError> {
    let mut known: std::collections::HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    known.extend(graph.input.iter().map(|i| i.name.as_str()));
    for node in &graph.node {
        if let Some(name) = node.input.iter().find(|i| !i.is_empty() && !known.contains(i.as_str())) {
            let later = graph.node.iter().any(|n| n.output.contains(name));
            let why = match later {
                true => "before anything gives it: nodes out of order, or a cycle",
                false => "and nothing gives it: a weight or an input is missing from the file",
            };
            let what = format!("node `{}` ({}) reads `{name}` {why}", node.name, node.op_type);
            return Err(OnnxError::Malformed(what));
        }
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if !known.insert(output) {
                return Err(OnnxError::Malformed(format!("tensor `{output}` is given twice")));
            }
        }
    }
    let missing = graph.output.iter().find(|o| !known.contains(o.name.as_str()));
    missing.map_or(Ok(()), |o| Err(OnnxError::Malformed(format!("nothing gives output `{}`", o.name))))
}

/// What tract found about each tensor of the file.
pub(super) struct Facts<'a> {
    pub(super) model: &'a InferenceModel,
    pub(super) outlets: &'a HashMap<String, OutletId>,
    pub(super) refused: &'a HashMap<String, String>,
}

impl Facts<'_> {
    /// The place of the tensor of that name in tract's model.
    pub(super) fn outlet(&self, name: &str) -> Option<OutletId> {
        self.outlets.get(name).copied()
    }

    /// Why tract's parser did not take the node that gives this tensor, where it did not.
    pub(super) fn refused(&self, name: &str) -> Option<&str> {
        self.refused.get(name).map(String::as_str)
    }

    /// Shape, element type and, where constant, the value of the tensor of that name.
    pub(super) fn of(&self, name: &str) -> Option<(Vec<usize>, DatumType, Option<Arc<Tensor>>)> {
        let fact = self.model.outlet_fact(*self.outlets.get(name)?).ok()?;
        let value = fact.value.concretize();
        let dt = fact.datum_type.concretize().or(value.as_ref().map(|v| v.datum_type()))?;
        let shape = match &value {
            Some(value) => value.shape().to_vec(),
            None => fact.shape.as_concrete_finite().ok()??.to_vec(),
        };
        Some((shape, dt, value))
    }
}

/// Builds a value of the graph from what tract found.
pub(super) fn value(name: &str, shape: Vec<usize>, dt: DatumType, constant: Option<&Tensor>, stored: bool) -> Value {
    let element = match dt {
        DatumType::F32 => Element::F32,
        DatumType::F16 => Element::F16,
        DatumType::F64 => Element::F64,
        DatumType::Bool => Element::Bool,
        _ => Element::Integer,
    };
    Value {
        name: name.into(),
        shape,
        element,
        constant: constant.and_then(|c| super::quantised::bytes(c).or_else(|| to_f32(c).map(Constant::from))),
        stored,
        source: None,
        quantised: None,
    }
}

/// The values of a tensor as f32.
pub(super) fn to_f32(tensor: &Tensor) -> Option<Arc<[f32]>> {
    let cast = tensor.cast_to::<f32>().ok()?;
    Some(cast.try_as_plain_ram().ok()?.as_slice::<f32>().ok()?.into())
}

/// The values of a tensor as i64.
pub(super) fn to_i64(tensor: &Tensor) -> Option<Vec<i64>> {
    let cast = tensor.cast_to::<i64>().ok()?;
    Some(cast.try_as_plain_ram().ok()?.as_slice::<i64>().ok()?.to_vec())
}

/// Index of each tensor name in the graph.
pub(super) type Names = HashMap<String, ValueId>;
