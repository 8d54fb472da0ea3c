//! More classes: tensors of another size, and a layer behind the others.

use super::edit::{Pieces, new_tensor, put_varint, raw};
use super::{
    ATTRIBUTE_NAME, ATTRIBUTE_TENSOR, BYTES, Contents, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_NODE, GRAPH_OUTPUT,
    MODEL_GRAPH, NODE_ATTRIBUTE, NODE_INPUT, NODE_NAME, NODE_OP_TYPE, NODE_OUTPUT, Replacement, TENSOR_DIMS,
    TENSOR_DOUBLE_DATA, TENSOR_EXTERNAL_DATA, TENSOR_FLOAT_DATA, TENSOR_INT32_DATA, TENSOR_RAW_DATA, VALUE_INFO_NAME,
    VALUE_INFO_TYPE, VARINT, WireError, fields, tensor,
};

const GRAPH_VALUE_INFO: u64 = 13;
const TYPE_TENSOR: u64 = 1;
const TENSOR_TYPE_ELEMENT: u64 = 1;
const TENSOR_TYPE_SHAPE: u64 = 2;
const SHAPE_DIM: u64 = 1;
const DIM_VALUE: u64 = 1;
const DIM_PARAM: u64 = 2;
const INT64: u64 = 7;
const TENSOR_INT64_DATA: u64 = 7;

/// What a file gets so that it has other classes.
#[derive(Debug, Default)]
pub struct Widening<'a> {
    /// Tensors of the file with new values of another shape, in the type in which the file holds them.
    pub tensors: Vec<Replacement<'a>>,
    /// Size of a dimension of a value, where the file states it as a number: name, axis, size.
    pub shapes: Vec<(&'a str, usize, usize)>,
    /// New float tensors, in the type of the file's tensor `like`.
    pub added: Vec<Replacement<'a>>,
    /// A tensor of the file that says the type of what is added.
    pub like: &'a str,
    /// Nodes without attributes behind all others: operator, inputs, outputs; named by their first output.
    pub nodes: Vec<(&'a str, Vec<&'a str>, &'a str)>,
    /// A new output of the model, `[batch, size]`.
    pub output: Option<(&'a str, usize)>,
}

/// The file with more classes; every other byte as it is.
///
/// # Errors
/// A damaged file, a tensor that is not there, external data.
pub fn widen(file: &[u8], new: &Widening<'_>) -> Result<Vec<u8>, WireError> {
    let contents = Contents::read(file)?;
    for replaced in &new.tensors {
        let missing = || WireError::NoTensor { name: replaced.name.to_owned() };
        if contents.tensors.get(replaced.name).ok_or_else(missing)?.external {
            return Err(WireError::External { name: replaced.name.to_owned() });
        }
    }
    let data_type = match contents.tensors.get(new.like) {
        Some(like) => like.data_type,
        None if new.added.is_empty() => 0,
        None => return Err(WireError::NoTensor { name: new.like.to_owned() }),
    };
    if let Some(twice) = new.added.iter().find(|a| contents.is_taken(a.name)) {
        return Err(WireError::Twice { name: twice.name.to_owned() });
    }
    let mut out = Pieces::default();
    for field in fields(file) {
        let field = field?;
        if field.is(MODEL_GRAPH, BYTES) {
            out.message(MODEL_GRAPH, graph(field.bytes, new, data_type)?);
        } else {
            out.copy(field.span);
        }
    }
    Ok(out.concat())
}

fn graph<'a>(message: &'a [u8], new: &Widening<'_>, data_type: u64) -> Result<Pieces<'a>, WireError> {
    let mut out = Pieces::default();
    for field in fields(message) {
        let field = field?;
        if field.wire != BYTES {
            out.copy(field.span);
            continue;
        }
        match field.number {
            GRAPH_INITIALIZER => match find(new, tensor(field.bytes)?.0) {
                Some(replaced) => out.message(GRAPH_INITIALIZER, resized(field.bytes, replaced)?),
                None => out.copy(field.span),
            },
            GRAPH_NODE => match constant(field.bytes, new)? {
                Some(node) => out.message(GRAPH_NODE, node),
                None => out.copy(field.span),
            },
            GRAPH_INPUT | GRAPH_OUTPUT | GRAPH_VALUE_INFO => match value_info(field.bytes, new)? {
                Some(info) => out.message(field.number, info),
                None => out.copy(field.span),
            },
            _ => out.copy(field.span),
        }
    }
    for added in &new.added {
        out.bytes(GRAPH_INITIALIZER, new_tensor(added, data_type));
    }
    for (op_type, inputs, output) in &new.nodes {
        let mut node = Pieces::default();
        inputs.iter().for_each(|i| node.bytes(NODE_INPUT, i.as_bytes().to_vec()));
        node.bytes(NODE_OUTPUT, output.as_bytes().to_vec());
        node.bytes(NODE_NAME, output.as_bytes().to_vec());
        node.bytes(NODE_OP_TYPE, op_type.as_bytes().to_vec());
        out.bytes(GRAPH_NODE, node.concat());
    }
    if let Some((name, size)) = new.output {
        out.bytes(GRAPH_OUTPUT, batched(name, size, data_type));
    }
    Ok(out)
}

fn find<'a, 'n>(new: &'n Widening<'a>, name: &str) -> Option<&'n Replacement<'a>> {
    new.tensors.iter().find(|t| t.name == name)
}

/// A Constant node with a tensor of another size, or None for any other.
fn constant<'a>(message: &'a [u8], new: &Widening<'_>) -> Result<Option<Pieces<'a>>, WireError> {
    let (mut is_constant, mut replaced) = (false, None);
    for field in fields(message) {
        let field = field?;
        match (field.number, field.wire) {
            (NODE_OP_TYPE, BYTES) => is_constant = field.text()? == "Constant",
            (NODE_OUTPUT, BYTES) => replaced = find(new, field.text()?),
            _ => {}
        }
    }
    let Some(replaced) = replaced.filter(|_| is_constant) else { return Ok(None) };
    let mut out = Pieces::default();
    for field in fields(message) {
        let field = field?;
        if !field.is(NODE_ATTRIBUTE, BYTES) {
            out.copy(field.span);
            continue;
        }
        let mut attribute = Pieces::default();
        for inner in fields(field.bytes) {
            let inner = inner?;
            match (inner.number, inner.wire) {
                (ATTRIBUTE_TENSOR, BYTES) => attribute.message(ATTRIBUTE_TENSOR, resized(inner.bytes, replaced)?),
                // A list of numbers has no tensor that could be resized.
                (ATTRIBUTE_NAME, BYTES) if inner.text()? != "value" => {
                    return Err(WireError::NoTensor { name: replaced.name.to_owned() });
                }
                _ => attribute.copy(inner.span),
            }
        }
        out.message(NODE_ATTRIBUTE, attribute);
    }
    Ok(Some(out))
}

/// A TensorProto of the same type and name with other dimensions and values.
fn resized<'a>(message: &'a [u8], new: &Replacement<'_>) -> Result<Pieces<'a>, WireError> {
    let data_type = tensor(message)?.1.data_type;
    let mut out = Pieces::default();
    let mut dims = Vec::new();
    new.shape.iter().for_each(|d| put_varint(&mut dims, *d as u64));
    out.bytes(TENSOR_DIMS, dims);
    for field in fields(message) {
        let field = field?;
        let goes = matches!(
            field.number,
            TENSOR_DIMS
                | TENSOR_RAW_DATA
                | TENSOR_FLOAT_DATA
                | TENSOR_INT32_DATA
                | TENSOR_INT64_DATA
                | TENSOR_DOUBLE_DATA
                | TENSOR_EXTERNAL_DATA
        );
        if !goes {
            out.copy(field.span);
        }
    }
    let values = match data_type {
        INT64 => new.values.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect(),
        _ => raw(data_type, new.values),
    };
    out.bytes(TENSOR_RAW_DATA, values);
    Ok(out)
}

/// A ValueInfoProto with other sizes, or None where it states none of them.
fn value_info<'a>(message: &'a [u8], new: &Widening<'_>) -> Result<Option<Pieces<'a>>, WireError> {
    let mut name = "";
    for field in fields(message) {
        let field = field?;
        if field.is(VALUE_INFO_NAME, BYTES) {
            name = field.text()?;
        }
    }
    let resized = find(new, name).map(|t| t.shape.iter().copied().enumerate().collect::<Vec<_>>());
    let sizes: Vec<(usize, usize)> =
        resized.unwrap_or_else(|| new.shapes.iter().filter(|s| s.0 == name).map(|s| (s.1, s.2)).collect());
    if sizes.is_empty() {
        return Ok(None);
    }
    let out = inside(message, VALUE_INFO_TYPE, &mut |of| {
        inside(of, TYPE_TENSOR, &mut |of| {
            inside(of, TENSOR_TYPE_SHAPE, &mut |of| {
                let mut axis = 0;
                inside(of, SHAPE_DIM, &mut |dim| {
                    let size = sizes.iter().find(|s| s.0 == axis).map(|s| s.1);
                    axis += 1;
                    let mut out = Pieces::default();
                    for field in fields(dim) {
                        let field = field?;
                        match size {
                            Some(size) if field.is(DIM_VALUE, VARINT) => out.push(number(DIM_VALUE, size)),
                            _ => out.copy(field.span),
                        }
                    }
                    Ok(out)
                })
            })
        })
    })?;
    Ok(Some(out))
}

/// `message` with every field `number` made anew from what it holds.
fn inside<'a>(
    message: &'a [u8],
    number: u64,
    f: &mut dyn FnMut(&'a [u8]) -> Result<Pieces<'a>, WireError>,
) -> Result<Pieces<'a>, WireError> {
    let mut out = Pieces::default();
    for field in fields(message) {
        let field = field?;
        if field.is(number, BYTES) {
            out.message(number, f(field.bytes)?);
        } else {
            out.copy(field.span);
        }
    }
    Ok(out)
}

fn number(field: u64, value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, field << 3 | u64::from(VARINT));
    put_varint(&mut out, value as u64);
    out
}

/// ValueInfoProto of `[batch, size]`.
fn batched(name: &str, size: usize, data_type: u64) -> Vec<u8> {
    let mut batch = Pieces::default();
    batch.bytes(DIM_PARAM, b"batch".to_vec());
    let mut shape = Pieces::default();
    shape.message(SHAPE_DIM, batch);
    shape.bytes(SHAPE_DIM, number(DIM_VALUE, size));
    let mut of = Pieces::default();
    of.push(number(TENSOR_TYPE_ELEMENT, data_type as usize));
    of.message(TENSOR_TYPE_SHAPE, shape);
    let mut typed = Pieces::default();
    typed.message(TYPE_TENSOR, of);
    let mut out = Pieces::default();
    out.bytes(VALUE_INFO_NAME, name.as_bytes().to_vec());
    out.message(VALUE_INFO_TYPE, typed);
    out.concat()
}
