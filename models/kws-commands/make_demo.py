"""Makes the demo's clips: accents that kws-commands never heard, and US English that it must not lose.

    python make_demo.py --out demo

    demo/<accent>/adapt/<word>/<voice>.flac     5 clips a word to learn from
    demo/<accent>/test/<word>/<voice>.flac      12 clips a word to be measured on, in voices that neither training nor adapt holds
    demo/us/replay, demo/us/test                the same for US English

16 kHz, mono, 11 bits deep (so that the files are small), silence trimmed; neither room nor noise is added. Needs what make_speech.py needs.
"""
import argparse
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import soundfile

import front_end as fe
from make_speech import ADAPT_VARIANTS, LABELS, TEST_VARIANTS, espeak, flite

ESPEAK_ACCENTS = {"caribbean": "en-029", "lancaster": "en-gb-x-gbclan", "west-midlands": "en-gb-x-gbcwmd"}
FLITE_ACCENT = ("scotland", "awb")
ADAPT_CLIPS, TEST_CLIPS = 5, 12
PEAK, BITS = 0.5, 11


def clips(seed):
    """(folder, word, voice, how to make it)"""
    rng = random.Random(seed)
    sets = [(accent, voice, split, variants) for accent, voice in [*ESPEAK_ACCENTS.items(), ("us", "en-us")]
            for split, variants in [("replay" if accent == "us" else "adapt", ADAPT_VARIANTS[:ADAPT_CLIPS]), ("test", TEST_VARIANTS[:TEST_CLIPS])]]
    for accent, voice, split, variants in sets:
        for variant in variants:
            for word in LABELS:
                pitch, rate = rng.randint(25, 75), rng.randint(115, 190)
                yield (f"{accent}/{split}", word, f"{variant}-p{pitch}-s{rate}",
                       lambda path, w=word, a=voice, v=variant, p=pitch, r=rate: espeak(w, path, a, v, p, r))
    # One Scottish speaker: adapt and test never share a pitch.
    accent, voice = FLITE_ACCENT
    for split, count, pitches in [("adapt", ADAPT_CLIPS, range(90, 186, 10)), ("test", TEST_CLIPS, range(85, 191, 10))]:
        for number in range(count):
            for word in LABELS:
                f0, stretch = rng.choice(pitches), round(rng.uniform(0.75, 1.35), 2)
                yield (f"{accent}/{split}", word, f"{number:02}-f{f0}-d{stretch}",
                       lambda path, w=word, f=f0, s=stretch: flite(w, path, voice, f0=f, stretch=s))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if out.exists():
        shutil.rmtree(out)
    count = size = 0
    with tempfile.TemporaryDirectory() as folder:
        for place, word, voice, make in clips(arguments.seed):
            samples = make(Path(folder) / "clip.wav")[:fe.WINDOW_SAMPLES]
            path = out / place / word / f"{voice}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            samples *= PEAK / np.abs(samples).max()
            soundfile.write(path, np.round(samples * 2 ** (BITS - 1)).astype(np.int16) << (16 - BITS), fe.RATE_HZ, subtype="PCM_16",
                            compression_level=1.0)
            count, size = count + 1, size + path.stat().st_size
    print(f"{count} clips, {size} bytes")


if __name__ == "__main__":
    main()
