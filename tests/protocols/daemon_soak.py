"""An hour of real recordings through the daemon, faster than real time: words heard and missed, false wakes an hour, memory, processor.

usage: daemon_soak.py [--teach CLIPS] ACCENTOR MODEL WORDS OTHERS [SECONDS] [THRESHOLD[:WINDOWS]…]
ACCENTOR: the binary. MODEL: a folder with a model.toml. WORDS: a folder with a folder a label, clips of the model's words. OTHERS: a
folder with clips of anything else: other words, noise. One run for each threshold [0.6], with scores averaged over WINDOWS [5]. Prints a JSON object a run.
With --teach the daemon is first taught CLIPS (a folder with a folder a label) in the same room: each word is corrected or said to be missed,
wakes at one of eight OTHERS are said to be false, an update is trained, and accepted if its gate admits it; it brings its own threshold, of
THRESHOLD at most.
Needs soundfile (pip install soundfile==0.14.0), which reads .wav and .flac.

Between words there are 1 to 6 s of silence or noise; one clip of four is of OTHERS. A word is heard if it is detected from its
beginning to 1.2 s behind its end, and missed if not; every other detection is a false wake.
"""
import array
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time

import soundfile

lessons_folder = None
if sys.argv[1] == "--teach":
    lessons_folder = pathlib.Path(sys.argv[2]).resolve()
    del sys.argv[1:3]
binary, model, words_folder, others_folder = (pathlib.Path(p).resolve() for p in sys.argv[1:5])
seconds = float(sys.argv[5]) if len(sys.argv) > 5 else 3600.0
runs = [(float(t.split(':')[0]), int((t + ':5').split(':')[1])) for t in sys.argv[6:] or ['0.6']]
RATE_HZ = 16000
LATE_SECONDS = 1.2


def samples(path):
    frames, rate = soundfile.read(str(path), dtype="int16")
    assert frames.ndim == 1, path
    values = array.array("h", frames.tolist())
    if rate == RATE_HZ:
        return values
    # Linear interpolation: what is above half of the lower rate is weak in speech.
    out = array.array("h")
    for i in range(int(len(values) * RATE_HZ / rate)):
        at = i * rate / RATE_HZ
        low = int(at)
        high = min(low + 1, len(values) - 1)
        out.append(int(values[low] + (values[high] - values[low]) * (at - low)))
    return out


words = [(p.parent.name, samples(p)) for p in sorted(words_folder.glob("*/*.*"))]
others = [samples(p) for p in sorted(others_folder.rglob("*.*")) if p.suffix in (".wav", ".flac")]
assert words and others
lessons = [(p.parent.name, samples(p)) for p in sorted(lessons_folder.glob("*/*.*"))] if lessons_folder else []


def rss_kib(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1])


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(threshold, windows):
    rng = random.Random(1)
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "accentor.toml").write_text(f"""
model = "{model}"
state = "state"
socket = "control"
[listen.detector]
threshold = {threshold}
smoothing_windows = {windows}
[learn]
automatic = false
[gate]
highest_threshold = {threshold}
[guard]
ambient_seconds = 60.0
[[input]]
name = "hall"
kind = "socket"
path = "sound"
rate_hz = {RATE_HZ}
""")
    daemon = subprocess.Popen([binary, "serve", "--config", folder / "accentor.toml", "--log", "warn"], stdout=subprocess.PIPE, text=True)
    events = []
    reader = threading.Thread(target=lambda: events.extend(json.loads(line) for line in daemon.stdout))
    reader.start()
    while not (folder / "sound").exists() or not (folder / "control").exists():
        time.sleep(0.01)
    sound = socket.socket(socket.AF_UNIX)
    sound.connect(str(folder / "sound"))
    said, at, memory, began = [], 0, [], time.monotonic()
    next_look = 0

    def send(values):
        nonlocal at
        sound.sendall(values.tobytes())
        at += len(values)

    def ask(request):
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(folder / "control"))
            control.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(control.makefile().readline())

    def noise(seconds):
        level = rng.choice([0, 3, 30, 150])
        send(array.array("h", (int(rng.uniform(-level, level)) for _ in range(int(seconds * RATE_HZ)))))

    def settle():
        while True:
            stream = ask({"ask": "status"})["status"]["streams"][0]
            # The thread that reads events may be behind.
            if stream["seconds"] >= at / RATE_HZ - 0.01 and sum(e["event"] == "detected" for e in events) >= stream["detections"]:
                return
            time.sleep(0.002)

    verdict = None
    if lessons:
        everything = lessons + [(None, values) for values in rng.sample(others, len(others) // 8)]
        rng.shuffle(everything)
        for label, values in everything:
            seen = len(events)
            noise(1.0)
            send(values)
            noise(1.2)
            settle()
            woke = [e["id"] for e in events[seen:] if e["event"] == "detected"]
            if label is None:
                for number in woke:
                    ask({"ask": "false_wake", "event": number})
            elif woke:
                ask({"ask": "correct", "label": label, "event": woke[-1]})
            else:
                ask({"ask": "missed", "label": label})
        ask({"ask": "train"})
        while verdict is None:
            time.sleep(0.1)
            verdict = next((e for e in events if e["event"] in ("trial", "refused")), None)
        ask({"ask": "accept"})
        began, at_start, cpu_start = time.monotonic(), at, cpu_seconds(daemon.pid)
    else:
        at_start, cpu_start = at, 0
    first = len(events)
    while at - at_start < seconds * RATE_HZ:
        pause = int(rng.uniform(1.0, 6.0) * RATE_HZ)
        level = rng.choice([0, 3, 30, 150])
        send(array.array("h", (int(rng.uniform(-level, level)) for _ in range(pause))))
        if rng.random() < 0.25:
            send(rng.choice(others))
        else:
            label, values = rng.choice(words)
            said.append((label, at / RATE_HZ, (at + len(values)) / RATE_HZ))
            send(values)
        if (at - at_start) / RATE_HZ >= next_look:
            memory.append(((at - at_start) / RATE_HZ, rss_kib(daemon.pid)))
            next_look = (at - at_start) / RATE_HZ + 60
    send(array.array("h", bytes(4 * RATE_HZ)))
    settle()
    status = ask({"ask": "status"})["status"]
    wall = time.monotonic() - began
    memory.append(((at - at_start) / RATE_HZ, rss_kib(daemon.pid)))
    cpu = cpu_seconds(daemon.pid) - cpu_start
    daemon.terminate()
    daemon.wait(10)
    reader.join()
    detections = [e for e in events[first:] if e["event"] == "detected"]
    heard, false, matched = 0, 0, set()
    for label, start, end in said:
        fits = [i for i, e in enumerate(detections) if e["label"] == label and start <= e["at_seconds"] <= end + LATE_SECONDS]
        heard += bool(fits)
        matched.update(fits)
    false = len(detections) - len(matched)
    audio = (at - at_start) / RATE_HZ
    hours = audio / 3600
    early = [m for t, m in memory if t >= 300][:1] or [memory[0][1]]
    return {
        "threshold": threshold,
        "smoothing_windows": windows,
        "verdict": verdict,
        "audio_seconds": round(audio, 1),
        "wall_seconds": round(wall, 1),
        "words": len(said),
        "heard": heard,
        "missed": len(said) - heard,
        "missed_share": round(1 - heard / len(said), 4),
        "false_wakes_an_hour": round(false / hours, 2),
        "gaps": status["streams"][0]["gaps"],
        "rss_kib_after_5_minutes": early[0],
        "rss_growth_kib": max(m for t, m in memory) - early[0],
        "cpu_share_at_real_time": round(cpu / audio, 4),
    }


for threshold, windows in runs:
    print(json.dumps(run(threshold, windows)), flush=True)
