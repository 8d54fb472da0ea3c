"""More operators of the twin: functions, reductions, choices, indices, Einsum. Formulas: the ONNX specification."""
import math

import onnx
import torch
import torch.nn.functional as F

FLAT = {"Sign": torch.sign, "Ceil": torch.ceil, "Floor": torch.floor, "Round": torch.round}
PLAIN = {"Erf": torch.erf, "Mish": F.mish, "Softplus": F.softplus, "Softsign": F.softsign, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan,
         "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh,
         "Atanh": torch.atanh, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Reciprocal": torch.reciprocal}


def ints(t):
    return [int(v) for v in t.reshape(-1)]


def resolved(index, size):
    return torch.where(index < 0, index + size, index)


def reduction(op, x, dims, keep):
    match op:
        case "ReduceL1":
            return x.abs().sum(dims, keepdim=keep)
        case "ReduceL2":
            return x.square().sum(dims, keepdim=keep).sqrt()
        case "ReduceSumSquare":
            return x.square().sum(dims, keepdim=keep)
        case "ReduceLogSum":
            return x.sum(dims, keepdim=keep).log()
        case "ReduceLogSumExp":
            return x.logsumexp(dims, keepdim=keep)
        case "ReduceMax":
            return x.amax(dims, keepdim=keep)
        case "ReduceMin":
            return x.amin(dims, keepdim=keep)
        case "ReduceProd":
            for d in sorted((d % x.dim() for d in dims), reverse=True):
                x = x.prod(d, keepdim=keep)
            return x


def blocks(op, x, a):
    n, c, h, w = x.shape
    b = a["blocksize"]
    if op == "SpaceToDepth":
        return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)
    if a.get("mode", b"DCR") == b"CRD":
        x = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        x = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // (b * b), h * b, w * b)


def evaluate(twin, node, a, v):
    """The outputs of one node, or None for an operator that is not here."""
    op, x = node.op_type, v[0]
    arg = lambda i: v[i] if len(v) > i else None  # noqa: E731
    if op in PLAIN:
        return [PLAIN[op](x)]
    if op in FLAT:
        return [FLAT[op](x)]
    if op.startswith("Reduce"):
        dims = a["axes"] if "axes" in a else ints(arg(1)) if arg(1) is not None else list(range(x.dim()))
        if op == "ReduceL1":
            twin.kink(x)
        return [reduction(op, x, dims, bool(a.get("keepdims", 1)))]
    match op:
        case "Gelu":
            return [F.gelu(x, approximate=a.get("approximate", b"none").decode())]
        case "Swish":
            return [x * torch.sigmoid(a.get("alpha", 1.0) * x)]
        case "HardSwish":
            twin.kink(x, -3.0), twin.kink(x, 3.0)
            return [x * (x / 6 + 0.5).clamp(0, 1)]
        case "HardSigmoid":
            y = a.get("alpha", 0.2) * x + a.get("beta", 0.5)
            twin.kink(y), twin.kink(y, 1.0)
            return [y.clamp(0, 1)]
        case "Elu" | "Celu":
            alpha = a.get("alpha", 1.0)
            twin.kink(x)
            return [F.celu(x, alpha) if op == "Celu" else torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))]
        case "Selu":
            twin.kink(x)
            alpha, gamma = a.get("alpha", 1.67326319217681884765625), a.get("gamma", 1.05070102214813232421875)
            return [gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))]
        case "ThresholdedRelu":
            twin.kink(x, a.get("alpha", 1.0))
            return [torch.where(x > a.get("alpha", 1.0), x, 0.0)]
        case "Shrink":
            bound, bias = a.get("lambd", 0.5), a.get("bias", 0.0)
            twin.kink(x, bound), twin.kink(x, -bound)
            return [torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, 0.0))]
        case "PRelu":
            twin.kink(x)
            return [torch.where(x > 0, x, x * v[1])]
        case "Pow":
            return [torch.pow(x, v[1])]
        case "Mean":
            return [sum(v[1:], x) / len(v)]
        case "Greater":
            twin.kink(x - v[1])
            return [x > v[1]]
        case "ArgMax":
            return [x.argmax(a.get("axis", 0), keepdim=bool(a.get("keepdims", 1)))]
        case "Where":
            return [torch.where(x, v[1], v[2])]
        case "GatherElements":
            axis = a.get("axis", 0)
            return [torch.gather(x, axis, resolved(v[1], x.shape[axis]))]
        case "ScatterND":
            y, reduction_ = x.clone(), a.get("reduction", b"none")
            for at in range(math.prod(v[1].shape[:-1])):
                index, update = tuple(v[1].reshape(-1, v[1].shape[-1])[at]), v[2].reshape(-1, *v[2].shape[v[1].dim() - 1:])[at]
                y = y.index_put(index, update, accumulate=reduction_ == b"add")
            return [y]
        case "Expand":
            return [x.expand(torch.broadcast_shapes(x.shape, ints(v[1])))]
        case "Tile":
            return [x.repeat(ints(v[1]))]
        case "Trilu":
            k = 0 if arg(1) is None else int(v[1])
            return [x.triu(k) if a.get("upper", 1) else x.tril(k)]
        case "CumSum":
            axis, size = int(v[1]), x.shape[int(v[1])]
            x = x.flip(axis) if a.get("reverse", 0) else x
            y = x.cumsum(axis)
            if a.get("exclusive", 0):
                y = torch.cat([torch.zeros_like(y.narrow(axis, 0, 1)), y.narrow(axis, 0, size - 1)], axis)
            return [y.flip(axis) if a.get("reverse", 0) else y]
        case "Split":
            axis, parts = a.get("axis", 0), a.get("num_outputs", len(node.output))
            given = a.get("split") or (ints(v[1]) if arg(1) is not None else None)
            size = -(-x.shape[axis] // parts)
            return list(x.split(given or size, axis))
        case "DepthToSpace" | "SpaceToDepth":
            return [blocks(op, x, a)]
        case "Einsum":
            site = twin.by_output.get(node.output[0])
            y = twin.dense(site, x) if site is not None else None
            return [torch.einsum(a["equation"].decode(), *v) if y is None else y]
    return None


def einsum_layout(node):
    """Layout of the weight of an Einsum that is a dense layer, `…i,io->…o` or `…i,oi->…o`."""
    equation = onnx.helper.get_attribute_value(node.attribute[0]).decode()
    (x, w), y = equation.split("->")[0].split(","), equation.split("->")[1]
    if y == x[:-1] + w[1] and w[0] == x[-1]:
        return "in_out"
    return "out_in" if y == x[:-1] + w[0] and w[1] == x[-1] else None
