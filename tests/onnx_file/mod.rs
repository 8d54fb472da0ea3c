//! A small writer of ONNX files (<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>), enough for networks that are
//! wrong on purpose.
// What a test reads is the project's own: a failure there is a failure of the test.
#![allow(clippy::unwrap_used)]
#![allow(dead_code)]

/// The base-128 number of the protobuf wire format.
fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn number(field: u64, value: i64) -> Vec<u8> {
    [varint(field << 3), varint(value as u64)].concat()
}

/// A field of bytes: text or a message.
pub(crate) fn bytes(field: u64, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    [varint(field << 3 | 2), varint(payload.len() as u64), payload.to_vec()].concat()
}

/// A dimension of an input.
pub(crate) enum Dim {
    Fixed(i64),
    Free(&'static str),
}

/// `ValueInfoProto` of an f32 tensor.
fn info(name: &str, dims: &[Dim]) -> Vec<u8> {
    let dim = |d: &Dim| match d {
        Dim::Fixed(n) => bytes(1, number(1, *n)),
        Dim::Free(name) => bytes(1, bytes(2, name)),
    };
    let shape: Vec<u8> = dims.iter().flat_map(dim).collect();
    let tensor = [number(1, 1), bytes(2, shape)].concat();
    [bytes(1, name), bytes(2, bytes(1, tensor))].concat()
}

/// `TensorProto` of f32 values in `raw_data`.
fn tensor(name: &str, dims: &[i64], values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    [typed(name, dims, 1), bytes(9, raw)].concat()
}

fn typed(name: &str, dims: &[i64], element: i64) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|d| number(1, *d)).collect();
    [dims, number(2, element), bytes(8, name)].concat()
}

/// An attribute of a node.
pub(crate) fn int(name: &str, value: i64) -> Vec<u8> {
    bytes(5, [bytes(1, name), number(3, value), number(20, 2)].concat())
}

/// An attribute with a list.
pub(crate) fn ints(name: &str, values: &[i64]) -> Vec<u8> {
    let values: Vec<u8> = values.iter().flat_map(|v| number(8, *v)).collect();
    bytes(5, [bytes(1, name), values, number(20, 7)].concat())
}

/// An attribute with a text.
pub(crate) fn text(name: &str, value: &str) -> Vec<u8> {
    bytes(5, [bytes(1, name), bytes(4, value), number(20, 3)].concat())
}

/// An attribute that is a graph.
pub(crate) fn graph(name: &str, graph: &Net) -> Vec<u8> {
    bytes(5, [bytes(1, name), bytes(6, graph.graph()), number(20, 5)].concat())
}

/// A network, field by field.
#[derive(Default)]
pub(crate) struct Net {
    fields: Vec<Vec<u8>>,
}

impl Net {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// An f32 input.
    pub(crate) fn input(self, name: &str, dims: &[i64]) -> Self {
        let dims: Vec<Dim> = dims.iter().map(|d| Dim::Fixed(*d)).collect();
        self.input_with(name, &dims)
    }

    pub(crate) fn input_with(mut self, name: &str, dims: &[Dim]) -> Self {
        self.fields.push(bytes(11, info(name, dims)));
        self
    }

    pub(crate) fn output(mut self, name: &str) -> Self {
        self.fields.push(bytes(12, bytes(1, name)));
        self
    }

    /// A node named after its output, with attributes by [`int`], [`ints`] and [`graph`].
    pub(crate) fn node(mut self, op: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Self {
        let inputs: Vec<u8> = inputs.iter().flat_map(|i| bytes(1, i)).collect();
        let name = format!("/{output}/{op}");
        let node = [inputs, bytes(2, output), bytes(3, name), bytes(4, op), attributes.concat()].concat();
        self.fields.push(bytes(1, node));
        self
    }

    /// A weight with values of a fixed sequence between -0.5 and 0.5.
    pub(crate) fn weight(self, name: &str, dims: &[i64]) -> Self {
        let count = dims.iter().product::<i64>();
        let values: Vec<f32> =
            (0..count).map(|i| ((i * 37 + name.len() as i64 * 11) % 101) as f32 / 101.0 - 0.5).collect();
        self.weight_of(name, dims, &values)
    }

    /// A weight with these values; their number need not fit.
    pub(crate) fn weight_of(mut self, name: &str, dims: &[i64], values: &[f32]) -> Self {
        self.fields.push(bytes(5, tensor(name, dims, values)));
        self
    }

    /// A constant of 64-bit integers.
    pub(crate) fn integers(mut self, name: &str, values: &[i64]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.fields.push(bytes(5, [typed(name, &[values.len() as i64], 7), bytes(9, raw)].concat()));
        self
    }

    /// A constant of one 64-bit integer, without dimensions.
    pub(crate) fn scalar(mut self, name: &str, value: i64) -> Self {
        self.fields.push(bytes(5, [typed(name, &[], 7), bytes(9, value.to_le_bytes())].concat()));
        self
    }

    /// A constant of 8-bit integers with a sign, of a fixed sequence.
    pub(crate) fn bytes8(mut self, name: &str, dims: &[i64]) -> Self {
        let raw: Vec<u8> = (0..dims.iter().product::<i64>()).map(|i| ((i * 29 + 7) % 201 - 100) as i8 as u8).collect();
        self.fields.push(bytes(5, [typed(name, dims, 3), bytes(9, raw)].concat()));
        self
    }

    /// A constant of 8-bit integers without a sign, of a fixed sequence.
    pub(crate) fn packed(mut self, name: &str, dims: &[i64]) -> Self {
        let raw: Vec<u8> = (0..dims.iter().product::<i64>()).map(|i| ((i * 167 + 7) % 251) as u8).collect();
        self.fields.push(bytes(5, [typed(name, dims, 2), bytes(9, raw)].concat()));
        self
    }

    /// A weight whose values stand in the file `location`.
    pub(crate) fn external(mut self, name: &str, dims: &[i64], entries: &[(&str, &str)]) -> Self {
        let entries: Vec<u8> =
            entries.iter().flat_map(|(k, v)| bytes(13, [bytes(1, k), bytes(2, v)].concat())).collect();
        self.fields.push(bytes(5, [typed(name, dims, 1), entries, number(14, 1)].concat()));
        self
    }

    fn graph(&self) -> Vec<u8> {
        [self.fields.concat(), bytes(2, "net")].concat()
    }

    /// The file, opset 13.
    pub(crate) fn file(&self) -> Vec<u8> {
        let opset = bytes(8, number(2, 13));
        [number(1, 8), bytes(7, self.graph()), opset].concat()
    }
}

/// `[1, 4]` → dense 8 → Relu → dense `classes` → logits.
pub(crate) fn dense(classes: i64) -> Net {
    Net::new()
        .input("x", &[1, 4])
        .weight("first.weight", &[8, 4])
        .weight("first.bias", &[8])
        .node("Gemm", &["x", "first.weight", "first.bias"], "h", &[int("transB", 1)])
        .node("Relu", &["h"], "r", &[])
        .weight("second.weight", &[classes, 8])
        .weight("second.bias", &[classes])
        .node("Gemm", &["r", "second.weight", "second.bias"], "logits", &[int("transB", 1)])
        .output("logits")
}

/// `[1, 3, 8, 8]` (or with `channels_last` `[1, 8, 8, 3]`) → convolution 6 → Relu → mean → dense 2 → logits.
pub(crate) fn pictures(channels_last: bool) -> Net {
    let net = match channels_last {
        false => Net::new().input("picture", &[1, 3, 8, 8]).node("Identity", &["picture"], "planes", &[]),
        true => {
            let turn = [ints("perm", &[0, 3, 1, 2])];
            Net::new().input("picture", &[1, 8, 8, 3]).node("Transpose", &["picture"], "planes", &turn)
        }
    };
    net.weight("conv.weight", &[6, 3, 3, 3])
        .weight("conv.bias", &[6])
        .node("Conv", &["planes", "conv.weight", "conv.bias"], "c", &[ints("pads", &[1, 1, 1, 1])])
        .node("Relu", &["c"], "r", &[])
        .node("GlobalAveragePool", &["r"], "pooled", &[])
        .node("Flatten", &["pooled"], "flat", &[])
        .weight("fc.weight", &[2, 6])
        .weight("fc.bias", &[2])
        .node("Gemm", &["flat", "fc.weight", "fc.bias"], "logits", &[int("transB", 1)])
        .output("logits")
}
