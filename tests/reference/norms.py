"""More operators of the twin: normalisations, ConvTranspose, Resize, LpPool. Formulas: the ONNX specification."""
import torch
import torch.nn.functional as F


def affine(y, scale, bias, shape=None):
    turned = lambda t: t if shape is None else t.reshape(shape)  # noqa: E731
    y = y if scale is None else y * turned(scale)
    return y if bias is None else y + turned(bias)


def standard(x, dims, epsilon):
    d = x - x.mean(dims, keepdim=True)
    return d / torch.sqrt(d.square().mean(dims, keepdim=True) + epsilon)


def conv_transpose(twin, node, a, x, w, b, site):
    """W[i] += s·Σ_j B[i, j]·A[group(i)·r/groups + j] for input channel i; what the padding cuts off is cut off at the end."""
    n, groups = w.dim() - 2, a.get("group", 1)
    if site is not None and twin.adapted:
        low, high = twin.own[f"{site.site}.A"], twin.own[f"{site.site}.B"]
        per, inputs = site.rank // groups, w.shape[0] // groups
        delta = [torch.tensordot(high[g * inputs:(g + 1) * inputs].flatten(1), low[g * per:(g + 1) * per], 1) for g in range(groups)]
        w = w + site.alpha / site.rank * torch.cat(delta)
    strides, dilations = a.get("strides", [1] * n), a.get("dilations", [1] * n)
    extra, pads = a.get("output_padding", [0] * n), a.get("pads", [0] * 2 * n)
    y = (F.conv_transpose2d if n == 2 else F.conv_transpose1d)(x, w, None, strides, 0, 0, groups, dilations)
    for d in range(n):
        mode, full = a.get("auto_pad", b"NOTSET"), y.shape[2 + d] + extra[d]
        size, begin = full - pads[d] - pads[n + d], pads[d]
        if "output_shape" in a or mode.startswith(b"SAME"):
            size = a["output_shape"][d] if "output_shape" in a else x.shape[2 + d] * strides[d]
            total = max(full - size, 0)
            begin = total // 2 if mode == b"SAME_UPPER" else total - total // 2
        flat = [0, 0] * (n - 1 - d) + [-begin, size - (y.shape[2 + d] - begin)]
        y = F.pad(y, flat)
    return y if b is None else y + b.reshape([1, -1] + [1] * n)


def resize(a, x, size):
    """The modes that torch has too; checked against ONNX Runtime as everything here."""
    mode, place = a.get("mode", b"nearest"), a.get("coordinate_transformation_mode", b"half_pixel")
    if mode == b"nearest" and (place, a.get("nearest_mode")) == (b"asymmetric", b"floor"):
        return F.interpolate(x, size, mode="nearest")
    corners = {b"half_pixel": False, b"align_corners": True}[place]
    return F.interpolate(x, size, mode={b"linear": "bilinear", b"cubic": "bicubic"}[mode], align_corners=corners, antialias=bool(a.get("antialias", 0)))


def evaluate(twin, node, a, v):
    """The outputs of one node, or None for an operator that is not here."""
    op, x = node.op_type, v[0]
    arg = lambda i: v[i] if len(v) > i else None  # noqa: E731
    epsilon = a.get("epsilon", 1e-5)
    channels = [1, -1] + [1] * (x.dim() - 2)
    match op:
        case "LayerNormalization":
            return [affine(standard(x, list(range(a.get("axis", -1) % x.dim(), x.dim())), epsilon), v[1], arg(2))]
        case "RMSNormalization":
            dims = list(range(a.get("axis", -1) % x.dim(), x.dim()))
            return [x / torch.sqrt(x.square().mean(dims, keepdim=True) + epsilon) * v[1]]
        case "InstanceNormalization":
            return [affine(standard(x, list(range(2, x.dim())), epsilon), v[1], v[2], channels)]
        case "GroupNormalization":
            groups = a["num_groups"]
            parts = x.reshape(x.shape[0], groups, -1)
            scale, bias = (t.repeat_interleave(x.shape[1] // t.numel()) for t in v[1:3])
            return [affine(standard(parts, [2], epsilon).reshape(x.shape), scale, bias, channels)]
        case "LpNormalization":
            return [x / x.norm(a.get("p", 2), a.get("axis", -1), keepdim=True)]
        case "MeanVarianceNormalization":
            dims = a.get("axes", [0, 2, 3])
            d = x - x.mean(dims, keepdim=True)
            return [d / (d.square().mean(dims, keepdim=True).sqrt() + 1e-9)]
        case "LRN":
            size = a["size"]
            squares = F.pad(x.square(), [0, 0] * (x.dim() - 2) + [(size - 1) // 2, size // 2])
            total = sum(squares[:, i:i + x.shape[1]] for i in range(size))
            return [x * (a.get("bias", 1.0) + a.get("alpha", 1e-4) / size * total) ** -a.get("beta", 0.75)]
        case "ConvTranspose":
            return [conv_transpose(twin, node, a, x, v[1], arg(2), twin.by_output.get(node.output[0]))]
        case "Resize":
            if arg(3) is not None:
                return [resize(a, x, [int(s) for s in v[3][-2:]])]
            return [resize(a, x, [int(s * float(k)) for s, k in zip(x.shape[2:], v[2][-2:])])]
    return None
