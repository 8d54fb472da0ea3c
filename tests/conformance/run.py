"""The ONNX standard's node tests through accentor: writes tests/conformance/RESULTS.md.

    python tests/conformance/run.py            # packages: requirements.txt; cargo builds the runner
    python tests/conformance/run.py Conv GRU   # the cases of these operators, on the terminal

A case is a model of one operator with its inputs and outputs. As in a frozen file, one input is fed and the others are
stored; this is done for each input in turn, with the whole shape that the case has. For the gradient the input is the
weight of a layer before the operator, which is fed 1, so that its gradient is that of the input.
"""

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FEED = "conformance_feed"
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
SMALL = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
         "float4_e2m1fn", "int4", "uint4", "int2", "uint2")
# Of the largest value: what a float32 loses where a value is the difference of larger ones (eight roundings).
ROUNDING = 8 * 2.0**-23
# tract's sigmoid and tanh are rational functions, off by some 1e-6 of their range of 1.
TRACT = 2e-6
# Units in the last place of an output in 16 bits: the standard's was rounded after every operator, ours is held in float32.
HALF_UNITS = {"float16": 2 * 2.0**-10, "bfloat16": 2 * 2.0**-7}
# Their gradient is not the slope, by design.
STRAIGHT_THROUGH = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")
# Whole numbers are held as f32, exact up to here; an input with larger ones is not fed.
EXACT = 2**24
# A case that runs longer than this counts as a crash.
SECONDS = 120


def operator_of(name, model, singles):
    """The operator of a case; a function written out (`_expanded`) counts as the operator that it is."""
    types = [n.op_type for n in model.graph.node]
    base = re.sub(r"_expanded(_ver\d+)?(_function_body)?$", "", name)
    if base != name and base in singles:
        return singles[base] + " (written out)"
    return types[0] if len(set(types)) == 1 else " + ".join(sorted(set(types))[:3])


def plain(value):
    """What a case holds, as an array where it is a tensor."""
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, (np.ndarray, np.generic)) else value


def is_numeric(value):
    """Also the small types that numpy itself does not have."""
    return isinstance(value, np.ndarray) and (value.dtype.kind in "fiub" or value.dtype.name in SMALL)


def is_tensor(info, value):
    return info.type.HasField("tensor_type") and isinstance(value, np.ndarray)


def stored(model, values, fed):
    """The model with every input but `fed` as an initializer."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    del out.graph.input[:]
    for info, value in zip(model.graph.input, values):
        if info.name == fed or not is_tensor(info, value):
            out.graph.input.append(info)
        else:
            out.graph.initializer.append(numpy_helper.from_array(value, info.name))
    return out


def with_unused(model):
    """A model without an input gets one that nothing reads."""
    if not model.graph.input:
        model.graph.input.append(helper.make_tensor_value_info("conformance_unused", TensorProto.FLOAT, [1, 1]))
    return model


def with_layer(model, values, fed):
    """The model with `fed` as the weight of a layer before it."""
    out = stored(model, values, fed)
    at = next(i for i, info in enumerate(model.graph.input) if info.name == fed)
    value, kind = values[at], model.graph.input[at].type.tensor_type.elem_type
    kept = [i for i in out.graph.input if i.name != fed]
    del out.graph.input[:]
    out.graph.input.extend([*kept, helper.make_tensor_value_info("conformance_one", TensorProto.FLOAT, [1, 1])])
    flat = value.astype(np.float32).reshape(1, -1)
    out.graph.initializer.append(numpy_helper.from_array(flat, f"{FEED}.weight"))
    out.graph.initializer.append(numpy_helper.from_array(np.array(value.shape, np.int64), f"{FEED}_shape"))
    nodes = [
        helper.make_node("MatMul", ["conformance_one", f"{FEED}.weight"], [f"{FEED}_row"]),
        helper.make_node("Reshape", [f"{FEED}_row", f"{FEED}_shape"], [f"{FEED}_whole" if kind != TensorProto.FLOAT else fed]),
    ]
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [f"{FEED}_whole"], [fed], to=kind))
    nodes.extend(out.graph.node)
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    if not any(o.domain in ("", "ai.onnx") for o in out.opset_import):
        out.opset_import.append(helper.make_opsetid("", 18))
    return out


def collect(wanted):
    from onnx.backend.test.case.node import collect_testcases

    cases = list(collect_testcases(None))
    singles = {c.name: c.model.graph.node[0].op_type for c in cases if len(c.model.graph.node) == 1}
    for case in cases:
        operator = operator_of(case.name, case.model, singles)
        if not wanted or operator.split()[0] in wanted:
            yield operator, case


def write(folder, wanted):
    """Writes every check and gives what each of them is."""
    checks, lines = [], []

    def add(operator, case, kind, model, fed, shape, x, at, expected):
        name = f"{len(checks)}"
        onnx.save(model, folder / f"{name}.onnx")
        if x is not None:
            np.ascontiguousarray(x.astype(np.float32)).tofile(folder / f"{name}.x")
        output = case.model.graph.output[at].name
        lines.append(json.dumps({
            "model": f"{name}.onnx", "input": fed, "shape": shape, "output": output,
            "x": f"{name}.x" if x is not None else None, "y": f"{name}.y", "gradient": kind == "gradient",
        }))
        checks.append({
            "operator": operator, "case": case.name, "kind": kind, "fed": fed, "output": output, "y": f"{name}.y",
            "expected": expected, "rtol": case.rtol, "atol": case.atol,
        })

    for operator, case in collect(wanted):
        values, outputs = case.data_sets[0]
        values, outputs = [plain(v) for v in values], [plain(v) for v in outputs]
        # A case leaves out what is optional and absent.
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        infos = list(model.graph.input)
        feeds = [
            (i, v) for i, v in zip(infos, values)
            if is_tensor(i, v) and is_numeric(v) and v.size > 0
        ]
        direct = [(i, v) for i, v in feeds if v.ndim > 0]
        for at, expected in enumerate(outputs):
            # With every input stored, what is computed is what tract folds at load.
            whole = with_unused(stored(model, values, None))
            only = whole.graph.input[0].name if len(whole.graph.input) == 1 else None
            add(operator, case, "stored", whole, only, None, None, at, expected)
            for info, value in direct:
                if value.dtype.kind in "iu" and np.abs(value.astype(np.float64)).max() > EXACT:
                    continue
                fed = stored(model, values, info.name)
                add(operator, case, "forward", fed, info.name, list(value.shape), value, at, expected)
            for info, value in feeds:
                if operator.split()[0] in STRAIGHT_THROUGH:
                    continue
                floats = info.type.tensor_type.elem_type in FLOATS
                if floats and value.size and is_numeric(expected) and expected.dtype.kind == "f" and expected.size:
                    layer = with_layer(model, values, info.name)
                    add(operator, case, "gradient", layer, "conformance_one", None, None, at, expected)
    (folder / "cases.jsonl").write_text("\n".join(lines) + "\n")
    return checks


def build():
    """The runner's path."""
    command = ["cargo", "test", "--release", "--locked", "--no-run", "--test", "conformance", "--message-format=json"]
    text = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = [m for m in map(json.loads, text.splitlines()) if m.get("target", {}).get("name") == "conformance"]
    return next(m["executable"] for m in found if m.get("executable"))


def run(folder, checks):
    runner = build()
    results = folder / "results.jsonl"
    results.touch()
    found, start = {}, 0
    while start < len(checks):
        environment = {**os.environ, "ACCENTOR_CONFORMANCE": str(folder), "ACCENTOR_CONFORMANCE_FROM": str(start)}
        process = subprocess.Popen([runner, "cases", "--exact"], env=environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        before, ended = -1, None
        while ended is None:
            try:
                ended = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                now = int((folder / "at").read_text())
                if now == before:
                    process.kill()
                    ended = process.wait()
                before = now
        for line in results.read_text().splitlines():
            record = json.loads(line)
            found[record["at"]] = record["found"]
        at = int((folder / "at").read_text())
        if at in found:
            break
        found[at] = {"status": "crash", "why": f"the process ended with {ended}", "checked": 0, "skipped": 0}
        start = at + 1
    return [found[i] for i in range(len(checks))]


def compare(folder, check, found):
    """`found` with what it computed held against the standard's output."""
    if check["kind"] == "gradient" or found["status"] not in ("own", "tract", "folded"):
        return found
    expected = check["expected"]
    if not is_numeric(expected):
        return {**found, "status": "refused", "why": "the output is no tensor of numbers"}
    got = np.fromfile(folder / check["y"], np.float32)
    want = expected.astype(np.float64).ravel()
    if got.size != want.size:
        return {**found, "status": "wrong", "why": f"{got.size} values, expected {want.size}"}
    finite = np.abs(want[np.isfinite(want)])
    atol = check["atol"] + ROUNDING * (finite.max() if finite.size and expected.dtype.kind not in "iub" else 0.0)
    atol = max(atol, TRACT) if found["status"] == "tract" else atol
    rtol = max(check["rtol"], HALF_UNITS.get(expected.dtype.name, 0.0))
    with np.errstate(all="ignore"):
        near = np.isclose(got.astype(np.float64), want, rtol=rtol, atol=atol, equal_nan=True)
    if near.all():
        return found
    at = int(np.flatnonzero(~near)[0])
    return {**found, "status": "wrong", "why": f"value {at} of {want.size} is {got[at]}, expected {want[at]}"}


def shorten(why):
    """A reason without what differs from case to case."""
    why = re.sub(r"translating to fact: Tensor \{.*\}: |(Building|Translating) node \S*( \([^)]*\))?:? ?", "", why)
    why = re.sub(r'"[^"]*"|`[^`]*`', "…", why)
    why = re.sub(r"\[[^\[\]]*\]", "[…]", why)
    why = re.sub(r"\b\d+\b", "#", why)
    why = " ".join(why.split()).replace("|", "/")
    return why[:157] + "…" if len(why) > 158 else why


def table(checks, results):
    """The file."""
    operators = collections.defaultdict(lambda: collections.defaultdict(list))
    for check, found in zip(checks, results):
        operators[check["operator"]][check["case"]].append((check, found))
    rows, totals, refusals = [], collections.Counter(), collections.defaultdict(set)
    for operator in sorted(operators, key=str.lower):
        count, slopes = collections.Counter(), collections.Counter()
        for case, parts in operators[operator].items():
            forward = [f for c, f in parts if c["kind"] == "forward"]
            statuses = {f["status"] for c, f in parts if c["kind"] != "gradient"}
            passed = statuses & {"own", "tract", "folded"}
            # One input stands for the case as a frozen file has it: a Conv with its weight stored.
            status = next((s for s in ("crash", "wrong", "own", "tract", "folded") if s in statuses), "refused")
            count[status] += 1
            count["checks"] += len(forward)
            count["passed"] += sum(f["status"] in ("own", "tract", "folded") for f in forward)
            for check, found in parts:
                if check["kind"] == "gradient":
                    slopes[found["status"]] += 1
                    slopes["values"] += found["checked"]
                    slopes["skipped"] += found["skipped"]
                if found["status"] in ("crash", "wrong", "wrong slope"):
                    refusals[operator].add((found["status"], shorten(found["why"]), case))
                elif found["status"] == "refused" and check["kind"] != "gradient" and not passed:
                    refusals[operator].add(("refused", shorten(found["why"]), case))
                elif found["status"] == "refused" and check["kind"] == "forward":
                    refusals[operator].add(("refused with that input fed", shorten(found["why"]), case))
        gradient = f"{slopes['slope']}" if slopes["slope"] or slopes["wrong slope"] else "–"
        total = len(operators[operator])
        totals.update(count)
        totals.update({f"gradient {k}": v for k, v in slopes.items()})
        totals["cases"] += total
        cells = [total, count["own"], count["tract"], count["folded"], count["refused"], count["wrong"], count["crash"],
                 f"{count['passed']}/{count['checks']}", gradient, slopes["refused"] or "", slopes["wrong slope"] or 0,
                 slopes["values"] or ""]
        rows.append(f"| {operator} | " + " | ".join(str(c) for c in cells) + " |")
    return rows, totals, refusals


def page(checks, results):
    rows, totals, refusals = table(checks, results)
    head = "| operator | cases | own | tract | folded | refused | wrong | crash | inputs fed | gradients | none | wrong gradient | values |"
    lines = [
        "# The ONNX standard's node tests",
        "",
        f"Made by `python tests/conformance/run.py` from onnx {onnx.__version__}: `onnx.backend.test.case.node.collect_testcases(None)`,",
        "each with the tolerance it comes with (of the value 1e-3, and 1e-7), and what rounding to float32 loses (run.py says",
        "how much). A test holds this file against the table of operators: nothing crashes or is wrong, and what is refused of",
        "an operator that stands there is a limit named there.",
        "",
        "- **own**, **tract**, **folded**: cases that pass, in the plan, through tract's operator, or constant for a stored",
        "  input. A case passes if it does with at least one of its inputs fed and the others stored, or with all stored, and",
        "  nothing of that gives wrong values; **inputs fed** counts every input of every case, passed of all.",
        "- **refused**: an error before anything is computed; why is told below.",
        "- **gradients**: inputs whose gradient of Σ dy·y agrees with central differences of the forward pass in f32, at",
        "  **values** places; **none**: inputs without one, which training refuses. Places where difference quotients of",
        f"  several steps do not settle (kinks, values lost in rounding) are left out: {totals['gradient skipped']} of",
        f"  {totals['gradient skipped'] + totals['gradient values']}.",
        "- The batch of a case is fed as it is: the whole shape is given as `input_shape`.",
        "- *written out*: the operator as a function of other operators, as the standard defines it.",
        "",
        f"{totals['cases']} cases: {totals['own']} own, {totals['tract']} tract, {totals['folded']} folded, "
        f"{totals['refused']} refused, {totals['wrong']} wrong, {totals['crash']} crash. "
        f"{totals['gradient slope']} gradients agree, {totals['gradient wrong slope']} do not.",
        "",
        head,
        "|---|" + "---:|" * 12,
        *rows,
        "",
        "## Refused, and why",
        "",
        "| operator | | why | cases |",
        "|---|---|---|---|",
    ]
    for operator in sorted(refusals, key=str.lower):
        reasons = collections.defaultdict(set)
        for status, why, case in refusals[operator]:
            reasons[status, why].add(case)
        for (status, why), cases in sorted(reasons.items()):
            some = ", ".join(sorted(cases)[:2]).replace("test_", "")
            more = f" and {len(cases) - 2} more" if len(cases) > 2 else ""
            lines.append(f"| {operator} | {status} | {why} | {some}{more} |")
    return "\n".join(lines) + "\n"


def main():
    warnings.filterwarnings("ignore")
    wanted = set(sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checks = write(folder, wanted)
        results = run(folder, checks)
        results = [compare(folder, c, f) for c, f in zip(checks, results)]
    if os.environ.get("ACCENTOR_CONFORMANCE_VERBOSE"):
        for check, found in zip(checks, results):
            print(found["status"], check["kind"], check["operator"], check["case"], check["fed"], check["output"],
                  found["why"][:300], found["checked"], found["skipped"], sep="\t")
    if wanted:
        print(page(checks, results))
    else:
        (HERE / "RESULTS.md").write_text(page(checks, results))


if __name__ == "__main__":
    main()
