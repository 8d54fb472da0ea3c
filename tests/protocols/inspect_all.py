"""What `accentor inspect` predicts beside what `adapt` and `bench` then take, on every model of CATALOGUE.md.

usage: inspect_all.py ACCENTOR SHARED OUT [--only NAME] [--threads 1,2]

Arena bytes must be the same, the peak memory of `adapt` within 15 %, the time of a step within a factor of 2. Real clips and pictures;
random numbers for the embedding network alone, whose input no file holds. A model that cannot train must say so in both.
Exit code 1 if a prediction is out of bounds. Needs numpy.
"""
import argparse
import json
import pathlib
import subprocess

import numpy as np

MODELS = pathlib.Path(__file__).resolve().parents[2] / "models"
MEMORY, STEP = 0.15, 2.0
# Other processes make a step longer, never shorter: where times differ, both are measured again, and the least counts.
TRIES = 4
# Name → manifest's folder or ONNX file, data, clips, flags of the model.
SUBJECTS = {
    "dscnn_kws": ("dscnn-kws", "words", 60, []),
    "dscnn_digits_us": ("dscnn-digits-us", "words", 60, []),
    "kwt1 (frontend, features)": ("kwt1", "words", 30, []),
    # Without the layer that adds the squares of the spectrum: changed, it hands negative numbers to a root.
    "kwt1_frontend alone": ("kwt1_frontend.onnx", "words", 20, ["--sites", "ri|melspec|mfcc"]),
    "speech embedding (mel, 96)": ("speech-embedding", "words", 20, []),
    "speech_embedding_96 alone": ("speech_embedding_96.onnx", "mel", 60, []),
    "melspectrogram alone": ("speech_embedding_melspectrogram.onnx", "words", 10, ["--input-shape", "1,32000"]),
    "resnet8_cifar10": ("resnet8-cifar10", "pictures", 200, []),
    "mobilenetv1_025_vww96": ("mobilenetv1-025-vww96", "pictures", 60, []),
    "efficientnet_lite0": ("efficientnet-lite0", "pictures", 30, []),
    "efficientnet_lite0, head": ("efficientnet-lite0", "pictures", 30, ["--sites", "none", "--head"]),
}


def files(kind, count, shared, out):
    if kind == "words":
        return sorted((shared / "data/tts_keywords").rglob("*.flac"))[:count]
    if kind == "pictures":
        return sorted((shared / "data/cifar10_jpeg").rglob("*.jpg"))[:count]
    made = [out / f"mel-{i}.npy" for i in range(count)]
    rng = np.random.default_rng(0)
    for file in made:
        np.save(file, rng.normal(1, 1, (76, 32, 1)).astype(np.float32))
    return made


def model(name, shared, out):
    """The file itself, or a copy of the manifest that finds its files in SHARED."""
    if name.endswith(".onnx"):
        return shared / "models" / name
    lines = []
    for line in (MODELS / name / "model.toml").read_text().splitlines():
        if line.startswith("onnx = "):
            line = f'onnx = "{shared / "models" / line.split(chr(34))[1]}"'
        lines.append(line)
    folder = out / name
    folder.mkdir(exist_ok=True)
    (folder / "model.toml").write_text("\n".join(lines) + "\n")
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("accentor", type=pathlib.Path)
    parser.add_argument("shared", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only")
    parser.add_argument("--threads", default="1,2")
    args = parser.parse_args()
    shared, out = args.shared.resolve(), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)

    def accentor(*parts):
        """(result, error)"""
        done = subprocess.run([str(args.accentor.resolve()), *map(str, parts), "--json"], capture_output=True, text=True)
        return (None, done.stderr.strip()) if done.returncode else (json.loads(done.stdout), None)

    print(f"{'':28}threads  arena KiB            peak MiB                  step ms", flush=True)
    print(f"{'':28}         predicted  found   predicted  found  ratio  predicted  found  ratio", flush=True)
    bad = 0
    for name, (where, kind, clips, flags) in SUBJECTS.items():
        if args.only not in (None, name):
            continue
        subject = model(where, shared, out)
        data = out / "data.csv"
        for threads in map(int, args.threads.split(",")):
            told, error = accentor("inspect", subject, *flags, "--clips", clips, "--threads", threads)
            if error:
                raise SystemExit(error)
            labels = told["labels"] or ["0", "1"]
            rows = [f"{file},{labels[i % 2]}" for i, file in enumerate(files(kind, clips, shared, out))]
            data.write_text("path,label\n" + "\n".join(rows) + "\n")
            run, error = accentor("adapt", "--model", subject, *flags, "--data", data, "--epochs", "1", "--threads", threads, "--out", out / "adapter")
            if told["cannot_train"] or error:
                agree = bool(told["cannot_train"]) and error is not None and told["cannot_train"] in error
                bad += not agree
                print(f"{name:28}{threads:<9}{'' if agree else 'DISAGREE '}inspect: {told['cannot_train']}; adapt: {error}", flush=True)
                continue
            cost = told["training"]
            memory = cost["peak_rss_bytes"] / run["peak_rss_bytes"]
            predicted, found = cost["step_ms"], float("inf")
            for _ in range(TRIES):
                timed, _ = accentor("bench", "--model", subject, *flags, "--threads", threads, "--steps", "5")
                found = min(found, timed["step_ms"]["min"])
                step = predicted / found
                if 1 / STEP <= step <= STEP:
                    break
                again, _ = accentor("inspect", subject, *flags, "--clips", clips, "--threads", threads)
                predicted = min(predicted, again["training"]["step_ms"])
            wrong = [what for what, held in [("arena", cost["arena_bytes"] == timed["arena_bytes"]), ("memory", abs(memory - 1) <= MEMORY),
                                             ("step", 1 / STEP <= step <= STEP)] if not held]
            bad += bool(wrong)
            print(f"{name:28}{threads:<9}{cost['arena_bytes'] / 1024:9.1f} {timed['arena_bytes'] / 1024:8.1f}  {cost['peak_rss_bytes'] / 2**20:8.1f} "
                  f"{run['peak_rss_bytes'] / 2**20:8.1f}  {memory:5.2f}  {predicted:9.2f} {found:8.2f}  {step:5.2f}  {' '.join(wrong)}",
                  flush=True)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
