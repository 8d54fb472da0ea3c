"""Quantised bases: what accentor computes with and without an adapter, against ONNX Runtime on the file and on the merged file.

    python quantised.py --accentor target/release/accentor [--only NAME]

A small network in each form of a quantised layer, run by ONNX Runtime without its optimiser, node by node. A value within rounding of a tie may
come out one quantum off, and then everything behind it a little.
"""
import argparse
import json
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from interop import Base, EFFECT

QUANTUM = 2e-2    # of a probability: what some quanta one off in front of the head may do
MEDIAN = 1e-5     # of a probability: most clips have no value that near to a tie

MS = "com.microsoft"
rng = np.random.default_rng(7)


class Net:
    def __init__(self, shape, opset=13):
        self.opset, self.nodes, self.constants, self.count = opset, [], [], 0
        self.shape = shape

    def name(self, stem="t"):
        self.count += 1
        return f"{stem}{self.count}"

    def const(self, value, dtype=None, name=None):
        name = name or self.name("c")
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def raw(self, name, kind, values):
        self.constants.append(helper.make_tensor(name, kind, np.shape(values), np.asarray(values).ravel()))
        return name

    def node(self, op, inputs, outputs=1, out=None, domain="", **attributes):
        outs = [out or self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, outs, name=self.name(op), domain=domain, **attributes))
        return outs[0] if outputs == 1 else outs

    def weight(self, shape, dtype=np.int8, channels=None):
        """Integers, scale and zero point: names, for about unit gain."""
        fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        # 7 bits beside signed zero points: the sums of ONNX Runtime's products of two kinds of signs saturate without VNNI.
        low, high = (-63, 63) if dtype == np.int8 else (0, 255)
        n = channels or 1
        scale = ((3 / fan_in) ** 0.5 / 64 * rng.uniform(0.5, 1.5, n)).astype(np.float32)
        zero = np.full(n, 0 if dtype == np.int8 else 121, dtype)
        squeeze = lambda v: v if channels else v[0]  # noqa: E731
        name = self.name("w")
        return [self.const(rng.integers(low, high + 1, shape), dtype, name + ".weight_quantized"), self.const(squeeze(scale)), self.const(squeeze(zero))]

    def activation(self, scale=0.02, zero=131, dtype=np.uint8):
        return [self.const(np.float32(scale)), self.const(zero, dtype)]

    def quantise(self, x, a):
        return self.node("QuantizeLinear", [x, *a])

    def dequantise(self, x, a, **attributes):
        return self.node("DequantizeLinear", [x, *a], **attributes)

    def model(self, out):
        self.nodes[-1].output[0] = "logits"
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *self.shape])
        y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5])
        graph = helper.make_graph(self.nodes, "net", [x], [y], self.constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MS, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10 if self.opset >= 21 else 8), out)


def qdq():
    """Per channel with a bias of 32 bits, a pool between the halves, per tensor, a transposed weight."""
    n = Net([3, 9, 7])
    a, b = n.activation(), n.activation(0.03)
    x = n.dequantise(n.quantise("x", a), a)
    w = n.weight([6, 3, 3, 3], channels=6)
    bias = n.dequantise(n.const(rng.integers(-900, 900, 6), np.int32), [n.const(np.full(6, 1e-4, np.float32)), n.const(np.zeros(6), np.int32)], axis=0)
    x = n.node("Relu", [n.node("Conv", [x, n.dequantise(w[0], w[1:], axis=0), bias], strides=[2, 1])])
    x = n.node("MaxPool", [n.quantise(x, b)], kernel_shape=[2, 2])
    x = n.node("GlobalAveragePool", [n.dequantise(x, b)])
    w = n.weight([5, 6], np.uint8)
    n.node("MatMul", [n.node("Flatten", [x]), n.node("Transpose", [n.dequantise(w[0], w[1:])], perm=[1, 0])])
    return n


def qdq_wide():
    """Activations of 16 bits, a weight in blocks, a weight of 4 bits (opset 21)."""
    n = Net([20], 21)
    a = n.activation(0.0003, 30000, np.uint16)
    x = n.dequantise(n.quantise("x", a), a)
    w = n.const(rng.integers(-127, 128, [20, 12]), np.int8)
    scale = n.const(rng.uniform(0.002, 0.004, [3, 12]).astype(np.float32))
    x = n.node("Tanh", [n.node("MatMul", [x, n.node("DequantizeLinear", [w, scale], axis=0, block_size=8)])])
    a = n.activation(0.0001, -100, np.int16)
    x = n.dequantise(n.quantise(x, a), a)
    w = n.raw("w4", TensorProto.INT4, rng.integers(-8, 8, [12, 5]))
    n.node("MatMul", [x, n.node("DequantizeLinear", [w, n.const(rng.uniform(0.05, 0.1, 5).astype(np.float32))], axis=1)])
    return n


def qoperator():
    """QLinearConv (depthwise, grouped, with and without bias), the pools, QGemm."""
    n = Net([4, 8, 8])
    acts = [n.activation(s, z) for s, z in [(0.025, 128), (0.02, 120), (0.03, 60), (0.01, 100), (0.04, 128)]]
    x = n.quantise("x", acts[0])
    conv = lambda x, i, w, bias, **a: n.node("QLinearConv", [x, *acts[i], *w, *acts[i + 1], *bias], **a)  # noqa: E731
    x = conv(x, 0, n.weight([4, 1, 3, 3], channels=4), [n.const(rng.integers(-3000, 3000, 4), np.int32)], group=4, pads=[1, 1, 1, 1])
    x = conv(x, 1, n.weight([8, 2, 2, 2], np.uint8), [], group=2)
    x = n.node("QLinearAveragePool", [x, *acts[2], *acts[3]], domain=MS, kernel_shape=[3, 3], strides=[2, 2])
    x = n.node("QLinearGlobalAveragePool", [x, *acts[3], *acts[3]], domain=MS)
    x = n.node("Reshape", [x, n.const([1, 8], np.int64)])
    w = n.weight([5, 8], channels=5)
    x = n.node("QGemm", [x, *acts[3], *w, n.const(rng.integers(-900, 900, 5), np.int32), *acts[4]], domain=MS, transB=1)
    n.dequantise(x, acts[4])
    return n


def qelements():
    """QLinearMatMul with the weight on either side, QLinearAdd, Mul, Sigmoid, LeakyRelu, Concat; scales that make no exact ties."""
    n = Net([6, 8])
    a, b, c = n.activation(), n.activation(0.04, 128), n.activation(0.00413, 0)
    x = n.quantise("x", a)
    w = n.weight([8, 10])
    y = n.node("QLinearMatMul", [x, *a, *w, *b])
    z = n.node("QLinearSigmoid", [y, *b, *c], domain=MS)
    y = n.node("QLinearLeakyRelu", [y, *b, *b], domain=MS, alpha=0.0977)
    y = n.node("QLinearMul", [y, *b, z, *c, *b], domain=MS)
    y = n.node("QLinearAdd", [y, *b, n.const(rng.integers(0, 255, [10]), np.uint8), *a, *b], domain=MS)
    y = n.node("QLinearConcat", [*b, y, *b, z, *c], domain=MS, axis=2)
    w = n.weight([1, 6], np.uint8)
    y = n.node("QLinearMatMul", [w[0], *w[1:], y, *b, *b])
    w = n.weight([20, 5])
    y = n.node("QLinearMatMul", [n.node("Reshape", [y, n.const([1, 20], np.int64)]), *b, *w, *b])
    n.dequantise(y, b)
    return n


def dynamic():
    """What dynamic quantisation leaves of Conv and MatMul."""
    n = Net([3, 7, 6])

    def product(x, w, op, **attributes):
        q, s, z = n.node("DynamicQuantizeLinear", [x], outputs=3)
        scales = n.node("Mul", [s, w[1]])
        y = n.node(op, [q, w[0], z, w[2]], **attributes)
        return n.node("Mul", [n.node("Cast", [y], to=TensorProto.FLOAT), scales])

    x = product("x", n.weight([8, 3, 3, 2], np.uint8), "ConvInteger", pads=[1, 0, 0, 1])
    x = n.node("Add", [x, n.const(rng.normal(size=[1, 8, 1, 1]), np.float32)])
    x = n.node("Flatten", [n.node("GlobalAveragePool", [n.node("Relu", [x])])])
    x = product(x, n.weight([8, 12], np.int8, channels=12), "MatMulInteger")
    x = n.node("Tanh", [n.node("Add", [x, n.const(rng.normal(size=12), np.float32)])])
    w = n.weight([12, 9], np.int8)
    x = n.node("Tanh", [n.node("DynamicQuantizeMatMul", [x, *w, n.const(rng.normal(size=9), np.float32)], domain=MS)])
    q, s, z = n.node("DynamicQuantizeLinear", [x], outputs=3)
    w = n.weight([9, 5], np.uint8)
    n.node("MatMulIntegerToFloat", [q, w[0], s, w[1], z, w[2], n.const(rng.normal(size=5), np.float32)], domain=MS)
    return n


def nbits():
    """MatMulNBits: the last block cut, zero points absent, packed, and as floats."""
    n = Net([40])

    def product(x, k, cols, block, zero):
        blocks = -(-k // block)
        ins = [x, n.const(rng.integers(0, 256, [cols, blocks, block // 2]), np.uint8),
               n.const(rng.uniform(0.02, 0.05, cols * blocks).astype(np.float32))]
        if zero == "packed":
            ins.append(n.const(rng.integers(0, 256, cols * -(-blocks // 2)), np.uint8))
        if zero == "float":
            ins.append(n.const(rng.uniform(6, 9, [cols, blocks]).astype(np.float32)))
        return n.node("MatMulNBits", ins, domain=MS, K=k, N=cols, bits=4, block_size=block)

    x = n.node("Tanh", [product("x", 40, 24, 16, "packed")])
    x = n.node("Tanh", [product(x, 24, 33, 32, None)])
    product(x, 33, 5, 16, "float")
    return n


def half():
    """float16 throughout, and a float16 weight behind a Cast."""
    n = Net([12])
    x = n.node("Cast", ["x"], to=TensorProto.FLOAT16)
    x = n.node("Gemm", [x, n.const(rng.normal(size=[12, 9]) / 3, np.float16), n.const(rng.normal(size=9), np.float16)])
    x = n.node("Cast", [n.node("Tanh", [x])], to=TensorProto.FLOAT)
    n.node("MatMul", [x, n.node("Cast", [n.const(rng.normal(size=[9, 5]) / 3, np.float16)], to=TensorProto.FLOAT)])
    return n


def bfloat():
    """bfloat16 weights behind Casts."""
    n = Net([12])
    wide = lambda name, *shape: n.node("Cast", [n.raw(name, TensorProto.BFLOAT16, rng.normal(size=shape) / 3)], to=TensorProto.FLOAT)  # noqa: E731
    x = n.node("Tanh", [n.node("Gemm", ["x", wide("a", 9, 12), wide("b", 9)], transB=1)])
    n.node("MatMul", [x, wide("c", 9, 5)])
    return n


NETS = [qdq, qdq_wide, qoperator, qelements, dynamic, nbits, half, bfloat]
ROUNDED = dict(half=2e-3, bfloat=1e-2)  # of a probability: merged weights are rounded to the file's type, 11 and 8 bits


class Quantised(Base):
    def ort(self, path):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(path, options)
        return np.concatenate([session.run(["logits"], {"x": x[None]})[0] for x in self.x])

    def frozen(self):
        files = [self.folder / f"{i}.npy" for i in range(len(self.x))]
        answer = json.loads(self.run("predict", "--labels", ",".join(self.labels), "--top", len(self.labels), "--json", *files))
        scores = [{s["label"]: s["score"] for s in p["labels"]} for p in answer["predictions"]]
        return np.array([[s[label] for label in self.labels] for s in scores])


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def compare(what, got, expected, rounded=None):
    error = np.abs(got - expected).max(1)
    print(f"  {what}: probabilities differ by {np.median(error):.1e} in the middle, {error.max():.1e} at most")
    assert np.median(error) <= (rounded or MEDIAN) and error.max() <= (rounded or QUANTUM), what


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accentor", required=True)
    parser.add_argument("--only")
    arguments = parser.parse_args()
    for make in NETS:
        if arguments.only not in (None, make.__name__):
            continue
        print(make.__name__)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/{make.__name__}.onnx"
            n = make()
            n.model(path)
            base = Quantised(arguments.accentor, path, folder)
            rounded = ROUNDED.get(make.__name__)
            compare("frozen", base.frozen(), softmax(base.logits), rounded)
            for name, args in dict(all=["--sites", "all"], head=["--head"]).items():
                adapter = base.adapt(f"{folder}/{name}", *args)
                frozen, merged = softmax(base.logits), softmax(base.ort(base.merged(adapter)))
                assert np.abs(merged - frozen).max() > EFFECT, f"{name}: the adapter changes nothing"
                compare(f"{name}, merged in ONNX Runtime against accentor", base.probabilities(adapter), merged, rounded)


if __name__ == "__main__":
    main()
