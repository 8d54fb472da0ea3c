"""Records what PyTorch computes in f64 for each network with an adapter on every site: logits, loss, gradients, ten losses.

    python record.py --nets ../data/reference/nets --out ../data/reference
    python record.py --shared SHARED/models --out ../data/reference      the models of CATALOGUE.md, if they are there
    … --only NAME                                                        one network

One file a network and batch: NAME-b3.safetensors, NAME-b16.safetensors (NAME-head-… trains the last dense layer whole).
Inputs and adapters are not stored: generator.py makes them from the seed and scales in the file's metadata. README.md lists the tensors.
Every network is checked here: frozen against ONNX Runtime, adapted against ONNX Runtime on the file with W + s·B·A merged in,
and the whole recording against the same run in f32, whose error is noted in index.json.
"""
import argparse
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import peft
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from safetensors.torch import save_file

import generator
from twin import Twin, check_fake_quantise

torch.set_num_threads(1)

STEPS = 10
SGD = dict(lr=0.05, momentum=0.9)
ADAMW = dict(lr=0.01, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01)
OPTIMISERS = [(torch.optim.SGD, SGD), (torch.optim.AdamW, ADAMW)]
SMALLER_RATES = [5**k for k in range(12)]  # divisors of the rate, tried in turn
ORT_TOLERANCE = 1e-4       # of the largest logit
GRADIENT_FLOOR = 1e-3      # every ‖g‖₂ lies above
KINK_MARGIN = 1e-5         # of the tensor's rms, small networks: no f32 rounding crosses a kink
F32_LOSSES = 1e-5          # ten losses in f32 and f64, relative to max(1, loss)
F32_GRADIENT = 2e-5        # worst ‖g32 − g64‖/‖g64‖ that we look for by trying seeds, and with NUDGE in f64
NUDGE = 1e-6               # relative change of the input that stands for another order of summation: what kinks in reach would do
NUDGES = 6                 # shared models, whose kinks lie close: the worst of so many, of which the ten losses take the first three
NUDGED_LOSSES = 3e-5       # ten losses of a shared model with the input nudged, relative to max(1, loss): what we look for by trying seeds
LOSS_FLOOR = 0.05          # below it the labels are already learnt, and ten losses say little
SEEDS = 40


@dataclass
class Shared:
    """How a shared model is recorded. Rank 1 keeps every gradient of a large one and still a small file."""
    x_range: tuple           # (scale, offset) of the input: x = unit·scale + offset
    rank: int = 8
    shape: tuple = ()        # of one input, where the file's own would be too large
    batches: tuple = (3, 16)
    delta: float = 0.25      # size of the adapters
    first: bool = False      # the first seed whose gradients and losses stand a nudge, not the best of SEEDS: a step takes seconds


SHARED = dict(dscnn_kws=Shared((16.0, 0.0)), dscnn_digits_us=Shared((16.0, 0.0)), resnet8_cifar10=Shared((127.5, 127.5)),
              mobilenetv1_025_vww96=Shared((0.5, 0.5)), speech_embedding_96=Shared((2.0, 1.0)), kwt1_features=Shared((16.0, 0.0), rank=1),
              efficientnet_lite0=Shared((1.0, 0.0), rank=1, shape=(3, 64, 64), batches=(3,), delta=0.1, first=True))
INDICES = (4.5, 4.5)       # of an input of whole numbers: x = floor(unit·scale + offset), 0 to 8
SAME_SEED = {f"ending_{k}": "ending_logits" for k in ("softmax", "log_softmax", "softmax_legacy")} | {"ending_sigmoid": "ending_one_logit"}
HEADS = dict(ending_logits="fc", matmul_ranks="classes")
ENDINGS = ("Softmax", "LogSoftmax", "Sigmoid")


class Case:
    """One network, batch and seed."""

    def __init__(self, path, name, batch, seed, rank, delta, x_range, head, shape=()):
        self.path, self.name, self.batch, self.seed, self.head = path, name, batch, seed, head
        self.rank, self.delta = rank, delta
        probe = Twin(path)
        dims = [d.dim_value for d in probe.input.type.tensor_type.shape.dim]
        self.fixed = dims[0] == 1
        self.whole = probe.input.type.tensor_type.elem_type == onnx.TensorProto.INT64
        self.x_range = INDICES if self.whole else x_range
        self.x = torch.from_numpy(generator.values("x", seed, [batch, *(shape or dims[1:])], *self.x_range))
        if self.whole:
            self.x = self.x.floor().long()
        self.output = "logits" if "logits" in probe.outputs else probe.outputs[0]
        last = next(n for n in probe.model.graph.node if self.output in n.output)
        self.ending = last.op_type if last.op_type in ENDINGS else None
        self.scores = last.input[0] if self.ending else self.output
        self.inputs = probe.input.name
        with torch.no_grad():
            classes = self.logits(probe)[0].shape[1]
        self.one_score = classes == 1
        self.labels = torch.from_numpy(generator.labels("labels", seed, batch, 2 if self.one_score else classes))

    def twin(self, dtype):
        t = Twin(self.path, dtype)
        t.plan(self.rank, 2 * self.rank, self.delta)
        values = {p["name"]: generator.values(p["name"], self.seed, p["shape"], p["scale"], p["offset"])
                  for s in t.sites for p in s.params}
        return t, t.adapt(values, self.head)

    def logits(self, twin, nudge=None):
        """Scores before the ending, and the file's own output: [batch, classes]. `nudge` names a change of the input."""
        x = self.x
        if nudge and not self.whole:
            x = x.double() * (1 + NUDGE * torch.from_numpy(generator.values(nudge, self.seed, list(x.shape))).double())
        rows = x.split(1) if self.fixed else [x]
        runs = [twin(row) for row in rows]
        return tuple(torch.cat([r[k] for r in runs]).reshape(self.batch, -1) for k in (self.scores, self.output))

    def loss(self, logits):
        if self.one_score:
            return F.binary_cross_entropy_with_logits(logits[:, 0], self.labels.to(logits.dtype))
        return F.cross_entropy(logits, self.labels)

    def gradients(self, dtype, nudge=None):
        twin, trainable = self.twin(dtype)
        logits, output = self.logits(twin, nudge)
        loss = self.loss(logits)
        loss.backward()
        return twin, logits.detach(), output.detach(), loss.detach(), {k: t.grad for k, t in trainable.items()}

    def losses(self, dtype, optimiser, settings, nudge=None):
        twin, trainable = self.twin(dtype)
        opt = optimiser(trainable.values(), **settings)
        seen = []
        for _ in range(STEPS):
            opt.zero_grad()
            loss = self.loss(self.logits(twin, nudge)[0])
            loss.backward()
            opt.step()
            seen.append(loss.item())
        return np.array(seen)


def run_ort(model, case):
    unique = onnx.ModelProto()
    unique.CopyFrom(model)
    for i, node in enumerate(unique.graph.node):
        node.name = str(i)  # ONNX Runtime refuses two nodes of one name
    dims = next(v for v in unique.graph.input if v.name == case.inputs).type.tensor_type.shape.dim
    for dim, size in zip(list(dims)[1:], case.x.shape[1:]):
        dim.dim_value = size
    options = onnxruntime.SessionOptions()
    if any(n.op_type == "QuantizeLinear" for n in unique.graph.node):  # its optimiser would make integer operators that requantise in another way
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(unique.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = case.x.split(1) if case.fixed else [case.x]
    return np.concatenate([session.run([case.output], {case.inputs: r.numpy()})[0].reshape(len(r), -1) for r in rows])


def relative(found, wanted):
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def merged(twin, trainable):
    """The file with every adapter merged into its weight; None where a site's tensors are shared or not plain."""
    model = onnx.ModelProto()
    model.CopyFrom(twin.model)
    used = [(s.initializer, s.layout) for s in twin.sites]
    tensors = {t.name: t for t in model.graph.initializer}
    for n in model.graph.node:
        if n.op_type == "Constant" and n.attribute[0].name == "value":
            tensors[n.output[0]] = n.attribute[0].t
    for s in twin.sites:
        node = next(n for n in model.graph.node if s.output in n.output)
        if used.count((s.initializer, s.layout)) > 1:
            return None
        if s.initializer not in tensors:  # a dequantised constant: the layer reads a new float tensor instead
            float_name = s.initializer + ".float"
            for n in model.graph.node:
                n.input[:] = [float_name if i == s.initializer else i for i in n.input]
            model.graph.initializer.append(numpy_helper.from_array(twin.constants[s.initializer].numpy().astype(np.float32), float_name))
            tensors[s.initializer] = model.graph.initializer[-1]
        get = lambda part: trainable[f"{s.site}.{part}"].detach().double().numpy()  # noqa: E731
        w = numpy_helper.to_array(tensors[s.initializer]).astype(np.float64)
        if s.by == "head":
            bias = s.params[1]["initializer"]
            put(tensors[s.initializer], get("weight"))
            put(tensors[bias], get("bias"))
        elif s.kind == "depthwise":
            put(tensors[s.initializer], w * get("scale").reshape([-1] + [1] * (w.ndim - 1)))
            if len(node.input) > 2:
                b = numpy_helper.to_array(tensors[node.input[2]]).astype(np.float64)
                put(tensors[node.input[2]], b * get("scale") + get("shift"))
            else:
                model.graph.initializer.append(numpy_helper.from_array(get("shift").astype(np.float32), s.output + ".shift"))
                node.input.append(s.output + ".shift")
        else:
            a, b = get("A"), get("B")
            per = s.rank // s.groups
            out = b.shape[0]
            delta = np.stack([np.tensordot(b[o].reshape(-1), a[(g := o * s.groups // out) * per:(g + 1) * per], 1) for o in range(out)])
            delta *= s.alpha / s.rank
            if s.kind == "recurrent":
                w[int(s.layout[-1])] += delta
                put(tensors[s.initializer], w)
                continue
            put(tensors[s.initializer], w + (delta.T if s.layout in ("in_out", "rows") else delta))
    return model


def put(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))


def nudges(shared):
    return ["nudge"] + [f"nudge{k}" for k in range(1, NUDGES if shared else 1)]


def loss_error(found, wanted):
    return float((np.abs(found - wanted) / np.maximum(1, wanted)).max())


def unsteady(case):
    """What nudged inputs do to the ten losses of both optimisers at the recorded rates."""
    runs = [(optimiser, *smallest(case, optimiser, settings)[:2]) for optimiser, settings in OPTIMISERS]
    return max(loss_error(case.losses(torch.float64, optimiser, settings, n), wanted)
               for optimiser, settings, wanted in runs for n in nudges(True)[:3])


def smallest(case, optimiser, settings):
    """The ten losses at the first rate where training is stable: f32 gives the same, and nothing blows up."""
    for divisor in SMALLER_RATES:
        tried = settings | dict(lr=float(f"{settings['lr'] / divisor:.3g}"))
        wanted = case.losses(torch.float64, optimiser, tried)
        if not np.isfinite(wanted).all() or wanted.max() > 1.5 * wanted[0]:
            continue
        error = loss_error(case.losses(torch.float32, optimiser, tried), wanted)
        if error <= F32_LOSSES:
            return tried, wanted, error
    raise SystemExit(f"{case.name}: no stable rate for {optimiser.__name__}")


def choose(make, name, batch, shared, first=False):
    """The first seed without a kink in reach and without a small gradient; for the shared models the best of a few."""
    best, best_rank = None, None
    start = generator.fnv1a64(f"{SAME_SEED.get(name, name)}/{batch}") & 0xFFFFFFFF
    for seed in range(start, start + SEEDS):
        case = make(seed)
        result = case.gradients(torch.float64)
        norms = {k: float(g.norm()) for k, g in result[4].items()}
        if min(norms.values()) < GRADIENT_FLOOR or float(result[3]) < LOSS_FLOOR or not (shared or result[0].margin > KINK_MARGIN):
            continue
        far = lambda other: max(float((other[k].double() - g).norm()) / norms[k] for k, g in result[4].items())  # noqa: E731
        in_f32 = far(case.gradients(torch.float32)[4])
        nudged = max(far(case.gradients(torch.float64, n)[4]) for n in nudges(shared))
        # A shared model has a million pre-activations: the seed that keeps the nearest of them farthest from its kink wins.
        steady = max(in_f32, nudged) < F32_GRADIENT and not (first and unsteady(case) > NUDGED_LOSSES)
        rank = (steady, result[0].margin if shared else -max(in_f32, nudged))
        if best is None or rank > best_rank:
            best, best_rank = ((in_f32, nudged), case, result, min(norms.values())), rank
        if rank[0] and (first or not shared or math.isinf(result[0].margin)):
            break
    if best is None:
        raise SystemExit(f"{name}: no seed, last: smallest gradient {min(norms, key=norms.get)} {min(norms.values())}, margin {result[0].margin}, loss {result[3]}")
    return best


def record(path, out, name, batch, shared, head=None, net=None):
    """One file: path → out. Gives its line of index.json. `net` is how the file calls the network, else NAME.onnx."""
    how = SHARED[name] if shared else Shared((1.0, 0.0), rank=4)
    rank, delta, x_range = how.rank, how.delta if shared else 0.5, how.x_range
    make = lambda seed: Case(path, name, batch, seed, rank, delta, x_range, head, how.shape)  # noqa: E731
    (in_f32, nudged), case, (twin, logits, output, loss, grads), least = choose(make, name, batch, shared, how.first)

    frozen = Twin(path)
    with torch.no_grad():
        base_error = relative(run_ort(twin.model, case), case.logits(frozen)[1].numpy())
    assert base_error < ORT_TOLERANCE, f"{name}: ONNX Runtime differs by {base_error}"
    adapted, trainable = case.twin(torch.float64)
    file = merged(adapted, trainable)
    merged_error = None if file is None else relative(run_ort(file, case), output.numpy())
    assert file is None or merged_error < ORT_TOLERANCE, f"{name}: merged file differs by {merged_error}"

    sgd, sgd_losses, sgd_error = smallest(case, torch.optim.SGD, SGD)
    adamw, adamw_losses, adamw_error = smallest(case, torch.optim.AdamW, ADAMW)
    f32 = lambda t: torch.as_tensor(np.asarray(t)).to(torch.float32).contiguous()  # noqa: E731
    tensors = {"labels": case.labels, "logits": f32(logits), "loss": f32(loss).reshape(1),
               "sgd.losses": f32(sgd_losses), "adamw.losses": f32(adamw_losses)}
    if case.ending:
        tensors["output"] = f32(output)
    tensors |= {f"grad.{k}": f32(g) for k, g in grads.items()}
    sites = [asdict(s) | dict(scaling=s.alpha / s.rank if s.rank else None) for s in twin.sites]
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    meta = dict(
        format=1, net=net or f"{name}.onnx", sha256=sha256, shared=shared, opset=twin.opset, batch=batch, seed=case.seed, head=head,
        rank=rank, alpha=2 * rank, input=dict(name=case.inputs, shape=list(case.x.shape), scale=case.x_range[0], offset=case.x_range[1], whole=case.whole),
        output=case.output, ending=case.ending, loss="bce_with_logits" if case.one_score else "cross_entropy",
        sgd=sgd, adamw=adamw, steps=STEPS, sites=sites,
        versions=dict(torch=torch.__version__.split("+")[0], peft=peft.__version__, onnx=onnx.__version__, onnxruntime=onnxruntime.__version__))
    stem = f"{name}-head" if head else name
    save_file(tensors, out / f"{stem}-b{batch}.safetensors", metadata={"meta": json.dumps(meta)})
    losses = lambda v: [round(float(v[0]), 6), round(float(v[-1]), 6)]  # noqa: E731
    return dict(file=f"{stem}-b{batch}.safetensors", net=meta["net"], sha256=sha256, shared=shared, batch=batch, seed=case.seed, head=head, opset=twin.opset,
                ending=case.ending, operators=sorted({n.op_type for n in twin.model.graph.node}), sites=[f"{s.site} ({s.by})" for s in twin.sites],
                loss=round(float(loss), 6), sgd_lr=sgd["lr"], sgd_losses=losses(sgd_losses), adamw_lr=adamw["lr"], adamw_losses=losses(adamw_losses),
                smallest_gradient=float(f"{least:.3g}"), kink_margin=None if math.isinf(twin.margin) else float(f"{twin.margin:.2g}"),
                f32_gradient_error=float(f"{in_f32:.2g}"), nudged_gradient_error=float(f"{nudged:.2g}"), f32_losses_error=float(f"{max(sgd_error, adamw_error):.2g}"),
                ort_error=float(f"{base_error:.2g}"), ort_merged_error=None if merged_error is None else float(f"{merged_error:.2g}"))


def main():
    """Each network is recorded even where another fails; exit code 1 then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=Path, help="folder that nets.py filled")
    parser.add_argument("--shared", type=Path, help="folder of the shared models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="name of one network")
    args = parser.parse_args()
    jobs = [(p, False, None) for p in sorted(args.nets.glob("*.onnx"))] if args.nets else []
    jobs += [(p, False, HEADS[p.stem]) for p, _, _ in jobs if p.stem in HEADS]
    jobs += [(args.shared / f"{name}.onnx", True, None) for name in SHARED] if args.shared else []
    index_file = args.out / "index.json"
    failed = 0
    check_fake_quantise()
    for path, shared, head in jobs:
        if args.only not in (None, path.stem):
            continue
        for batch in SHARED[path.stem].batches if shared else (3, 16):
            try:
                entry = record(path, args.out, path.stem, batch, shared, head)
            except (Exception, SystemExit) as e:  # noqa: BLE001  the others are still wanted
                print(f"FAILED {path.stem} batch {batch}: {e!r}", flush=True)
                failed += 1
                continue
            index = {e["file"]: e for e in json.loads(index_file.read_text())} if index_file.exists() else {}
            index[entry["file"]] = entry
            print(entry["file"], *(f"{k}={entry[k]}" for k in ("loss", "sgd_lr", "sgd_losses", "adamw_lr", "adamw_losses", "smallest_gradient", "kink_margin",
                                                             "f32_gradient_error", "nudged_gradient_error", "ort_error", "ort_merged_error")), flush=True)
            index_file.write_text("[\n" + ",\n".join(json.dumps(index[k]) for k in sorted(index)) + "\n]\n")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
