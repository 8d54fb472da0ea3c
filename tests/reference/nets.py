"""The small networks: every operator of the graph with awkward shapes, each above at least one LoRA site.

    python nets.py OUT_DIR

Weights come from generator.py, so the files are the same bytes each time. Names of nets say what they test.
"""
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import generator

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
NETS = {}


def net(f):
    NETS[f.__name__] = f
    return f


class Net:
    """A graph in the making. Methods give the name of what they add; `name` is the ONNX node name."""

    def __init__(self, name, opset, shape, batch="batch", dtype=FLOAT):
        self.name, self.opset = name, opset
        self.nodes, self.initializers, self.count = [], [], 0
        self.inputs = [helper.make_tensor_value_info("x", dtype, [batch, *shape])]
        self.batch = batch

    def node(self, op, inputs, name=None, out=None, outputs=1, **attrs):
        self.count += 1
        name = f"{op.lower()}_{self.count}" if name is None else name
        outs = [out or f"t{self.count}"] + [f"t{self.count}_{i}" for i in range(1, outputs)]
        attrs = {k: v for k, v in attrs.items() if v is not None}
        self.nodes.append(helper.make_node(op, [inputs] if isinstance(inputs, str) else inputs, outs, name=name, **attrs))
        return outs[0]

    def const(self, value, name=None, dtype=np.float32):
        self.count += 1
        name = name or f"c{self.count}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def ints(self, *value):
        return self.const(value, dtype=np.int64)

    def constant_node(self, value, dtype=np.float32, node=""):
        return self.node("Constant", [], name=node, value=numpy_helper.from_array(np.asarray(value, dtype=dtype)))

    def values(self, name, shape, scale=1.0, offset=0.0):
        return generator.values(f"{self.name}/{name}", 0, shape, scale, offset)

    def weight(self, name, shape, fan_in, gain=1.0):
        return self.const(self.values(name, shape, gain * (3 / fan_in) ** 0.5), name)

    def conv(self, x, key, cin, cout, kernel, bias=True, group=1, name=None, gain=1.0, **attrs):
        ins = [x, self.weight(f"{key}.weight", [cout, cin // group, *kernel], cin // group * int(np.prod(kernel)), gain)]
        if bias:
            ins.append(self.const(self.values(f"{key}.bias", [cout], 0.25), f"{key}.bias"))
        attrs = {"kernel_shape": list(kernel), **attrs}
        if group > 1:
            attrs["group"] = group
        return self.node("Conv", ins, name=key if name is None else name, **attrs)

    def gemm(self, x, key, cin, cout, out=None, bias=True, **attrs):
        """torch's Linear: transB = 1 unless told."""
        attrs = {"transB": 1, **attrs}
        shape = [cout, cin] if attrs["transB"] else [cin, cout]
        ins = [x, self.weight(f"{key}.weight", shape, cin)]
        if bias:
            ins.append(self.const(self.values(f"{key}.bias", [cout], 0.25), f"{key}.bias"))
        return self.node("Gemm", ins, name=key, out=out, **attrs)

    def matmul(self, x, key, cin, cout, out=None, weight=None):
        """tf2onnx's dense: weight [in, out], its name without `.weight`, so the key is the node's name."""
        return self.node("MatMul", [x, weight or self.weight(f"{key}_kernel", [cin, cout], cin)], name=key, out=out)

    def bias(self, x, key, size, out=None):
        return self.node("Add", [x, self.const(self.values(key, [size], 0.25), key)], out=out)

    def norm(self, x, key, size, **attrs):
        ins = [x, *(self.const(self.values(f"{key}.{part}", [size], scale, offset), f"{key}.{part}") for part, scale, offset in
                    (("weight", 0.5, 1.0), ("bias", 0.25, 0.0), ("running_mean", 0.25, 0.0), ("running_var", 0.5, 1.0)))]
        return self.node("BatchNormalization", ins, name=key, **attrs)

    def head(self, x, cin, classes=5, out="logits"):
        """Global average, flatten, Gemm."""
        x = self.node("GlobalAveragePool", x)
        return self.gemm(self.node("Flatten", x), "fc", cin, classes, out=out)

    def model(self, outputs=(("logits", 5),), ir=None, initializers_are_inputs=False):
        inputs = list(self.inputs)
        if initializers_are_inputs:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in self.initializers]
        outs = [helper.make_tensor_value_info(n, FLOAT, [self.batch, *(s if isinstance(s, (list, tuple)) else [s])]) for n, s in outputs]
        graph = helper.make_graph(self.nodes, self.name, inputs, outs, self.initializers)
        ir = ir or (3 if self.opset < 9 else 4 if self.opset < 11 else 6 if self.opset < 13 else 8)
        m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir, producer_name="accentor tests/reference/nets.py")
        onnx.checker.check_model(m, full_check=True)
        return m


# ---- convolution

@net
def conv_pads(name):
    """Padding on one side, stride > kernel, 1x1 with stride, no bias."""
    n = Net(name, 13, [3, 11, 9])
    x = n.node("Relu", n.conv("x", "stem", 3, 7, [3, 3], strides=[2, 2], pads=[1, 0, 0, 1]))
    x = n.node("Relu", n.conv(x, "wide", 7, 13, [2, 1], strides=[3, 2], pads=[0, 1, 2, 0], bias=False))
    x = n.conv(x, "point", 13, 6, [1, 1], strides=[1, 2])
    return n.head(x, 6) and n.model()


@net
def conv_auto_pad(name):
    """SAME_UPPER, SAME_LOWER and VALID where the padding is odd."""
    n = Net(name, 13, [2, 13, 10])
    x = n.node("LeakyRelu", n.conv("x", "upper", 2, 5, [4, 3], strides=[2, 3], auto_pad="SAME_UPPER"), alpha=0.1)
    x = n.node("Sigmoid", n.conv(x, "lower", 5, 7, [2, 4], auto_pad="SAME_LOWER"))
    x = n.node("LeakyRelu", n.conv(x, "valid", 7, 3, [3, 2], strides=[2, 1], auto_pad="VALID"))
    x = n.node("Relu", n.conv(x, "stepped", 3, 5, [4, 2], strides=[2, 1], dilations=[1, 1], auto_pad="SAME_LOWER"))
    return n.head(x, 5) and n.model()


@net
def conv_dilated(name):
    n = Net(name, 12, [3, 12, 11])
    x = n.node("Tanh", n.conv("x", "a", 3, 5, [3, 2], dilations=[2, 1], pads=[2, 0, 1, 1]))
    x = n.node("Tanh", n.conv(x, "b", 5, 7, [2, 3], dilations=[3, 2], strides=[2, 1], pads=[0, 2, 1, 0]))
    return n.head(x, 7) and n.model()


@net
def conv_grouped(name):
    """Two groups, three groups, groups with stride and dilation; in/groups and out/groups odd."""
    n = Net(name, 13, [6, 9, 8])
    x = n.node("Relu", n.conv("x", "two", 6, 10, [3, 3], group=2, pads=[1, 1, 1, 1]))
    x = n.node("Relu", n.conv(x, "mix", 10, 9, [1, 1]))
    x = n.node("LeakyRelu", n.conv(x, "three", 9, 15, [3, 2], group=3, strides=[2, 1], dilations=[1, 2], pads=[2, 1, 0, 0]), alpha=0.2)
    return n.head(x, 15) and n.model()


@net
def conv_depthwise(name):
    """Depthwise, depthwise with a multiplier of 2, Clip as ReLU6, pointwise between."""
    n = Net(name, 13, [5, 10, 9])
    low, high = n.const(0.0), n.const(6.0)
    relu6 = lambda t: n.node("Clip", [t, low, high])  # noqa: E731
    x = relu6(n.conv("x", "dw1", 5, 5, [3, 3], group=5, pads=[1, 1, 1, 1], gain=2.0))
    x = relu6(n.conv(x, "pw1", 5, 7, [1, 1], gain=2.0))
    x = relu6(n.conv(x, "dw2", 7, 14, [3, 3], group=7, strides=[2, 2], pads=[0, 1, 1, 0], gain=2.0))
    x = relu6(n.conv(x, "pw2", 14, 13, [1, 1], bias=False, gain=2.0))
    x = n.conv(x, "dw3", 13, 13, [5, 3], group=13, pads=[2, 1, 2, 1], bias=False, dilations=[1, 1])
    return n.head(x, 13) and n.model()


@net
def conv_1d(name):
    """Causal padding, dilation, groups, depthwise and max-pool in one dimension."""
    n = Net(name, 13, [3, 37])
    x = n.node("Relu", n.conv("x", "causal", 3, 6, [5], strides=[2], pads=[4, 0]))
    x = n.node("Relu", n.conv(x, "dw", 6, 6, [3], group=6, dilations=[2], pads=[2, 2]))
    x = n.node("Tanh", n.conv(x, "grouped", 6, 10, [3], group=2, pads=[0, 1]))
    x = n.node("MaxPool", x, kernel_shape=[3], strides=[2], pads=[1, 0])
    x = n.conv(x, "dilated", 10, 7, [2], dilations=[3])
    x = n.node("AveragePool", x, kernel_shape=[2], strides=[3], pads=[0, 1])
    x = n.node("ReduceMean", x, axes=[2], keepdims=0)
    return n.gemm(x, "fc", 7, 4, out="logits") and n.model([("logits", 4)])


# ---- pooling

@net
def pool_max(name):
    """One-sided pads, dilations, ceil_mode, SAME_LOWER, stride > kernel."""
    n = Net(name, 13, [2, 17, 15])
    x = n.conv("x", "a", 2, 5, [3, 3], pads=[1, 1, 1, 1])
    x = n.node("MaxPool", x, kernel_shape=[3, 2], strides=[1, 1], pads=[1, 0, 0, 1])
    x = n.conv(x, "b", 5, 5, [2, 2])
    x = n.node("MaxPool", x, kernel_shape=[2, 3], strides=[2, 2], dilations=[3, 1], ceil_mode=1)
    x = n.node("MaxPool", x, kernel_shape=[3, 2], strides=[1, 2], auto_pad="SAME_LOWER")
    x = n.conv(x, "c", 5, 7, [1, 1])
    x = n.node("MaxPool", x, kernel_shape=[1, 2], strides=[2, 3], pads=[0, 1, 0, 0])
    return n.head(x, 7) and n.model()


@net
def pool_average(name):
    """count_include_pad 0 and 1, ceil_mode, SAME_UPPER, one-sided pads."""
    n = Net(name, 13, [2, 16, 15])
    x = n.node("Tanh", n.conv("x", "a", 2, 5, [3, 3]))
    x = n.node("AveragePool", x, kernel_shape=[3, 2], strides=[1, 1], pads=[1, 0, 0, 1], count_include_pad=1)
    x = n.node("Tanh", n.conv(x, "b", 5, 3, [2, 2]))
    x = n.node("AveragePool", x, kernel_shape=[2, 3], strides=[2, 2], pads=[1, 1, 0, 0], ceil_mode=1)
    x = n.node("Tanh", n.conv(x, "c", 3, 7, [2, 2]))
    x = n.node("AveragePool", x, kernel_shape=[2, 3], strides=[2, 1], auto_pad="SAME_UPPER")
    x = n.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 3])
    x = n.node("Flatten", x)
    return n.gemm(x, "fc", 14, 5, out="logits") and n.model()


# ---- dense

@net
def gemm_forms(name):
    """transA, transB, alpha, beta, C as vector, scalar, row and absent."""
    n = Net(name, 13, [13])
    x = n.node("Gemm", ["x", n.weight("g1", [13, 7], 13), n.const(n.values("g1c", [7], 0.25))], name="plain")
    x = n.node("Tanh", x)
    x = n.node("Gemm", [x, n.weight("g2", [11, 7], 7), n.const(0.375)], name="scaled", transB=1, alpha=0.5, beta=2.0)
    x = n.node("Relu", x)
    x = n.node("Transpose", x, perm=[1, 0])
    x = n.node("Gemm", [x, n.weight("g3", [11, 6], 11)], name="trans_a", transA=1, alpha=1.5)
    x = n.node("Tanh", x)
    x = n.node("Transpose", x)
    x = n.node("Gemm", [x, n.weight("g4", [5, 6], 6), n.const(n.values("g4c", [1, 5], 0.5))], name="trans_ab", transA=1, transB=1, beta=0.25, out="logits")
    return n.model()


@net
def matmul_ranks(name):
    """Weight on the right of a rank-3 and a rank-2 input, a residual, bias of lower rank, keys from node names."""
    n = Net(name, 11, [5, 7])
    h = n.bias(n.matmul("x", "up", 7, 11), "up_bias", 11)
    h = n.matmul(n.node("Relu", h), "down", 11, 7)
    x = n.node("Add", [h, "x"])
    x = n.node("ReduceMean", x, axes=[1], keepdims=0)
    return n.bias(n.matmul(x, "classes", 7, 4), "classes_bias", 4, out="logits") and n.model([("logits", 4)])


@net
def matmul_rank4(name):
    n = Net(name, 13, [3, 5, 7])
    x = n.node("Tanh", n.matmul("x", "mix", 7, 6))
    x = n.node("Transpose", x, perm=[0, 2, 1, 3])
    x = n.matmul(x, "last", 6, 5)
    x = n.node("ReduceMean", x, axes=[1, 2], keepdims=0)
    return n.gemm(x, "fc", 5, 5, out="logits") and n.model()


@net
def matmul_left(name):
    """The constant weight on the left: token mixing, W [out, in] times x [batch, in, n]."""
    n = Net(name, 13, [5, 7])
    x = n.node("Tanh", n.matmul("x", "channels", 7, 6))
    x = n.node("MatMul", [n.weight("tokens_kernel", [4, 5], 5), x], name="tokens")
    x = n.node("Flatten", n.node("Relu", x))
    return n.gemm(x, "fc", 24, 3, out="logits") and n.model([("logits", 3)])


@net
def attention(name):
    """Two heads: MatMul of two activations, Reshape with 0 and -1, Softmax on the last axis, a residual."""
    n = Net(name, 17, [6, 8])
    split = n.ints(0, 0, 2, -1)
    part = lambda key, perm: n.node("Transpose", n.node("Reshape", [n.matmul("x", key, 8, 8), split]), perm=perm)  # noqa: E731
    q, k, v = part("q", [0, 2, 1, 3]), part("k", [0, 2, 3, 1]), part("v", [0, 2, 1, 3])
    scores = n.node("Div", [n.node("MatMul", [q, k]), n.const(2.0)])
    x = n.node("MatMul", [n.node("Softmax", scores, axis=-1), v])
    x = n.node("Reshape", [n.node("Transpose", x, perm=[0, 2, 1, 3]), n.ints(0, 0, -1)])
    x = n.node("Add", [n.matmul(x, "o", 8, 8), "x"])
    x = n.node("ReduceMean", x, axes=[1], keepdims=0)
    return n.gemm(x, "fc", 8, 5, out="logits") and n.model()


@net
def shared_weight(name):
    """One initializer under two MatMul nodes: two sites, `tied` and `tied#2`."""
    n = Net(name, 13, [7])
    w = n.weight("tied.weight", [7, 7], 7)
    x = n.node("Tanh", n.matmul("x", "first", 7, 7, weight=w))
    x = n.node("Tanh", n.matmul(x, "second", 7, 7, weight=w))
    return n.gemm(x, "fc", 7, 4, out="logits") and n.model([("logits", 4)])


@net
def weight_behind_nodes(name):
    """Exporters without constant folding: Transpose(weight) and Identity(weight) in front of MatMul and Gemm."""
    n = Net(name, 13, [9])
    turned = n.node("Transpose", n.weight("lin1.weight", [7, 9], 9), perm=[1, 0])
    x = n.node("Relu", n.bias(n.node("MatMul", ["x", turned], name="lin1_matmul"), "lin1.bias", 7))
    same = n.node("Identity", n.weight("lin2.weight", [6, 7], 7))
    x = n.node("Relu", n.node("Gemm", [x, same], name="lin2_gemm", transB=1))
    w = n.constant_node(n.values("inline", [6, 4], 0.7))
    return n.node("MatMul", [x, w], name="inline", out="logits") and n.model([("logits", 4)])


# ---- element by element

@net
def broadcast_constants(name):
    """Add, Sub, Mul, Div with [1, C, 1, 1], a scalar, [W], [H, 1], the constant on the left."""
    n = Net(name, 13, [3, 6, 5])
    c = lambda shape, scale, offset: n.const(n.values(f"k{n.count}", shape, scale, offset))  # noqa: E731
    x = n.conv("x", "a", 3, 7, [3, 3], pads=[1, 1, 1, 1])
    x = n.node("Mul", [x, c([1, 7, 1, 1], 0.5, 1.0)])
    x = n.node("Add", [c([7, 1, 1], 0.5, 0.0), x])
    x = n.node("Sub", [c([5], 1.0, 0.0), x])
    x = n.node("Tanh", n.node("Div", [x, c([6, 1], 0.5, 2.0)]))
    x = n.conv(x, "b", 7, 5, [2, 2])
    x = n.node("Mul", [n.const(0.75), x])
    x = n.node("Sub", [x, c([1, 5, 1, 4], 0.5, 0.0)])
    x = n.node("Add", [n.node("Sigmoid", x), n.const([0.5])])
    x = n.node("Div", [c([1, 5, 1, 1], 0.5, 1.5), x])
    return n.head(x, 5) and n.model()


@net
def broadcast_activations(name):
    """Squeeze-and-excite (Mul by [N, C, 1, 1]), Sub, Add and Div of two activations that broadcast either way, x used twice."""
    n = Net(name, 13, [3, 6, 5])
    x = n.node("Tanh", n.conv("x", "a", 3, 5, [3, 3], pads=[1, 1, 1, 1]))
    s = n.node("GlobalAveragePool", x)
    gate = n.node("Sigmoid", n.conv(n.node("Relu", n.conv(s, "squeeze", 5, 3, [1, 1], gain=2.0)), "excite", 3, 5, [1, 1]))
    y = n.node("Mul", [gate, x])
    rows = n.node("ReduceMean", y, axes=[3], keepdims=1)
    cols = n.node("ReduceMean", y, axes=[2], keepdims=1)
    y = n.node("Sub", [y, rows])
    grid = n.node("Add", [rows, cols])
    y = n.node("Add", [y, grid])
    y = n.node("Div", [y, n.node("Add", [gate, n.const(0.5)])])
    y = n.node("Mul", [y, y])
    y = n.node("Sub", [n.node("Div", [rows, n.node("Add", [n.node("Sigmoid", x), n.const(1.0)])]), y])
    y = n.conv(y, "b", 5, 7, [2, 2])
    return n.head(y, 7) and n.model()


@net
def batchnorm(name):
    """BatchNormalization that nobody folded: first in the graph, behind a Conv with and without bias, behind Relu, rank 2 and 4."""
    n = Net(name, 15, [3, 8, 7])
    x = n.norm("x", "bn0", 3)
    x = n.node("Relu", n.norm(n.conv(x, "a", 3, 5, [3, 3], bias=False), "bn1", 5))
    x = n.norm(n.node("Relu", n.conv(x, "b", 5, 7, [2, 2], strides=[2, 2])), "bn2", 7, epsilon=1e-3)
    x = n.node("Relu", n.norm(n.conv(x, "c", 7, 7, [3, 3], group=7, pads=[1, 1, 1, 1]), "bn3", 7))
    x = n.node("Flatten", n.node("GlobalAveragePool", x))
    x = n.norm(n.gemm(x, "d", 7, 6), "bn4", 6)
    return n.gemm(x, "fc", 6, 5, out="logits") and n.model()


@net
def batchnorm_1d(name):
    n = Net(name, 9, [3, 16])
    x = n.norm(n.conv("x", "a", 3, 5, [3], strides=[2], pads=[1, 0]), "bn1", 5, momentum=0.8)
    x = n.node("Relu", x)
    x = n.norm(n.conv(x, "b", 5, 7, [2]), "bn2", 7)
    return n.head(x, 7) and n.model()


@net
def clip_inputs(name):
    """Bounds as inputs: both, only max, only min, neither."""
    n = Net(name, 12, [3, 6, 5])
    x = n.conv("x", "a", 3, 5, [3, 3])
    x = n.node("Clip", [x, n.const(-0.5), n.const(0.75)])
    x = n.node("Clip", [n.conv(x, "b", 5, 5, [1, 1]), "", n.const(0.5)])
    x = n.node("Clip", [n.conv(x, "c", 5, 7, [2, 2]), n.const(-0.25)])
    x = n.node("Clip", [x])
    return n.head(x, 7) and n.model()


@net
def clip_attributes(name):
    """Opset 7, IR 3: initializers are graph inputs too, bounds of Clip and ratio of Dropout are attributes."""
    n = Net(name, 7, [3, 6, 5])
    x = n.node("Clip", n.conv("x", "a", 3, 5, [3, 3]), min=-0.5, max=0.75)
    x = n.node("Clip", n.conv(x, "b", 5, 5, [1, 1]), max=0.5)
    x = n.node("Clip", n.norm(n.conv(x, "c", 5, 7, [2, 2]), "bn", 7), min=-0.25)
    x = n.node("Dropout", x, ratio=0.25)
    return n.head(x, 7) and n.model(initializers_are_inputs=True)


@net
def max_min(name):
    """Max and Min of one, two and three, of activations and constants, with broadcasting."""
    n = Net(name, 13, [3, 6, 5])
    a = n.conv("x", "a", 3, 5, [2, 2])
    b = n.conv("x", "b", 3, 5, [2, 2])
    c = n.conv("x", "c", 3, 5, [2, 2])
    x = n.node("Max", [a, b, c])
    y = n.node("Min", [a, n.const(n.values("cap", [1, 5, 1, 1], 0.25, 0.5)), b])
    x = n.node("Max", [n.node("Min", [x]), n.const(-0.25)])
    s = n.node("GlobalAveragePool", n.node("Min", [b, c]))
    x = n.node("Add", [n.node("Max", [x, s]), n.node("Max", y)])
    x = n.conv(x, "d", 5, 7, [2, 2])
    return n.head(x, 7) and n.model()


@net
def activations(name):
    """LeakyRelu with default and large slope, Sigmoid, Tanh, Relu on ranks 2, 3 and 4."""
    n = Net(name, 13, [3, 5, 7])
    x = n.node("LeakyRelu", n.conv("x", "a", 3, 5, [2, 2]))
    x = n.node("Sigmoid", n.conv(x, "b", 5, 7, [1, 1]))
    x = n.node("Reshape", [x, n.ints(0, 7, -1)])
    x = n.node("Tanh", n.conv(x, "c", 7, 5, [3]))
    x = n.node("Flatten", x)
    x = n.node("LeakyRelu", n.gemm(x, "d", 110, 13), alpha=0.7)
    x = n.node("Relu", n.gemm(x, "e", 13, 9))
    return n.gemm(x, "fc", 9, 5, out="logits") and n.model()


# ---- reductions and shapes

@net
def reduce_attribute(name):
    n = Net(name, 11, [3, 6, 5])
    x = n.conv("x", "a", 3, 7, [2, 2])
    x = n.node("ReduceMean", x, axes=[-2], keepdims=1)
    x = n.node("Tanh", n.conv(x, "b", 7, 5, [1, 2]))
    y = n.node("ReduceSum", x, axes=[2, 3], keepdims=0)
    z = n.node("ReduceMean", x, axes=[1, 3], keepdims=0)
    x = n.node("Concat", [y, z], axis=1)
    return n.gemm(x, "fc", 6, 5, out="logits") and n.model()


@net
def reduce_input(name):
    n = Net(name, 18, [3, 6, 5])
    x = n.conv("x", "a", 3, 7, [2, 2])
    x = n.node("ReduceSum", [x, n.ints(2)], keepdims=1)
    x = n.node("ReduceSum", [x], noop_with_empty_axes=1)
    x = n.node("Tanh", n.conv(x, "b", 7, 5, [1, 2]))
    y = n.node("ReduceMean", [x, n.ints(2, -1)], keepdims=0)
    z = n.node("Squeeze", [n.node("ReduceMean", [x, n.ints(1)], keepdims=1), n.ints(1, 2)])
    x = n.node("Concat", [y, z], axis=-1)
    return n.gemm(x, "fc", 8, 5, out="logits") and n.model()


@net
def shapes_attribute(name):
    """Opset 9: Slice, Squeeze, Unsqueeze and Pad (reflect, constant with a value) with attributes."""
    n = Net(name, 9, [5, 9])
    x = n.node("Unsqueeze", "x", axes=[1])
    x = n.node("Pad", n.conv(x, "a", 1, 6, [3, 2]), pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="reflect")
    x = n.node("Slice", x, starts=[1, -4], ends=[1000, -1], axes=[1, 3])
    x = n.node("Tanh", n.conv(x, "b", 5, 7, [4, 1]))
    x = n.node("Squeeze", x, axes=[2])
    x = n.node("Pad", x, pads=[0, 0, 1, 0, 0, 2], value=0.5)
    x = n.node("Transpose", x, perm=[0, 2, 1])
    x = n.node("Flatten", x, axis=1)
    return n.gemm(x, "fc", 42, 5, out="logits") and n.model()


@net
def shapes_input(name):
    """Opset 13: Slice with steps and a negative step, Squeeze, Unsqueeze, Concat, Transpose, Reshape with 0 and -1."""
    n = Net(name, 13, [9, 6, 2])
    x = n.node("Transpose", "x", perm=[0, 3, 1, 2])
    x = n.conv(x, "a", 2, 5, [2, 2])
    r = n.node("Slice", [x, n.ints(-1, 0), n.ints(-1000, 1000), n.ints(2, 3), n.ints(-1, 2)])
    f = n.node("Slice", [x, n.ints(0, 1), n.ints(8, 4), n.ints(2, 3)])
    x = n.node("Tanh", n.node("Concat", [r, f, r], axis=1))
    x = n.conv(x, "b", 15, 7, [3, 1], strides=[2, 1])
    x = n.node("Unsqueeze", [x, n.ints(-1, 1)])
    x = n.node("Squeeze", [x, n.ints(1, 5)])
    x = n.node("Reshape", [x, n.ints(0, -1, 3)])
    x = n.node("Transpose", x, perm=[0, 2, 1])
    x = n.node("Tanh", n.matmul(x, "mix", 21, 5))
    x = n.node("Flatten", x, axis=1)
    return n.gemm(x, "fc", 15, 5, out="logits") and n.model()


@net
def pads(name):
    """Constant, constant with a value, reflect and edge, uneven."""
    n = Net(name, 13, [2, 7, 6])
    x = n.conv("x", "a", 2, 5, [2, 2])
    x = n.node("Pad", [x, n.ints(0, 0, 2, 0, 0, 0, 1, 3)], mode="reflect")
    x = n.node("Tanh", n.conv(x, "b", 5, 3, [3, 3]))
    x = n.node("Pad", [x, n.ints(0, 0, 0, 2, 0, 0, 1, 0)], mode="edge")
    x = n.node("Tanh", n.conv(x, "c", 3, 5, [2, 3]))
    x = n.node("Pad", [x, n.ints(0, 1, 1, 0, 0, 0, 0, 1), n.const(0.25)])
    x = n.node("Tanh", n.conv(x, "d", 6, 5, [2, 2]))
    x = n.node("Pad", [x, n.ints(0, 0, 0, 0, 0, 0, 1, 2)])
    x = n.conv(x, "e", 5, 7, [3, 3])
    return n.head(x, 7) and n.model()


@net
def pads_axes(name):
    """Opset 18: Pad of named axes, one of them counted from the end."""
    n = Net(name, 18, [2, 7, 6])
    x = n.conv("x", "a", 2, 5, [2, 2])
    x = n.node("Pad", [x, n.ints(2, 1, 1, 0), n.const(-0.5), n.ints(-1, 2)])
    x = n.node("Tanh", n.conv(x, "b", 5, 3, [3, 3]))
    x = n.node("Pad", [x, n.ints(1, 2), "", n.ints(3)], mode="edge")
    x = n.node("Tanh", n.conv(x, "c", 3, 7, [2, 3]))
    return n.head(x, 7) and n.model()


@net
def softmax_legacy(name):
    """Opset 11: Softmax over everything from its axis on, LogSoftmax inside the graph, default axis 1."""
    n = Net(name, 11, [3, 6, 5])
    x = n.conv("x", "a", 3, 5, [2, 2])
    weights = n.node("Softmax", n.conv(x, "where", 5, 1, [1, 1], gain=2.0), axis=2)
    x = n.node("Mul", [x, weights])
    x = n.node("ReduceSum", x, axes=[2, 3], keepdims=0)
    y = n.node("LogSoftmax", n.gemm(x, "d", 5, 7))
    y = n.node("Mul", [y, n.node("Softmax", y, axis=-1)])
    return n.gemm(y, "fc", 7, 5, out="logits") and n.model()


@net
def softmax_axes(name):
    """Opset 13: Softmax over channels and over rows, LogSoftmax inside the graph."""
    n = Net(name, 13, [3, 6, 5])
    x = n.conv("x", "a", 3, 7, [2, 2], gain=2.0)
    x = n.node("Mul", [x, n.node("Softmax", x, axis=1)])
    x = n.node("LogSoftmax", n.conv(x, "b", 7, 5, [1, 1]), axis=2)
    x = n.conv(x, "c", 5, 7, [2, 2])
    return n.head(x, 7) and n.model()


# ---- functions, reductions, choices, indices

@net
def functions(name):
    """Opset 22: both forms of Gelu, PRelu with a slope a channel, Mish, HardSwish, Elu, Selu, Celu, Softsign."""
    n = Net(name, 22, [3, 6, 5])
    x = n.node("Gelu", n.conv("x", "a", 3, 7, [2, 2], gain=2.0))
    x = n.node("PRelu", [n.conv(x, "b", 7, 5, [1, 1], gain=2.0), n.const(n.values("slope", [5, 1, 1], 0.5, 0.25))])
    x = n.node("Gelu", n.conv(x, "c", 5, 6, [2, 1], gain=2.0), approximate="tanh")
    x = n.node("HardSwish", n.conv(x, "d", 6, 5, [1, 1], gain=2.0))
    x = n.node("Mish", n.conv(x, "e", 5, 6, [1, 2], gain=2.0))
    x = n.node("Elu", n.conv(x, "f", 6, 5, [1, 1], gain=2.0), alpha=0.7)
    x = n.node("Selu", n.conv(x, "g", 5, 6, [1, 1], gain=2.0))
    x = n.node("Softsign", n.node("Celu", n.conv(x, "h", 6, 5, [2, 1], gain=2.0), alpha=0.5))
    return n.head(x, 5) and n.model(ir=10)


@net
def functions_more(name):
    """Opset 13: Erf, Softplus, HardSigmoid, Shrink, ThresholdedRelu, Sin, Cos, Atan, Pow, Reciprocal, Mean, and a slope that is an activation."""
    n = Net(name, 13, [3, 6, 5])
    x = n.conv("x", "a", 3, 6, [2, 2], gain=2.0)
    x = n.node("Mean", [n.node("Erf", x), n.node("Sin", x), n.node("Cos", x), n.const(0.5)])
    y = n.conv(x, "b", 6, 5, [1, 1], gain=3.0)
    z = n.node("Softplus", n.conv(x, "c", 6, 5, [1, 1], gain=2.0))
    x = n.node("PRelu", [y, n.node("Pow", [z, n.const(1.5)])])
    x = n.node("Add", [n.node("Shrink", x, lambd=0.25, bias=0.125), n.node("Reciprocal", n.node("Add", [z, n.const(1.0)]))])
    x = n.node("HardSigmoid", n.conv(x, "d", 5, 7, [2, 1], gain=2.0), alpha=0.3)
    y = n.conv(x, "e", 7, 6, [1, 1], gain=2.0)
    x = n.node("Add", [n.node("ThresholdedRelu", y, alpha=0.2), n.node("Atan", y)])
    return n.head(x, 6) and n.model()


def reductions(name, opset):
    n = Net(name, opset, [3, 6, 5])
    x = n.node("Tanh", n.conv("x", "a", 3, 5, [2, 2], gain=2.0))
    p = n.node("Softplus", x)

    def reduce(op, x, axes):
        key = dict(axes=axes) if opset < 18 else {}
        return n.node(op, [x] if opset < 18 else [x, n.ints(*axes)], keepdims=0, **key)
    parts = [reduce(op, x, [2, 3]) for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMax", "ReduceMin")]
    parts += [reduce("ReduceLogSumExp", x, [-1, 1]), reduce("ReduceLogSum", p, [1, 2])]
    parts.append(reduce("ReduceProd", p, [1, 3]))
    x = n.node("Concat", parts, axis=1)
    return n.gemm(n.node("Tanh", n.gemm(x, "b", 39, 6)), "fc", 6, 5, out="logits") and n.model()


NETS["reductions"] = lambda name: reductions(name, 13)
NETS["reductions_18"] = lambda name: reductions(name, 18)


@net
def choices(name):
    """Opset 18: Where on a comparison, ArgMax into a Gather of a table, Expand, Tile, Trilu, CumSum, an uneven Split, blocks."""
    n = Net(name, 18, [3, 7, 7])
    x = n.conv("x", "a", 3, 8, [2, 2])
    x = n.node("DepthToSpace", x, blocksize=2, mode="CRD")
    x = n.node("Where", [n.node("Greater", [x, n.const(0.25)]), x, n.node("Mul", [n.conv("x", "b", 3, 2, [1, 1], pads=[2, 3, 3, 2]), n.const(0.5)])])
    x = n.node("SpaceToDepth", x, blocksize=3)
    x = n.node("Tanh", n.conv(x, "c", 18, 4, [1, 1]))
    x = n.node("Trilu", x, upper=0)
    x = n.node("CumSum", [x, n.const(-1, dtype=np.int64)], reverse=1, exclusive=1)
    x = n.node("Gather", [x, n.const([[0, -1], [2, 0]], dtype=np.int64)], axis=2)
    x = n.node("Transpose", x, perm=[0, 2, 3, 1, 4])
    x = n.node("Reshape", [x, n.ints(0, 4, 16)])
    parts = n.node("Split", x, outputs=3, axis=2, num_outputs=3)
    x = n.node("Add", [parts, n.node("Tile", [n.node("Slice", [f"{parts}_1", n.ints(0), n.ints(3), n.ints(2)]), n.ints(1, 1, 2)])])
    x = n.node("Mul", [x, n.node("Expand", [n.node("ReduceMean", [f"{parts}_2", n.ints(2)], keepdims=1), n.ints(1, 4, 6)])])
    x = n.node("Tanh", n.conv(x, "d", 4, 5, [2]))
    flat = n.node("Reshape", [x, n.ints(0, 25)])
    first = n.node("Gather", [n.const(n.values("table", [25, 4])), n.node("ArgMax", flat, axis=1, keepdims=0)], axis=0)
    x = n.node("Concat", [n.gemm(flat, "e", 25, 4), first], axis=1)
    return n.gemm(x, "fc", 8, 5, out="logits") and n.model()


@net
def einsum(name):
    """Opset 13: dense layers spelled as Einsum with the weight either way round, attention in it, an outer product, a sum."""
    n = Net(name, 13, [6, 8])
    q = n.node("Einsum", ["x", n.weight("q_kernel", [8, 12], 8)], name="q", equation="bij,jk->bik")
    k = n.node("Einsum", ["x", n.weight("k_kernel", [12, 8], 8)], name="k", equation="bij,kj->bik")
    v = n.node("Einsum", ["x", n.weight("v_kernel", [8, 12], 8)], name="v", equation="bij,jk->bik")
    heads = n.ints(0, 6, 3, 4)
    q, k, v = (n.node("Reshape", [t, heads]) for t in (q, k, v))
    scores = n.node("Softmax", n.node("Einsum", [q, k], equation="bqhd,bkhd->bhqk"), axis=-1)
    x = n.node("Einsum", [scores, v], equation="bhqk,bkhd->bqhd")
    x = n.node("Tanh", n.node("Einsum", [x, n.const(n.values("o_kernel", [3, 4, 7], 0.5))], equation="bqhd,hdo->bqo"))
    s = n.node("Einsum", [x, x, n.const(n.values("mix", [7], 0.5))], equation="bqo,bqp,o->bp")
    return n.gemm(s, "fc", 7, 5, out="logits") and n.model()


# ---- normalisations, and layers that make planes larger

def feature(n, key, size, scale=0.5, offset=1.0):
    return n.const(n.values(key, [size], scale, offset), key)


@net
def norms(name):
    """Opset 17: LayerNormalization over one and two axes and without bias, InstanceNormalization, LpNormalization, MVN, LRN."""
    n = Net(name, 17, [3, 7, 6])
    x = n.conv("x", "a", 3, 5, [2, 2])
    x = n.node("InstanceNormalization", [x, feature(n, "in.scale", 5), feature(n, "in.bias", 5, 0.25, 0.0)], epsilon=1e-3)
    x = n.node("LRN", n.conv(x, "b", 5, 7, [1, 2]), size=3, alpha=0.5, beta=0.6, bias=1.5)
    x = n.node("MeanVarianceNormalization", n.conv(x, "c", 7, 6, [2, 1]), axes=[2, 3])
    x = n.node("Reshape", [x, n.ints(0, 6, 20)])
    shape = n.const(n.values("ln1.scale", [6, 20], 0.5, 1.0)), n.const(n.values("ln1.bias", [6, 20], 0.25))
    x = n.node("LayerNormalization", [n.conv(x, "d", 6, 6, [1]), *shape], axis=1)
    x = n.node("Transpose", x, perm=[0, 2, 1])
    x = n.node("LayerNormalization", [n.matmul(x, "e", 6, 7), feature(n, "ln2.scale", 7)], epsilon=1e-6)
    x = n.node("LpNormalization", n.matmul(x, "f", 7, 5), axis=-2)
    x = n.node("LayerNormalization", [n.matmul(x, "g", 5, 5), feature(n, "ln3.scale", 5), feature(n, "ln3.bias", 5, 0.25, 0.0)])
    return n.gemm(n.node("Flatten", x), "fc", 100, 5, out="logits") and n.model()


@net
def group_norm(name):
    """Opset 21: three groups, one group, with a scale a channel. (The checker refuses the form of opset 18.)"""
    n = Net(name, 21, [3, 6, 5])
    x = n.conv("x", "a", 3, 6, [2, 2])
    x = n.node("GroupNormalization", [x, feature(n, "gn1.scale", 6), feature(n, "gn1.bias", 6, 0.25, 0.0)], num_groups=3)
    x = n.conv(n.node("Sigmoid", x), "b", 6, 5, [2, 1])
    x = n.node("GroupNormalization", [x, feature(n, "gn2.scale", 5), feature(n, "gn2.bias", 5)], num_groups=1, epsilon=1e-3)
    return n.head(n.node("Tanh", x), 5) and n.model(ir=10)


@net
def spelled_out(name):
    """Opset 13, a transformer block as torch wrote it then: layer norm, Gelu, softmax and RMS norm as primitives."""
    n = Net(name, 13, [6, 8])

    def layer_norm(x, key, size):
        d = n.node("Sub", [x, n.node("ReduceMean", x, axes=[-1])])
        v = n.node("ReduceMean", n.node("Pow", [d, n.const(2.0)]), axes=[-1])
        y = n.node("Div", [d, n.node("Sqrt", n.node("Add", [v, n.const(1e-5)]))])
        return n.node("Add", [n.node("Mul", [y, feature(n, f"{key}.scale", size)]), feature(n, f"{key}.bias", size, 0.25, 0.0)])
    h = layer_norm("x", "ln1", 8)
    q, k, v = (n.matmul(h, key, 8, 8) for key in "qkv")
    e = n.node("Exp", n.node("Mul", [n.node("MatMul", [q, n.node("Transpose", k, perm=[0, 2, 1])]), n.const(0.35)]))
    x = n.node("MatMul", [n.node("Div", [e, n.node("ReduceSum", [e, n.ints(-1)])]), v])
    x = n.node("Add", [n.matmul(x, "o", 8, 8), "x"])
    u = n.matmul(layer_norm(x, "ln2", 8), "up", 8, 12)
    g = n.node("Mul", [u, n.node("Add", [n.node("Erf", n.node("Div", [u, n.const(2 ** 0.5)])), n.const(1.0)])])
    u = n.matmul(n.node("Mul", [g, n.const(0.5)]), "down", 12, 8)
    cube = n.node("Mul", [n.node("Mul", [u, u]), u])
    t = n.node("Tanh", n.node("Mul", [n.node("Add", [u, n.node("Mul", [cube, n.const(0.044715)])]), n.const(0.7978845608)]))
    x = n.node("Add", [x, n.node("Mul", [u, n.node("Mul", [n.node("Add", [t, n.const(1.0)]), n.const(0.5)])])])
    mean = n.node("ReduceMean", n.node("Mul", [x, x]), axes=[-1])
    x = n.node("Mul", [x, n.node("Reciprocal", n.node("Sqrt", n.node("Add", [mean, n.const(1e-6)])))])
    x = n.node("ReduceMean", n.node("Mul", [feature(n, "rms.scale", 8), x]), axes=[1], keepdims=0)
    return n.gemm(x, "fc", 8, 5, out="logits") and n.model()


@net
def transposed(name):
    """ConvTranspose: stride, one-sided pads, output_padding, dilation, groups, SAME_UPPER, 1-D, without bias. (The checker misreads output_shape.)"""
    n = Net(name, 13, [3, 4, 5])

    def up(x, key, cin, cout, kernel, group=1, bias=True, **attrs):
        ins = [x, n.weight(f"{key}.weight", [cin, cout // group, *kernel], cin // group * int(np.prod(kernel)), 2.0)]
        if bias:
            ins.append(n.const(n.values(f"{key}.bias", [cout], 0.25), f"{key}.bias"))
        return n.node("Tanh", n.node("ConvTranspose", ins, name=key, kernel_shape=list(kernel), group=None if group == 1 else group, **attrs))
    x = up("x", "a", 3, 5, [3, 2], strides=[2, 1], pads=[1, 0, 0, 1], output_padding=[1, 0])
    x = up(x, "b", 5, 6, [2, 3], dilations=[2, 1], bias=False)
    x = up(x, "c", 6, 4, [2, 2], group=2, strides=[1, 2], pads=[0, 1, 1, 0])
    x = up(x, "d", 4, 3, [3, 2], strides=[2, 2], auto_pad="SAME_UPPER")
    x = n.node("ReduceMean", x, axes=[3], keepdims=0)
    x = up(x, "e", 3, 5, [4], strides=[3], pads=[2, 1])
    return n.head(x, 5) and n.model()


@net
def resized(name):
    """Resize: nearest by scales, linear by sizes, align_corners, cubic, with antialias; opset 19."""
    n = Net(name, 19, [3, 5, 4])
    x = n.node("Tanh", n.conv("x", "a", 3, 5, [2, 2]))
    x = n.node("Resize", [x, "", n.const([1.0, 1.0, 2.0, 3.0])], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    x = n.node("Tanh", n.conv(x, "b", 5, 6, [2, 2]))
    x = n.node("Resize", [x, "", "", n.ints(11, 5)], mode="linear", axes=[2, 3])
    x = n.node("Tanh", n.conv(x, "c", 6, 5, [3, 2]))
    x = n.node("Resize", [x, "", "", n.ints(7, 9)], mode="linear", coordinate_transformation_mode="align_corners", axes=[2, 3])
    x = n.node("Resize", [n.conv(x, "d", 5, 6, [1, 1]), "", "", n.ints(10, 5)], mode="cubic", axes=[2, 3])
    x = n.node("Resize", [n.conv(x, "e", 6, 5, [1, 1]), "", "", n.ints(4, 3)], mode="linear", antialias=1, exclude_outside=1, axes=[2, 3])
    return n.gemm(n.node("Flatten", x), "fc", 60, 5, out="logits") and n.model(ir=9)


# ---- files as exporters leave them

@net
def shape_chain(name):
    """Shape → Gather → Unsqueeze → Concat → Reshape, Shape → Slice, arithmetic on shapes, Constant nodes, empty node names."""
    n = Net(name, 13, [3, 6, 5])
    x = n.conv("x", "a", 3, 5, [2, 2], name="")
    shape = n.node("Shape", x, name="")
    axis = n.constant_node([0], np.int64)
    batch = n.node("Gather", [shape, n.constant_node(0, np.int64)], name="", axis=0)
    tail = n.node("Concat", [n.node("Unsqueeze", [batch, axis], name=""), n.constant_node([5], np.int64), n.constant_node([-1], np.int64)], name="", axis=0)
    x = n.node("Tanh", n.node("Reshape", [x, tail], name=""), name="")
    x = n.conv(x, "b", 5, 4, [3], name="")
    dims = n.node("Shape", x, name="")
    first = n.node("Slice", [dims, n.constant_node([0], np.int64), n.constant_node([1], np.int64)], name="")
    width = n.node("Mul", [n.node("Gather", [dims, n.constant_node([1], np.int64)], name=""), n.node("Gather", [dims, n.constant_node([2], np.int64)], name="")], name="")
    width = n.node("Cast", n.node("Cast", width, name="", to=FLOAT), name="", to=INT64)
    x = n.node("Reshape", [x, n.node("Concat", [first, width], name="", axis=0)], name="")
    x = n.node("Div", [x, n.node("Cast", n.node("Gather", [dims, n.constant_node(1, np.int64)], name=""), name="", to=FLOAT)], name="")
    w = n.weight("dense_kernel", [72, 5], 12)
    x = n.node("MatMul", [x, w], name="", out="dense_out")
    return n.node("Add", [x, n.constant_node(n.values("dense_bias", [5], 0.25))], name="", out="logits") and n.model()


@net
def file_forms(name):
    """Empty and duplicate node names, several outputs (logits second), Identity, Cast, Dropout with two outputs, an unused initializer."""
    n = Net(name, 13, [3, 6, 5])
    n.const([1.0, 2.0], "unused")
    x = n.conv("x", "a", 3, 5, [2, 2], name="same")
    x = n.node("Relu", x, name="same")
    w = n.weight("pointwise_kernel", [7, 5, 1, 1], 5)
    x = n.node("Conv", [x, w], name="same", kernel_shape=[1, 1])
    w = n.weight("other_kernel", [6, 7, 2, 2], 28)
    x = n.node("Conv", [x, w, n.constant_node(n.values("other_bias", [6], 0.25), node="same")], name="same")
    x = n.node("Identity", x, name="same")
    x = n.node("Cast", n.node("Cast", x, name="", to=TensorProto.DOUBLE), name="", to=FLOAT)
    x = n.node("Dropout", [x, n.const(0.5), n.const(False, dtype=np.bool_)], name="drop", outputs=2)
    x = n.node("Reshape", [n.node("GlobalAveragePool", x, name=""), n.ints(0, -1)], name="")
    x = n.node("Identity", x, name="", out="embedding")
    x = n.node("MatMul", [x, n.weight("w1", [6, 7], 6)], name="", out="hidden")
    x = n.node("Tanh", x, name="")
    n.node("MatMul", [x, n.weight("w2", [7, 5], 7)], name="", out="logits")
    return n.model([("embedding", 6), ("logits", 5)])


@net
def batch_of_one(name):
    """A batch that the file fixes at 1: in its input, in its output and in a Reshape."""
    n = Net(name, 13, [3, 6, 5], batch=1)
    x = n.node("Relu", n.conv("x", "a", 3, 5, [2, 2]))
    x = n.node("Reshape", [x, n.ints(1, 5, 20)])
    x = n.node("Tanh", n.conv(x, "b", 5, 6, [3], strides=[4]))
    x = n.node("Reshape", [x, n.ints(1, 30)])
    return n.gemm(x, "fc", 30, 5, out="logits") and n.model()


# ---- embeddings

@net
def embedding(name):
    """Opset 13: whole numbers as input: rows of one matrix by them and of another by their difference from 8, attention over the rows."""
    n = Net(name, 13, [6], dtype=INT64)
    words = n.node("Gather", [n.weight("words.weight", [9, 6], 3), "x"], name="words", axis=0)
    other = n.node("Gather", [n.weight("positions", [9, 6], 3), n.node("Sub", [n.const(8, dtype=np.int64), "x"])], name="others")
    x = n.node("Add", [words, n.node("Tanh", other)])
    query, key = n.matmul(x, "query", 6, 4), n.matmul(x, "key", 6, 4)
    scores = n.node("Softmax", n.node("MatMul", [query, n.node("Transpose", key, perm=[0, 2, 1])]), axis=-1)
    x = n.node("ReduceMean", n.node("MatMul", [scores, x]), axes=[1], keepdims=0)
    return n.gemm(x, "fc", 6, 5, out="logits") and n.model()


# ---- recurrent

def recurrent(n, op, x, key, size, hidden, h0="", c0="", peepholes=False, bias=True, outputs=("Y",), **attrs):
    """Names of the outputs that are asked for."""
    gates = dict(RNN=1, GRU=3, LSTM=4)[op]
    directions = 2 if attrs.get("direction") == "bidirectional" else 1
    ins = [x, n.weight(f"{key}_W", [directions, gates * hidden, size], size), n.weight(f"{key}_R", [directions, gates * hidden, hidden], hidden)]
    ins += [n.const(n.values(f"{key}_B", [directions, 2 * gates * hidden], 0.25), f"{key}_B") if bias else "", "", h0, c0]
    ins += [n.const(n.values(f"{key}_P", [directions, 3 * hidden], 0.5), f"{key}_P")] if peepholes else []
    while not ins[-1]:
        ins.pop()
    outs = [f"{key}_{o}" if o in outputs else "" for o in ("Y", "Y_h", "Y_c")]
    while not outs[-1]:
        outs.pop()
    n.nodes.append(helper.make_node(op, ins, outs, name=key, hidden_size=hidden, **attrs))
    return [o for o in outs if o]


@net
def gru(name):
    """Reset behind the product, Y into a second layer with the reset before it, from a state that a layer gives."""
    n = Net(name, 14, [6, 5])
    x = n.node("Transpose", "x", perm=[1, 0, 2])
    y, last = recurrent(n, "GRU", x, "first", 5, 6, outputs=("Y", "Y_h"), linear_before_reset=1)
    y = n.node("Squeeze", [y, n.ints(1)])
    start = n.node("Tanh", n.matmul(last, "start", 6, 7))
    [last] = recurrent(n, "GRU", y, "second", 6, 7, h0=start, outputs=("Y_h",), direction="reverse")
    x = n.node("Squeeze", [last, n.ints(0)])
    return n.gemm(x, "fc", 7, 5, out="logits") and n.model()


@net
def lstm(name):
    """Both directions with peepholes and all outputs; a second layer from both of its states, coupled gates."""
    n = Net(name, 14, [5, 4])
    x = n.node("Transpose", "x", perm=[1, 0, 2])
    y, last, cell = recurrent(n, "LSTM", x, "both", 4, 5, peepholes=True, outputs=("Y", "Y_h", "Y_c"), direction="bidirectional")
    y = n.node("Reshape", [n.node("Transpose", y, perm=[0, 2, 1, 3]), n.ints(0, -1, 10)])
    first = lambda t: n.node("ReduceMean", t, axes=[0], keepdims=1)  # noqa: E731
    second = recurrent(n, "LSTM", y, "next", 10, 5, h0=first(last), c0=first(cell), outputs=("Y",), bias=False)[0]
    x = n.node("ReduceMean", second, axes=[0, 1], keepdims=0)
    return n.gemm(x, "fc", 5, 5, out="logits") and n.model()


@net
def rnn(name):
    """A convolution in front, opset 7, both directions, from constant states; Y_h alone."""
    n = Net(name, 7, [3, 9], batch=1)
    x = n.node("Transpose", n.conv("x", "a", 3, 4, [3], strides=[2]), perm=[2, 0, 1])
    h0 = n.const(n.values("h0", [2, 1, 6], 0.5), "h0")
    [last] = recurrent(n, "RNN", x, "turns", 4, 6, h0=h0, outputs=("Y_h",), direction="bidirectional", activations=["Tanh", "Sigmoid"])
    x = n.node("Reshape", [n.node("Transpose", last, perm=[1, 0, 2]), n.ints(1, 12)])
    return n.gemm(x, "fc", 12, 5, out="logits") and n.model(initializers_are_inputs=True)
# ---- quantised bases

def integers(n, key, shape, low, high, dtype):
    """A constant of whole numbers low .. high."""
    middle, half = (low + high) / 2, (high - low) / 2
    return n.const(np.round(n.values(key, shape, half, middle)).astype(dtype), key, dtype=dtype)


def scales(n, key, fan_in, step, size=None):
    """Scales for about unit gain of weights with `step` quanta on either side, one or `size`."""
    values = n.values(key, [size or 1], 0.3, 1.0) * np.float32((3 / fan_in) ** 0.5 / step)
    return n.const(values if size else values[0], key)


def fake(n, x, key, scale, zero, dtype, between=lambda x: x):
    """QuantizeLinear, what stands between, DequantizeLinear."""
    a = [n.const(scale, f"{key}_scale"), n.const(zero, f"{key}_zero_point", dtype=dtype)]
    return n.node("DequantizeLinear", [between(n.node("QuantizeLinear", [x, *a])), *a])


def dequantised(n, key, shape, fan_in, size=None, axis=None, dtype=np.int8, zero=0):
    low, high = (-100, 100) if dtype == np.int8 else (20, 220)
    zeros = n.const(np.full(size, zero) if size else zero, f"{key}_zero_point", dtype=dtype)
    ins = [integers(n, f"{key}_quantized", shape, low, high, dtype), scales(n, f"{key}_scale", fan_in, 100, size), zeros]
    return n.node("DequantizeLinear", ins, axis=axis, out=f"{key}_DequantizeLinear_Output")


@net
def quantised(name):
    """QDQ: per channel with a bias of 32 bits, per tensor without sign, a pool and shapes between the halves. Coarse, so that roundings show."""
    n = Net(name, 13, [2, 6, 5])
    x = fake(n, "x", "x", 0.13, 7, np.uint8)
    bias = n.node("DequantizeLinear", [integers(n, "a.bias_quantized", [6], -400, 400, np.int32), scales(n, "a.bias_scale", 1, 3000, 6),
                                       n.const(np.zeros(6), "a.bias_zero_point", dtype=np.int32)], axis=0)
    x = n.node("Conv", [x, dequantised(n, "a.weight", [6, 2, 2, 2], 8, 6, 0), bias], name="a", kernel_shape=[2, 2], pads=[0, 1, 1, 0])
    x = fake(n, n.node("Relu", x), "p", 0.17, 0, np.uint8, lambda x: n.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    x = n.node("Conv", [x, dequantised(n, "b.weight", [7, 6, 1, 1], 6, dtype=np.uint8, zero=122)], name="b", kernel_shape=[1, 1])
    x = fake(n, x, "q", 0.11, -3, np.int8, lambda x: n.node("Transpose", x, perm=[0, 2, 3, 1]))
    x = n.node("MatMul", [x, n.node("Transpose", [dequantised(n, "c_weight", [5, 7], 7)], perm=[1, 0])], name="c")
    x = n.node("ReduceMean", x, axes=[1, 2], keepdims=0)
    x = fake(n, x, "r", 0.07, 0, np.int8)
    n.node("Gemm", [x, dequantised(n, "fc.weight", [5, 5], 5, 5, 0)], name="fc", out="logits", transB=1)
    return n.model()


# ---- endings: the same network, weights and adapters in front of each

def ending(name, op, classes=5, opset=13, **attrs):
    n = Net(name, opset, [3, 6, 5])
    n.name = "ending_one" if classes == 1 else "ending"  # twins share their weights
    x = n.node("Relu", n.conv("x", "a", 3, 7, [2, 2], pads=[1, 0, 0, 1]))
    n.head(x, 7, classes, out="scores" if op else "logits")
    if op:
        n.node(op, "scores", name="ending", out="logits", **attrs)
    n.name = name
    return n.model([("logits", classes)])


NETS["ending_logits"] = lambda name: ending(name, None)
NETS["ending_softmax"] = lambda name: ending(name, "Softmax", axis=-1)
NETS["ending_log_softmax"] = lambda name: ending(name, "LogSoftmax", axis=1)
NETS["ending_softmax_legacy"] = lambda name: ending(name, "Softmax", opset=11)
NETS["ending_one_logit"] = lambda name: ending(name, None, classes=1)
NETS["ending_sigmoid"] = lambda name: ending(name, "Sigmoid", classes=1)


def main(out_dir):
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    for name, build in NETS.items():
        onnx.save(build(name), out / f"{name}.onnx")


if __name__ == "__main__":
    main(sys.argv[1])
