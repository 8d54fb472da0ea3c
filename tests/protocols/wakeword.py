"""A wake word as users have it, taught another word: speech_embedding with a head of one sigmoid.

usage: wakeword.py make SHARED OUT [--draws 3]
       wakeword.py score ACCENTOR OUT [--draws 3] [--rates 3e-4,1e-3,3e-3,1e-2,3e-2]
       wakeword.py clips ACCENTOR OUT --pair "smart mirror:view glass" [--flags …] [--clips 5]

`make` trains, in PyTorch, a head on each base word against other speech, and writes a chain (OUT/PAIR/model.toml: mel spectrogram,
embedding, head) and the head alone (OUT/PAIR/head.toml). `score` teaches the other word of each pair from 3, 5 and 10 clips and
prints the miss rate at fixed false-accept rates before and after, mean and range of the draws: head only beside LoRA. It runs on
embeddings, which no choice there changes, so that a run takes a second; each taught clip is there as it is and moved by up to
60 ms. `clips` is one run of `accentor adapt` through the whole chain, from the files.

The rate of a method is the one with the lowest miss rate at 1 % on the pair computer → smart mirror, over clips and draws. That pair
stands in no table; nothing is chosen on the pairs that do.

Needs numpy, scipy, soundfile, onnx, onnxruntime and PyTorch (tests/reference/requirements.txt). SHARED has models/ and data/
with wakewords, tts_keywords and fsdd. Nobody is in two splits of the speech that is not the word: FSDD by speaker,
tts_keywords by word. Draw d takes other clips of the word to learn from; the rest is the test.
"""
import argparse
import csv
import json
import pathlib
import random
import shutil
import subprocess

RATE = 16000
WINDOW = 32000
CLIPS = [3, 5, 10]
FALSE_ACCEPTS = [0.01, 0.05]
PAIRS = [("computer", "smart mirror"), ("smart mirror", "view glass"), ("view glass", "computer"), ("computer", "view glass")]
METHODS = {"head only": ["--head", "--sites", "none"], "LoRA": ["--sites", "^dense"], "LoRA + head": ["--head", "--sites", "^dense"]}
# Versions of a taught clip, and passes over them: as many steps as `adapt` makes of eight versions that take turns.
VERSIONS, SHIFT, EPOCHS = 4, 960, 16
POSITIVES = 4  # versions of a clip that the head learns from, moved by up to 200 ms
CHAIN = """name = "wake-word"
labels = ["word"]

[front_end]
kind = "waveform"
window_samples = 32000
align = "loudest"
normalise = "none"
scale = 32768

[[stage]]
onnx = "../speech_embedding_melspectrogram.onnx"
frozen = true

[[stage]]
onnx = "../speech_embedding_96.onnx"
scale = 0.1
offset = 2
window = 76
hop = 8

[[stage]]
onnx = "head.onnx"
"""
HEAD = """name = "wake-word-head"
labels = ["word"]
onnx = "head.onnx"

[front_end]
kind = "tensor"
"""


def folder(out, pair):
    return out / "-".join(word.replace(" ", "_") for word in pair)


def splits(shared, base, word):
    """Lists of files: what the head learns from, what the user has beside the clips, and what is tested."""
    wake = shared / "data/wakewords"
    of_word = {}
    with open(wake / "labels.csv", newline="") as table:
        for row in csv.DictReader(table):
            of_word.setdefault(row["word"], []).append(wake / row["file"])
    third = next(w for w in of_word if w not in (base, word))
    tts = {}
    with open(shared / "data/tts_keywords/labels.csv", newline="") as table:
        for row in csv.DictReader(table):
            tts.setdefault(row["word"], []).append(shared / "data/tts_keywords" / row["file"])
    words = sorted(tts)
    fsdd = shared / "data/fsdd"
    digits = lambda speaker, indices: [fsdd / f"{d}_{speaker}_{i}.wav" for d in range(10) for i in indices]
    shuffled = lambda files, seed: random.Random(seed).sample(files, len(files))
    base_clips, third_clips = shuffled(of_word[base], 1), shuffled(of_word[third], 2)
    speech = third_clips[:30] + [f for w in words[:6] for f in tts[w]]
    speech += digits("jackson", range(0, 50, 3)) + digits("theo", range(0, 50, 3))
    other = third_clips[30:] + [f for w in words[6:] for f in tts[w][::2]]
    other += digits("nicolas", range(5)) + digits("yweweler", range(5))
    return {
        "positive": base_clips[:40],
        "negative": speech,
        "replay": shuffled(speech, 3)[:100] + base_clips[:20],
        "word": shuffled(of_word[word], 4),
        "other": other,
        "base": base_clips[40:],
    }


def read(path):
    import numpy as np
    import scipy.signal
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32")
    return samples if rate == RATE else scipy.signal.resample_poly(samples, RATE, rate).astype(np.float32)


def window(samples, shift=0):
    """`align = "loudest"` of the manifest, moved by `shift` samples."""
    import numpy as np

    extra = len(samples) - WINDOW
    start = extra // 2
    if extra > 0:
        energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
        start = int(np.argmax(energy[WINDOW:] - energy[:-WINDOW]))
    start += shift
    before, after = max(0, -start), max(0, start + WINDOW - len(samples))
    return np.pad(samples, (before, after))[start + before :][:WINDOW]


class Embedder:
    """Embeddings [16, 96] of clips, kept as files."""

    def __init__(self, out):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.folder = out / "embeddings"
        self.folder.mkdir(exist_ok=True)
        self.mel, self.embedding = (
            onnxruntime.InferenceSession(out / f"speech_embedding_{name}.onnx", options) for name in ["melspectrogram", "96"]
        )

    def __call__(self, file, shift=0):
        import numpy as np

        kept = self.folder / f"{file.stem}_{file.parent.name}{shift:+}.npy"
        if not kept.is_file():
            samples = window(read(file), shift) * np.float32(32768)
            frames = self.mel.run(None, {"input": samples[None]})[0].reshape(-1, 32) / 10 + 2
            windows = np.stack([frames[i : i + 76] for i in range(0, len(frames) - 75, 8)])[..., None]
            np.save(kept, self.embedding.run(None, {"input_1": windows.astype(np.float32)})[0].reshape(-1, 96))
        return kept.resolve()


def make(args):
    shared, out = args.shared.resolve(), args.out
    out.mkdir(parents=True, exist_ok=True)
    for name in ["speech_embedding_melspectrogram.onnx", "speech_embedding_96.onnx"]:
        shutil.copy(shared / "models" / name, out / name)
    embed = Embedder(out)
    for base, word in PAIRS:
        to = folder(out, (base, word))
        to.mkdir(exist_ok=True)
        parts = splits(shared, base, word)
        print(base, "->", word, f"train loss {train_head(parts, embed, to / 'head.onnx'):.4f}", flush=True)
        (to / "model.toml").write_text(CHAIN)
        (to / "head.toml").write_text(HEAD)

        def table(name, rows, versions=1):
            """The files, for `clips`, and their embeddings."""
            write(to / f"clips-{name}.csv", rows)
            rng = random.Random(name)
            shifts = lambda: [0] + [rng.randint(-SHIFT, SHIFT) for _ in range(versions - 1)]
            write(to / f"{name}.csv", [(embed(file, shift), label) for file, label in rows for shift in shifts()])

        table("replay", [(file, "_other_") for file in parts["replay"]])
        for draw in range(args.draws):
            order = random.Random(100 + draw).sample(parts["word"], len(parts["word"]))
            for k in CLIPS:
                table(f"train-{k}-{draw}", [(file, "word") for file in order[:k]], VERSIONS)
            table(f"test-{draw}", [(file, "word") for file in order[max(CLIPS) :]] + [(file, "_other_") for file in parts["other"]])


def train_head(parts, embed, path):
    import numpy as np
    import torch

    torch.set_num_threads(1)
    rng = random.Random(0)
    clips, labels = [], []
    for label, files, copies in [(1, parts["positive"], POSITIVES), (0, parts["negative"], 1)]:
        for file in files:
            for copy in range(copies):
                clips.append(np.load(embed(file, rng.randint(-3200, 3200) if copy else 0)))
                labels.append(label)
    x, y = torch.tensor(np.stack(clips)), torch.tensor(labels, dtype=torch.float32)

    torch.manual_seed(0)
    # Dropout keeps 1,536 inputs from being learned by heart.
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16 * 96, 32), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(32, 1)
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    loss = torch.nn.BCEWithLogitsLoss(pos_weight=(1 - y).sum() / y.sum())
    for _ in range(30):
        for part in torch.randperm(len(x)).split(32):
            optimiser.zero_grad()
            loss(net(x[part])[:, 0], y[part]).backward()
            optimiser.step()
    net.eval()
    export(net, path)
    with torch.no_grad():
        return float(loss(net(x)[:, 0], y))


def export(net, path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    dense = [m for m in net if hasattr(m, "weight")]
    weights = []
    for i, layer in enumerate(dense):
        for part in ["weight", "bias"]:
            values = getattr(layer, part).detach().numpy()
            weights.append(numpy_helper.from_array(values, f"dense{i + 1}.{part}"))
    node = helper.make_node
    nodes = [
        node("Flatten", ["embeddings"], ["flat"], "flatten"),
        node("Gemm", ["flat", "dense1.weight", "dense1.bias"], ["hidden"], "dense1", transB=1),
        node("Relu", ["hidden"], ["active"], "relu"),
        node("Gemm", ["active", "dense2.weight", "dense2.bias"], ["logit"], "dense2", transB=1),
        node("Sigmoid", ["logit"], ["score"], "sigmoid"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "head",
        [info("embeddings", TensorProto.FLOAT, ["batch", 16, 96])],
        [info("score", TensorProto.FLOAT, ["batch", 1])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def write(path, rows):
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        table.writerows(rows)


def rows(path):
    with open(path, newline="") as file:
        return [(row["path"], row["label"]) for row in csv.DictReader(file)]


def accentor(program, *parts):
    done = subprocess.run([str(program), *map(str, parts), "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def scores(program, model, test, adapter=None):
    flags = ["--adapter", adapter] if adapter else []
    found = accentor(program, "predict", "--model", model, *flags, *(f for f, _ in test))["predictions"]
    return {p["input"]: next(l["score"] for l in p["labels"] if l["label"] == "word") for p in found}


def measure(test, found):
    """Miss rates of the word at fixed rates of false accepts, and what the sigmoid's middle gives."""
    word = [found[f] for f, label in test if label == "word"]
    other = sorted((found[f] for f, label in test if label != "word"), reverse=True)
    result = {}
    for rate in FALSE_ACCEPTS:
        threshold = other[int(rate * len(other))]
        result[f"miss at {rate:.0%} false accepts"] = sum(s <= threshold for s in word) / len(word)
    result["miss at 0.5"] = sum(s <= 0.5 for s in word) / len(word)
    result["false accepts at 0.5"] = sum(s > 0.5 for s in other) / len(other)
    return result


def score(args):
    def run(pair, method, k, draw, rate):
        at = folder(args.out, pair)
        adapter = args.out / "adapter"
        data = ["--data", at / f"train-{k}-{draw}.csv", "--replay", at / "replay.csv"]
        recipe = ["--epochs", EPOCHS, "--label-smoothing", "0.1", "--lr", f"{rate:g}"]
        accentor(args.accentor, "adapt", "--model", at / "head.toml", *data, *recipe, *METHODS[method], "--out", adapter)
        test = rows(at / f"test-{draw}.csv")
        return measure(test, scores(args.accentor, at / "head.toml", test, adapter))

    def line(name, results):
        """Mean, and lowest and highest, of each figure over the draws."""
        show = lambda values: f"{sum(values) / len(values):.3f} ({min(values):.2f} to {max(values):.2f})"
        print(f"{name:24}" + "  ".join(f"{key} {show([r[key] for r in results])}" for key in results[0]), flush=True)

    first = f"miss at {FALSE_ACCEPTS[0]:.0%} false accepts"
    chosen = {}
    for method in METHODS:
        tried = {}
        for rate in map(float, args.rates.split(",")):
            results = [run(PAIRS[0], method, k, draw, rate)[first] for k in CLIPS for draw in range(args.draws)]
            tried[rate] = sum(results) / len(results)
        chosen[method] = min(tried, key=tried.get)
        print(f"{method}: {first} by rate on {' -> '.join(PAIRS[0])}:", ", ".join(f"{r:g} {m:.3f}" for r, m in tried.items()), flush=True)
    for pair in PAIRS[1:]:
        print(" -> ".join(pair))
        at = folder(args.out, pair)
        tests = [rows(at / f"test-{draw}.csv") for draw in range(args.draws)]
        line("before", [measure(test, scores(args.accentor, at / "head.toml", test)) for test in tests])
        for k in CLIPS:
            for method in METHODS:
                line(f"{k} clips, {method}", [run(pair, method, k, draw, chosen[method]) for draw in range(args.draws)])


def clips(args):
    at = folder(args.out, args.pair.split(":"))
    adapter = args.out / "adapter-clips"
    data = ["--data", at / f"clips-train-{args.clips}-0.csv", "--replay", at / "clips-replay.csv"]
    run = accentor(args.accentor, "adapt", "--model", at, *data, *args.flags.split(), "--out", adapter)
    test = rows(at / "clips-test-0.csv")
    print(f"{run['seconds']:.0f} s", measure(test, scores(args.accentor, at, test, adapter)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making, scoring, whole = verbs.add_parser("make"), verbs.add_parser("score"), verbs.add_parser("clips")
    making.add_argument("shared", type=pathlib.Path)
    for verb in [scoring, whole]:
        verb.add_argument("accentor", type=pathlib.Path)
    for verb in [making, scoring, whole]:
        verb.add_argument("out", type=pathlib.Path)
    for verb in [making, scoring]:
        verb.add_argument("--draws", type=int, default=3)
    scoring.add_argument("--rates", default="3e-4,1e-3,3e-3,1e-2,3e-2")
    whole.add_argument("--pair", default=":".join(PAIRS[1]))
    whole.add_argument("--clips", type=int, default=5)
    whole.add_argument("--flags", default="--sites ^dense", help="of `accentor adapt`")
    args = parser.parse_args()
    {"make": make, "score": score, "clips": clips}[args.verb](args)


main()
