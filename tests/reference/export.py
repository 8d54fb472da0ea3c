"""Small networks through torch's TorchScript and dynamo exporters; then the check that all exports are one network.

    python export.py torch --out ../data/exports                                     torchscript-*.onnx, torchscript_plain-*.onnx, dynamo-*.onnx
    python export_tf.py    --out ../data/exports                                     tf2onnx-*.onnx, other environment
    python export.py check --out ../data/exports --reference ../data/reference       sites.json, and recordings export_NET-b*.safetensors

`check` runs every file in ONNX Runtime (same logits to 1e-5), maps the site keys of each exporter to the torch module's names, and
compares every adapter gradient in f64 with the recorded network's (same to 1e-5).
"""
import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn

import exported
import generator

TOLERANCE = 1e-5
EXPORTERS = ("torchscript", "torchscript_plain", "dynamo", "tf2onnx")


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8, eps=exported.EPS)
        self.conv2 = nn.Conv2d(8, 13, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(13, eps=exported.EPS)
        self.fc = nn.Linear(78, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.view(x.size(0), -1))


class DsCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, (10, 4), stride=2)
        self.dw1 = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pw1 = nn.Conv2d(8, 13, 1)
        self.dw2 = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.pw2 = nn.Conv2d(13, 10, 1)
        self.fc = nn.Linear(10, 6)

    def forward(self, x):
        x = F.relu(self.stem(F.pad(x, (1, 1, 4, 5))))
        for layer in (self.dw1, self.pw1, self.dw2, self.pw2):
            x = F.relu6(layer(x))
        return self.fc(x.mean([2, 3]))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(13, 16), nn.Linear(16, 11), nn.Linear(11, 7)

    def forward(self, x):
        x = torch.tanh(self.fc2(F.leaky_relu(self.fc1(x), 0.1)))
        return torch.softmax(self.fc3(x), -1)


class Conv1d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(3, 6, 5, stride=2, padding=2)
        self.conv2 = nn.Conv1d(6, 9, 3, dilation=2)
        self.fc = nn.Linear(9, 4)

    def forward(self, x):
        x = F.max_pool1d(F.relu(self.conv1(x)), 2)
        return self.fc(torch.sigmoid(self.conv2(x)).mean(-1))


NETS = dict(cnn=Cnn, dscnn=DsCnn, mlp=Mlp, conv1d=Conv1d)


def module(net):
    m = NETS[net]().eval()
    state = {k: torch.from_numpy(v) for k, v in exported.weights(net).items()}
    missing = set(m.state_dict()) - set(state)
    assert all(k.endswith("num_batches_tracked") for k in missing), missing
    m.load_state_dict(state, strict=False)
    return m


def export(out):
    for net in NETS:
        (out / net).mkdir(parents=True, exist_ok=True)
        m = module(net)
        for kind, batch in (("free", 3), ("fixed", 1)):  # a free batch is traced at 3: dynamo would specialise 1
            x = torch.zeros(batch, *exported.INPUTS[net])
            names = dict(input_names=["x"], output_names=["logits"])
            axes = {"x": {0: "batch"}, "logits": {0: "batch"}} if kind == "free" else None
            shapes = ({0: torch.export.Dim("batch")},) if kind == "free" else None
            script = dict(dynamo=False, opset_version=17, dynamic_axes=axes, **names)
            torch.onnx.export(m, (x,), out / net / f"torchscript-{kind}.onnx", **script)
            # PRESERVE leaves BatchNormalization where the default folds it into the convolution
            torch.onnx.export(m, (x,), out / net / f"torchscript_plain-{kind}.onnx", do_constant_folding=False,
                              training=torch.onnx.TrainingMode.PRESERVE, **script)
            program = torch.onnx.export(m, (x,), dynamo=True, opset_version=18, verbose=False, dynamic_shapes=shapes, **names)
            onnx.save(without_traces(program.model_proto), out / net / f"dynamo-{kind}.onnx")


def without_traces(proto):
    """dynamo writes stack traces, with the folders of the machine, into every node."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer, proto.graph, proto]:
        del value.metadata_props[:]
    return proto


def to_layout(x, layout):
    return np.moveaxis(x, 1, -1) if layout == "channels_last" else x


def check(out, reference):
    from record import Case, record
    from twin import Twin

    for net in NETS:
        torch_layers = [k for k in exported.SHAPES[net] if not k.startswith("bn")]
        name = f"export_{net}"
        base = out / net / "torchscript-free.onnx"
        entries = [record(base, reference, name, batch, shared=False, net=f"exports/{net}/{base.name}") for batch in (3, 16)]
        write_index(reference, entries)
        case = Case(base, name, 3, entries[0]["seed"], 4, 0.5, (1.0, 0.0), None)
        twin, _, _, _, wanted = case.gradients(torch.float64)
        recorded = {layer: s for layer, s in zip(torch_layers, twin.sites, strict=True)}
        x = generator.values("x", case.seed, [3, *exported.INPUTS[net]])
        expected = module(net)(torch.from_numpy(x)).detach().numpy()
        files = []
        for exporter in EXPORTERS:
            for kind in ("free", "fixed"):
                path = out / net / f"{exporter}-{kind}.onnx"
                layout = "channels_last" if exporter == "tf2onnx" and len(x.shape) > 2 else "channels_first"
                session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
                rows = np.split(to_layout(x, layout), 3) if kind == "fixed" else [to_layout(x, layout)]
                found = np.concatenate([session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(r)})[0] for r in rows])
                error = float(np.abs(found - expected).max())
                assert error < TOLERANCE, f"{path}: logits differ by {error}"
                gradient_error, sites = compare(case, path, layout, recorded, wanted)
                assert gradient_error < TOLERANCE, f"{path}: gradients differ by {gradient_error}"
                model = onnx.load(path)
                files.append(dict(file=path.name, opset=Twin(path).opset, input=session.get_inputs()[0].name, input_layout=layout,
                                  input_shape=session.get_inputs()[0].shape, output=session.get_outputs()[0].name,
                                  operators=[n.op_type for n in model.graph.node], sites=sites,
                                  logits_error=float(f"{error:.2g}"), gradient_error=float(f"{gradient_error:.2g}")))
                print(net, path.name, path.stat().st_size, f"{error:.2g} {gradient_error:.2g}", {s["layer"]: s["site"] for s in sites})
        note = dict(net=net, classes=exported.CLASSES[net], layers=torch_layers, recorded=[e["file"] for e in entries],
                    recorded_sites={layer: s.site for layer, s in recorded.items()}, files=files)
        (out / net / "sites.json").write_text(json.dumps(note, indent=1) + "\n")


def write_index(reference, entries):
    index_file = reference / "index.json"
    index = {e["file"]: e for e in json.loads(index_file.read_text())} if index_file.exists() else {}
    index |= {e["file"]: e for e in entries}
    index_file.write_text("[\n" + ",\n".join(json.dumps(index[k]) for k in sorted(index)) + "\n]\n")


def compare(case, path, layout, recorded, wanted):
    """Largest ‖g − g*‖/‖g*‖ of the export `path` started from the recorded A and B, and its sites by torch layer."""
    from record import Case

    other = Case(path, case.name, case.batch, case.seed, case.rank, case.delta, case.x_range, None)
    other.x = torch.from_numpy(np.ascontiguousarray(to_layout(case.x.numpy(), layout)))
    other.labels = case.labels
    rename, sites = {}, []

    def twin(dtype):
        from twin import Twin
        t = Twin(path, dtype)
        t.plan(case.rank, 2 * case.rank, case.delta)
        values = {}
        for (layer, mine), s in zip(recorded.items(), t.sites, strict=True):
            for p, q in zip(mine.params, s.params, strict=True):
                assert int(np.prod(p["shape"])) == int(np.prod(q["shape"])), (path, layer)
                values[q["name"]] = generator.values(p["name"], case.seed, p["shape"], p["scale"], p["offset"]).reshape(q["shape"])
                rename[q["name"]] = p["name"]
            sites.append(dict(layer=layer, site=s.site, node=s.node, initializer=s.initializer, kind=s.kind, layout=s.layout,
                              shapes={p["name"].rsplit(".", 1)[1]: p["shape"] for p in s.params}))
        return t, t.adapt(values)

    other.twin = twin
    found = {rename[k]: g for k, g in other.gradients(torch.float64)[4].items()}
    assert found.keys() == wanted.keys()
    return max(float((found[k].reshape(g.shape) - g).norm() / g.norm()) for k, g in wanted.items()), sites


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["torch", "check"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    export(args.out) if args.what == "torch" else check(args.out, args.reference)


if __name__ == "__main__":
    main()
