//! Edits: a message as spans of the old file and new bytes.

use std::borrow::Cow;
use std::collections::HashMap;

use super::half::{bf16_bits, f16_bits};
use super::{
    ATTRIBUTE_FLOATS, ATTRIBUTE_NAME, ATTRIBUTE_TENSOR, BFLOAT16, BYTES, Contents, DOUBLE, Edit, FIXED32, FIXED64,
    FLOAT, FLOAT16, FileTensor, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_NODE, MODEL_GRAPH, NODE_ATTRIBUTE, NODE_INPUT,
    NODE_NAME, NODE_OP_TYPE, NODE_OUTPUT, NewNode, Replacement, TENSOR_DATA_TYPE, TENSOR_DIMS, TENSOR_DOUBLE_DATA,
    TENSOR_FLOAT_DATA, TENSOR_INT32_DATA, TENSOR_NAME, TENSOR_RAW_DATA, VALUE_INFO_NAME, VALUE_INFO_TYPE, VARINT,
    WireError, fields, tensor,
};

/// `file` with new values for the named tensors; every other byte as it is.
///
/// # Errors
/// A damaged file, a name that is not there, external data, another shape, a type that is not a float.
pub fn replace_tensors(file: &[u8], edits: &[Replacement<'_>]) -> Result<Vec<u8>, WireError> {
    let edits: Vec<Edit<'_>> = edits.iter().map(|e| Edit::Replace(*e)).collect();
    edit(file, &edits)
}

/// `file` with all `edits` made; every other byte as it is.
///
/// # Errors
/// A damaged file, a name or a node that is not there, external data, another shape, a type that is not a float.
pub fn edit(file: &[u8], edits: &[Edit<'_>]) -> Result<Vec<u8>, WireError> {
    let contents = Contents::read(file)?;
    let mut plan = Plan {
        contents: &contents,
        replace: HashMap::new(),
        inputs: HashMap::new(),
        add: Vec::new(),
        islands: HashMap::new(),
        node: 0,
    };
    for edit in edits {
        plan.check(edit)?;
    }
    let mut out = Pieces::default();
    for field in fields(file) {
        let field = field?;
        if field.is(MODEL_GRAPH, BYTES) {
            let graph = plan.graph(field.bytes)?;
            out.message(MODEL_GRAPH, graph);
        } else {
            out.copy(field.span);
        }
    }
    Ok(out.concat())
}

/// A message under construction: spans of the old file and new bytes.
#[derive(Default)]
pub(super) struct Pieces<'a> {
    pieces: Vec<Cow<'a, [u8]>>,
    len: usize,
}

impl<'a> Pieces<'a> {
    pub(super) fn copy(&mut self, span: &'a [u8]) {
        self.len += span.len();
        self.pieces.push(Cow::Borrowed(span));
    }

    pub(super) fn push(&mut self, bytes: Vec<u8>) {
        self.len += bytes.len();
        self.pieces.push(Cow::Owned(bytes));
    }

    pub(super) fn bytes(&mut self, number: u64, bytes: Vec<u8>) {
        self.push(head(number, bytes.len()));
        self.push(bytes);
    }

    pub(super) fn message(&mut self, number: u64, message: Pieces<'a>) {
        self.push(head(number, message.len));
        self.len += message.len;
        self.pieces.extend(message.pieces);
    }

    pub(super) fn concat(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len);
        self.pieces.iter().for_each(|p| out.extend_from_slice(p));
        out
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Tag and length of a field of bytes.
fn head(number: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, number << 3 | u64::from(BYTES));
    put_varint(&mut out, len as u64);
    out
}

/// The edits, checked.
struct Plan<'c, 'e> {
    contents: &'c Contents<'c>,
    replace: HashMap<&'e str, &'e [f32]>,
    inputs: HashMap<usize, Vec<(usize, &'e str)>>,
    add: Vec<(Replacement<'e>, u64)>,
    islands: HashMap<usize, &'e [NewNode]>,
    /// Nodes passed so far.
    node: usize,
}

impl<'e> Plan<'_, 'e> {
    fn check(&mut self, edit: &Edit<'e>) -> Result<(), WireError> {
        match edit {
            Edit::Replace(new) => {
                let old = self.float_tensor(new.name)?;
                if old.external {
                    return Err(WireError::External { name: new.name.to_owned() });
                }
                if old.shape != new.shape || elements(new.shape) != Some(new.values.len()) {
                    let (expected, found) = (old.shape.clone(), new.shape.to_vec());
                    return Err(WireError::Shape { name: new.name.to_owned(), expected, found });
                }
                check_range(new, old.data_type)?;
                if self.replace.insert(new.name, new.values).is_some() {
                    return Err(WireError::Twice { name: new.name.to_owned() });
                }
            }
            Edit::AddInitializer { tensor, like } => {
                let data_type = self.float_tensor(like)?.data_type;
                if elements(tensor.shape) != Some(tensor.values.len()) {
                    let (expected, found) = (vec![tensor.values.len()], tensor.shape.to_vec());
                    return Err(WireError::Shape { name: tensor.name.to_owned(), expected, found });
                }
                check_range(tensor, data_type)?;
                let added = self.add.iter().any(|(t, _)| t.name == tensor.name);
                if added || self.contents.is_taken(tensor.name) || tensor.name.is_empty() {
                    return Err(WireError::Twice { name: tensor.name.to_owned() });
                }
                self.add.push((*tensor, data_type));
            }
            Edit::SetInput { node, input, name } => {
                let nodes = self.contents.nodes.len();
                // No operator whose input is set here has more inputs than these.
                if *node >= nodes || *input > self.contents.nodes[*node].inputs.len().max(8) {
                    return Err(WireError::NoNode { node: *node, nodes });
                }
                self.inputs.entry(*node).or_default().push((*input, name));
            }
            Edit::ReplaceNode { node, nodes } => {
                let count = self.contents.nodes.len();
                let asked = nodes.iter().filter_map(|n| n.attributes_of).chain([*node]).max().unwrap_or(0);
                if asked >= count {
                    return Err(WireError::NoNode { node: asked, nodes: count });
                }
                if self.islands.insert(*node, nodes).is_some() {
                    let name = self.contents.nodes[*node].outputs.first().copied().unwrap_or_default().to_owned();
                    return Err(WireError::Twice { name });
                }
            }
        }
        Ok(())
    }

    fn float_tensor(&self, name: &str) -> Result<&FileTensor, WireError> {
        let tensor = self.contents.tensors.get(name).ok_or_else(|| WireError::NoTensor { name: name.to_owned() })?;
        match tensor.data_type {
            FLOAT | FLOAT16 | DOUBLE | BFLOAT16 => Ok(tensor),
            data_type => Err(WireError::DataType { name: name.to_owned(), data_type }),
        }
    }

    fn graph<'a>(&mut self, message: &'a [u8]) -> Result<Pieces<'a>, WireError> {
        let mut out = Pieces::default();
        let nodes = || fields(message).flatten().filter(|f| f.is(GRAPH_NODE, BYTES)).map(|f| f.bytes);
        for field in fields(message) {
            let field = field?;
            if field.is(GRAPH_INITIALIZER, BYTES)
                && let Some(values) = self.replace.get(tensor(field.bytes)?.0)
            {
                out.message(GRAPH_INITIALIZER, replace_values(field.bytes, values)?);
            } else if let (true, Some(island)) = (field.is(GRAPH_NODE, BYTES), self.islands.get(&self.node)) {
                for new in *island {
                    let like = new.attributes_of.and_then(|of| nodes().nth(of));
                    out.message(GRAPH_NODE, new_node(new, like.unwrap_or_default())?);
                }
                self.node += 1;
            } else if field.is(GRAPH_NODE, BYTES) {
                match self.edited_node(field.bytes)? {
                    Some(node) => out.message(GRAPH_NODE, node),
                    None => out.copy(field.span),
                }
                self.node += 1;
            } else {
                out.copy(field.span);
            }
        }
        for (tensor, data_type) in std::mem::take(&mut self.add) {
            out.bytes(GRAPH_INITIALIZER, new_tensor(&tensor, data_type));
            if self.contents.ir_version < 4 {
                // Up to ONNX IR 3 an initializer is also an input of the graph.
                out.bytes(GRAPH_INPUT, new_value_info(&tensor, data_type));
            }
        }
        Ok(out)
    }

    /// The node with its edits, or None if it has none.
    fn edited_node<'a>(&self, message: &'a [u8]) -> Result<Option<Pieces<'a>>, WireError> {
        let node = &self.contents.nodes[self.node];
        let values = match node.outputs.first() {
            Some(output) if node.op_type == "Constant" => self.replace.get(output),
            _ => None,
        };
        let inputs = self.inputs.get(&self.node);
        if values.is_none() && inputs.is_none() {
            return Ok(None);
        }
        let mut out = Pieces::default();
        if let Some(inputs) = inputs {
            let mut names = node.inputs.clone();
            for (input, name) in inputs {
                names.resize(names.len().max(input + 1), "");
                names[*input] = name;
            }
            names.iter().for_each(|n| out.bytes(NODE_INPUT, n.as_bytes().to_vec()));
        }
        for field in fields(message) {
            let field = field?;
            if let (true, Some(values)) = (field.is(NODE_ATTRIBUTE, BYTES), values) {
                out.message(NODE_ATTRIBUTE, replace_attribute(field.bytes, values)?);
            } else if inputs.is_none() || !field.is(NODE_INPUT, BYTES) {
                out.copy(field.span);
            }
        }
        Ok(Some(out))
    }
}

fn check_range(tensor: &Replacement<'_>, data_type: u64) -> Result<(), WireError> {
    let infinite = |v: f32| match data_type {
        FLOAT16 => f16_bits(v) & 0x7fff == 0x7c00,
        BFLOAT16 => bf16_bits(v) & 0x7fff == 0x7f80,
        _ => false,
    };
    match tensor.values.iter().find(|v| v.is_finite() && infinite(**v)) {
        Some(value) => Err(WireError::Range { name: tensor.name.to_owned(), value: *value }),
        _ => Ok(()),
    }
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))
}

/// An attribute of a Constant node: `value` or `value_floats` with new values, any other as it is.
fn replace_attribute<'a>(message: &'a [u8], values: &[f32]) -> Result<Pieces<'a>, WireError> {
    let mut name = "";
    for field in fields(message) {
        let field = field?;
        if field.is(ATTRIBUTE_NAME, BYTES) {
            name = field.text()?;
        }
    }
    let mut out = Pieces::default();
    let mut written = false;
    for field in fields(message) {
        let field = field?;
        match (name, field.number, field.wire) {
            ("value", ATTRIBUTE_TENSOR, BYTES) => out.message(ATTRIBUTE_TENSOR, replace_values(field.bytes, values)?),
            ("value_floats", ATTRIBUTE_FLOATS, BYTES | FIXED32) => {
                if !written {
                    out.push(typed(ATTRIBUTE_FLOATS, FLOAT, values, field.wire == BYTES));
                }
                written = true;
            }
            _ => out.copy(field.span),
        }
    }
    Ok(out)
}

/// A TensorProto with new values where the old ones stood: raw, or in the list of its type, packed or not.
fn replace_values<'a>(message: &'a [u8], values: &[f32]) -> Result<Pieces<'a>, WireError> {
    let data_type = tensor(message)?.1.data_type;
    let mut out = Pieces::default();
    let mut written = false;
    for field in fields(message) {
        let field = field?;
        let is_payload =
            matches!(field.number, TENSOR_RAW_DATA | TENSOR_FLOAT_DATA | TENSOR_INT32_DATA | TENSOR_DOUBLE_DATA);
        if !is_payload {
            out.copy(field.span);
            continue;
        }
        // A typed list may come in several parts, and raw data beside an empty one.
        if written || (field.wire == BYTES && field.bytes.is_empty() && !values.is_empty()) {
            continue;
        }
        written = true;
        if field.number == TENSOR_RAW_DATA {
            out.bytes(TENSOR_RAW_DATA, raw(data_type, values));
        } else {
            out.push(typed(field.number, data_type, values, field.wire == BYTES));
        }
    }
    if !written {
        out.bytes(TENSOR_RAW_DATA, raw(data_type, values));
    }
    Ok(out)
}

/// Little-endian values in a type of the file.
pub(super) fn raw(data_type: u64, values: &[f32]) -> Vec<u8> {
    match data_type {
        FLOAT16 => values.iter().flat_map(|v| f16_bits(*v).to_le_bytes()).collect(),
        BFLOAT16 => values.iter().flat_map(|v| bf16_bits(*v).to_le_bytes()).collect(),
        DOUBLE => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// The field that holds `values` as a list, packed into one or one a value.
fn typed(number: u64, data_type: u64, values: &[f32], packed: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let half = match data_type {
        FLOAT16 => Some(f16_bits as fn(f32) -> u16),
        BFLOAT16 => Some(bf16_bits as fn(f32) -> u16),
        _ => None,
    };
    if packed {
        let list = match half {
            Some(bits) => {
                let mut list = Vec::new();
                values.iter().for_each(|v| put_varint(&mut list, bits(*v).into()));
                list
            }
            None => raw(data_type, values),
        };
        out = head(number, list.len());
        out.extend(list);
        return out;
    }
    for value in values {
        let wire = match data_type {
            FLOAT16 | BFLOAT16 => VARINT,
            DOUBLE => FIXED64,
            _ => FIXED32,
        };
        put_varint(&mut out, number << 3 | u64::from(wire));
        match data_type {
            FLOAT16 => put_varint(&mut out, f16_bits(*value).into()),
            BFLOAT16 => put_varint(&mut out, bf16_bits(*value).into()),
            DOUBLE => out.extend(f64::from(*value).to_le_bytes()),
            _ => out.extend(value.to_le_bytes()),
        }
    }
    out
}

/// NodeProto { input, output, name, op_type } with the attributes of the node `like`.
fn new_node<'a>(new: &NewNode, like: &'a [u8]) -> Result<Pieces<'a>, WireError> {
    let mut out = Pieces::default();
    new.inputs.iter().for_each(|n| out.bytes(NODE_INPUT, n.as_bytes().to_vec()));
    new.outputs.iter().for_each(|n| out.bytes(NODE_OUTPUT, n.as_bytes().to_vec()));
    out.bytes(NODE_NAME, new.name.as_bytes().to_vec());
    out.bytes(NODE_OP_TYPE, new.op_type.as_bytes().to_vec());
    for field in fields(like) {
        let field = field?;
        if field.is(NODE_ATTRIBUTE, BYTES) {
            out.copy(field.span);
        }
    }
    Ok(out)
}

pub(super) fn new_tensor(new: &Replacement<'_>, data_type: u64) -> Vec<u8> {
    let mut dims = Vec::new();
    new.shape.iter().for_each(|d| put_varint(&mut dims, *d as u64));
    let mut out = Pieces::default();
    out.bytes(TENSOR_DIMS, dims);
    out.push(vec![(TENSOR_DATA_TYPE << 3) as u8, data_type as u8]);
    out.bytes(TENSOR_NAME, new.name.as_bytes().to_vec());
    out.bytes(TENSOR_RAW_DATA, raw(data_type, new.values));
    out.concat()
}

/// ValueInfoProto { name, type { tensor_type { elem_type, shape { dim { dim_value } } } } }.
fn new_value_info(new: &Replacement<'_>, data_type: u64) -> Vec<u8> {
    let mut shape = Pieces::default();
    for d in new.shape {
        let mut dim = vec![1 << 3];
        put_varint(&mut dim, *d as u64);
        shape.bytes(1, dim);
    }
    let mut tensor_type = Pieces::default();
    tensor_type.push(vec![1 << 3, data_type as u8]);
    tensor_type.message(2, shape);
    let mut of = Pieces::default();
    of.message(1, tensor_type);
    let mut out = Pieces::default();
    out.bytes(VALUE_INFO_NAME, new.name.as_bytes().to_vec());
    out.message(VALUE_INFO_TYPE, of);
    out.concat()
}
