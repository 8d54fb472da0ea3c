"""Trains kws-commands on features of make_speech.py, exports it, and scores it.

    python train.py train --features part0.npz part1.npz … --out .            kws-commands.onnx, model.toml
    python train.py score --model kws-commands.onnx --demo demo [--shared ../../../shared]

Needs torch, onnx, onnxruntime, numpy, soundfile. Nothing is chosen by a score: the last state (moving average) is what is exported.
"""
import argparse
import copy
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import soundfile
import torch
from torch import nn

import front_end as fe
from make_speech import LABELS

ALIGN = "centre"
INPUT_SCALE = 0.1


class Separable(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm2(self.pointwise(torch.relu(self.norm1(self.depthwise(x))))))


class KeywordNet(nn.Module):
    """DS-CNN: mfcc [batch, 49, 10, 1] -> logits [batch, 10], embedding [batch, channels]"""

    def __init__(self, channels=96, blocks=4, dropout=0.2):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, (10, 4), stride=2, padding=(5, 1), bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*[Separable(channels) for _ in range(blocks)])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, len(LABELS))

    def forward(self, mfcc):
        x = torch.relu(self.stem_norm(self.stem(INPUT_SCALE * mfcc.reshape(-1, 1, fe.FRAMES, fe.COEFFICIENTS))))
        embedding = self.blocks(x).mean(dim=(2, 3))
        return self.head(self.dropout(embedding)), embedding


class FoldedBlock(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.depthwise = folded(block.depthwise, block.norm1)
        self.pointwise = folded(block.pointwise, block.norm2)

    def forward(self, x):
        return torch.relu(self.pointwise(torch.relu(self.depthwise(x))))


class FoldedNet(nn.Module):
    """The same network as it is deployed: normalisation and input scale inside the convolutions."""

    def __init__(self, net):
        super().__init__()
        self.stem = folded(net.stem, net.stem_norm, INPUT_SCALE)
        self.blocks = nn.Sequential(*[FoldedBlock(block) for block in net.blocks])
        self.pool = nn.AvgPool2d((25, 5))
        self.head = copy.deepcopy(net.head)

    def forward(self, mfcc):
        x = torch.relu(self.stem(mfcc.reshape(-1, 1, fe.FRAMES, fe.COEFFICIENTS)))
        embedding = self.pool(self.blocks(x)).reshape(-1, self.head.in_features)
        return self.head(embedding), embedding


def folded(conv, norm, scale=1.0):
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups)
    new.weight.data = conv.weight.data * gain.data[:, None, None, None] * scale
    new.bias.data = (norm.bias - norm.running_mean * gain).data
    return new


def train(arguments):
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    parts = [np.load(path) for path in arguments.features]
    x = torch.from_numpy(np.concatenate([p["x"] for p in parts]))
    y = torch.from_numpy(np.concatenate([p["y"] for p in parts])).long()
    net = KeywordNet().to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True)
    steps = arguments.epochs * (len(x) // arguments.batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=arguments.lr, total_steps=steps, pct_start=0.2)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    started = time.time()
    for epoch in range(arguments.epochs):
        net.train()
        total = hits = 0.0
        order = torch.randperm(len(x))
        for rows in order[:len(x) // arguments.batch * arguments.batch].view(-1, arguments.batch):
            with torch.autocast("cpu", torch.bfloat16):  # five times as fast on one core; the weights stay f32
                logits, _ = net(x[rows].float())
            loss = loss_of(logits.float(), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            average.update_parameters(net)
            total += loss.item()
            hits += (logits.argmax(1) == y[rows]).sum().item()
        print(f"epoch {epoch + 1}: loss {total / (len(x) // arguments.batch):.4f}, right {hits / len(x):.4f}, {time.time() - started:.0f} s", flush=True)
    export(average.module, Path(arguments.out))


def export(net, out):
    net = copy.deepcopy(net).eval()
    final = FoldedNet(net).eval()
    sample = torch.randn(3, fe.FRAMES, fe.COEFFICIENTS, 1) * 10
    assert (final(sample)[0] - net(sample)[0]).abs().max() < 1e-3
    path = out / "kws-commands.onnx"
    torch.onnx.export(final, (sample,), str(path), dynamo=False, opset_version=17, input_names=["mfcc"], output_names=["logits", "embedding"],
                      dynamic_axes={"mfcc": {0: "batch"}, "logits": {0: "batch"}, "embedding": {0: "batch"}})
    model = onnx.load(path)
    model.graph.output[1].type.tensor_type.shape.dim[1].dim_value = final.head.in_features  # the exporter leaves it open
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    logits = onnxruntime.InferenceSession(str(path)).run(["logits"], {"mfcc": sample.numpy()})[0]
    assert np.abs(logits - final(sample)[0].detach().numpy()).max() < 1e-3
    (out / "model.toml").write_text(manifest(hashlib.sha256(path.read_bytes()).hexdigest()))
    print(f"{path.name}: {sum(p.numel() for p in final.parameters())} parameters, {path.stat().st_size} bytes", flush=True)


def manifest(sha256):
    return f'''# Ten Speech Commands words, learnt from synthetic US English. See README.md.
onnx = "kws-commands.onnx"
sha256 = "{sha256}"
input = "mfcc"        # [batch, 49, 10, 1]
output = "logits"     # [batch, 10]; the second output, "embedding", is [batch, 96]
labels = {json.dumps(LABELS)}

[front_end]
kind = "mfcc"
rate_hz = {fe.RATE_HZ}
window_samples = {fe.WINDOW_SAMPLES}
align = "{ALIGN}"      # short words stand in the middle of the second, as in the training speech
normalise = "max"     # divided by the largest sample
frame_samples = {fe.FRAME}
hop_samples = {fe.HOP}
fft = {fe.FFT}
window = "hann"       # periodic
mels = {fe.MELS}
low_hz = {fe.LOW_HZ}
high_hz = {fe.HIGH_HZ}
log_offset = {fe.LOG_OFFSET}
coefficients = {fe.COEFFICIENTS}
'''


def folder_features(folder):
    """All clips of <folder>/<word>/*.flac"""
    clips, labels = [], []
    for label, word in enumerate(LABELS):
        for path in sorted((folder / word).glob("*.flac")):
            clips.append(fe.align(soundfile.read(path, dtype="float32")[0], ALIGN))
            labels.append(label)
    return fe.mfcc(np.stack(clips)), np.array(labels)


def score(arguments):
    session = onnxruntime.InferenceSession(arguments.model)

    def right(name, x, y):
        guess = session.run(["logits"], {"mfcc": x})[0].argmax(1)
        hits = (guess == y).sum()
        by_word = " ".join(f"{word} {(guess[y == k] == k).mean():.2f}" for k, word in enumerate(LABELS) if (y == k).any())
        print(f"{name}: {hits} of {len(y)} = {hits / len(y):.3f}  ({by_word})")
    if arguments.demo:
        for accent in sorted(Path(arguments.demo).iterdir()):
            right(f"demo {accent.name}", *folder_features(accent / "test"))
    shared = arguments.shared or os.environ.get("ACCENTOR_SHARED")
    if shared:
        data = Path(shared) / "data"
        x = np.fromfile(data / "kws01_mfcc/features_1000x49x10_i8.bin", np.int8).reshape(-1, 49, 10, 1).astype(np.float32)
        y = np.fromfile(data / "kws01_mfcc/labels_1000_u8.bin", np.uint8).astype(int)
        right("real, kws01_mfcc, ten words", ((x - 83) * np.float32(0.5847029089927673))[y < 10], y[y < 10])
        clips = [soundfile.read(data / f"speech_commands_examples/{word}.wav", dtype="float32")[0] for word in LABELS]
        right("real, speech_commands_examples", fe.mfcc(np.stack([fe.align(c, ALIGN) for c in clips])), np.arange(10))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("train")
    verb.add_argument("--features", nargs="+", required=True)
    verb.add_argument("--out", default=".")
    verb.add_argument("--epochs", type=int, default=6)
    verb.add_argument("--batch", type=int, default=128)
    verb.add_argument("--lr", type=float, default=6e-3)
    verb.add_argument("--seed", type=int, default=0)
    verb = verbs.add_parser("score")
    verb.add_argument("--model", required=True)
    verb.add_argument("--demo")
    verb.add_argument("--shared")
    arguments = parser.parse_args()
    (train if arguments.verb == "train" else score)(arguments)


if __name__ == "__main__":
    main()
