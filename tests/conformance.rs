//! The ONNX standard's node tests: `tests/conformance/run.py` writes them as files and reads what this prints.
//!
//! Without a folder of cases it does nothing.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use accentor::graph::{Graph, Op, Site};
use accentor::lora::{Adaptation, SiteStep};
use accentor::onnx::{LoadOptions, load};
use accentor::plan::{Plan, Program};
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

    fn at(&self, x: &[f32]) -> Result<f64, String> {
        let mut weights = [self.site().weights()];
        self.site().prepare(x, &mut weights[0], false);
        let mut arena = vec![f32::NAN; self.forward.arena_len()];
        self.forward.forward(&weights, &mut arena, &[1.0]).map_err(|e| e.to_string())?;
        let y = self.forward.output(&arena, 0);
        Ok(y.iter().zip(&self.dy).map(|(y, d)| f64::from(*y) * f64::from(*d)).sum())
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
    let sum = Sum { program, forward, dy };
    let gradient = sum.gradient(&x)?;
    let largest = |v: &[f32]| v.iter().filter(|v| v.is_finite()).fold(0.0f32, |m, v| m.max(v.abs()));
    let (reach, steepest) = (largest(&x).max(1.0), f64::from(largest(&gradient)));
    // Rounding of the sum, which a quotient divides by its step.
    let noise = sum.at(&x)?.abs().max(sum.dy.len() as f64) * f64::from(f32::EPSILON);

    let mut found = Found { status: "slope", ..Found::default() };
    let mut worst = 0.0;
    let stride = x.len().div_ceil(PROBES).max(1);
    for i in (0..x.len()).step_by(stride) {
        let mut moved = x.to_vec();
        let mut quotients = Vec::new();
        for step in STEPS {
            let (up, down) = (x[i] + step * reach, x[i] - step * reach);
            moved[i] = up;
            let above = sum.at(&moved)?;
            moved[i] = down;
            let below = sum.at(&moved)?;
            let width = f64::from(up) - f64::from(down);
            quotients.push(((above - below) / width, noise / width));
        }
        // Two neighbouring steps that agree: the cube of the smaller one is a sixteenth of their difference.
        let settled = quotients.windows(2).filter(|w| w[1].0.is_finite() && w[0].0.is_finite());
        let best = settled.map(|w| (w[1].0, (w[0].0 - w[1].0).abs() + w[1].1)).min_by(|a, b| a.1.total_cmp(&b.1));
        let scale = best.map_or(0.0, |(q, _)| q.abs()).max(steepest).max(1e-3);
        let Some((quotient, open)) = best.filter(|(_, open)| *open <= SLOPE * scale) else {
            found.skipped += 1;
            continue;
        };
        found.checked += 1;
        let error = (f64::from(gradient[i]) - quotient).abs();
        // NaN is an error too.
        if (error.is_nan() || error > SLOPE * scale + open) && !is_kink(&sum, &x, i, f64::from(gradient[i]), noise)? {
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
fn is_kink(sum: &Sum, x: &[f32], i: usize, gradient: f64, noise: f64) -> Result<bool, String> {
    let mut moved = x.to_vec();
    let here = sum.at(x)?;
    let step = STEPS[2] * x[i].abs().max(1.0);
    let mut side = |by: f32| {
        moved[i] = x[i] + by;
        let width = f64::from(moved[i]) - f64::from(x[i]);
        sum.at(&moved).map(|there| ((there - here) / width, noise / width.abs()))
    };
    let ((above, open), (below, _)) = (side(step)?, side(-step)?);
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
