//! The protobuf wire format of an ONNX file: finds tensors and nodes, changes a few, and copies every other byte.
//!
//! A protobuf library would parse the whole file and write it again, and with that drop the fields it does not know.
//! Here a message is a list of byte spans; an edit replaces some of them, and only the lengths of the messages around
//! an edit are written anew. Field numbers: onnx.proto3 (ONNX 1.19), `https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3`.

mod edit;
mod half;
mod widen;

use std::collections::HashMap;

pub use edit::{edit, replace_tensors};
pub(crate) use half::f16_value;
pub use widen::{Widening, widen};

/// Values that replace those of a tensor of the file.
#[derive(Clone, Copy, Debug)]
pub struct Replacement<'a> {
    /// Name of an initializer, or of the output of a `Constant` node.
    pub name: &'a str,
    /// Row-major values.
    pub values: &'a [f32],
    /// Their shape; must be that in the file.
    pub shape: &'a [usize],
}

/// One change to a file.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Edit<'a> {
    /// New values for a tensor, in the type and the field in which the file holds it.
    Replace(Replacement<'a>),
    /// A new initializer, in the type of the file's tensor `like`.
    AddInitializer {
        /// The tensor; its name must be free.
        tensor: Replacement<'a>,
        /// A tensor of the file.
        like: &'a str,
    },
    /// Input `input` of node number `node` of the file reads `name`; inputs in between are left out (empty).
    SetInput {
        /// Index in the order of the file, see [`Contents::nodes`].
        node: usize,
        /// Index of the input.
        input: usize,
        /// A tensor of the file or a new one.
        name: &'a str,
    },
    /// `nodes` stand in the place of node number `node` of the file.
    ReplaceNode {
        /// Index in the order of the file.
        node: usize,
        /// The new nodes, in order.
        nodes: &'a [NewNode],
    },
}

/// A node of the standard domain that a file gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewNode {
    /// Operator.
    pub op_type: &'static str,
    /// Name.
    pub name: String,
    /// Input names.
    pub inputs: Vec<String>,
    /// Output names.
    pub outputs: Vec<String>,
    /// The node of the file whose attributes it has; none without.
    pub attributes_of: Option<usize>,
}

/// Why a file could not be read or changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Not the wire format.
    #[error("the ONNX file is damaged: {what} at byte {at}; copy or export it again")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Offset in the message that it is in.
        at: usize,
    },
    /// No such tensor.
    #[error("no initializer and no Constant node of the ONNX file gives `{name}`")]
    NoTensor {
        /// The name asked for.
        name: String,
    },
    /// No such node.
    #[error("the ONNX file has {nodes} nodes, node {node} was asked for")]
    NoNode {
        /// Index asked for.
        node: usize,
        /// Nodes in the file.
        nodes: usize,
    },
    /// The values are in another file.
    #[error(
        "the values of `{name}` are outside the ONNX file (external data): save the model as one file first, \
         in Python `onnx.save(onnx.load(\"model.onnx\"), \"one-file.onnx\")`"
    )]
    External {
        /// Tensor.
        name: String,
    },
    /// A type that a weight cannot have.
    #[error("`{name}` has ONNX data type {data_type}; expected float (1), float16 (10), double (11) or bfloat16 (16)")]
    DataType {
        /// Tensor.
        name: String,
        /// TensorProto.DataType.
        data_type: u64,
    },
    /// Another shape.
    #[error("`{name}` has shape {expected:?} in the ONNX file, the new values have {found:?}")]
    Shape {
        /// Tensor.
        name: String,
        /// In the file.
        expected: Vec<usize>,
        /// In the edit.
        found: Vec<usize>,
    },
    /// A value beyond a 16-bit float.
    #[error("`{name}` has 16 bits in the ONNX file, which cannot hold {value}; train with a lower --lr or --alpha")]
    Range {
        /// Tensor.
        name: String,
        /// The value.
        value: f32,
    },
    /// A name that is there already, or that is edited twice.
    #[error("`{name}` is there twice: a tensor of the ONNX file can be changed once, and a new one needs a new name")]
    Twice {
        /// Tensor.
        name: String,
    },
}

/// What a file holds, as far as edits need it.
#[derive(Debug, Default)]
pub struct Contents<'a> {
    /// Nodes of the main graph, in the order of the file.
    pub nodes: Vec<FileNode<'a>>,
    /// Initializers and outputs of `Constant` nodes, by name.
    pub tensors: HashMap<&'a str, FileTensor>,
    /// How often each name is read: by nodes, subgraphs and as output of the model.
    uses: HashMap<&'a str, usize>,
    ir_version: u64,
}

/// A node of the file.
#[derive(Clone, Debug, Default)]
pub struct FileNode<'a> {
    /// Input names; an empty one is left out.
    pub inputs: Vec<&'a str>,
    /// Output names.
    pub outputs: Vec<&'a str>,
    /// Operator.
    pub op_type: &'a str,
}

/// A tensor of the file, without its values.
#[derive(Clone, Debug, PartialEq)]
pub struct FileTensor {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// TensorProto.DataType.
    pub data_type: u64,
    /// Whether the values are in another file.
    pub external: bool,
}

// Field numbers.
const MODEL_IR_VERSION: u64 = 1;
const MODEL_GRAPH: u64 = 7;
const GRAPH_NODE: u64 = 1;
const GRAPH_INITIALIZER: u64 = 5;
const GRAPH_INPUT: u64 = 11;
const GRAPH_OUTPUT: u64 = 12;
const NODE_INPUT: u64 = 1;
const NODE_OUTPUT: u64 = 2;
const NODE_NAME: u64 = 3;
const NODE_OP_TYPE: u64 = 4;
const NODE_ATTRIBUTE: u64 = 5;
const ATTRIBUTE_NAME: u64 = 1;
const ATTRIBUTE_TENSOR: u64 = 5;
const ATTRIBUTE_GRAPH: u64 = 6;
const ATTRIBUTE_FLOATS: u64 = 7;
const ATTRIBUTE_GRAPHS: u64 = 11;
const TENSOR_DIMS: u64 = 1;
const TENSOR_DATA_TYPE: u64 = 2;
const TENSOR_FLOAT_DATA: u64 = 4;
const TENSOR_INT32_DATA: u64 = 5;
const TENSOR_NAME: u64 = 8;
const TENSOR_RAW_DATA: u64 = 9;
const TENSOR_DOUBLE_DATA: u64 = 10;
const TENSOR_EXTERNAL_DATA: u64 = 13;
const TENSOR_DATA_LOCATION: u64 = 14;
const VALUE_INFO_NAME: u64 = 1;
const VALUE_INFO_TYPE: u64 = 2;

// TensorProto.DataType.
const FLOAT: u64 = 1;
const FLOAT16: u64 = 10;
const DOUBLE: u64 = 11;
const BFLOAT16: u64 = 16;

// Wire types.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// Subgraphs inside subgraphs that are followed; no exporter nests deeper than a few.
const MAX_DEPTH: usize = 32;

/// One field of a message: its bytes as they stand, and what they say.
#[derive(Clone, Copy)]
struct Field<'a> {
    number: u64,
    wire: u8,
    /// Tag and all.
    span: &'a [u8],
    /// Payload of a field of bytes; the 4 or 8 bytes of a fixed field.
    bytes: &'a [u8],
    /// Value of a varint field.
    value: u64,
}

impl<'a> Field<'a> {
    fn is(&self, number: u64, wire: u8) -> bool {
        self.number == number && self.wire == wire
    }

    fn text(&self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes).map_err(|e| malformed("a name that is not UTF-8", e.valid_up_to()))
    }
}

/// Splits a message into its fields; ends after the first error.
struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

fn fields(message: &[u8]) -> Fields<'_> {
    Fields { message, at: 0 }
}

fn malformed(what: &'static str, at: usize) -> WireError {
    WireError::Malformed { what, at }
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for i in 0..10 {
            let byte = *self.message.get(self.at).ok_or_else(|| malformed("the end inside a number", self.at))?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number of more than ten bytes", self.at))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], WireError> {
        let rest = &self.message[self.at..];
        let len = usize::try_from(len).ok().filter(|len| *len <= rest.len());
        let len = len.ok_or_else(|| malformed("a length that reaches beyond its message", self.at))?;
        self.at += len;
        Ok(&rest[..len])
    }

    fn field(&mut self) -> Result<Field<'a>, WireError> {
        let start = self.at;
        let tag = self.varint()?;
        let (number, wire) = (tag >> 3, (tag & 7) as u8);
        if number == 0 {
            return Err(malformed("field number 0", start));
        }
        let (mut bytes, mut value) = (&[][..], 0);
        match wire {
            VARINT => value = self.varint()?,
            FIXED64 => bytes = self.take(8)?,
            BYTES => {
                let len = self.varint()?;
                bytes = self.take(len)?;
            }
            FIXED32 => bytes = self.take(4)?,
            _ => return Err(malformed("an unknown wire type", start)),
        }
        Ok(Field { number, wire, span: &self.message[start..self.at], bytes, value })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.message.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.message.len();
        }
        Some(field)
    }
}

impl<'a> Contents<'a> {
    /// Reads the structure of a model file.
    ///
    /// # Errors
    /// [`WireError::Malformed`], also where there is no graph.
    pub fn read(file: &'a [u8]) -> Result<Self, WireError> {
        let mut contents = Contents::default();
        let mut graphs = 0;
        for field in fields(file) {
            let field = field?;
            if field.is(MODEL_IR_VERSION, VARINT) {
                contents.ir_version = field.value;
            } else if field.is(MODEL_GRAPH, BYTES) {
                graphs += 1;
                contents.graph(field.bytes, 0)?;
            }
        }
        if graphs == 0 {
            return Err(malformed("the end, without a graph,", file.len()));
        }
        Ok(contents)
    }

    /// How often `name` is read: by nodes, subgraphs, and as output of the model.
    pub fn uses(&self, name: &str) -> usize {
        self.uses.get(name).copied().unwrap_or(0)
    }

    /// The node of the main graph that writes `name`.
    pub fn writer(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|n| n.outputs.contains(&name))
    }

    /// Whether anything in the main graph has this name.
    pub fn is_taken(&self, name: &str) -> bool {
        self.uses(name) > 0 || self.tensors.contains_key(name) || self.writer(name).is_some()
    }

    fn graph(&mut self, message: &'a [u8], depth: usize) -> Result<(), WireError> {
        if depth > MAX_DEPTH {
            return Err(malformed("too many subgraphs inside each other", 0));
        }
        for field in fields(message) {
            let field = field?;
            match field.number {
                GRAPH_NODE if field.wire == BYTES => self.node(field.bytes, depth)?,
                GRAPH_INITIALIZER if field.wire == BYTES && depth == 0 => {
                    let (name, tensor) = tensor(field.bytes)?;
                    self.tensors.insert(name, tensor);
                }
                GRAPH_OUTPUT if field.wire == BYTES => {
                    for field in fields(field.bytes) {
                        let field = field?;
                        if field.is(VALUE_INFO_NAME, BYTES) {
                            *self.uses.entry(field.text()?).or_default() += 1;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, message: &'a [u8], depth: usize) -> Result<(), WireError> {
        let mut node = FileNode::default();
        let mut value = None;
        for field in fields(message) {
            let field = field?;
            if field.wire != BYTES {
                continue;
            }
            match field.number {
                NODE_INPUT => {
                    let name = field.text()?;
                    node.inputs.push(name);
                    if !name.is_empty() {
                        *self.uses.entry(name).or_default() += 1;
                    }
                }
                NODE_OUTPUT => node.outputs.push(field.text()?),
                NODE_OP_TYPE => node.op_type = field.text()?,
                NODE_ATTRIBUTE => value = self.attribute(field.bytes, depth)?.or(value),
                _ => {}
            }
        }
        if depth == 0 {
            if let (Some(tensor), "Constant", Some(name)) = (value, node.op_type, node.outputs.first()) {
                self.tensors.insert(name, tensor);
            }
            self.nodes.push(node);
        }
        Ok(())
    }

    /// The tensor of an attribute `value` or `value_floats`.
    fn attribute(&mut self, message: &'a [u8], depth: usize) -> Result<Option<FileTensor>, WireError> {
        let (mut name, mut found, mut floats) = ("", None, 0);
        for field in fields(message) {
            let field = field?;
            match (field.number, field.wire) {
                (ATTRIBUTE_NAME, BYTES) => name = field.text()?,
                (ATTRIBUTE_TENSOR, BYTES) => found = Some(tensor(field.bytes)?.1),
                (ATTRIBUTE_FLOATS, BYTES | FIXED32) => floats += field.bytes.len() / 4,
                (ATTRIBUTE_GRAPH | ATTRIBUTE_GRAPHS, BYTES) => self.graph(field.bytes, depth + 1)?,
                _ => {}
            }
        }
        Ok(match name {
            "value" => found,
            "value_floats" => Some(FileTensor { shape: vec![floats], data_type: FLOAT, external: false }),
            _ => None,
        })
    }
}

fn tensor(message: &[u8]) -> Result<(&str, FileTensor), WireError> {
    let mut name = "";
    let mut tensor = FileTensor { shape: Vec::new(), data_type: 0, external: false };
    let dim = |value: u64| usize::try_from(value).map_err(|_| malformed("a dimension that is too large", 0));
    for field in fields(message) {
        let field = field?;
        match (field.number, field.wire) {
            (TENSOR_DIMS, VARINT) => tensor.shape.push(dim(field.value)?),
            (TENSOR_DIMS, BYTES) => {
                let mut packed = fields(field.bytes);
                while packed.at < field.bytes.len() {
                    tensor.shape.push(dim(packed.varint()?)?);
                }
            }
            (TENSOR_DATA_TYPE, VARINT) => tensor.data_type = field.value,
            (TENSOR_NAME, BYTES) => name = field.text()?,
            (TENSOR_EXTERNAL_DATA, BYTES) => tensor.external = true,
            (TENSOR_DATA_LOCATION, VARINT) => tensor.external |= field.value != 0,
            _ => {}
        }
    }
    Ok((name, tensor))
}

#[cfg(test)]
pub(crate) mod tests;
