//! Element types that tract does not read: bfloat16 becomes float32, integers of 4 bits become integers of 8.

use std::path::Path;

use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{GraphProto, ModelProto, TensorProto, type_proto};

use super::OnnxError;

/// Widens every tensor, type and Cast of the model; external data is read from `folder`, where it must lie already.
pub(super) fn widen(proto: &mut ModelProto, folder: Option<&Path>) -> Result<(), OnnxError> {
    proto.graph.as_mut().map_or(Ok(()), |graph| widen_graph(graph, folder))
}

fn widen_graph(graph: &mut GraphProto, folder: Option<&Path>) -> Result<(), OnnxError> {
    let narrow: Vec<String> = graph
        .initializer
        .iter()
        .filter(|t| is_narrow(t.data_type))
        .map(|t| t.name.clone())
        .chain(
            graph
                .node
                .iter()
                .filter(|n| n.attribute.iter().any(|a| a.t.as_ref().is_some_and(|t| is_narrow(t.data_type))))
                .flat_map(|n| n.output.clone()),
        )
        .collect();
    let bytes = |t: &&TensorProto| [DataType::Int8 as i32, DataType::Uint8 as i32].contains(&t.data_type);
    let whole: Vec<String> = graph.initializer.iter().filter(bytes).map(|t| t.name.clone()).collect();
    for tensor in &mut graph.initializer {
        widen_tensor(tensor, folder)?;
    }
    for info in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
        if let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            tensor.elem_type = widened(tensor.elem_type);
        }
    }
    for node in &mut graph.node {
        let to_narrow =
            node.attribute.iter().any(|a| ["output_dtype", "to"].contains(&a.name.as_str()) && is_narrow(a.i as i32))
                || node.op_type == "QuantizeLinear" && node.input.get(2).is_some_and(|z| narrow.contains(z))
                || node.op_type == "CastLike" && node.input.get(1).is_some_and(|like| narrow.contains(like));
        // A stored weight of 8 bits whose values fit 4 stays as it is; other values would have to be cut off.
        let fits = node.op_type == "Cast" && node.input.first().is_some_and(|x| whole.contains(x));
        if to_narrow && !fits {
            let what = "values that are computed do not become 4 bits here; quantise them to 8 bits".to_owned();
            return Err(OnnxError::Node { node: node.name.clone(), op: node.op_type.clone(), what });
        }
        for attribute in &mut node.attribute {
            if ["to", "output_dtype", "dtype"].contains(&attribute.name.as_str()) && i32::try_from(attribute.i).is_ok()
            {
                attribute.i = i64::from(widened(attribute.i as i32));
            }
            for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
                widen_tensor(tensor, folder)?;
            }
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                widen_graph(graph, folder)?;
            }
        }
    }
    Ok(())
}

fn is_narrow(data_type: i32) -> bool {
    data_type == DataType::Int4 as i32 || data_type == DataType::Uint4 as i32
}

fn widened(data_type: i32) -> i32 {
    match DataType::try_from(data_type) {
        Ok(DataType::Bfloat16) => DataType::Float as i32,
        Ok(DataType::Int4) => DataType::Int8 as i32,
        Ok(DataType::Uint4) => DataType::Uint8 as i32,
        _ => data_type,
    }
}

fn widen_tensor(tensor: &mut TensorProto, folder: Option<&Path>) -> Result<(), OnnxError> {
    let old = tensor.data_type;
    if widened(old) == old {
        return Ok(());
    }
    let malformed = |what: &str| OnnxError::Malformed(format!("tensor `{}` {what}", tensor.name));
    let raw = if tensor.data_location == Some(DataLocation::External as i32) {
        external(tensor, folder)?
    } else if tensor.raw_data.is_empty() {
        // Typed values stand in `int32_data`: one bfloat16, or one byte of two small integers, in each.
        let bytes = if is_narrow(old) { 1 } else { 2 };
        tensor.int32_data.iter().flat_map(|v| v.to_le_bytes().into_iter().take(bytes)).collect()
    } else {
        tensor.raw_data.to_vec()
    };
    let elements = tensor.dims.iter().product::<i64>().unsigned_abs() as usize;
    let wide: Vec<u8> = if is_narrow(old) {
        let signed = old == DataType::Int4 as i32;
        let half = |i: usize| {
            let byte = raw.get(i / 2)?;
            let bits = if i.is_multiple_of(2) { byte & 0xf } else { byte >> 4 };
            Some(if signed && bits > 7 { bits | 0xf0 } else { bits })
        };
        let values: Option<Vec<u8>> = (0..elements).map(half).collect();
        values.ok_or_else(|| malformed("has fewer values than its shape says"))?
    } else {
        if raw.len() != 2 * elements {
            return Err(malformed("has another number of values than its shape says"));
        }
        // A bfloat16 is the upper half of a float32.
        raw.chunks_exact(2).flat_map(|b| [0, 0, b[0], b[1]]).collect()
    };
    tensor.data_type = widened(old);
    tensor.raw_data = wide;
    tensor.int32_data.clear();
    tensor.external_data.clear();
    tensor.data_location = None;
    Ok(())
}

/// The bytes of a tensor in another file, whose place was checked before.
fn external(tensor: &TensorProto, folder: Option<&Path>) -> Result<Vec<u8>, OnnxError> {
    use std::io::{Read, Seek, SeekFrom};
    let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
    let location = entry("location").unwrap_or_default();
    let path = folder.unwrap_or(Path::new("")).join(location);
    let number = |key: &str| entry(key).and_then(|v| v.parse::<u64>().ok());
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(&path)?;
        file.seek(SeekFrom::Start(number("offset").unwrap_or(0)))?;
        let mut bytes = Vec::new();
        file.take(number("length").unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| OnnxError::Read { path: path.clone(), source })
}
