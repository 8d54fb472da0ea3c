//! The ONNX standard's node tests: `tests/conformance/run.py` writes them as files and reads what this prints.
//!
//! Without a folder of cases only the committed table is held against the table of operators.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used)]

mod onnx_file;

use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use accentor::graph::{Graph, Op, Site};
use accentor::lora::{Adaptation, SiteStep};
use accentor::onnx::operators::{Forward, find};
use accentor::onnx::{LoadOptions, load, load_bytes};
use accentor::plan::{Plan, Program};
use onnx_file::{Net, int, ints, text};
use serde::{Deserialize, Serialize};

/// Where `run.py` has put the cases, and the first one to run.
const FOLDER: &str = "ACCENTOR_CONFORMANCE";
const FROM: &str = "ACCENTOR_CONFORMANCE_FROM";

/// The layer that `run.py` puts before an operator: one input of 1 times the tensor as a weight.
const FEED: &str = "conformance_feed";

/// Steps of the difference quotients, relative to the largest value of the tensor or to 1.
const STEPS: [f32; 5] = [1.0 / 16.0, 1.0 / 64.0, 1.0 / 256.0, 1.0 / 1024.0, 1.0 / 4096.0];
/// Of the largest derivative of the case. The sum of a pass has rounding errors of some 1e-6, divided by the step.
const SLOPE: f64 = 2e-3;
/// Derivatives below this are held against it: where tanh is 1 to the last digit, 1 − y² is a rounding or two.
const FLAT: f64 = 1e-2;
/// Between two orders of the same sum of some tens of terms.
const ROUNDINGS: f32 = 1e-5;
/// Derivatives that are held against quotients in one case, spread evenly.
const PROBES: usize = 48;

#[derive(Deserialize)]
struct Case {
    model: String,
    input: Option<String>,
    shape: Option<Vec<usize>>,
    output: String,
    /// The file of the values fed, as little-endian f32.
    x: Option<String>,
    /// The file for the values computed.
    y: String,
    gradient: bool,
}

#[derive(Default, Serialize)]
struct Found {
    /// own, tract, folded, refused or crash; slope, no slope or wrong slope.
    status: &'static str,
    why: String,
    checked: usize,
    /// Values where the quotients do not settle: at a kink, or lost in the rounding.
    skipped: usize,
}

fn floats(path: &Path) -> Vec<f32> {
    fs::read(path).unwrap().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn refused(why: impl ToString) -> Found {
    Found { status: "refused", why: why.to_string(), ..Found::default() }
}

/// What needs the input and runs through tract.
fn is_foreign(graph: &Graph) -> bool {
    let needed = graph.ancestors(graph.outputs[0]);
    graph.nodes.iter().zip(needed).any(|(n, needed)| needed && matches!(n.op, Op::Foreign(_)))
}

fn run(folder: &Path, case: &Case) -> Found {
    let options = LoadOptions {
        input: case.input.clone(),
        input_shape: case.shape.clone(),
        outputs: vec![case.output.clone()],
        ..LoadOptions::default()
    };
    let graph = match load(&folder.join(&case.model), &options) {
        Ok(graph) => graph,
        Err(error) => return refused(error),
    };
    if case.gradient {
        return slope(&graph).unwrap_or_else(refused);
    }
    match forward(folder, case, &graph) {
        Ok((status, y)) => {
            let bytes: Vec<u8> = y.iter().flat_map(|v| v.to_le_bytes()).collect();
            fs::write(folder.join(&case.y), bytes).unwrap();
            Found { status, ..Found::default() }
        }
        Err(why) => refused(why),
    }
}

fn forward(folder: &Path, case: &Case, graph: &Graph) -> Result<(&'static str, Vec<f32>), String> {
    let (input, output) = (graph.inputs[0], graph.outputs[0]);
    if let Some(constant) = &graph.values[output].values() {
        return Ok(("folded", constant.to_vec()));
    }
    let program = Program::new(graph, input, output, &[]).map_err(|e| e.to_string())?;
    let plan = Plan::new(&program, &[program.input], &[program.output], false).map_err(|e| e.to_string())?;
    let mut arena = vec![f32::NAN; plan.arena_len()];
    let x = case.x.as_ref().map_or_else(|| vec![1.0; plan.input_len()], |x| floats(&folder.join(x)));
    if x.len() != plan.input_len() {
        return Err(format!("the input has {} values, the plan {}", x.len(), plan.input_len()));
    }
    plan.forward(&[], &mut arena, &x).map_err(|e| e.to_string())?;
    Ok((if is_foreign(graph) { "tract" } else { "own" }, plan.output(&arena, 0).to_vec()))
}

/// Σ dy·y over one operator, as a function of the tensor that it reads.
struct Sum {
    program: Program,
    forward: Plan,
    dy: Vec<f32>,
}

impl Sum {
    fn site(&self) -> &SiteStep {
        &self.program.sites()[0]
    }

    fn at(&self, x: &[f32]) -> Result<Vec<f32>, String> {
        let mut weights = [self.site().weights()];
        self.site().prepare(x, &mut weights[0], false);
        let mut arena = vec![f32::NAN; self.forward.arena_len()];
        self.forward.forward(&weights, &mut arena, &[1.0]).map_err(|e| e.to_string())?;
        Ok(self.forward.output(&arena, 0).to_vec())
    }

    /// The difference quotient between two values of `x[i]`, and what rounding may add to it.
    fn quotient(&self, x: &[f32], i: usize, from: f32, to: f32) -> Result<(f64, f64), String> {
        let mut moved = x.to_vec();
        moved[i] = from;
        let below = self.at(&moved)?;
        moved[i] = to;
        let above = self.at(&moved)?;
        let width = f64::from(to) - f64::from(from);
        let (mut difference, mut squares) = (0.0, 0.0);
        for ((a, b), d) in above.iter().zip(&below).zip(&self.dy).filter(|((a, b), _)| a.to_bits() != b.to_bits()) {
            let (a, b, d) = (f64::from(*a), f64::from(*b), f64::from(*d));
            difference += d * (a - b);
            squares += (d * a.abs().max(b.abs())).powi(2);
        }
        // Roundings of values are independent of each other.
        let rounding = 2.0 * f64::from(f32::EPSILON) * squares.sqrt();
        Ok((difference / width, rounding / width.abs()))
    }

    fn gradient(&self, x: &[f32]) -> Result<Vec<f32>, String> {
        let (program, site) = (&self.program, self.site());
        let plan = Plan::new(program, &[program.input], &[program.output], true).map_err(|e| e.to_string())?;
        let mut weights = [site.weights()];
        site.prepare(x, &mut weights[0], true);
        let mut arena = vec![f32::NAN; plan.arena_len()];
        plan.forward(&weights, &mut arena, &[1.0]).map_err(|e| e.to_string())?;
        plan.seed(&mut arena).1.copy_from_slice(&self.dy);
        let mut accumulators = vec![0.0; plan.accumulators_len()];
        plan.backward(&weights, &mut arena, &mut accumulators);
        let mut gradient = vec![0.0; x.len()];
        site.finish(x, &mut weights[0], &accumulators, &mut gradient);
        Ok(gradient)
    }
}

/// The gradient of Σ dy·y against central differences of our own forward pass.
fn slope(graph: &Graph) -> Result<Found, String> {
    let (input, output) = (graph.inputs[0], graph.outputs[0]);
    let site: Option<Site> = graph.sites(output).into_iter().find(|s| s.key.starts_with(FEED));
    let site = site.ok_or("the output does not depend on this input")?;
    if !graph.values[output].element.is_float() {
        return Err("the output is no float".into());
    }
    let x = graph.values[site.weight].values().ok_or("no values")?;
    let program = Program::new(graph, input, output, &[(site, Adaptation::Full)]).map_err(|e| e.to_string())?;
    let forward = Plan::new(&program, &[program.input], &[program.output], false).map_err(|e| e.to_string())?;
    // Weights without a pattern that an operator could sum to zero.
    let mut rng = fastrand::Rng::with_seed(7);
    let dy = (0..forward.output_len()).map(|_| rng.f32() + 0.5).collect();
    let mut sum = Sum { program, forward, dy };
    // What is infinite, as behind a mask, has no slope.
    let y = sum.at(&x)?;
    sum.dy.iter_mut().zip(&y).filter(|(_, y)| !y.is_finite()).for_each(|(d, _)| *d = 0.0);
    let gradient = sum.gradient(&x)?;
    let largest = |v: &[f32]| v.iter().filter(|v| v.is_finite()).fold(0.0f32, |m, v| m.max(v.abs()));
    let (reach, steepest) = (largest(&x).max(1.0), f64::from(largest(&gradient)));

    let mut found = Found { status: "slope", ..Found::default() };
    let mut worst = 0.0;
    let stride = x.len().div_ceil(PROBES).max(1);
    for i in (0..x.len()).step_by(stride) {
        let quotients = STEPS.iter().map(|s| sum.quotient(&x, i, x[i] - s * reach, x[i] + s * reach));
        let quotients = quotients.collect::<Result<Vec<_>, _>>()?;
        // Two neighbouring steps that agree: the cube of the smaller one is a sixteenth of their difference.
        let settled = quotients.windows(2).filter(|w| w[1].0.is_finite() && w[0].0.is_finite());
        let best = settled.map(|w| (w[1].0, (w[0].0 - w[1].0).abs() + w[1].1)).min_by(|a, b| a.1.total_cmp(&b.1));
        let scale = best.map_or(0.0, |(q, _)| q.abs()).max(steepest).max(FLAT);
        let Some((quotient, open)) = best.filter(|(_, open)| *open <= SLOPE * scale) else {
            found.skipped += 1;
            continue;
        };
        found.checked += 1;
        let error = (f64::from(gradient[i]) - quotient).abs();
        // NaN is an error too.
        if (error.is_nan() || error > SLOPE * scale + open) && !is_kink(&sum, &x, i, f64::from(gradient[i]))? {
            found.status = "wrong slope";
            if error.is_nan() || error / scale > worst {
                worst = error / scale;
                found.why = format!("value {i} ({}): gradient {}, quotient {quotient}", x[i], gradient[i]);
            }
        }
    }
    Ok(found)
}

/// Whether the slopes of the two sides differ at a value, and the gradient is that of one of them or lies between.
fn is_kink(sum: &Sum, x: &[f32], i: usize, gradient: f64) -> Result<bool, String> {
    let step = STEPS[2] * x[i].abs().max(1.0);
    let ((above, open), (below, _)) = (sum.quotient(x, i, x[i], x[i] + step)?, sum.quotient(x, i, x[i] - step, x[i])?);
    let slack = SLOPE * above.abs().max(below.abs()) + open;
    let between = above.min(below) - slack..=above.max(below) + slack;
    Ok((above - below).abs() > 4.0 * slack && between.contains(&gradient))
}

/// One line before a case and one behind it, so that a case that ends the process is known.
#[test]
fn cases() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let from = std::env::var(FROM).ok().and_then(|f| f.parse().ok()).unwrap_or(0);
    let list = fs::read_to_string(folder.join("cases.jsonl")).unwrap();
    let mut out = fs::OpenOptions::new().create(true).append(true).open(folder.join("results.jsonl")).unwrap();
    for (at, line) in list.lines().enumerate().skip(from) {
        let case: Case = serde_json::from_str(line).unwrap();
        fs::write(folder.join("at"), at.to_string()).unwrap();
        let found = catch_unwind(AssertUnwindSafe(|| run(folder, &case))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Found { status: "crash", why: text.unwrap_or_default(), ..Found::default() }
        });
        writeln!(out, "{}", serde_json::json!({ "at": at, "found": found })).unwrap();
    }
}

/// Why a form of an operator of the table is refused, and the words of its row that say so. What decides a shape, and types that
/// no operator takes, stand above the table.
const LIMITS: [(&str, &str, &str); 25] = [
    ("", "stays unknown; fix the input shape", ""),
    ("", "DatumType Float8", ""),
    ("", "DatumType Float4", ""),
    ("", "has no tensor type", ""),
    ("", "unknown ONNX TensorProto.DataType", ""),
    (
        "BatchNormalization",
        "only inference with constant statistics",
        "constant statistics, in training mode the file is refused",
    ),
    ("BitShift", "shift by a constant from # to # bits", "by constants from 0 to 7 bits"),
    ("Cast", "values that are computed do not become # bits", "to 4 bits only what is stored"),
    ("CastLike", "values that are computed do not become # bits", "as Cast"),
    ("CenterCropPad", "not supported", "constant shape"),
    ("ConvInteger", "its weight must be a constant", "constant weight"),
    ("DequantizeLinear", "must be constants that fit", "constant scales where there are several"),
    ("Dropout", "it drops values as in training", "in training mode the file is refused"),
    ("GRU", "with weights that the model computes", "computed weights in direction forward only"),
    ("LSTM", "with weights that the model computes", "computed weights in direction forward only"),
    ("LSTM", "sequence_lens", "every clip has all its steps"),
    ("RNN", "with weights that the model computes", "computed weights in direction forward only"),
    ("OneHot", "", "indices inside the depth; constant depth and values"),
    ("Pad", "mode wrap", "constant pads"),
    ("Pad", "this operator cannot run", "constant pads"),
    ("QLinearMatMul", "Applying rule", "constant scales and zero points"),
    ("QuantizeLinear", "do not become # bits", "to 8 bits and more"),
    ("QuantizeLinear", "", "constant scales"),
    ("ReduceMax", "Bool is not", "truth values: of one or more"),
    ("Upsample", "not supported", "constant scales or sizes"),
];

/// tests/conformance/RESULTS.md: nothing computes wrong values or stops, and what is refused of an operator of docs/operators.md is
/// a limit that stands there.
#[test]
fn the_committed_results_are_what_the_table_of_operators_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("tests/conformance/RESULTS.md")).unwrap();
    let cells = |row: &str| -> Vec<String> { row.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect() };
    let rows = |text: &str| -> Vec<Vec<String>> {
        text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| operator")).map(cells).collect()
    };
    let (table, refused) = text.split_once("## Refused").unwrap();
    let mut known = 0;
    for row in rows(table) {
        let [operator, cases, own, tract, folded, refused, wrong, crash, _, _, _, slope, _] = &row[..] else {
            panic!("{row:?}")
        };
        assert_eq!((&**wrong, &**crash, &**slope), ("0", "0", "0"), "{operator}");
        let sum: usize = [own, tract, folded, refused].iter().map(|n| n.parse::<usize>().unwrap()).sum();
        assert_eq!(sum.to_string(), *cases, "{operator}");
        known += usize::from(find("", operator).is_some());
    }
    assert!(known > 100, "{known} operators");
    let header = fs::read_to_string(root.join("docs/operators.md")).unwrap();
    assert!(header.contains("An input that decides a shape") && header.contains("No operator takes float8"));
    for row in rows(refused) {
        let [operator, _, why, _] = &row[..] else { panic!("{row:?}") };
        // The node that is refused, where it is another one: an operator may be written out with others.
        let named = why.strip_prefix("node … (").and_then(|w| w.split_once(')')).map(|(name, _)| name);
        let named = named.filter(|n| find("", n).is_some()).or(why.contains("Unimplemented(Loop)").then_some("Loop"));
        let name = named.unwrap_or_else(|| operator.split(' ').next().unwrap());
        let Some(entry) = find("", name).filter(|e| e.forward != Forward::Refused) else { continue };
        let stated = |(of, words, note): &(&str, &str, &str)| {
            (of.is_empty() || *of == name) && why.contains(words) && entry.note.contains(note)
        };
        assert!(LIMITS.iter().any(stated), "no limit of {name} in src/onnx/operators says: {operator}: {why}");
    }
}

fn compute(net: &Net, x: &[f32], shape: Option<&[usize]>) -> Vec<f32> {
    let options = LoadOptions { input_shape: shape.map(<[usize]>::to_vec), ..LoadOptions::default() };
    let graph = load_bytes(&net.file(), None, &options).unwrap();
    let program = Program::new(&graph, graph.inputs[0], graph.outputs[0], &[]).unwrap();
    let plan = Plan::new(&program, &[program.input], &[program.output], false).unwrap();
    let mut arena = vec![f32::NAN; plan.arena_len()];
    plan.forward(&[], &mut arena, x).unwrap();
    plan.output(&arena, 0).to_vec()
}

/// What the node tests found, and what does not need their package.
#[test]
fn a_row_that_is_masked_throughout_has_a_largest_value() {
    let mask = [0.0, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY];
    let net = Net::new()
        .input("x", &[1, 2, 2])
        .weight_of("mask", &[1, 2, 2], &mask)
        .weight_of("minus", &[], &[f32::NEG_INFINITY])
        .node("ReduceMax", &["mask"], "largest", &[ints("axes", &[-1])])
        .node("Equal", &["largest", "minus"], "masked", &[])
        .node("Add", &["x", "mask"], "scores", &[])
        .weight_of("none", &[], &[0.0])
        .node("Where", &["masked", "none", "scores"], "y", &[])
        .output("y");
    assert_eq!(compute(&net, &[1.0, 2.0, 3.0, 4.0], None), [1.0, f32::NEG_INFINITY, 0.0, 0.0]);
}

#[test]
fn a_batch_is_its_samples_one_by_one() {
    let x: Vec<f32> = (0..3 * 4 * 8 * 7).map(|i| ((i * 53) % 89) as f32 / 89.0 - 0.5).collect();
    // Kernel, strides, dilations, paddings before and after, groups; of a line the last of each.
    for (kernel, strides, dilations, begin, end, groups) in [
        ([3, 3], [1, 1], [1, 1], [0, 0], [0, 0], 1),
        ([3, 2], [2, 1], [1, 2], [1, 0], [2, 1], 1),
        ([1, 2], [3, 2], [2, 1], [0, 1], [0, 0], 2),
        ([2, 3], [4, 4], [1, 1], [0, 1], [1, 0], 1),
    ] {
        for (rank, op) in [3, 4]
            .into_iter()
            .flat_map(|rank| ["Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"].map(|op| (rank, op)))
        {
            let last = |list: &[i64; 2]| list[4 - rank..].to_vec();
            let mut attributes = vec![
                ints("kernel_shape", &last(&kernel)),
                ints("strides", &last(&strides)),
                ints("pads", &[last(&begin), last(&end)].concat()),
            ];
            let conv = op.starts_with("Conv");
            if conv {
                attributes.extend([int("group", groups), ints("dilations", &last(&dilations))]);
            }
            let weight = if op == "Conv" { [6, 4 / groups] } else { [4, 6 / groups] };
            let (weight, sides) = ([&weight[..], &last(&kernel)].concat(), last(&[8, 7]));
            let run = |n: i64, x: &[f32]| {
                let shape = [&[n, 4], &sides[..]].concat();
                let net = Net::new().input("x", &shape).weight("w", &weight).weight("b", &[6]);
                let inputs = if conv { &["x", "w", "b"][..] } else { &["x"] };
                let shape: Vec<usize> = shape.iter().map(|d| *d as usize).collect();
                compute(&net.node(op, inputs, "y", &attributes).output("y"), x, Some(&shape))
            };
            let len = 4 * sides.iter().product::<i64>() as usize;
            let each: Vec<f32> = x[..3 * len].chunks(len).flat_map(|x| run(1, x)).collect();
            let all = run(3, &x[..3 * len]);
            let near = all.iter().zip(&each).all(|(a, b)| (a - b).abs() <= ROUNDINGS * b.abs().max(1.0));
            assert!(all.len() == each.len() && near, "{op} {kernel:?}: {all:?}, expected {each:?}");
        }
    }
}

#[test]
fn an_operand_with_a_label_twice_is_its_diagonal() {
    let x: Vec<f32> = (0..18).map(|i| i as f32).collect();
    for (equation, expected) in [
        ("...ii->...i", &[0.0, 4.0, 8.0, 9.0, 13.0, 17.0][..]),
        ("bii->ib", &[0.0, 9.0, 4.0, 13.0, 8.0, 17.0]),
        ("bii->b", &[12.0, 39.0]),
    ] {
        let net = Net::new().input("x", &[2, 3, 3]).node("Einsum", &["x"], "y", &[text("equation", equation)]);
        assert_eq!(compute(&net.output("y"), &x, Some(&[2, 3, 3])), expected, "{equation}");
    }
}

#[test]
fn an_operator_that_only_reads_constants_computes_what_onnx_says() {
    let net = Net::new()
        .input("x", &[1, 1])
        .weight("steps", &[3, 1, 2])
        .weight("w", &[1, 3, 2])
        .weight("r", &[1, 3, 3])
        .node("RNN", &["steps", "w", "r"], "all", &[int("hidden_size", 3), text("direction", "reverse")])
        .integers("flat", &[1, 9])
        .node("Reshape", &["all", "flat"], "row", &[])
        .node("Add", &["x", "row"], "y", &[])
        .output("y");
    let y = compute(&net, &[0.0], None);
    // h(t) = tanh(W x(t) + R h(t + 1)), from the last step on.
    let weight = |count: usize, name: usize| -> Vec<f64> {
        (0..count).map(|i| ((i * 37 + name * 11) % 101) as f64 / 101.0 - 0.5).collect()
    };
    let (x, w, r) = (weight(6, 5), weight(6, 1), weight(9, 1));
    let mut h = [0.0; 3];
    for step in (0..3).rev() {
        let dot = |row: &[f64], v: &[f64]| row.iter().zip(v).map(|(a, b)| a * b).sum::<f64>();
        h = std::array::from_fn(|i| (dot(&w[2 * i..][..2], &x[2 * step..][..2]) + dot(&r[3 * i..][..3], &h)).tanh());
        for (found, expected) in y[3 * step..][..3].iter().zip(h) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "step {step}: {found}, expected {expected}");
        }
    }
}
