"""Writes CSV files that teach dscnn_kws a word it never heard: "computer" of data/wakewords, old words from data/kws01_mfcc.

usage: new_word.py SHARED OUT [CLIPS]     (needs numpy; CLIPS of the new word, 10 without)
then:  accentor adapt --model DSCNN --new-labels --data OUT/new.csv --replay OUT/replay.csv --eval OUT/new-test.csv
           --guard OUT/old-test.csv --out computer

Clips of the new word are in the order of their names (speakers are random in it): the first CLIPS train, those from the
20th on test. Old words: the odd ones of the 1000 clips test; of the even ones the first ten a label are replayed. The other
two wake words test whether a word that is neither is taken for the new one (their label is _unknown_).
"""
import csv
import pathlib
import subprocess
import sys

shared, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])
clips = int(sys.argv[3]) if len(sys.argv) > 3 else 10
here = pathlib.Path(__file__).parent
subprocess.run([sys.executable, here / "kws01.py", shared / "data/kws01_mfcc", out], check=True)
with open(out / "kws01.csv", newline="") as table:
    old = [(row["path"], row["label"]) for row in csv.DictReader(table)]


def write(name, rows):
    with open(out / name, "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])


def wake(word):
    return sorted((shared / "data/wakewords").glob(f"{word}_*.flac"))


replay = []
for path, label in old[::2]:
    if sum(l == label for _, l in replay) < 10:
        replay.append((path, label))
write("replay.csv", replay)
write("old-test.csv", old[1::2])
write("new.csv", [(p, "computer") for p in wake("computer")[:clips]])
write("new-test.csv", [(p, "computer") for p in wake("computer")[20:]])
write("other-test.csv", [(p, "_unknown_") for word in ("smart_mirror", "view_glass") for p in wake(word)])
