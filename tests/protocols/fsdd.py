"""Writes the CSV files of the FSDD protocol (data/fsdd/PROTOCOL.md of the shared folder).

usage: fsdd.py FSDD_FOLDER OUT
For each adapted speaker: OUT/SPEAKER-train-K.csv (indices 50-K .. 49, K = 3, 5, 10) and OUT/SPEAKER-test.csv (0 .. 39);
to choose a rate inside the five: OUT/SPEAKER-fit.csv (45 .. 47) and OUT/SPEAKER-valid.csv (48, 49).
For the US speakers: OUT/us-test.csv (0 .. 4), OUT/us-replay.csv (5 .. 14), OUT/us-train.csv (5 .. 49).
"""
import csv
import pathlib
import sys

source, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)

DIGITS = "zero one two three four five six seven eight nine".split()


def write(name, speakers, indices):
    with open(out / f"{name}.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for speaker in speakers:
            for digit in range(10):
                for index in indices:
                    clip = source / f"{digit}_{speaker}_{index}.wav"
                    assert clip.is_file(), clip
                    rows.writerow([clip, DIGITS[digit]])


for speaker in ["nicolas", "yweweler"]:
    for k in [3, 5, 10]:
        write(f"{speaker}-train-{k}", [speaker], range(50 - k, 50))
    write(f"{speaker}-fit", [speaker], range(45, 48))
    write(f"{speaker}-valid", [speaker], range(48, 50))
    write(f"{speaker}-test", [speaker], range(40))
write("us-test", ["jackson", "theo"], range(5))
write("us-replay", ["jackson", "theo"], range(5, 15))
write("us-train", ["jackson", "theo"], range(5, 50))
