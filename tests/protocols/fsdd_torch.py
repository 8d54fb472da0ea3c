"""The FSDD protocol (data/fsdd/PROTOCOL.md of the shared folder) on KWT-1 with PyTorch and PEFT: what accentor's figures stand beside.

usage: fsdd_torch.py SHARED OUT [--seeds 5] [--methods head,lora,lora+head] [--rates 1e-3,2e-3,5e-3,1e-2]

OUT is the folder that fsdd_kwt1.py filled: the base is OUT/base/kwt1_digits.onnx, the tables are in OUT/csv, and the rate is chosen by
its rule. Features come from the ONNX front end through ONNX Runtime. 30 epochs, batch 16, AdamW, one-cycle, frames rolled by up to
60 ms; rank 8, alpha 16 on every MatMul and the head; PEFT's modules where it has some, else LoRA written in twin.py.
Needs tests/reference/requirements.txt and scipy.
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

from fsdd_kwt1 import CHOOSING_SEED, METHODS, SPEAKERS, choose, show, show_choice  # noqa: E402

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


def evaluate(twin, x, y):
    """(clips found, clips, cross-entropy)."""
    with torch.no_grad():
        logits = torch.cat([twin(part)["logits"] for part in x.split(50)])
    return int((logits.argmax(1) == y).sum()), len(y), float(F.cross_entropy(logits, y))


def accuracy(twin, x, y):
    found, count, _ = evaluate(twin, x, y)
    return found / count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rates", default="1e-3,2e-3,5e-3,1e-2")
    args = parser.parse_args()
    session = onnxruntime.InferenceSession(args.shared / "models/kwt1_frontend.onnx")
    load = lambda name: features(session, args.out / f"csv/{name}.csv")  # noqa: E731
    base, us = str(args.out / "base/kwt1_digits.onnx"), load("us-test")
    tests = {speaker: load(f"{speaker}-test") for speaker in SPEAKERS}
    frozen = Twin(base, torch.float32)
    print("base", *(f"{s} {accuracy(frozen, *test):.3f}" for s, test in tests.items()), f"us {accuracy(frozen, *us):.3f}", flush=True)
    for method in args.methods.split(","):
        tried = {float(rate): [] for rate in args.rates.split(",")}
        for speaker in SPEAKERS:
            fit, valid = load(f"{speaker}-fit"), load(f"{speaker}-valid")
            for rate in tried:
                tried[rate].append(evaluate(train(base, method, rate, CHOOSING_SEED, *fit), *valid))
        rate = choose(tried)
        show_choice(method, tried)
        for speaker, test in tests.items():
            taught = load(f"{speaker}-train-5")
            found, kept, seconds = [], [], []
            for seed in range(args.seeds):
                start = time.monotonic()
                twin = train(base, method, rate, seed, *taught)
                seconds.append(time.monotonic() - start)
                found.append(accuracy(twin, *test))
                kept.append(accuracy(twin, *us))
            show(method, speaker, rate, found, kept, seconds)


if __name__ == "__main__":
    main()
