"""The FSDD protocol (data/fsdd/PROTOCOL.md of the shared folder) on KWT-1 with accentor.

usage: fsdd_kwt1.py ACCENTOR SHARED OUT [--seeds 5] [--methods head,lora,lora+head] [--rates 1e-3,2e-3,5e-3,1e-2]

A head of ten digits on `embedding`, trained on the US speakers, is the base (OUT/base); then head only, LoRA, and LoRA with the
whole head, for each speaker and seed. fsdd_torch.py gives PyTorch's figures from the same base and by the same rule.

The rate of a method never sees a test clip: it is the one that finds most of each speaker's last two recordings a digit, both
speakers together, after training on the first three of the five (seed 100, which is not in the table); the lower
cross-entropy decides between equals. Needs onnx (new_head.py). A run takes most of a minute on one core.
"""
import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE.parents[1] / "models"
SPEAKERS = ["nicolas", "yweweler"]
CHOOSING_SEED = 100
METHODS = {"head": ["--head", "--sites", "none"], "lora": [], "lora+head": ["--head"]}
DIGITS = '["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]'


def choose(tried):
    """The rate of `{rate: [(clips found, clips, cross-entropy) of each speaker]}` that the rule takes."""
    return max(tried, key=lambda rate: (sum(t[0] for t in tried[rate]), -sum(t[2] for t in tried[rate])))


def show_choice(method, tried):
    said = ", ".join(f"{rate:g} {sum(t[0] for t in tried[rate])}/{sum(t[1] for t in tried[rate])} "
                     f"({np.mean([t[2] for t in tried[rate]]):.3f})" for rate in tried)
    print(f"{method}: found (cross-entropy) by rate: {said}", flush=True)


def show(method, speaker, rate, found, kept, seconds):
    print(f"{method:10} {speaker:9} rate {rate:g}  {np.mean(found):.3f} ± {np.std(found):.3f}  us {np.mean(kept):.3f}  "
          f"{np.mean(seconds):.0f} s  {' '.join(f'{f:.4f}' for f in found)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("accentor", type=pathlib.Path)
    parser.add_argument("shared", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rates", default="1e-3,2e-3,5e-3,1e-2")
    args = parser.parse_args()
    shared, out = args.shared.resolve(), args.out.resolve()
    csv = out / "csv"

    def accentor(*parts, as_json=True):
        line = [str(args.accentor.resolve()), *map(str, parts), *(["--json"] if as_json else [])]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return json.loads(done.stdout) if as_json else None

    base = out / "base"
    if not (base / "model.toml").is_file():
        subprocess.run([sys.executable, HERE / "fsdd.py", shared / "data/fsdd", csv], check=True)
        start = out / "start"
        start.mkdir(exist_ok=True)
        features = start / "kwt1_digits.onnx"
        subprocess.run([sys.executable, HERE / "new_head.py", shared / "models/kwt1_features.onnx", features, "10"], check=True)
        lines = []
        for line in (MODELS / "kwt1/model.toml").read_text().splitlines():
            if line.startswith("labels"):
                line = f"labels = {DIGITS}"
            elif line.startswith("onnx") and "features" in line:
                line = f'onnx = "{features.name}"'
            elif line.startswith("onnx"):
                line = f'onnx = "{shared / "models/kwt1_frontend.onnx"}"'
            elif line.startswith("align"):
                line = 'align = "centre"'
            if not line.startswith("sha256"):
                lines.append(line)
        (start / "model.toml").write_text("\n".join(lines) + "\n")
        run = accentor("adapt", "--model", start, "--data", csv / "us-train.csv", "--eval", csv / "us-test.csv", *METHODS["head"],
                       "--lr", "1e-2", "--out", out / "us-head")
        print(f"head of ten digits, US speakers: {run['after']['accuracy']:.3f}", flush=True)
        accentor("merge", "--model", start, "--adapter", out / "us-head", "--out", base, as_json=False)

    def run(method, rate, seed, data, valid, *more):
        return accentor("adapt", "--model", base, "--data", csv / f"{data}.csv", "--eval", csv / f"{valid}.csv", "--seed", seed,
                        "--lr", f"{rate:g}", *METHODS[method], *more, "--out", out / f"adapter-{method}")

    rates = [float(r) for r in args.rates.split(",")]
    for method in args.methods.split(","):
        tried = {rate: [] for rate in rates}
        for rate in rates:
            for speaker in SPEAKERS:
                after = run(method, rate, CHOOSING_SEED, f"{speaker}-fit", f"{speaker}-valid")["after"]
                tried[rate].append((after["correct"], after["samples"], after["loss"]))
        rate = choose(tried)
        show_choice(method, tried)
        for speaker in SPEAKERS:
            runs = [run(method, rate, seed, f"{speaker}-train-5", f"{speaker}-test", "--guard", csv / "us-test.csv") for seed in range(args.seeds)]
            (out / f"{method}-{speaker}.json").write_text(json.dumps(runs))
            if method == args.methods.split(",")[0]:
                print(f"base {speaker} {runs[0]['before']['accuracy']:.3f}, us {runs[0]['guard']['before']['accuracy']:.3f}")
            show(method, speaker, rate, [r["after"]["accuracy"] for r in runs], [r["guard"]["after"]["accuracy"] for r in runs],
                 [r["seconds"] for r in runs])


if __name__ == "__main__":
    main()
