#!/usr/bin/env python3
"""Speech for tests/mic/run.sh and what came of it. Python's own library only.

scene.py make CLIPS WORK PEOPLE    speech.wav, speech.raw (16 kHz, 16 bits, mono), word.wav; said.json: what was said when
scene.py play RAW PIPE             writes RAW to the pipe at the pace of a microphone, then silence until nobody reads
scene.py count WORK JSONL NAME     words that were heard; fails where too few were
scene.py gaps JSONL NAME           gaps, which must be there and must be told one by one
"""
import array, json, pathlib, random, subprocess, sys, time, wave

RATE = 16000
PAUSE_S = 1.2
# In which a word may be heard: the window is a second, scores are averaged, and a sound server adds its delay.
LATE_S = 1.6
# Of words that are heard in the file, this share has to come through a device: resampling by a server is not ours.
THROUGH = 0.9


def samples(path):
    """16 kHz mono; 8 kHz clips are doubled by linear interpolation."""
    if path.suffix == ".flac":
        raw = subprocess.run(["flac", "-s", "-d", "-c", "--force-raw-format", "--endian=little", "--sign=signed", str(path)], check=True, capture_output=True).stdout
        return array.array("h", raw)
    with wave.open(str(path)) as file:
        rate, found = file.getframerate(), array.array("h", file.readframes(file.getnframes()))
    if rate == RATE:
        return found
    assert rate * 2 == RATE, f"{path}: {rate} Hz"
    doubled = array.array("h")
    for here, after in zip(found, found[1:] + found[-1:]):
        doubled.extend((here, (here + after) // 2))
    return doubled


def write(path, data):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE)
        file.writeframes(data.tobytes())


def make(clips, work, people):
    digits = "zero one two three four five six seven eight nine".split()
    if people == "yes":
        paths = [(digits[d], clips / f"{d}_jackson_{n}.wav") for n in (10, 11) for d in range(10)]
    else:
        paths = [(f.name, sorted(f.iterdir())[0]) for f in sorted(clips.iterdir())]
    random.seed(1)
    random.shuffle(paths)
    noise = lambda: array.array("h", (random.randint(-20, 20) for _ in range(int(PAUSE_S * RATE))))
    speech, said = noise(), []
    for label, path in paths:
        start = len(speech) / RATE
        word = samples(path)
        speech += word
        said.append([label, start, len(speech) / RATE])
        speech += noise()
    write(work / "speech.wav", speech)
    (work / "speech.raw").write_bytes(speech.tobytes())
    (work / "said.json").write_text(json.dumps(said))
    (work / "seconds").write_text(str(int(len(speech) / RATE)))
    label, path = paths[0]
    write(work / "word.wav", noise() + samples(path) + noise())
    (work / "word").write_text(label)


def play(raw, pipe):
    data = raw.read_bytes()
    # ALSA takes what a pipe has for all of what it asked for: pieces of 1024 frames have to be there whole.
    block = 4 * 1024 * 2
    with open(pipe, "wb", buffering=0) as out:
        start, at = time.monotonic(), 0
        try:
            while True:
                piece = data[at:at + block]
                out.write(piece + bytes(block - len(piece)))
                at += block
                time.sleep(max(0, start + at / 2 / RATE - time.monotonic()))
        except BrokenPipeError:
            pass


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def hits(work, path):
    said = json.loads((work / "said.json").read_text())
    found = [(l["label"], l["at_seconds"]) for l in lines(path) if l["event"] == "detected"]
    # A device was there some time before the first word was played: the offset at which most words fit.
    def at(offset):
        return sum(any(l == w and s + offset <= t < e + offset + LATE_S for l, t in found) for w, s, e in said)
    return len(said), max(at(o / 10) for o in range(0, 30)), len(found)


def count(work, path, name):
    said, heard, found = hits(work, path)
    print(f"{name}: {heard} of {said} words heard, {found} detections")
    needed = 0.7 * said
    if path.name != "file.jsonl":
        needed = THROUGH * hits(work, work / "file.jsonl")[1]
    if heard < needed or found > said * 1.2:
        sys.exit(f"FAILED: {name}: {needed:.1f} words were expected")


def gaps(path, name):
    all_lines = lines(path)
    told = [l for l in all_lines if l["event"] == "gap"]
    end = all_lines[-1]
    lost = sum(l["lost_seconds"] for l in told)
    print(f"{name}: {len(told)} gaps, {lost:.3f} of {end['seconds']:.3f} s lost")
    if not told or len(told) != end["gaps"] or abs(lost - end["lost_seconds"]) > 1e-6 or lost <= 0:
        sys.exit(f"FAILED: {name}: {end}")


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "make":
        make(pathlib.Path(rest[0]), pathlib.Path(rest[1]), rest[2])
    elif verb == "play":
        play(pathlib.Path(rest[0]), rest[1])
    elif verb == "count":
        count(pathlib.Path(rest[0]), pathlib.Path(rest[1]), rest[2])
    elif verb == "gaps":
        gaps(pathlib.Path(rest[0]), rest[1])
    else:
        sys.exit(__doc__)
