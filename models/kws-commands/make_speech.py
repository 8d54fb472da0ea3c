"""Makes the training speech of kws-commands: synthetic US English words, then augmented features.

    python make_speech.py say      --out speech.npz                       dry words, 16 kHz, silence trimmed
    python make_speech.py features --speech speech.npz --out part0.npz --count 50000 --seed 0

Needs espeak-ng 1.51 and flite 2.2 (Debian 12), numpy, scipy, soundfile. Voices: espeak-ng `en-us` with its own variants and with random
ones written here, flite kal16, rms and slt. No other accent is ever heard in training.
"""
import argparse
import os
import random
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

import front_end as fe

LABELS = "down go left no off on right stop up yes".split()
PHONES = {"down": "d aw n", "go": "g ow", "left": "l eh f t", "no": "n ow", "off": "ao f", "on": "aa n", "right": "r ay t",
          "stop": "s t aa p", "up": "ah p", "yes": "y eh s"}
CARRIERS = ["say {} please", "the word {} again", "now {}", "{} now", "i said {}", "{} and then", "a {}", "please say {}"]

# Variants of espeak-ng by use. The demo's clips come only from ADAPT and TEST, training only from the rest.
ADAPT_VARIANTS = ["m4", "f3", "Alex", "anika", "Michael", "steph", "john", "victor"]
TEST_VARIANTS = ["m2", "m5", "m7", "f2", "f5", "adam", "Andy", "belinda", "Hugo", "linda", "paul", "steph2", "edward", "Marco"]
LEFT_OUT = ["Demonic", "whisper", "whisperf", "announcer", "UniRobot", "fast", "Tweaky", "Mr serious", "edward2", "steph3", "iven4",
            "robosoft2", "robosoft4", "robosoft6", "robosoft8", "anikaRobot", "AnxiousAndy"]
TRAIN_FLITE = ["kal16", "rms", "slt"]
RANDOM_VARIANTS = 240


def run(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def read_16k(path):
    samples, rate = soundfile.read(path, dtype="float32")
    return samples if rate == fe.RATE_HZ else resample_poly(samples, 320, 441).astype(np.float32)


def trim(samples, floor=0.02, margin=480):
    """Cuts what lies before and after the word: below `floor` of the loudest 10 ms."""
    if len(samples) < 1600:
        return samples
    envelope = np.sqrt(np.convolve(samples ** 2, np.full(160, 1 / 160), "same"))
    loud = np.flatnonzero(envelope > floor * envelope.max())
    return samples[max(0, loud[0] - margin):loud[-1] + margin]


def espeak(word, path, voice="en-us", variant=None, pitch=50, rate=150, data=None):
    """One word by espeak-ng into a wav file."""
    command = ["espeak-ng", "-v", voice + (f"+{variant}" if variant else ""), "-p", str(pitch), "-s", str(rate), "-w", str(path)]
    run(command + ([f"--path={data}"] if data else []) + [word])
    return trim(read_16k(path))


def flite(text, path, voice, f0=None, f0_spread=None, stretch=1.0, phones=None):
    """One text by flite; with `phones`, only the stretch of it where these are said."""
    command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}"]
    if f0:
        command += ["--setf", f"int_f0_target_mean={f0}"]
    if f0_spread:
        command += ["--setf", f"int_f0_target_stddev={f0_spread}"]
    said = run(command + ["-psdur", "-t", text, "-o", str(path)])
    samples = read_16k(path)
    if phones is None:
        return trim(samples)
    ends = [(name, float(end)) for name, end in (token.split(":") for token in said.split())]
    names, wanted = [name for name, _ in ends], phones.split()
    for at in range(len(names) - len(wanted) + 1):
        if names[at:at + len(wanted)] == wanted:
            start, stop = ends[at - 1][1] if at else 0.0, ends[at + len(wanted) - 1][1]
            piece = samples[int(start * fe.RATE_HZ):int(stop * fe.RATE_HZ)].copy()
            fade = min(160, len(piece) // 4)
            piece[:fade] *= np.linspace(0, 1, fade)
            piece[-fade:] *= np.linspace(1, 0, fade)
            return trim(piece)
    return None


def random_variant(rng):
    """A speaker for espeak-ng that does not exist: vocal tract, pitch, breath and roughness at random."""
    tract = rng.uniform(0.82, 1.28)
    pitch = 95 * tract ** rng.uniform(1, 4) * rng.uniform(0.8, 1.25)
    lines = ["language variant", "name random", f"pitch {pitch:.0f} {pitch * rng.uniform(1.15, 1.7):.0f}"]
    for formant in range(9):
        scale = 100 * tract * rng.uniform(0.94, 1.06) if formant else 100
        lines.append(f"formant {formant} {scale:.0f} {rng.uniform(70, 130):.0f} {rng.uniform(70, 160):.0f}")
    if rng.random() < 0.4:
        lines.append("breath " + " ".join(f"{rng.uniform(0, 40):.0f}" for _ in range(5)))
    lines += [f"flutter {rng.uniform(0, 6):.0f}", f"roughness {rng.uniform(0, 3):.0f}", f"consonants {rng.uniform(60, 150):.0f}"]
    if rng.random() < 0.3:
        lines.append(f"voicing {rng.uniform(60, 130):.0f}")
    if rng.random() < 0.15:
        lines.append(f"klatt {rng.randint(1, 5)}")
    return "\n".join(lines) + "\n"


def espeak_data(folder, seed):
    """A copy of espeak-ng's data (links) whose variants are joined by random ones; returns the names of the training variants."""
    (system,) = [p for p in map(Path, ["/usr/lib/x86_64-linux-gnu/espeak-ng-data", "/usr/lib/aarch64-linux-gnu/espeak-ng-data",
                                       "/usr/share/espeak-ng-data"]) if p.exists()][:1]
    data = folder / "espeak-ng-data"
    (data / "voices").mkdir(parents=True)
    for entry in system.iterdir():
        if entry.name != "voices":
            os.symlink(entry, data / entry.name)
    shutil.copytree(system / "voices" / "!v", data / "voices" / "!v")
    own = sorted(p.name for p in (system / "voices" / "!v").iterdir())
    kept_out = set(ADAPT_VARIANTS + TEST_VARIANTS + LEFT_OUT)
    assert kept_out <= set(own), kept_out - set(own)
    rng = random.Random(seed)
    made = [f"random{i}" for i in range(RANDOM_VARIANTS)]
    for name in made:
        (data / "voices" / "!v" / name).write_text(random_variant(rng))
    return [name for name in own if name not in kept_out], made


def say(out, seed):
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        named, made = espeak_data(folder, seed)
        jobs = []
        for label, word in enumerate(LABELS):
            for variant, times in [(v, 8) for v in named] + [(v, 4) for v in made]:
                for _ in range(times):
                    text = word + rng.choice(["", "", ".", "!", "?", ","])
                    pitch = rng.randint(15, 90) if variant in named else rng.randint(30, 70)
                    jobs.append((label, "espeak", variant, lambda path, t=text, v=variant, p=pitch, r=rng.randint(85, 230):
                                 espeak(t, path, "en-us", v, p, r, folder)))
            for voice in TRAIN_FLITE:
                middle = 180 if voice == "slt" else 105
                for number in range(160):
                    setting = dict(f0=round(middle * rng.uniform(0.7, 1.6)), f0_spread=round(rng.uniform(5, 45)),
                                   stretch=round(rng.uniform(0.6, 1.7), 2))
                    text, phones = word + rng.choice(["", ".", "!", "?", ","]), None
                    if number % 2:
                        text, phones = rng.choice(CARRIERS).format(word), PHONES[word]
                        setting["stretch"] = max(0.9, setting["stretch"])
                    jobs.append((label, "flite", voice, lambda path, t=text, v=voice, s=setting, ph=phones: flite(t, path, v, phones=ph, **s)))

        def work(numbered):
            number, (label, engine, voice, make) = numbered
            path = folder / f"{number}.wav"
            samples = make(path)
            path.unlink()
            return None if samples is None or len(samples) < 1600 else (samples[:fe.WINDOW_SAMPLES], label, engine, voice)
        with ThreadPoolExecutor(3) as pool:
            clips = [clip for clip in pool.map(work, enumerate(jobs)) if clip]
    sound = np.zeros((len(clips), fe.WINDOW_SAMPLES), np.float16)
    for row, (samples, *_rest) in zip(sound, clips):
        row[:len(samples)] = samples / np.abs(samples).max()
    np.savez(out, sound=sound, length=[len(c[0]) for c in clips], label=[c[1] for c in clips], engine=[c[2] for c in clips],
             voice=[c[3] for c in clips])
    print(f"{len(clips)} clips of {len(jobs)}")


# ---- augmentation: every step takes and gives [batch, 16000] ----

def stretched(rng, bank, rows, lengths):
    """Each clip at its own, slowly changing speed (pitch, formants and tempo together), put near the middle of the window."""
    n, w = len(rows), fe.WINDOW_SAMPLES
    speed = np.exp(rng.uniform(np.log(0.78), np.log(1.25), n))
    time = np.arange(w) / w
    wobble = sum(rng.normal(0, 0.05, (n, 1)) * np.sin(2 * np.pi * (f * time + rng.random((n, 1)))) for f in (0.5, 1, 2))
    position = np.cumsum(speed[:, None] * (1 + wobble), axis=1)
    middle = w / 2 + rng.normal(0, 1300, n)
    at_middle = np.take_along_axis(position, np.clip(middle, 0, w - 1).astype(int)[:, None], 1)
    position = position - at_middle + lengths[:, None] / 2
    floor = np.floor(position).astype(np.int64)
    part = (position - floor).astype(np.float32)
    inside = (floor >= 0) & (floor < lengths[:, None] - 1)
    floor = np.clip(floor, 0, w - 2)
    sound = bank[rows].astype(np.float32)
    clips = np.take_along_axis(sound, floor, 1) * (1 - part) + np.take_along_axis(sound, floor + 1, 1) * part
    return np.where(inside, clips, 0).astype(np.float32)


def smooth_curve(rng, n, points, spread, length):
    """[n, length] random curve through `points` normal values."""
    knots = rng.normal(0, spread, (n, points)).astype(np.float32)
    at = np.linspace(0, points - 1, length)
    floor = np.minimum(at.astype(int), points - 2)
    part = (at - floor).astype(np.float32)
    return knots[:, floor] * (1 - part) + knots[:, floor + 1] * part


def microphone(rng, n, bins):
    """[n, bins] gain: tilt, smooth equaliser, low and high cut."""
    hz = np.linspace(0, fe.RATE_HZ / 2, bins)
    octave = np.log2(np.maximum(hz, 60) / 1000)
    grid = np.clip(((np.log2(np.maximum(hz, 60) / 60)) / np.log2(8000 / 60) * 255).astype(int), 0, 255)
    db = rng.normal(0, 2.5, (n, 1)) * octave + smooth_curve(rng, n, 9, 4.0, 256)[:, grid]
    low = np.exp(rng.uniform(np.log(20), np.log(350), (n, 1)))
    high = np.exp(rng.uniform(np.log(2800), np.log(16000), (n, 1)))
    gain = 10 ** (db / 20) / np.sqrt(1 + (low / np.maximum(hz, 1)) ** 4) / np.sqrt(1 + (hz / high) ** 6)
    return gain.astype(np.float32)


def room(rng, n, size):
    """[n, size/2+1] spectrum of a synthetic impulse response: a direct sound, a few early echoes, a decaying noise."""
    taps = 8000
    time = np.arange(taps) / fe.RATE_HZ
    decay = np.exp(rng.uniform(np.log(0.08), np.log(0.7), (n, 1)))
    tail = rng.standard_normal((n, taps), dtype=np.float32) * np.exp(-6.9 * time / decay)
    tail[:, :30] = 0
    for _ in range(4):
        tail[np.arange(n), rng.integers(20, 500, n)] += rng.normal(0, 3, n)
    tail *= (10 ** (-rng.uniform(-2, 20, (n, 1)) / 20)) / np.sqrt((tail ** 2).sum(1, keepdims=True) + 1e-9)
    tail[rng.random(n) < 0.35] = 0
    tail[:, 0] = 1
    return np.fft.rfft(tail, size)


def noise(rng, n, others):
    """[n, 16000] of unit power: coloured noise with moving loudness, hum, or babble of other words."""
    w = fe.WINDOW_SAMPLES
    spectrum = np.fft.rfft(rng.standard_normal((n, w), dtype=np.float32))
    bin_hz = np.maximum(np.linspace(0, fe.RATE_HZ / 2, w // 2 + 1), 30)
    slope = rng.uniform(-1.3, 0.1, (n, 1))
    grid = np.clip(np.log2(bin_hz / 30) / np.log2(8000 / 30) * 255, 0, 255).astype(int)
    spectrum *= (bin_hz / 1000) ** slope * np.exp(smooth_curve(rng, n, 12, 0.6, 256))[:, grid]
    sound = np.fft.irfft(spectrum, w).astype(np.float32)
    sound *= np.exp(smooth_curve(rng, n, 8, 0.35, w))
    sound /= np.sqrt((sound ** 2).mean(1, keepdims=True))
    time = np.arange(w) / fe.RATE_HZ
    hum = sum(rng.uniform(0, 1, (n, 1)) / k * np.sin(2 * np.pi * (k * rng.choice([50, 60], (n, 1)) * time + rng.random((n, 1)))) for k in (1, 2, 3, 5))
    sound += np.where(rng.random((n, 1)) < 0.2, rng.uniform(0, 1.5, (n, 1)), 0) * hum
    babble = sum(np.roll(others[rng.permutation(n)], int(rng.integers(w)), axis=1) for _ in range(4))
    babble /= np.sqrt((babble ** 2).mean(1, keepdims=True)) + 1e-6
    sound += np.where(rng.random((n, 1)) < 0.2, rng.uniform(0, 2, (n, 1)), 0) * babble
    for row in np.flatnonzero(rng.random(n) < 0.15):
        for _ in range(rng.integers(1, 4)):
            at, size = rng.integers(0, w - 1200), rng.integers(40, 1200)
            sound[row, at:at + size] += rng.normal(0, rng.uniform(1, 8), size) * np.exp(-np.arange(size) / size * 5)
    return (sound / np.sqrt((sound ** 2).mean(1, keepdims=True))).astype(np.float32)


def loudness(clips):
    """Power of the speech: that of the loudest fifth of the frames."""
    frames = (clips.reshape(len(clips), 100, 160) ** 2).mean(2)
    return np.sort(frames, axis=1)[:, -20:].mean(1, keepdims=True)


def augmented(rng, bank, rows, lengths):
    n, w, size = len(rows), fe.WINDOW_SAMPLES, 25000
    clips = stretched(rng, bank, rows, lengths)
    # a breathy voice: noise that follows the voice
    breath = np.where(rng.random((n, 1)) < 0.3, rng.uniform(0, 0.5, (n, 1)), 0)
    clips = clips + (breath * np.abs(clips) * rng.standard_normal((n, w), dtype=np.float32)).astype(np.float32)
    # another loudness from sound to sound
    clips *= np.exp(smooth_curve(rng, n, 10, 0.35, w))
    # a word whose beginning or end was cut by a late or short recording
    start, stop = np.argmax(np.abs(clips) > 0.02, axis=1), w - np.argmax(np.abs(clips[:, ::-1]) > 0.02, axis=1)
    cut = rng.random(n)
    for row in np.flatnonzero(cut < 0.1):
        clips[row, :start[row] + rng.integers(0, 1000)] = 0
    for row in np.flatnonzero(cut > 0.9):
        clips[row, stop[row] - rng.integers(0, 1200):] = 0
    others = clips[rng.permutation(n)]
    spectrum = np.fft.rfft(clips, size) * room(rng, n, size) * microphone(rng, n, size // 2 + 1)
    clips = np.fft.irfft(spectrum, size)[:, :w].astype(np.float32)
    level = np.sqrt(loudness(clips)) + 1e-6
    clips /= level
    snr = rng.uniform(-1, 42, (n, 1))
    snr[rng.random(n) < 0.06] = 90
    clips += noise(rng, n, others) * (10 ** (-snr / 20)).astype(np.float32)
    hot = rng.random(n) < 0.12
    drive = rng.uniform(0.3, 1.2, (n, 1)).astype(np.float32)
    clips = np.where(hot[:, None], np.tanh(clips * drive), clips)
    # trimmed clips, which the front end pads with zeros
    for row in np.flatnonzero(rng.random(n) < 0.3):
        before, after = rng.integers(0, 3000, 2)
        clips[row, :max(0, start[row] - before)] = 0
        clips[row, stop[row] + after:] = 0
    clips *= rng.choice([-1, 1], (n, 1))
    return clips.astype(np.float32)


WARPS = np.exp(np.linspace(np.log(0.84), np.log(1.19), 41))
WARPED_MEL = np.stack([fe.mel_matrix(w) for w in WARPS])


def paced(rng, logs):
    """Sounds of a word drawn out or hurried, without a change of pitch or formants."""
    n = len(logs)
    pace = np.exp(smooth_curve(rng, n, 8, 0.3, fe.FRAMES))
    at = np.cumsum(pace, axis=1)
    at += (fe.FRAMES - 1) / 2 - at[:, fe.FRAMES // 2, None]
    at = np.clip(at, 0, fe.FRAMES - 1.001)
    floor = at.astype(int)
    part = (at - floor).astype(np.float32)[:, :, None]
    take = lambda index: np.take_along_axis(logs, index[:, :, None], 1)
    return take(floor) * (1 - part) + take(floor + 1) * part


def features(rng, clips):
    """MFCC with vocal tract perturbation, changes of pace and contrast, and masks in time and frequency: [batch, 49, 10] f16"""
    n = len(clips)
    warp = np.clip(np.round(rng.normal(20, 9, n)), 0, 40).astype(int)
    mel = np.matmul(fe.magnitudes(fe.normalise_max(clips)), WARPED_MEL[warp])
    logs = paced(rng, np.log(mel + fe.LOG_OFFSET))
    middle = logs.mean(axis=(1, 2), keepdims=True)
    contrast = np.where(rng.random((n, 1, 1)) < 0.5, rng.uniform(0.8, 1.15, (n, 1, 1)), 1)
    logs = middle + (logs - middle) * contrast
    for row in np.flatnonzero(rng.random(n) < 0.35):
        size = rng.integers(1, 7)
        at = rng.integers(0, fe.FRAMES - size)
        logs[row, at:at + size] = logs[row].mean(0)
    for row in np.flatnonzero(rng.random(n) < 0.35):
        size = rng.integers(1, 7)
        at = rng.integers(0, fe.MELS - size)
        logs[row, :, at:at + size] = logs[row].mean()
    return (logs @ fe.DCT).astype(np.float16)


def make_features(speech, out, count, seed):
    """Balanced by word and by engine (half espeak-ng, half flite)."""
    data = np.load(speech)
    bank, length, label, engine = (data[k] for k in ("sound", "length", "label", "engine"))
    rng = np.random.default_rng(seed)
    groups = [[np.flatnonzero((label == l) & (engine == e)) for e in ("espeak", "flite")] for l in range(len(LABELS))]
    xs, ys = [], []
    for _ in range(count // 200):
        words = rng.integers(0, len(LABELS), 200)
        rows = np.array([rng.choice(groups[word][int(rng.random() < 0.5)]) for word in words])
        xs.append(features(rng, augmented(rng, bank, rows, length[rows])))
        ys.append(label[rows])
    np.savez(out, x=np.concatenate(xs), y=np.concatenate(ys).astype(np.uint8))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("say")
    verb.add_argument("--out", required=True)
    verb.add_argument("--seed", type=int, default=0)
    verb = verbs.add_parser("features")
    verb.add_argument("--speech", required=True)
    verb.add_argument("--out", required=True)
    verb.add_argument("--count", type=int, default=50000)
    verb.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.verb == "say":
        say(arguments.out, arguments.seed)
    else:
        make_features(arguments.speech, arguments.out, arguments.count, arguments.seed)


if __name__ == "__main__":
    main()
