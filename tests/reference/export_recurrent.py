"""torch's GRU, LSTM and RNN through both of its exporters, recorded, and the oracle itself checked against torch's own layers.

    python export_recurrent.py --out ../data/exports/recurrent --reference ../data/reference      NET-EXPORTER.onnx, recordings export_NET_EXPORTER-b*

twin.py computes a recurrent node from the formulas of ONNX. Here the same network runs as torch.nn.GRU, LSTM or RNN in f64, with LoRA put on weight_ih_l*
and weight_hh_l* (its rows brought from ONNX's order of the gates to torch's): logits and adapter gradients must be the twin's to 1e-9. Dynamo unrolls an RNN
into dense layers, so that only the TorchScript exporter has one.
"""
import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

import generator
from export import without_traces, write_index
from record import Case, record

TOLERANCE = 1e-9
INPUT = [7, 5]
ORDER = dict(GRU=[1, 0, 2], LSTM=[0, 3, 1, 2], RNN=[0])  # block of torch for each block of ONNX


class Net(nn.Module):
    def __init__(self, kind, bidirectional):
        super().__init__()
        self.rnn = kind(5, 6, batch_first=True, bidirectional=bidirectional)
        self.fc = nn.Linear(12 if bidirectional else 6, 5)

    def forward(self, x):
        y, last = self.rnn(x)
        last = last[0] if isinstance(last, tuple) else last
        return self.fc(y.mean(1) + last.transpose(0, 1).flatten(1))


NETS = dict(gru=(nn.GRU, False), gru_both=(nn.GRU, True), lstm_both=(nn.LSTM, True), rnn=(nn.RNN, False))


def module(net):
    m = Net(*NETS[net]).eval()
    state = {k: torch.from_numpy(generator.values(f"{net}/{k}", 0, list(v.shape), 0.5)) for k, v in m.state_dict().items()}
    m.load_state_dict(state)
    return m


def export(net, exporter, path):
    m, x = module(net), torch.zeros(3, *INPUT)
    names = dict(input_names=["x"], output_names=["logits"])
    if exporter == "torchscript":
        torch.onnx.export(m, (x,), path, dynamo=False, opset_version=17, dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}}, **names)
    else:
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(m, (x,), dynamo=True, opset_version=18, verbose=False, dynamic_shapes=shapes, **names)
        onnx.save(without_traces(program.model_proto), path)


def check(net, path, name, seed, batch):
    """Largest difference of logits and of gradients between the twin and torch's own layer."""
    case = Case(path, name, batch, seed, 4, 0.5, (1.0, 0.0), None)
    twin, logits, _, _, gradients = case.gradients(torch.float64)
    m = module(net).double()
    params = {k: p.detach() for k, p in m.named_parameters()}
    leaves = {}
    for s in twin.sites:
        pair = [torch.from_numpy(generator.values(p["name"], seed, p["shape"], p["scale"], p["offset"])).double().requires_grad_() for p in s.params]
        leaves |= {p["name"]: t for p, t in zip(s.params, pair)}
        delta = s.alpha / s.rank * pair[1] @ pair[0]
        target = "fc.weight"
        if s.kind == "recurrent":
            letter = "ih" if s.site.removesuffix("_reverse").endswith(".W") else "hh"
            target = f"rnn.weight_{letter}_l0" + ("_reverse" if s.site.endswith("_reverse") else "")
            blocks = delta.chunk(len(ORDER[type(m.rnn).__name__]))
            torch_blocks = [None] * len(blocks)
            for block, at in zip(blocks, ORDER[type(m.rnn).__name__]):
                torch_blocks[at] = block
            delta = torch.cat(torch_blocks)
        params[target] = params[target] + delta
    found = torch.func.functional_call(m, params, (case.x.double(),))
    case.loss(found).backward()
    errors = [float((found.detach() - logits).abs().max())]
    errors += [float((leaves[k].grad - g).norm() / g.norm()) for k, g in gradients.items()]
    return max(errors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for net in NETS:
        for exporter in ("torchscript", "dynamo"):
            if (net, exporter) == ("rnn", "dynamo"):
                continue
            path = args.out / f"{net}-{exporter}.onnx"
            export(net, exporter, path)
            name = f"export_{net}_{exporter}"
            entry = record(path, args.reference, name, 3, shared=False, net=f"exports/recurrent/{path.name}")
            error = check(net, path, name, entry["seed"], 3)
            assert error < TOLERANCE, f"{name}: twin and torch differ by {error}"
            write_index(args.reference, [entry])
            print(name, f"{error:.1e}", entry["sites"], np.round(entry["f32_gradient_error"], 8))


if __name__ == "__main__":
    main()
