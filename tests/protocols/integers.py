"""Makes networks whose weights are integers, and the same in floats: what a base of integers saves.

usage: integers.py OUT [WIDTH [LAYERS [TOKENS]]]
       integers.py OUT conv|grouped|transposed|gru|lstm|embedding [WIDTH [LAYERS [SIZE]]]
The first makes a transformer: OUT/{4bit,float,qdq}.onnx with the same random weights (4bit: MatMulNBits in blocks of 32; float:
the real values of those; qdq: DequantizeLinear, int8, a scale a column) for an input [1, TOKENS, WIDTH] and 10 scores. The second
makes LAYERS layers of that kind, OUT/{qdq,float}.onnx, where float has the real values of qdq: convolutions 3 x 3 of WIDTH channels
(grouped: 4 groups; transposed: stride 1) over SIZE x SIZE, recurrent layers of WIDTH over SIZE steps, an embedding of
64 * WIDTH words for SIZE of them. Prints the megabytes of the tensors; OUT/x.npy with OUT/{float,4bit,qdq}.npy is what ONNX
Runtime finds. Then, for each:

  accentor bench --model OUT/4bit.onnx --batch 4 --steps 5
"""
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

BLOCK = 32
out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
kind = sys.argv.pop(2) if len(sys.argv) > 2 and not sys.argv[2].isdigit() else "transformer"
default = ["512", "4", "64"] if kind == "transformer" else ["256", "4", "16"]
width, layers, tokens = (int(a) for a in (sys.argv[2:] + default[len(sys.argv) - 2 :]))


def blocked(w):
    """[k, n] → nibbles [n, blocks, 16], scales [n, blocks], and what they stand for."""
    k, n = w.shape
    t = w.T.reshape(n, k // BLOCK, BLOCK)
    scale = (np.abs(t).max(2) / 7).astype(np.float32)
    q = np.clip(np.rint(t / scale[..., None]) + 8, 0, 15).astype(np.uint8)
    real = ((q.astype(np.float32) - 8) * scale[..., None]).reshape(n, k).T
    return q[..., ::2] | q[..., 1::2] << 4, scale, np.ascontiguousarray(real)


def columns(w):
    """[k, n] → int8, scales [n], and what they stand for."""
    scale = (np.abs(w).max(0) / 127).astype(np.float32)
    q = np.rint(w / scale).astype(np.int8)
    return q, scale, q.astype(np.float32) * scale


def build(form):
    """The network in one form."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], []

    def tensor(name, values):
        tensors.append(numpy_helper.from_array(values, name))
        return name

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def dense(name, x, k, n):
        w = rng.standard_normal((k, n), np.float32) / np.float32(np.sqrt(k))
        packed, scale, real = (columns if form == "qdq" else blocked)(w)
        if form == "float":
            return node("MatMul", [x, tensor(f"{name}.w", real)], name)
        inputs = [tensor(f"{name}.w_quantized", packed), tensor(f"{name}.w_scale", scale)]
        if form == "4bit":
            return node("MatMulNBits", [x, *inputs], name, domain="com.microsoft", K=k, N=n, bits=4, block_size=BLOCK)
        return node("MatMul", [x, node("DequantizeLinear", inputs, f"{name}.w", axis=1)], name)

    def norm(name, x):
        one, zero = np.ones(width, np.float32), np.zeros(width, np.float32)
        return node("LayerNormalization", [x, tensor(f"{name}.g", one), tensor(f"{name}.b", zero)], name, axis=-1)

    heads = tensor("heads", np.array([1, tokens, 8, width // 8], np.int64))
    whole = tensor("whole", np.array([1, tokens, width], np.int64))
    root = tensor("root", np.float32(1 / np.sqrt(width / 8)))
    x = "x"
    for layer in range(layers):
        n = norm(f"l{layer}.n1", x)
        part = {}
        for which, perm in [("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])]:
            y = node("Reshape", [dense(f"l{layer}.{which}", n, width, width), heads], f"l{layer}.{which}.heads")
            part[which] = node("Transpose", [y], f"l{layer}.{which}.turned", perm=perm)
        scores = node("MatMul", [part["q"], part["k"]], f"l{layer}.scores")
        scores = node("Softmax", [node("Mul", [scores, root], f"l{layer}.scaled")], f"l{layer}.soft", axis=-1)
        y = node("Transpose", [node("MatMul", [scores, part["v"]], f"l{layer}.mix")], f"l{layer}.back", perm=[0, 2, 1, 3])
        y = dense(f"l{layer}.o", node("Reshape", [y, whole], f"l{layer}.flat"), width, width)
        x = node("Add", [x, y], f"l{layer}.mid")
        y = node("Relu", [dense(f"l{layer}.up", norm(f"l{layer}.n2", x), width, 4 * width)], f"l{layer}.act")
        x = node("Add", [x, dense(f"l{layer}.down", y, 4 * width, width)], f"l{layer}.out")
    y = node("ReduceMean", [x, tensor("axes", np.array([1], np.int64))], "mean", keepdims=0)
    w = rng.standard_normal((width, 10), np.float32) / np.float32(np.sqrt(width))
    node("Gemm", [y, tensor("head.w", w), tensor("head.b", np.zeros(10, np.float32))], "scores")
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, form, [value("x", [1, tokens, width])], [value("scores", [1, 10])], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def layer_net(form):
    """LAYERS layers of one kind in one form, and the shape of their input."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], []

    def tensor(name, values):
        tensors.append(numpy_helper.from_array(values, name))
        return name

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output] if isinstance(output, str) else output, **attributes))
        return output

    def weight(name, shape, fan, axis):
        w = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan))
        others = tuple(i for i in range(len(shape)) if i != axis)
        scale = (np.abs(w).max(others) / 127).astype(np.float32)
        wide = scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        q = np.rint(w / wide).astype(np.int8)
        if form == "float":
            return tensor(name, q.astype(np.float32) * wide)
        inputs = [tensor(f"{name}_quantized", q), tensor(f"{name}_scale", scale)]
        return node("DequantizeLinear", inputs, name, axis=axis)

    y, features = "x", width
    if kind in ["conv", "grouped", "transposed"]:
        shape, groups = [1, width, tokens, tokens], 4 if kind == "grouped" else 1
        for i in range(layers):
            op, axis = ("ConvTranspose", 1) if kind == "transposed" else ("Conv", 0)
            w = weight(f"l{i}.w", (width, width // groups, 3, 3), 9 * width / groups, axis)
            y = node("Relu", [node(op, [y, w], f"l{i}", pads=[1] * 4, group=groups)], f"l{i}.act")
        y = node("GlobalAveragePool", [y], "pooled")
    elif kind in ["gru", "lstm"]:
        shape, gates = [1, tokens, width], 3 if kind == "gru" else 4
        y = node("Transpose", [y], "steps", perm=[1, 0, 2])
        flat = tensor("flat", np.array([tokens, 1, width], np.int64))
        for i in range(layers):
            w, r = (weight(f"l{i}.{n}", (1, gates * width, width), width, 1) for n in "wr")
            more = {"linear_before_reset": 1} if kind == "gru" else {}
            node(kind.upper(), [y, w, r], [f"l{i}"], hidden_size=width, **more)
            y = node("Reshape", [f"l{i}", flat], f"l{i}.flat")
        y = node("ReduceMean", [y, tensor("axes", np.array([0], np.int64))], "pooled", keepdims=0)
    else:
        shape = [1, tokens]
        table = weight("words", (64 * width, width), 1, 0)
        y = node("Gather", [table, node("Cast", [y], "indices", to=TensorProto.INT64)], "rows")
        y = node("ReduceMean", [y, tensor("axes", np.array([1], np.int64))], "pooled", keepdims=0)
    y = node("Reshape", [y, tensor("row", np.array([1, features], np.int64))], "row_of")
    head = rng.standard_normal((features, 10), np.float32) / np.float32(np.sqrt(features))
    node("Gemm", [y, tensor("head.w", head), tensor("head.b", np.zeros(10, np.float32))], "scores")
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, form, [value("x", shape)], [value("scores", [1, 10])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), shape


if kind == "transformer":
    forms, made, shape = ["4bit", "qdq", "float"], build, [1, tokens, width]
else:
    forms, made, shape = ["qdq", "float"], lambda form: layer_net(form)[0], layer_net("float")[1]
x = np.random.default_rng(1).standard_normal(shape, np.float32)
if kind == "embedding":
    x = np.random.default_rng(1).integers(0, 64 * width, shape).astype(np.float32)
np.save(out / "x.npy", x)
for form in forms:
    model = made(form)
    onnx.save(model, out / f"{form}.onnx")
    size = sum(len(t.raw_data) for t in model.graph.initializer) / 2**20
    scores = ort.InferenceSession(out / f"{form}.onnx").run(None, {"x": x})[0]
    np.save(out / f"{form}.npy", scores)
    print(f"{form}: {size:.1f} MiB of tensors; scores {np.round(scores[0, :4], 4)}")
