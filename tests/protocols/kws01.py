"""Writes the 1000 clips of kws01 (data/kws01_mfcc of the shared folder) as .npy files with a CSV file, for models/dscnn-kws.

usage: kws01.py KWS01_MFCC_FOLDER OUT
then:  accentor eval --model DSCNN --data OUT/kws01.csv       913 of 1000 (tests/shared.rs holds it)

Needs numpy. The folder has MFCC in int8; DS-CNN takes (q - 83) * 0.5847029089927673. Labels are numbers in the order of the manifest.
"""
import csv
import pathlib
import sys
import tomllib

import numpy as np

source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)

manifest = pathlib.Path(__file__).parents[2] / "models/dscnn-kws/model.toml"
LABELS = tomllib.loads(manifest.read_text())["labels"]

quantised = np.fromfile(source / "features_1000x49x10_i8.bin", dtype=np.int8).reshape(1000, 49, 10, 1)
features = ((quantised - 83.0) * 0.5847029089927673).astype(np.float32)
with open(source / "y_labels.csv", newline="") as table, open(out / "kws01.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["path", "label"])
    for index, (_, _, label) in enumerate(csv.reader(table)):
        np.save(out / f"{index}.npy", features[index])
        rows.writerow([f"{index}.npy", LABELS[int(label)]])
