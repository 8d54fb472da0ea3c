"""Quantises a DS-CNN with ONNX Runtime in every form that it writes, and says what ONNX Runtime finds with each.

usage: quantise.py MODEL.onnx CALIBRATION OUT [CLIPS.csv]
CALIBRATION is the folder data/kws01_mfcc of the shared folder: its first 500 clips calibrate, all are written as OUT/mfcc/*.npy with
OUT/mfcc.csv for `accentor eval`, and where the model has its twelve scores the accuracy on them is printed. With CLIPS.csv (a CSV of .npy
inputs) the accuracy is on these. Writes OUT/{float,qdq-tensor,qdq-channel,qdq-s8,qoperator,qoperator-channel,dynamic}.onnx; the
models derive from the shared folder and are not part of the project.
"""
import csv
import pathlib
import sys

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

WORDS = "down go left no off on right stop up yes _silence_ _unknown_".split()
# Real values of the stored integers: CATALOGUE.md.
SCALE, ZERO = 0.5847029089927673, 83

model, calibration, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
(out / "mfcc").mkdir(parents=True, exist_ok=True)
stored = np.fromfile(calibration / "features_1000x49x10_i8.bin", np.int8).reshape(1000, 49, 10, 1)
clips = ((stored.astype(np.float32) - ZERO) * SCALE).astype(np.float32)
labels = np.fromfile(calibration / "labels_1000_u8.bin", np.uint8)
with open(out / "mfcc.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["path", "label"])
    for i, (clip, label) in enumerate(zip(clips, labels)):
        np.save(out / "mfcc" / f"{i:04}.npy", clip)
        rows.writerow([f"mfcc/{i:04}.npy", WORDS[label]])


class Clips(CalibrationDataReader):
    def __init__(self, name):
        self.feeds = iter([{name: clip[None]} for clip in clips[:500]])

    def get_next(self):
        return next(self.feeds, None)


prepared = str(out / "float.onnx")
quant_pre_process(model, prepared, skip_symbolic_shape=True)
name = ort.InferenceSession(prepared).get_inputs()[0].name
forms = {
    "qdq-tensor": dict(quant_format=QuantFormat.QDQ, per_channel=False),
    "qdq-channel": dict(quant_format=QuantFormat.QDQ, per_channel=True),
    "qdq-s8": dict(quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QInt8),
    "qoperator": dict(quant_format=QuantFormat.QOperator, per_channel=False),
    "qoperator-channel": dict(quant_format=QuantFormat.QOperator, per_channel=True),
}
for form, options in forms.items():
    # Weights of 7 bits: with 8, ONNX Runtime's sums of products of two kinds of signs saturate on processors without VNNI.
    options = dict(activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True) | options
    quantize_static(prepared, out / f"{form}.onnx", Clips(name), **options)
quantize_dynamic(prepared, out / "dynamic.onnx", weight_type=QuantType.QUInt8)

if len(sys.argv) > 4:
    with open(sys.argv[4]) as file:
        rows = list(csv.DictReader(file))
    x = np.stack([np.load(pathlib.Path(sys.argv[4]).parent / r["path"]).reshape(49, 10, 1) for r in rows]).astype(np.float32)
    names = sorted({r["label"] for r in rows}, key="zero one two three four five six seven eight nine".split().index)
    targets = np.array([names.index(r["label"]) for r in rows])
else:
    x, targets = clips, labels
for form in ["float", *forms, "dynamic"]:
    session = ort.InferenceSession(out / f"{form}.onnx")
    scores = np.concatenate([session.run(None, {name: clip[None]})[0] for clip in x])
    np.save(out / f"{form}-scores.npy", scores)
    if scores.shape[1] > targets.max():
        print(f"{form}: {(scores.argmax(1) == targets).sum()} of {len(x)}")
