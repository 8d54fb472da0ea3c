"""kill -9 at random moments of a busy daemon: nothing acknowledged is lost, and it is back within a second.

usage: daemon_kill.py ACCENTOR MODEL CLIPS [TIMES]
ACCENTOR: the binary. MODEL: a folder with a model.toml. CLIPS: a folder with a folder a label (.wav, any rate).
Sound runs all the time, every word is corrected, trainings begin and are accepted or taken back. Prints one JSON object.
"""
import array
import json
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wave

binary, model, clips = (pathlib.Path(p).resolve() for p in sys.argv[1:4])
times = int(sys.argv[4]) if len(sys.argv) > 4 else 200
RATE_HZ = 16000
random.seed(1)

folder = pathlib.Path(tempfile.mkdtemp())
config = folder / "accentor.toml"
config.write_text(f"""
model = "{model}"
state = "state"
socket = "control"
[learn]
examples = 3
quiet_seconds = 0.0
cpu_share = 1.0
checkpoint_seconds = 0.2
epochs = 4
[gate]
folds = 2
[trial]
feedback_seconds = 1.0
[guard]
ambient_seconds = 5.0
[[input]]
name = "hall"
kind = "socket"
path = "sound"
rate_hz = {RATE_HZ}
""")


def samples(path):
    with wave.open(str(path)) as file:
        values = array.array("h", file.readframes(file.getnframes()))
        rate = file.getframerate()
    # The nearest sample will do: what is heard does not matter here.
    return array.array("h", (values[int(i * rate / RATE_HZ)] for i in range(int(len(values) * RATE_HZ / rate))))


words = [(path.parent.name, samples(path)) for path in sorted(clips.glob("*/*.wav"))]
def ask(request, timeout=10.0):
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(timeout)
        control.connect(str(folder / "control"))
        control.sendall(json.dumps(request).encode() + b"\n")
        line = control.makefile().readline()
        if not line:
            raise ConnectionError
        return json.loads(line)


examples, confirmed, taken_back = set(), set(), set()
# Numbers of words that were heard since the last start and not spoken of yet: a second word on one replaces the first.
heard = []


def listen(daemon):
    for line in daemon.stdout:
        event = json.loads(line)
        if event["event"] == "detected":
            heard.append(event["id"])


def talk(alive):
    """Words and feedback without end; what is acknowledged is remembered."""
    while alive.is_set():
        try:
            with socket.socket(socket.AF_UNIX) as sound:
                sound.connect(str(folder / "sound"))
                while alive.is_set():
                    say(sound)
        except (OSError, ValueError, KeyError):
            time.sleep(0.005)


def say(sound):
    label, values = random.choice(words)
    noise = array.array("h", (random.randint(-30, 30) for _ in range(RATE_HZ)))
    sound.sendall(noise.tobytes() + values.tobytes() + noise.tobytes())
    time.sleep(0.05)
    # A device has some dozens of clips, not thousands.
    if random.random() < 30 / (30 + len(examples)):
        reply = ask({"ask": "correct", "label": label, "event": heard.pop()} if heard else {"ask": "missed", "label": label})
        text = reply.get("done", "")
        if text.startswith("example "):
            examples.add(int(text.split()[1]))
    # Updates are accepted, a few are taken back.
    if random.random() < 0.005:
        # Which one it was is not known if the answer does not come.
        taken_back.update(g["number"] for g in ask({"ask": "history"})["history"] if g["life"] == "confirmed")
        ask({"ask": "rollback"})
    reply = ask({"ask": "accept"})
    if "done" in reply:
        confirmed.add(int(reply["done"].split()[1]))


starts, lost_examples, lost_adapters, aside = [], 0, 0, 0
for turn in range(times + 1):
    began = time.monotonic()
    daemon = subprocess.Popen([binary, "serve", "--config", config, "--log", "warn"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    heard.clear()
    listener = threading.Thread(target=listen, args=(daemon,))
    listener.start()
    while True:
        try:
            status = ask({"ask": "status"})["status"]
            break
        except (OSError, ValueError):
            if daemon.poll() is not None:
                sys.exit(f"it does not start: {daemon.stderr.read().decode()}")
            time.sleep(0.002)
    starts.append(time.monotonic() - began)
    aside += status["set_aside"]
    there = {n for count in ask({"ask": "examples"})["examples"] for n in count["numbers"]}
    lost_examples += len(examples - there)
    lives = {g["number"]: g["life"] for g in ask({"ask": "history"})["history"]}
    lost_adapters += sum(lives.get(n) != "confirmed" for n in confirmed - taken_back)
    if turn == times:
        daemon.send_signal(signal.SIGTERM)
        began = time.monotonic()
        daemon.wait(10)
        ended = time.monotonic() - began
        break
    alive = threading.Event()
    alive.set()
    talker = threading.Thread(target=talk, args=(alive,))
    talker.start()
    time.sleep(random.uniform(0.05, 2.0))
    daemon.kill()
    daemon.wait()
    alive.clear()
    talker.join()
    listener.join()
print(json.dumps({
    "kills": times,
    "acknowledged_examples": len(examples),
    "lost_examples": lost_examples,
    "acknowledged_confirmed": len(confirmed),
    "lost_confirmed": lost_adapters,
    "adapters": len(lives),
    "set_aside": aside,
    "start_seconds": {"min": round(min(starts), 3), "median": round(sorted(starts)[len(starts) // 2], 3), "max": round(max(starts), 3)},
    "sigterm_seconds": round(ended, 3),
    "state": str(folder / "state"),
}))
