"""Moves adapters between accentor and PyTorch: an ONNX file becomes a torch module whose layers are named by accentor's keys.

    python peft_bridge.py keys   MODEL.onnx                                the name of each layer, and what it is
    python peft_bridge.py logits MODEL.onnx ADAPTER INPUTS.npy OUT.npy     what PEFT computes with an adapter folder
    python peft_bridge.py train  MODEL.onnx INPUTS.npy LABELS.npy OUT      trains in PEFT; accentor reads OUT (--adapter OUT)

As a library: `module = convert("model.onnx")`, then `model = load(module, "adapter")` or PEFT's own functions. A module
that was never ONNX needs neither, if its modules are named by the keys: PeftModel.from_pretrained(module, "adapter").

Needs torch, peft, onnx2torch, safetensors (tested: torch 2.15, peft 0.21, onnx2torch 1.5.15).
"""
import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import onnx2torch
import peft
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import nn

PREFIX = "base_model.model."


# ---- the layers of an ONNX file, as accentor names them

def prepare(model):
    """Constant nodes and Identity or Transpose of constants become initializers; nodes get unique names as in accentor.
    Gives name → (initializer it comes from, transposed)."""
    graph = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    origin = {name: (name, False) for name in constants}
    kept, taken = [], {}
    for node in graph.node:
        name = node.name or next((o for o in node.output if o), "")
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}#{taken[name]}"
        output = node.output[0]
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[output], origin[output] = numpy_helper.to_array(node.attribute[0].t), (output, False)
        elif node.op_type == "Constant" and node.attribute[0].name == "value_floats":
            constants[output], origin[output] = np.array(node.attribute[0].floats, np.float32), (output, False)
        elif node.op_type == "Identity" and node.input[0] in constants:
            constants[output], origin[output] = constants[node.input[0]], origin[node.input[0]]
        elif node.op_type == "Transpose" and node.input[0] in constants and constants[node.input[0]].ndim == 2:
            source, turned = origin[node.input[0]]
            constants[output], origin[output] = constants[node.input[0]].T, (source, not turned)
        else:
            kept.append(node)
            continue
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(constants[output]), output))
    del graph.node[:]
    graph.node.extend(kept)
    return constants, origin


def layers(model):
    """[(key, index of the node, kind)], kind: conv | depthwise | gemm | matmul | matmul_left. `model` is prepared."""
    constants, origin = prepare(model)
    found, taken = [], set()
    for index, node in enumerate(model.graph.node):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        left = node.op_type == "MatMul" and node.input[0] in constants
        weight = node.input[0 if left else 1]
        if weight not in constants or node.input[1 if left else 0] in constants:
            continue
        shape = constants[weight].shape
        if node.op_type != "Conv" and len(shape) != 2:
            continue
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        kind = "depthwise" if node.op_type == "Conv" and groups > 1 and shape[1] == 1 else node.op_type.lower()
        source = origin[weight][0]
        key = source.removesuffix(".weight") if source.endswith(".weight") and source != ".weight" else node.name
        name, number = key, 2
        while name in taken:
            name, number = f"{key}#{number}", number + 1
        taken.add(name)
        found.append((name, index, kind + ("_left" if left else "")))
    return found


# ---- ONNX → torch

def convert(path):
    """The ONNX file as a torch module that gives its first output; each layer that an adapter may change is a Conv or a Linear under its key."""
    model = onnx.load(path)
    del model.graph.output[1:]
    stored = {t.name for t in model.graph.initializer} | {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    found = layers(model)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = list(model.graph.node)
    readers = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in model.graph.output}
    for index, node in enumerate(nodes):
        node.name = f"node{index}"  # onnx2torch names its modules by these
    module = onnx2torch.convert(model)
    calls = {n.target: n for n in module.graph.nodes if n.op == "call_module"}
    for key, index, kind in found:
        node, call = nodes[index], calls[f"node{index}"]
        if kind in ("conv", "depthwise"):
            place_conv(module, call, key, kind)
            continue
        left = kind == "matmul_left"
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        weight = constants[node.input[0 if left else 1]]
        weight = weight if left or attributes.get("transB", 0) else weight.T
        bias, add, alpha, beta = None, None, attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
        out = weight.shape[0]
        has_c = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]
        inside = has_c and node.input[2] in stored and alpha == beta == 1.0 and constants[node.input[2]].size == out
        if has_c and node.input[2] in constants:
            bias = beta * constants[node.input[2]]
        elif kind == "matmul" and node.output[0] not in outputs and len(readers.get(node.output[0], [])) == 1:
            reader = readers[node.output[0]][0]
            other = next((i for i in reader.input if i in stored), None)
            if reader.op_type == "Add" and other and constants[other].size == out == (constants[other].shape or [0])[-1]:
                bias, add, inside = constants[other], calls[reader.name], True
        linear = nn.Linear(weight.shape[1], out, bias=bool(inside))
        linear.weight.data = torch.tensor(np.ascontiguousarray(weight))
        if inside:
            linear.bias.data = torch.tensor(bias.reshape(-1))
        place(module, key, linear)
        with module.graph.inserting_before(call):
            x = call.args[1 if left else 0]
            turn = left or attributes.get("transA", 0)
            x = module.graph.call_method("transpose", (x, -1, -2)) if turn else x
            y = module.graph.call_module(key, (x,))
            y = module.graph.call_method("transpose", (y, -1, -2)) if left else y
            y = module.graph.call_method("mul", (y, alpha)) if alpha != 1.0 else y
            if bias is not None and not inside:
                module.register_buffer(f"bias_of_node{index}", torch.tensor(bias))
                y = module.graph.call_method("add", (y, module.graph.get_attr(f"bias_of_node{index}")))
            elif has_c and bias is None:
                c = module.graph.call_method("mul", (call.args[2], beta))
                y = module.graph.call_method("add", (y, c))
        for old in (call, add):
            if old is not None:
                old.replace_all_uses_with(y)
                module.graph.erase_node(old)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()
    return module.eval().requires_grad_(False)


def place_conv(module, call, key, kind):
    """Names the convolution by its key; onnx2torch gives Sequential(padding, convolution) where padding is uneven."""
    old = module.get_submodule(call.target)
    conv = old[-1] if isinstance(old, nn.Sequential) else old
    if kind == "depthwise" and conv.bias is None:
        conv.bias = nn.Parameter(torch.zeros(conv.out_channels))  # room for a shift
    place(module, key, conv)
    if conv is not old:
        padding = nn.Sequential(*old[:-1])
        setattr(module, call.target + "_padding", padding)
        with module.graph.inserting_before(call):
            call.args = (module.graph.call_module(call.target + "_padding", call.args),)
    call.target = key


def place(module, key, layer):
    """PyTorch reads the dots of a key as levels of modules; everything else may stand in a name."""
    *path, name = key.split(".")
    at = module
    for part in path:
        if not part or not hasattr(at, part):
            at.add_module(part, nn.Module())
        at = getattr(at, part)
        if not isinstance(at, nn.Module) or any(True for _ in at.parameters(recurse=False)):
            raise NotImplementedError(f"layer {key!r} would lie inside another layer, {part!r}: rename the initializer in the ONNX file")
    at.add_module(name, layer)


# ---- adapters

def load(module, adapter):
    """The module with an adapter folder, of accentor or of PEFT, on it."""
    adapter = Path(adapter)
    table = json.loads((adapter / "adapter_config.json").read_text()).get("accentor")
    tensors = load_file(adapter / "adapter_model.safetensors")
    for site in table["sites"] if table else []:
        name = PREFIX + site["key"]
        if site["kind"] == "scale_shift" and name + ".weight" not in tensors:
            # The folder has them as scale and shift only; with the whole layer beside them PEFT does this itself.
            layer, scale = module.get_submodule(site["key"]), tensors[name + ".accentor_scale"]
            with torch.no_grad():
                layer.weight *= scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
                layer.bias.mul_(scale).add_(tensors[name + ".accentor_shift"])
        if site["kind"] == "whole" and name + ".bias" in tensors and module.get_submodule(site["key"]).bias is None:
            raise NotImplementedError(f"{site['key']!r} has no bias of its own in PyTorch (a Gemm whose alpha is not 1): merge instead")
    return fix_dilation(peft.PeftModel.from_pretrained(module, adapter))


def fix_dilation(model):
    """PEFT 0.21 forgets the dilation of a convolution in its A."""
    for layer in model.modules():
        if isinstance(layer, peft.tuners.lora.layer._ConvNd):
            for a in layer.lora_A.values():
                a.dilation = layer.get_base_layer().dilation
    return model


def attach(module, found, rank, alpha, head):
    """A fresh PEFT adapter on every convolution and dense layer but the depthwise ones; the last dense layer whole if `head`."""
    dense = [key for key, _, kind in found if kind in ("gemm", "matmul")]
    whole = dense[-1:] if head else []
    targets = [key for key, _, kind in found if kind != "depthwise" and key not in whole]
    ranks = {}
    for key in targets:
        layer = module.get_submodule(key)
        groups = getattr(layer, "groups", 1)
        limit = min(layer.weight.shape[0] // groups, layer.weight[0].numel())
        capped = groups * max(1, min(-(-rank // groups), limit))
        if capped != rank:
            ranks["^" + "".join("\\" + c if c in r"\.+*?()|[]{}^$" else c for c in key)] = capped
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=targets, modules_to_save=whole or None, rank_pattern=ranks,
        alpha_pattern={k: alpha * r / rank for k, r in ranks.items()})
    return fix_dilation(peft.get_peft_model(module, config))


def train(module, found, x, y, out, rank=8, head=False, steps=20, rate=1e-3, seed=0):
    """Trains a PEFT adapter with AdamW on (x, y) and saves it as PEFT does."""
    torch.manual_seed(seed)
    model = attach(module, found, rank, 2 * rank, head)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x).flatten(1), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(out, save_embedding_layers=False)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, names in dict(keys=["model"], logits=["model", "adapter", "inputs", "out"], train=["model", "inputs", "labels", "out"]).items():
        sub = verbs.add_parser(verb)
        for name in names:
            sub.add_argument(name)
        if verb == "train":
            sub.add_argument("--rank", type=int, default=8)
            sub.add_argument("--steps", type=int, default=20)
            sub.add_argument("--head", action="store_true")
    args = parser.parse_args()
    if args.verb == "keys":
        for key, _, kind in layers(onnx.load(args.model)):
            print(f"{kind:12} {key}")
        return
    module, x = convert(args.model), torch.from_numpy(np.load(args.inputs))
    if args.verb == "logits":
        with torch.no_grad():
            np.save(args.out, load(module, args.adapter)(x).numpy())
    else:
        y = torch.from_numpy(np.load(args.labels)).long()
        train(module, layers(onnx.load(args.model)), x, y, args.out, args.rank, args.head, args.steps)


if __name__ == "__main__":
    main()
