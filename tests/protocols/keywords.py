"""Writes the CSV files of an accent of tts_keywords (data/tts_keywords of the shared folder): half of its voices to learn from.

usage: keywords.py TTS_KEYWORDS_FOLDER OUT [ACCENT]            ACCENT: en-029 (Caribbean) unless told
then:  accentor adapt --model models/kwt1 --data OUT/train.csv --eval OUT/test.csv --guard OUT/others.csv --out ADAPTER

OUT/train.csv has the accent in the voices default, +m3 and +f2, OUT/test.csv in +m7, +f4 and +f5; OUT/others.csv has every other
accent in those three voices and flite's. OUT/replay.csv has the other accents in the voices of train.csv.
"""
import csv
import pathlib
import sys

source, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])
accent = sys.argv[3] if len(sys.argv) > 3 else "en-029"
out.mkdir(parents=True, exist_ok=True)
TAUGHT = ("default", "+m3", "+f2")

with open(source / "labels.csv", newline="") as table:
    clips = list(csv.DictReader(table))
assert any(c["accent"] == accent for c in clips), accent
for name, of_accent, taught in (("train", True, True), ("test", True, False), ("replay", False, True), ("others", False, False)):
    with open(out / f"{name}.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([source / c["file"], c["word"]] for c in clips
                       if (c["accent"] == accent, c["voice"] in TAUGHT) == (of_accent, taught))
