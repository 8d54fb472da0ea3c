"""Adapters between accentor, PEFT and ONNX Runtime, in both directions. See README.md; run.sh calls it.

    python interop.py --accentor target/release/accentor --model dscnn_digits_us.onnx [--only a]
"""
import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import peft
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import peft_bridge as bridge  # noqa: E402

TOLERANCE = 1e-4  # of the largest logit, and of a probability
EFFECT = 1e-2     # of the largest logit: an adapter that changes less would prove nothing
CLIPS = 12

warnings.filterwarnings("ignore", message="Unexpected keyword arguments \\['accentor'\\]")


# ---- the three engines

class Base:
    """A model file with inputs for it, and accentor's verbs on it."""

    def __init__(self, accentor, path, folder, seed=1):
        self.accentor, self.path, self.folder = accentor, path, Path(folder)
        session = onnxruntime.InferenceSession(path)
        self.input = session.get_inputs()[0]
        shape = [d if isinstance(d, int) else 1 for d in self.input.shape[1:]]
        self.x = np.random.default_rng(seed).normal(size=[CLIPS, *shape]).astype(np.float32)
        self.logits = self.ort(path)
        self.labels = [f"label{i}" for i in range(self.logits.shape[1])]
        self.y = np.arange(CLIPS) % len(self.labels)
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = ["path,label"]
        for i, (x, y) in enumerate(zip(self.x, self.y)):
            np.save(self.folder / f"{i}.npy", x)
            rows.append(f"{i}.npy,{self.labels[y]}")
        (self.folder / "data.csv").write_text("\n".join(rows) + "\n")

    def run(self, verb, *arguments):
        command = [self.accentor, verb, "--model", self.path, *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"
        return result.stdout

    def adapt(self, out, *arguments):
        self.run("adapt", "--labels", ",".join(self.labels), "--data", self.folder / "data.csv", "--out", out, "--rank", 4,
                 "--lr", 0.01, "--epochs", 10, "--seed", 0, *arguments)
        return out

    def probabilities(self, adapter):
        files = [self.folder / f"{i}.npy" for i in range(CLIPS)]
        answer = json.loads(self.run("predict", "--labels", ",".join(self.labels), "--adapter", adapter, "--top", len(self.labels),
                                     "--json", *files))
        scores = [{s["label"]: s["score"] for s in p["labels"]} for p in answer["predictions"]]
        return np.array([[s.get(label, np.nan) for label in self.labels] for s in scores])

    def merged(self, adapter):
        out = str(self.folder / "merged.onnx")
        self.run("merge", "--adapter", adapter, "--out", out)
        return out

    def ort(self, path):
        session = onnxruntime.InferenceSession(path)
        name = session.get_inputs()[0].name
        if self.input.shape[0] == 1:
            return np.concatenate([session.run(None, {name: x[None]})[0] for x in self.x]).reshape(CLIPS, -1)
        return session.run(None, {name: self.x})[0].reshape(CLIPS, -1)

    def torch(self, module):
        with torch.no_grad():
            return module(torch.from_numpy(self.x)).flatten(1).numpy()


def compare(what, base, got, expected):
    largest = np.abs(expected).max()
    error, effect = np.abs(got - expected).max() / largest, np.abs(expected - base).max() / largest
    print(f"  {what}: logits differ by {error:.1e} of the largest; the adapter moves them by {effect:.2f}")
    assert error <= TOLERANCE, f"{what}: {error:.1e}"
    assert effect >= EFFECT, f"{what}: the adapter changes nothing"


def compare_scores(what, base, adapter, logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    error = np.max(np.abs(base.probabilities(adapter) - e / e.sum(1, keepdims=True)))
    print(f"  {what}: probabilities differ by {error:.1e}")
    assert error <= TOLERANCE, f"{what}: {error:.1e}"


def kinds(base):
    """An adapter on every site, and one with a trained head."""
    for name, arguments in dict(all=["--sites", "all"], head=["--head"]).items():
        yield name, base.adapt(base.folder / name, *arguments)


# ---- the checks

def a_peft_reads_accentor(base):
    """An adapter of accentor on the conversion of the ONNX file, loaded by PEFT itself."""
    for name, adapter in kinds(base):
        module = peft.PeftModel.from_pretrained(bridge.convert(base.path), adapter).eval()
        logits = base.torch(module)
        compare(f"{name}, PEFT against merged in ONNX Runtime", base.logits, logits, base.ort(base.merged(adapter)))
        compare_scores(f"{name}, PEFT against accentor predict", base, adapter, logits)


def b_accentor_reads_peft(base):
    """An adapter that PEFT trained and saved on the conversion, in accentor."""
    found = bridge.layers(onnx.load(base.path))
    for head in (False, True):
        out = base.folder / f"peft-{head}"
        module = bridge.train(bridge.convert(base.path), found, torch.from_numpy(base.x), torch.from_numpy(base.y), out, 4, head, 20, 0.01)
        assert "accentor" not in json.loads((out / "adapter_config.json").read_text())
        logits = base.torch(module)
        compare(f"head {head}, accentor merge against PEFT", base.logits, base.ort(base.merged(out)), logits)
        compare_scores(f"head {head}, accentor predict against PEFT", base, out, logits)


class Plain(nn.Module):
    """A module that was never ONNX: nested names, 1 x 1, grouped and depthwise convolutions, two dense layers."""

    def __init__(self):
        super().__init__()
        conv, relu = nn.Conv2d, nn.ReLU
        self.stem = conv(1, 8, (5, 3), stride=2, padding=(2, 1))
        self.blocks = nn.ModuleList([
            nn.ModuleDict(dict(depthwise=conv(8, 8, 3, padding=1, groups=8), pointwise=conv(8, 16, 1, bias=False))),
            nn.ModuleDict(dict(depthwise=conv(16, 16, 3, padding=1, groups=16), pointwise=conv(16, 16, 1, groups=2))),
        ])
        self.hidden, self.head, self.relu = nn.Linear(16, 12), nn.Linear(12, 5), relu()

    def forward(self, x):
        x = self.relu(self.stem(x))
        for block in self.blocks:
            x = self.relu(block["pointwise"](self.relu(block["depthwise"](x))))
        return self.head(self.relu(self.hidden(x.mean((2, 3)))))


def c_plain_module(base):
    """No bridge: the adapter of the exported file on the very module, and one trained there on the exported file."""
    torch.manual_seed(3)
    module = Plain().eval()
    path = str(base.folder / "plain.onnx")
    torch.onnx.export(module, (torch.zeros(1, 1, 20, 10),), path, input_names=["x"], output_names=["logits"],
                      dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}}, dynamo=False)
    plain = Base(base.accentor, path, base.folder / "plain")
    for name, adapter in kinds(plain):
        fresh = Plain().eval()
        fresh.load_state_dict(module.state_dict())
        logits = plain.torch(peft.PeftModel.from_pretrained(fresh, adapter).eval())
        compare(f"{name}, PEFT against merged in ONNX Runtime", plain.logits, logits, plain.ort(plain.merged(adapter)))
        compare_scores(f"{name}, PEFT against accentor predict", plain, adapter, logits)
    config = peft.LoraConfig(r=3, lora_alpha=7, use_rslora=True, target_modules=["stem", "pointwise", "hidden"], exclude_modules=["blocks.1.pointwise"],
                             modules_to_save=["head"], rank_pattern={"pointwise": 2}, alpha_pattern={"^stem": 5})
    model = peft.get_peft_model(module, config)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(torch.from_numpy(plain.x)), torch.from_numpy(plain.y))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    out = plain.folder / "peft"
    model.save_pretrained(out, save_embedding_layers=False)
    logits = plain.torch(model.eval())
    compare("trained in PEFT, accentor merge against PEFT", plain.logits, plain.ort(plain.merged(out)), logits)
    compare_scores("trained in PEFT, accentor predict against PEFT", plain, out, logits)


def d_merge(base):
    """merge against W + alpha/r·B·A computed here in f64 and written by the onnx package; nothing else changes."""
    for name, adapter in kinds(base):
        expected = onnx.load(base.path)
        tensors = {t.name: t for t in expected.graph.initializer}
        table = json.loads((adapter / "adapter_config.json").read_text())["accentor"]
        deltas = load_file(adapter / "adapter_model.safetensors")

        def change(tensor, f):
            t = tensors[tensor]
            t.CopyFrom(numpy_helper.from_array(f(numpy_helper.to_array(t).astype(np.float64)).astype(np.float32), tensor))

        for s in table["sites"]:
            d = {k: deltas[f"base_model.model.{s['key']}.{k}"].astype(np.float64)
                 for k in ("lora_A.weight", "lora_B.weight", "accentor_scale", "accentor_shift", "weight", "bias")
                 if f"base_model.model.{s['key']}.{k}" in deltas}
            if s["kind"] == "low_rank":
                assert s["groups"] == 1
                a, b = d["lora_A.weight"], d["lora_B.weight"]
                ba = s["alpha"] / s["rank"] * (b.reshape(len(b), -1) @ a.reshape(len(a), -1))
                change(s["initializer"], lambda w: w + (ba.T if s["layout"] == "in_out" else ba).reshape(w.shape))
            elif s["kind"] == "scale_shift":
                scale, shift = d["accentor_scale"], d["accentor_shift"]
                change(s["initializer"], lambda w: w * scale.reshape(-1, *[1] * (w.ndim - 1)))
                change(s["bias"], lambda b: b * scale + shift)
            else:
                change(s["initializer"], lambda w: (d["weight"].T if s["layout"] == "in_out" else d["weight"]).reshape(w.shape))
                change(s["bias"], lambda b: d["bias"].reshape(b.shape))
        path = str(base.folder / "expected.onnx")
        onnx.save(expected, path)
        merged = base.merged(adapter)
        onnx.checker.check_model(merged)
        compare(f"{name}, merge against onnx and numpy", base.logits, base.ort(merged), base.ort(path))
        old, new = onnx.load(base.path), onnx.load(merged)
        for model in (old, new):
            del model.graph.initializer[:]
        assert old.SerializeToString() == new.SerializeToString(), "merge changed more than values"
        assert Path(merged).stat().st_size == Path(base.path).stat().st_size


CHECKS = [a_peft_reads_accentor, b_accentor_reads_peft, c_plain_module, d_merge]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accentor", default="target/release/accentor")
    parser.add_argument("--model", required=True)
    parser.add_argument("--only", default="abcd")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for check in CHECKS:
        if check.__name__[0] in args.only:
            print(f"({check.__name__[0]}) {check.__doc__}")
            with tempfile.TemporaryDirectory() as folder:
                check(Base(args.accentor, args.model, folder))
    print("all hold")


if __name__ == "__main__":
    main()
