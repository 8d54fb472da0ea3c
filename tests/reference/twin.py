"""An ONNX file as a differentiable torch function, with LoRA on every site: the oracle of the recordings.

Each operator is written out here in torch from the ONNX specification (record.py checks the result against ONNX Runtime).
Where PEFT reaches (dense sites; Conv with group 1 and dilation 1) the adapter is PEFT's own module. PEFT 0.21 gives the A
convolution neither the dilation nor the groups of its site, so for those, and for a MatMul whose weight is on the left,
LoRA is written here:

    dense      y = W x + s·B(A x)                                  A [r, in]              B [out, r]
    conv       y = W * x + s·B * (A * x)                           A [r, in/groups, k…]   B [out, r/groups, 1…]
               A with the site's stride, padding, dilation and groups, B with its groups: merged,
               W[o] += s·Σ_j B[o, j]·A[group(o)·r/groups + j]
    transposed W [in, out/groups, k…] as that of a conv from y to x     A [r, out/groups, k…]  B [in, r/groups, 1…]
    depthwise  y = scale·(W * x + bias) + shift                    scale [out], shift [out]
    recurrent  W or R of one direction of an RNN, GRU or LSTM:     A [r, in]              B [gates·hidden, r]
               W += s·B·A, gates in ONNX's order
    embedding  rows of W [rows, width] by index, W += s·(B·A)ᵀ     A [r, rows]            B [width, r]

s = alpha / rank of the site. Everything is added to the weight as the file holds it: a Gemm's alpha multiplies the LoRA too.
"""
import math
from dataclasses import dataclass, field

import numpy as np
import onnx
import peft
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

import norms
import operators


@dataclass
class Site:
    site: str          # key of the adapter, see site_key
    node: str          # ONNX node name, may be empty
    output: str        # first output of the node
    initializer: str   # name of the constant weight
    kind: str          # conv | depthwise | conv_transpose | matmul | matmul_left | gemm | recurrent | embedding
    layout: str        # of the initializer: oihw | oiw | in_out | out_in | stacked_0 | stacked_1 | rows
    groups: int
    weight_shape: list
    rank: int = 0
    alpha: int = 0
    by: str = ""       # peft | script | channel
    params: list = field(default_factory=list)  # {name, shape, scale, offset} as generator.values takes them


FUNCTIONS = dict(RNN=["Tanh"], GRU=["Sigmoid", "Tanh"], LSTM=["Sigmoid", "Tanh", "Tanh"])  # of the gates, where the node names none


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def spatial_pads(a, x_spatial, kernel, strides, dilations):
    """(begin, end) for each spatial axis."""
    mode = a.get("auto_pad", b"NOTSET").decode()
    n = len(kernel)
    if mode == "VALID":
        return [(0, 0)] * n
    if mode.startswith("SAME"):
        pads = []
        for size, k, s, d in zip(x_spatial, kernel, strides, dilations):
            total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
        return pads
    p = a.get("pads", [0] * 2 * n)
    return list(zip(p[:n], p[n:]))


def torch_pads(pads):
    """ONNX (begin, end) for each axis → F.pad's flat list, last axis first."""
    return [v for pair in reversed(pads) for v in pair]


def windows(x, a):
    """x [N, C, spatial…] → windows [N, C, out…, k…] padded with NaN outside x, and whether each tap lies in x or its pads."""
    kernel = a["kernel_shape"]
    n = len(kernel)
    strides, dilations = a.get("strides", [1] * n), a.get("dilations", [1] * n)
    pads = spatial_pads(a, x.shape[2:], kernel, strides, dilations)
    rounding = math.ceil if a.get("ceil_mode", 0) else math.floor
    overhang = []
    for size, k, s, d, (b, e) in zip(x.shape[2:], kernel, strides, dilations, pads):
        out = rounding((size + b + e - (k - 1) * d - 1) / s) + 1
        if a.get("ceil_mode", 0) and (out - 1) * s >= size + b:
            out -= 1  # a window may not start in the end padding
        overhang.append(max((out - 1) * s + (k - 1) * d + 1 - size - b - e, 0))
    ends = [(b, e + o) for (b, e), o in zip(pads, overhang)]
    inside = F.pad(torch.ones_like(x), torch_pads(ends))
    counted = F.pad(F.pad(torch.ones_like(x), torch_pads(pads), value=1.0), torch_pads([(0, o) for o in overhang]))
    padded = F.pad(x, torch_pads(ends))

    def unfold(t):
        for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations)):
            t = t.unfold(2 + axis, (k - 1) * d + 1, s)[..., ::d]
        return t

    return unfold(padded), unfold(inside) > 0, unfold(counted)


def max_pool(x, a):
    taps, inside, _ = windows(x, a)
    n = len(a["kernel_shape"])
    return taps.masked_fill(~inside, -math.inf).flatten(-n).max(-1).values


def average_pool(x, a):
    taps, inside, counted = windows(x, a)
    n = len(a["kernel_shape"])
    weight = counted if a.get("count_include_pad", 0) else inside.to(x.dtype)
    return (taps * inside).flatten(-n).sum(-1) / weight.flatten(-n).sum(-1)


def pad(x, pads, mode, value):
    """Any axis, as numpy: by index for reflect and edge."""
    n = x.dim()
    for axis in range(n):
        b, e = int(pads[axis]), int(pads[n + axis])
        size = x.shape[axis]
        if mode == "constant":
            flat = [0, 0] * n
            flat[2 * (n - 1 - axis)], flat[2 * (n - 1 - axis) + 1] = b, e
            x = F.pad(x, flat, value=value)
        elif b or e:
            index = torch.arange(-b, size + e)
            if mode == "edge":
                index = index.clamp(0, size - 1)
            else:
                index = index.abs()
                index = torch.where(index >= size, 2 * (size - 1) - index, index)
            x = x.index_select(axis, index)
    return x


def slice_axes(x, starts, ends, axes, steps):
    for start, end, axis, step in zip(starts, ends, axes, steps):
        size = x.shape[axis]
        index = list(range(size))[slice(start, None if (step < 0 and end < -size) else end, step)]
        x = x.index_select(axis, torch.tensor(index, dtype=torch.int64))
    return x


def spread(t, x, axis, block):
    """A scale or zero point, broadcast over x: per tensor, along an axis, or in blocks."""
    if block:
        return t.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return t.reshape([-1 if d == axis % x.dim() else 1 for d in range(x.dim())]) if t.numel() > 1 else t


class Saturate(torch.autograd.Function):
    """Rounds half to even and clamps; the gradient passes inside the range, bounds included (torch's clamp stops it at the bounds)."""

    @staticmethod
    def forward(context, x, zero, low, high):
        q = torch.round(x) + zero
        context.save_for_backward((q >= low) & (q <= high))
        return q.clamp(low, high)

    @staticmethod
    def backward(context, gradient):
        return gradient * context.saved_tensors[0], None, None, None


def quantise(x, scale, zero, low, high):
    """QuantizeLinear with a straight-through gradient: one inside low .. high, zero outside (check_fake_quantise)."""
    return Saturate.apply(x / scale, zero, low, high)


def check_fake_quantise():
    """`quantise` and the way back have the values and gradients of torch's own fake quantisation (with scales of
    exact reciprocals: torch multiplies by them), per tensor and per channel."""
    x = (torch.arange(-400, 401) / 16).reshape(1, -1).repeat(3, 1).requires_grad_()
    for zero, low, high in ((3, 0, 15), (0, -8, 7), (-2, -128, 127)):
        per_tensor = torch.fake_quantize_per_tensor_affine(x, 0.5, zero, low, high)
        scales, zeros = torch.tensor([0.25, 0.5, 2.0]), torch.full((3,), zero, dtype=torch.int32)
        per_channel = torch.fake_quantize_per_channel_affine(x, scales, zeros, 0, low, high)
        for theirs, scale in ((per_tensor, torch.tensor(0.5)), (per_channel, scales.reshape(3, 1))):
            ours = (quantise(x, scale, zero, low, high) - zero) * scale
            found, wanted = (torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs))
            assert torch.equal(ours, theirs) and torch.equal(found.round(), wanted), "straight-through differs from torch"


def softmax(x, axis, opset, f):
    if opset >= 13:
        return f(x, axis)
    axis %= x.dim()  # before 13: everything from `axis` on is one flattened axis
    return f(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)


def ints(t):
    return [int(v) for v in t.reshape(-1)]


class Twin(nn.Module):
    """The graph of `path` in `dtype`; `adapt` puts adapters on every site; forward gives every named value."""

    def __init__(self, path, dtype=torch.float64):
        super().__init__()
        self.model = onnx.load(path)
        self.dtype = dtype
        self.opset = next(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx"))
        graph = self.model.graph
        self.constants = {t.name: self.to_torch(numpy_helper.to_array(t)) for t in graph.initializer}
        self.file_constants = set(self.constants)  # what an adapter can be bound to: initializers and Constant nodes
        self.quantised = {}                        # name of a dequantised constant → the integers
        self.origin = {}                           # name → (constant, transposed) behind Identity and 2-D Transpose
        self.input = next(i for i in graph.input if i.name not in self.constants)
        self.outputs = [o.name for o in graph.output]
        for node in graph.node:
            if node.input and not all(i == "" or i in self.constants for i in node.input):
                continue
            if not node.input and node.op_type != "Constant":
                continue
            for name, value in zip(node.output, self.evaluate(node, self.constants, {})):
                self.constants[name] = value
            if node.op_type == "Constant":
                self.file_constants.add(node.output[0])
            elif node.op_type == "DequantizeLinear":
                self.file_constants.add(node.output[0])
                self.quantised[node.output[0]] = node.input[0]
            elif node.op_type in ("Identity", "Transpose") and self.constants[node.output[0]].dim() == 2:
                source, turned = self.origin.get(node.input[0], (node.input[0], False))
                self.origin[node.output[0]] = (source, turned ^ (node.op_type == "Transpose"))
        self.sites = self.find_sites()
        self.by_output = {s.output: s for s in self.sites}
        self.recurrent = {(s.output, s.initializer, s.layout): s for s in self.sites if s.kind == "recurrent"}
        self.slot = {s.output: f"s{i}" for i, s in enumerate(self.sites)}
        self.adapted = False
        self.margin = math.inf  # smallest distance to a kink seen, relative to the rms of the tensor

    def to_torch(self, array):
        t = torch.from_numpy(np.array(array))
        return t.to(self.dtype) if t.is_floating_point() else t

    # ---- sites

    def weight(self, name):
        """(constant, transposed) behind `name`, or None."""
        source, turned = self.origin.get(name, (name, False))
        return (source, turned) if source in self.file_constants and name in self.constants else None

    def find_sites(self):
        sites, taken = [], {}
        for node in self.model.graph.node:
            if node.op_type in FUNCTIONS:
                sites += self.recurrent_sites(node)
                continue
            if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Gather") or node.output[0] in self.constants:
                continue
            a = attributes(node)
            left = node.op_type == "Gather" or (node.op_type == "MatMul" and node.input[0] in self.constants)
            found = self.weight(node.input[0 if left else 1])
            if found is None or node.op_type == "Gather" and (found[1] or a.get("axis", 0) or node.input[1] in self.constants):
                continue
            source, turned = found
            shape = list(self.constants[source].shape)
            groups = a.get("group", 1)
            if node.op_type == "Conv":
                depthwise = groups > 1 and shape[1] == 1
                kind, layout = ("depthwise" if depthwise else "conv"), ("oihw" if len(shape) == 4 else "oiw")
            elif node.op_type == "ConvTranspose":
                kind, layout = "conv_transpose", ("oihw" if len(shape) == 4 else "oiw")
            elif len(shape) != 2:
                continue
            elif node.op_type == "Gather":
                kind, layout = "embedding", "rows"
            elif node.op_type == "Einsum":
                kind, layout = "matmul", operators.einsum_layout(node)
            elif node.op_type == "Gemm":
                kind, layout = "gemm", "out_in" if a.get("transB", 0) ^ turned else "in_out"
            else:
                kind, layout = ("matmul_left", "out_in") if left else ("matmul", "in_out")
                if turned:
                    layout = "in_out" if layout == "out_in" else "out_in"
            stored = self.quantised.get(source, source).removesuffix("_quantized")
            key = stored.removesuffix(".weight") if stored.endswith(".weight") else (node.name or node.output[0])
            taken[key] = taken.get(key, 0) + 1
            if taken[key] > 1:
                key += f"#{taken[key]}"
            sites.append(Site(key, node.name, node.output[0], source, kind, layout, groups, shape))
        return sites

    def recurrent_sites(self, node):
        """W and R of each direction."""
        output = next(o for o in node.output if o)
        sites = []
        for part in range(self.constants[node.input[1]].shape[0]):
            for name, letter in zip(node.input[1:3], "WR"):
                if name in self.file_constants:
                    stem = name if name.rpartition(".")[2].startswith("weight") and "." in name else f"{node.name or output}.{letter}"
                    key = stem + ("_reverse" if part else "")
                    sites.append(Site(key, node.name, output, name, "recurrent", f"stacked_{part}", 1, list(self.constants[name].shape)))
        return sites

    def oriented(self, site):
        """The site's weight as [out, in] or as the convolution's [out, in/groups, k…]."""
        w = self.constants[site.initializer]
        if site.kind == "recurrent":
            return w[int(site.layout[-1])]
        return w.t() if site.layout in ("in_out", "rows") else w

    def plan(self, rank, alpha, delta):
        """Fills rank, alpha and params of each site; merged, s·B·A has about `delta` times the rms of W."""
        for s in self.sites:
            w = self.oriented(s)
            out, fan_in = w.shape[0], int(np.prod(w.shape[1:]))
            if s.kind == "depthwise":
                s.by = "channel"
                s.params = [dict(name=f"{s.site}.scale", shape=[out], scale=0.25, offset=1.0),
                            dict(name=f"{s.site}.shift", shape=[out], scale=0.125, offset=0.0)]
                continue
            cap = s.groups * min(out // s.groups, fan_in)
            r = max(min(rank, cap) // s.groups * s.groups, s.groups)
            s.rank, s.alpha = r, alpha
            plain = s.kind in ("gemm", "matmul", "embedding") or (s.kind == "conv" and s.groups == 1 and self.dilation(s) == 1)
            s.by = "peft" if plain else "script"
            a_scale = 2.0 ** round(math.log2(math.sqrt(3 / fan_in)))
            want = delta * float(w.square().mean().sqrt()) / (alpha / r * math.sqrt(r / s.groups) * a_scale / math.sqrt(3))
            b_scale = 2.0 ** round(math.log2(want * math.sqrt(3)))
            b_shape = [out, r // s.groups] + [1] * (w.dim() - 2)
            s.params = [dict(name=f"{s.site}.A", shape=[r, *w.shape[1:]], scale=a_scale, offset=0.0),
                        dict(name=f"{s.site}.B", shape=b_shape, scale=b_scale, offset=0.0)]

    def dilation(self, site):
        node = next(n for n in self.model.graph.node if n.output[0] == site.output)
        return max(attributes(node).get("dilations", [1]))

    def adapt(self, values, head=None):
        """Puts the adapters on: `values` is name → f32 array. `head`: key of the site whose weight and bias train whole.
        Gives name → trainable tensor."""
        self.adapted, self.head = True, head
        trainable, base, ranks, alpha = {}, {}, {}, 1
        nodes = {n.output[0]: n for n in self.model.graph.node}
        for s in self.sites:
            if s.by == "peft" and s.site != head:
                w = self.oriented(s)
                if s.kind == "conv":
                    a = attributes(nodes[s.output])
                    conv = nn.Conv2d if w.dim() == 4 else nn.Conv1d
                    m = conv(w.shape[1], w.shape[0], tuple(w.shape[2:]), tuple(a.get("strides", [1] * (w.dim() - 2))), bias=False)
                elif s.kind == "embedding":
                    w = w.t()
                    m = nn.Embedding(*w.shape)
                else:
                    m = nn.Linear(w.shape[1], w.shape[0], bias=False)
                m.weight = nn.Parameter(w.clone(), requires_grad=False)
                base[self.slot[s.output]] = m
                ranks[self.slot[s.output]] = s.rank
                alpha = s.alpha
        self.base = nn.ModuleDict(base)
        if base:
            config = peft.LoraConfig(r=1, lora_alpha=alpha, rank_pattern=ranks, target_modules=list(base), lora_dropout=0.0)
            peft.inject_adapter_in_model(config, self.base)
            self.base.to(self.dtype)
        self.own = {}
        for s in self.sites:
            if s.site == head:
                trainable |= self.adapt_head(s, nodes)
                continue
            for p in s.params:
                value = torch.from_numpy(values[p["name"]]).to(self.dtype)
                if s.by == "peft":
                    m = self.base[self.slot[s.output]]
                    assert m.scaling["default"] == s.alpha / s.rank, "rank_pattern did not reach the site"
                    part = p["name"][-1]
                    t = getattr(m, f"lora_embedding_{part}")["default"] if s.kind == "embedding" else getattr(m, f"lora_{part}")["default"].weight
                    assert list(t.shape) == p["shape"], (s.site, t.shape, p["shape"])
                    t.data.copy_(value)
                    t.requires_grad_(True)
                else:
                    t = nn.Parameter(value)
                    self.own[p["name"]] = t
                trainable[p["name"]] = t
        return trainable

    def adapt_head(self, s, nodes):
        """The dense layer's own weight (in the file's layout) and its bias (a Gemm's C, or the constant of the Add that follows)."""
        weight = nn.Parameter(self.constants[s.initializer].clone())
        follower = next((n for n in nodes.values() if s.output in n.input and n.op_type == "Add"), None)
        node = nodes[s.output] if s.kind == "gemm" else follower
        name = next(i for i in reversed(node.input) if i in self.constants)
        bias = nn.Parameter(self.constants[name].clone())
        self.constants[s.initializer], self.constants[name] = weight, bias
        s.rank, s.alpha, s.by = 0, 0, "head"
        s.params = [dict(name=f"{s.site}.weight", shape=list(weight.shape), initializer=s.initializer),
                    dict(name=f"{s.site}.bias", shape=list(bias.shape), initializer=name)]
        return {f"{s.site}.weight": weight, f"{s.site}.bias": bias}

    # ---- forward

    def forward(self, x):
        values = dict(self.constants)
        values[self.input.name] = x.to(self.dtype) if x.is_floating_point() else x
        for node in self.model.graph.node:
            if next(o for o in node.output if o) in self.constants:
                continue
            for name, value in zip(node.output, self.evaluate(node, values, self.by_output)):
                if name:
                    values[name] = value
        return values

    def kink(self, x, at=0.0, skip_zeros=False):
        """Notes how near x comes to a kink. Exact zeros in front of a Relu come from zeros and stay zeros in f32: no risk."""
        with torch.no_grad():
            rms = float(x.square().mean().sqrt()) or 1.0
            distance = (x[x != 0] if skip_zeros else x - at).abs()
            if distance.numel():
                self.margin = min(self.margin, float(distance.min()) / rms)

    def dense(self, site, x):
        if site is None or not self.adapted:
            return None
        if site.site == self.head:
            return F.linear(x, self.oriented(site))
        return self.base[self.slot[site.output]](x)

    def convolve(self, node, a, x, w, b, site):
        n = w.dim() - 2
        f = F.conv2d if n == 2 else F.conv1d
        strides, dilations, groups = a.get("strides", [1] * n), a.get("dilations", [1] * n), a.get("group", 1)
        x = F.pad(x, torch_pads(spatial_pads(a, x.shape[2:], list(w.shape[2:]), strides, dilations)))
        channel = [1, -1] + [1] * n
        if site is not None and self.adapted and site.by == "peft":
            y = self.base[self.slot[site.output]](x)
        else:
            y = f(x, w, None, strides, 0, dilations, groups)
            if site is not None and self.adapted and site.by == "script":
                h = f(x, self.own[f"{site.site}.A"], None, strides, 0, dilations, groups)
                y = y + site.alpha / site.rank * f(h, self.own[f"{site.site}.B"], groups=groups)
        if b is not None:
            y = y + b.reshape(channel)
        if site is not None and self.adapted and site.by == "channel":
            y = y * self.own[f"{site.site}.scale"].reshape(channel) + self.own[f"{site.site}.shift"].reshape(channel)
        return y

    def recur(self, node, a, v):
        """RNN, GRU and LSTM from the formulas of the specification: Y, Y_h, Y_c (layout 0, no clip, full lengths)."""
        x, w, r, b, _, h0, c0, p = v + [None] * (8 - len(v))
        output = next(o for o in node.output if o)
        n, gates = r.shape[2], r.shape[1] // r.shape[2]
        directions = dict(forward=[False], reverse=[True], bidirectional=[False, True])[a.get("direction", b"forward").decode()]
        functions = [f.decode() for f in a.get("activations", [])] or FUNCTIONS[node.op_type] * len(directions)
        assert a.get("layout", 0) == 0 and "clip" not in a
        ys, hs, cs = [], [], []
        for d, reverse in enumerate(directions):
            f, *more = (getattr(torch, name.lower()) for name in functions[d * len(functions) // len(directions):][:len(FUNCTIONS[node.op_type])])
            wd, rd = (self.part(output, name, t, d) for name, t in zip(node.input[1:3], (w, r)))
            wb, rb = (b[d].chunk(2) if b is not None else (x.new_zeros(gates * n),) * 2)
            h, c = (x.new_zeros(x.shape[1], n) if s is None else s[d] for s in (h0, c0))
            pi, po, pf = p[d].chunk(3) if p is not None else (0.0,) * 3
            y = [None] * len(x)
            for t in reversed(range(len(x))) if reverse else range(len(x)):
                ax = F.linear(x[t], wd, wb)
                if node.op_type == "RNN":
                    h = f(ax + F.linear(h, rd, rb))
                elif node.op_type == "GRU":
                    (xz, xr, xn), (rz, rr, rn), (bz, br, bn) = ax.chunk(3, -1), rd.chunk(3), rb.chunk(3)
                    z, reset = f(xz + F.linear(h, rz, bz)), f(xr + F.linear(h, rr, br))
                    new = xn + (reset * F.linear(h, rn, bn) if a.get("linear_before_reset", 0) else F.linear(reset * h, rn, bn))
                    h = (1 - z) * more[0](new) + z * h
                else:
                    i, o, forget, new = (ax + F.linear(h, rd, rb)).chunk(4, -1)
                    i = f(i + pi * c)
                    forget = 1 - i if a.get("input_forget", 0) else f(forget + pf * c)
                    c = forget * c + i * more[0](new)
                    h = f(o + po * c) * more[1](c)
                y[t] = h
            ys.append(torch.stack(y))
            hs.append(h)
            cs.append(c)
        return [torch.stack(ys, 1), torch.stack(hs), torch.stack(cs)]

    def part(self, output, name, w, d):
        """The matrix of direction d, with its adapter."""
        site = self.recurrent.get((output, name, f"stacked_{d}"))
        if site is None or not self.adapted:
            return w[d]
        return w[d] + site.alpha / site.rank * self.own[f"{site.site}.B"] @ self.own[f"{site.site}.A"]

    def evaluate(self, node, values, by_output):
        """The outputs of one node."""
        a = attributes(node)
        v = [values[i] if i else None for i in node.input]
        x = v[0] if v else None
        arg = lambda i: v[i] if len(v) > i else None  # noqa: E731
        site = by_output.get(node.output[0])
        axes = lambda i: a["axes"] if "axes" in a else (ints(arg(i)) if arg(i) is not None else None)  # noqa: E731
        match node.op_type:
            case "Conv":
                return [self.convolve(node, a, x, v[1], arg(2), site)]
            case "MatMul" if site is not None and site.kind == "matmul_left" and self.adapted:
                p = f"{site.site}."
                return [torch.matmul(x, v[1]) + site.alpha / site.rank * (self.own[p + "B"] @ (self.own[p + "A"] @ v[1]))]
            case "MatMul":
                y = self.dense(site, x)
                return [torch.matmul(x, v[1]) if y is None else y]
            case "Gemm":
                x = x.t() if a.get("transA", 0) else x
                w = v[1] if a.get("transB", 0) else v[1].t()
                y = self.dense(site, x)
                y = a.get("alpha", 1.0) * (F.linear(x, w) if y is None else y)
                return [y if arg(2) is None else y + a.get("beta", 1.0) * v[2]]
            case "RNN" | "GRU" | "LSTM":
                return self.recur(node, a, v)
            case "Add":
                return [x + v[1]]
            case "Sub":
                return [x - v[1]]
            case "Mul":
                return [x * v[1]]
            case "Div":
                return [x / v[1] if x.is_floating_point() else torch.div(x, v[1], rounding_mode="trunc")]
            case "BatchNormalization":
                gain, bias, mean, var = (t.reshape([1, -1] + [1] * (x.dim() - 2)) for t in v[1:5])
                return [(x - mean) / torch.sqrt(var + a.get("epsilon", 1e-5)) * gain + bias]
            case "Relu":
                self.kink(x, skip_zeros=True)
                return [F.relu(x)]
            case "LeakyRelu":
                self.kink(x)
                return [F.leaky_relu(x, a.get("alpha", 0.01))]
            case "Clip":
                bounds = [a.get("min"), a.get("max")] if self.opset < 11 else [arg(1), arg(2)]
                low, high = (None if t is None else float(t) for t in bounds)
                for t in (low, high):
                    if t is not None:
                        self.kink(x, t)
                return [x if low is None and high is None else x.clamp(low, high)]
            case "Sigmoid":
                return [torch.sigmoid(x)]
            case "Tanh":
                return [torch.tanh(x)]
            case "Max" | "Min":
                f = torch.maximum if node.op_type == "Max" else torch.minimum
                for t in v[1:]:
                    self.kink(x - t)
                    x = f(x, t)
                return [x]
            case "MaxPool":
                return [max_pool(x, a)]
            case "AveragePool":
                return [average_pool(x, a)]
            case "GlobalAveragePool":
                return [x.mean(list(range(2, x.dim())), keepdim=True)]
            case "ReduceMean" | "ReduceSum":
                dims = axes(1)
                if not dims:
                    if a.get("noop_with_empty_axes", 0):
                        return [x]
                    dims = list(range(x.dim()))
                f = torch.mean if node.op_type == "ReduceMean" else torch.sum
                return [f(x, dims, keepdim=bool(a.get("keepdims", 1)))]
            case "Reshape":
                shape = a["shape"] if "shape" in a else ints(v[1])
                if not a.get("allowzero", 0):
                    shape = [x.shape[i] if s == 0 else s for i, s in enumerate(shape)]
                return [x.reshape(shape)]
            case "Flatten":
                axis = a.get("axis", 1)
                return [x.reshape(math.prod(x.shape[:axis]) if axis else 1, -1)]
            case "Transpose":
                return [x.permute(a.get("perm", list(range(x.dim()))[::-1]))]
            case "Squeeze":
                dims = axes(1)
                dims = [i for i, s in enumerate(x.shape) if s == 1] if dims is None else dims
                return [x.squeeze(tuple(dims))]
            case "Unsqueeze":
                dims = axes(1)
                for axis in sorted(d % (x.dim() + len(dims)) for d in dims):
                    x = x.unsqueeze(axis)
                return [x]
            case "Concat":
                return [torch.cat(v, a["axis"])]
            case "Slice":
                if "starts" in a:
                    starts, ends, dims, steps = a["starts"], a["ends"], a.get("axes"), None
                else:
                    starts, ends, dims, steps = (None if arg(i) is None else ints(arg(i)) for i in range(1, 5))
                return [slice_axes(x, starts, ends, dims or range(len(starts)), steps or [1] * len(starts))]
            case "Pad":
                pads, value = (a["pads"], a.get("value", 0.0)) if "pads" in a else (ints(v[1]), float(arg(2) or 0.0))
                if arg(3) is not None:
                    full = [0] * 2 * x.dim()
                    for i, axis in enumerate(ints(v[3])):
                        full[axis % x.dim()], full[axis % x.dim() + x.dim()] = pads[i], pads[i + len(pads) // 2]
                    pads = full
                return [pad(x, pads, a.get("mode", b"constant").decode(), value)]
            case "Softmax":
                return [softmax(x, a.get("axis", 1 if self.opset < 13 else -1), self.opset, torch.softmax)]
            case "LogSoftmax":
                return [softmax(x, a.get("axis", 1 if self.opset < 13 else -1), self.opset, torch.log_softmax)]
            case "QuantizeLinear":
                scale, zero = (spread(t, x, a.get("axis", 1), a.get("block_size", 0)) for t in v[1:3])
                low, high = torch.iinfo(v[2].dtype).min, torch.iinfo(v[2].dtype).max
                # What rounding may change lies at odd halves; in units of the quantum, as kinks are of the rms.
                with torch.no_grad():
                    self.margin = min(self.margin, float((x / scale - (x / scale).floor() - 0.5).abs().min() * scale.min() / x.square().mean().sqrt()))
                return [quantise(x, scale, zero.to(self.dtype), low, high)]
            case "DequantizeLinear":
                scale = spread(v[1], x, a.get("axis", 1), a.get("block_size", 0))
                zero = 0 if arg(2) is None else spread(v[2], x, a.get("axis", 1), a.get("block_size", 0))
                return [(x.to(self.dtype) - zero) * scale]
            case "Identity":
                return [x]
            case "Dropout":
                return [x] * len(node.output)
            case "Cast":
                to = a["to"]
                if to in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
                    return [x.to(self.dtype)]
                return [x.to({onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.INT32: torch.int32}[to])]
            case "Shape":
                return [torch.tensor(list(x.shape)[a.get("start", 0):a.get("end")], dtype=torch.int64)]
            case "Gather":
                axis, index = a.get("axis", 0) % x.dim(), v[1]
                index = torch.where(index < 0, index + x.shape[axis], index)
                if site is not None and self.adapted:
                    return [self.base[self.slot[site.output]](index)]
                y = x.index_select(axis, index.reshape(-1))
                return [y.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1:]])]
            case "ConstantOfShape":
                value = self.to_torch(numpy_helper.to_array(a["value"])) if "value" in a else torch.zeros(1, dtype=self.dtype)
                return [value.reshape([]).expand(ints(x)).clone()]
            case "Constant":
                if "value" in a:
                    return [self.to_torch(numpy_helper.to_array(a["value"]))]
                key, value = next(iter(a.items()))
                return [torch.tensor(value, dtype=torch.int64 if "int" in key else self.dtype)]
        found = operators.evaluate(self, node, a, v) or norms.evaluate(self, node, a, v)
        if found is not None:
            return found
        raise NotImplementedError(f"{node.op_type} ({node.name})")
