"""Trains two recurrent keyword networks on the US speakers of FSDD and exports them with their manifests.

usage: train_recurrent.py FSDD_FOLDER OUT
OUT/gru-digits: GRU of 64, its last state; OUT/lstm-digits: LSTM of 48 both ways, the mean over its steps. Base of the protocol of fsdd.py: jackson and theo,
recordings 5 .. 49, on the MFCC of models/kws-commands (that folder's front_end.py). Nothing of this is committed: the data has a licence of its own.

Needs torch, onnx, numpy, scipy.
"""
import pathlib
import sys

import numpy as np
import scipy.io.wavfile
import scipy.signal
import torch
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "models/kws-commands"))
import front_end as fe  # noqa: E402

DIGITS = "zero one two three four five six seven eight nine".split()
US = ["jackson", "theo"]
EPOCHS, BATCH, RATE = 60, 32, 4e-3
INPUT_SCALE = 0.1

torch.manual_seed(0)
torch.set_num_threads(1)


class GruNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(fe.COEFFICIENTS, 64, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(64, 10)

    def forward(self, mfcc):
        _, last = self.gru(INPUT_SCALE * mfcc.squeeze(-1))
        return self.fc(self.drop(last.squeeze(0)))


class LstmNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(fe.COEFFICIENTS, 48, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(96, 10)

    def forward(self, mfcc):
        y, _ = self.lstm(INPUT_SCALE * mfcc.squeeze(-1))
        return self.fc(self.drop(y.mean(1)))


def features(source, indices):
    clips, labels = [], []
    for speaker in US:
        for digit in range(10):
            for index in indices:
                rate, samples = scipy.io.wavfile.read(source / f"{digit}_{speaker}_{index}.wav")
                assert rate == 8000
                samples = scipy.signal.resample_poly(samples.astype(np.float64) / 32768, 2, 1)
                clips.append(fe.align(samples, "centre"))
                labels.append(digit)
    return torch.from_numpy(fe.mfcc(np.stack(clips))), torch.tensor(labels)


def train(net, x, y):
    steps = EPOCHS * (len(x) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=RATE, total_steps=steps, pct_start=0.2)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    net.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x))[:len(x) // BATCH * BATCH].view(-1, BATCH):
            batch = torch.stack([torch.roll(clip, int(torch.randint(-3, 4, ())), 0) for clip in x[rows]])
            loss = loss_of(net(batch), y[rows])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()


def manifest(onnx):
    return f'''onnx = "{onnx}"
input = "mfcc"
output = "logits"
labels = [{", ".join(f'"{digit}"' for digit in DIGITS)}]

[front_end]
kind = "mfcc"        # the defaults are the front end of front_end.py
align = "centre"
normalise = "max"
'''


def main():
    source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    x, y = features(source, range(5, 50))
    valid_x, valid_y = features(source, range(5))
    for name, net in (("gru-digits", GruNet()), ("lstm-digits", LstmNet())):
        train(net, x, y)
        net.eval()
        with torch.no_grad():
            right = (net(valid_x).argmax(1) == valid_y).float().mean()
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        axes = {"mfcc": {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(net, (torch.zeros(3, *x.shape[1:]),), folder / f"{name}.onnx", dynamo=False, opset_version=17,
                          input_names=["mfcc"], output_names=["logits"], dynamic_axes=axes)
        (folder / "model.toml").write_text(manifest(f"{name}.onnx"))
        print(f"{name}: {sum(p.numel() for p in net.parameters())} parameters, {right:.2f} of the US speakers' recordings 0 .. 4")


if __name__ == "__main__":
    main()
