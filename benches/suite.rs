//! Times inference and a training step of each model, on one and two threads, and compares with the committed baseline.
//!
//! `cargo bench --bench suite -- [--json] [--update] [--steps N] [FOLDER of more .onnx files]`
//!
//! A time alone says nothing on another machine or a busy one. Each is divided by the time of a reference that runs just before and
//! after it: independent chains of multiply-adds in registers, the most that the core can do. The baseline holds these ratios; one
//! that stays above [`SLOWER`] times its baseline in [`TRIES`] tries is a regression, and the exit code is 1.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const SLOWER: f64 = 1.3;

/// Other guests of a shared machine made single measurements up to 1.6 times as long: what looks slow is measured again, and a
/// baseline is the least of so many. Five runs of unchanged code while the machine was disturbed still gave one false alarm: run it again, or
/// on a machine of your own.
const TRIES: usize = 6;

const BASELINE: &str = "benches/baseline.json";

/// Chains of multiply-adds: more than latency times units of any core that is meant.
const CHAINS: usize = 12;
/// Some milliseconds, as long as a step: what disturbs one disturbs the other.
const ROUNDS: usize = 2_000_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    model: String,
    batch: usize,
    threads: usize,
    infer_ms: f64,
    step_ms: f64,
    peak_rss_mib: f64,
    /// Multiply-adds of a training step.
    step_multiply_adds: f64,
    /// Share of the multiply-adds that the reference does in the same time, on as many threads.
    share_of_peak: f64,
    /// Time of a step through the time of the reference.
    step_ratio: f64,
    infer_ratio: f64,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, Box<dyn std::error::Error>> {
    let (mut json, mut update, mut steps, mut models) = (false, false, 20, own_models()?);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => json = true,
            "--update" => update = true,
            "--steps" => steps = arguments.next().ok_or("--steps needs a number")?.parse()?,
            "--bench" => {}
            folder => models.extend(onnx_files(Path::new(folder))?),
        }
    }
    let baseline = if update { BTreeMap::new() } else { baseline()? };
    let slower =
        |row: &Row| baseline.get(&key(row)).map_or([0.0; 2], |of| [row.infer_ratio / of[0], row.step_ratio / of[1]]);
    let mut rows: Vec<Row> = Vec::new();
    for model in &models {
        for threads in [1, 2] {
            let mut best: Option<Row> = None;
            for _ in 0..TRIES {
                match measure(model, threads, steps) {
                    Ok(row) => best = Some(best.map_or(row.clone(), |best| best.least(row))),
                    Err(error) => eprintln!("{}: {error}", model.display()),
                }
                if !update && best.as_ref().is_none_or(|row| slower(row).iter().all(|times| *times <= SLOWER)) {
                    break;
                }
            }
            rows.extend(best);
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        table(&rows);
    }
    if update {
        let ratios: Ratios = rows.iter().map(|r| (key(r), [r.infer_ratio, r.step_ratio])).collect();
        std::fs::write(BASELINE, serde_json::to_string_pretty(&ratios)? + "\n")?;
        return Ok(true);
    }
    let mut good = true;
    for row in &rows {
        for (what, times) in ["inference", "step"].iter().zip(slower(row)) {
            if times > SLOWER {
                eprintln!("{}: {what} takes {times:.2} times the baseline", key(row));
                good = false;
            }
        }
    }
    Ok(good)
}

/// Of inference and step, by model, batch and threads.
type Ratios = BTreeMap<String, [f64; 2]>;

fn baseline() -> Result<Ratios, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(BASELINE).map_err(|e| format!("{BASELINE}: {e}; make it with --update"))?;
    Ok(serde_json::from_str(&text)?)
}

impl Row {
    /// The lesser times of two measurements.
    fn least(self, other: Self) -> Self {
        let (infer_ms, infer_ratio) = match self.infer_ratio <= other.infer_ratio {
            true => (self.infer_ms, self.infer_ratio),
            false => (other.infer_ms, other.infer_ratio),
        };
        let step = if self.step_ratio <= other.step_ratio { self } else { other };
        Self { infer_ms, infer_ratio, ..step }
    }
}

fn key(row: &Row) -> String {
    format!("{} batch {} threads {}", row.model, row.batch, row.threads)
}

/// The model of the repository.
fn own_models() -> std::io::Result<Vec<PathBuf>> {
    onnx_files(Path::new("models/kws-commands"))
}

fn onnx_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "onnx"));
    files.sort();
    Ok(files)
}

fn measure(model: &Path, threads: usize, steps: usize) -> Result<Row, Box<dyn std::error::Error>> {
    let name = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let batch = if name.contains("efficientnet") { 8 } else { 16 };
    let before = reference();
    let steps = steps.to_string();
    let bench = accentor(&[
        "bench".as_ref(),
        "--json".as_ref(),
        "--model".as_ref(),
        model.as_os_str(),
        "--batch".as_ref(),
        batch.to_string().as_ref(),
        "--threads".as_ref(),
        threads.to_string().as_ref(),
        "--steps".as_ref(),
        steps.as_ref(),
    ])?;
    let reference = before.min(reference());
    let batch_of = batch.to_string();
    let plan =
        accentor(&["inspect".as_ref(), "--json".as_ref(), "--batch".as_ref(), batch_of.as_ref(), model.as_os_str()])?;
    let number = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_f64).ok_or(format!("no {path}"));
    let infer_ms = number(&bench, "/infer_ms/min")?;
    let step_ms = number(&bench, "/step_ms/min")?;
    let step_multiply_adds = number(&plan, "/training/step_multiply_adds")?;
    // Multiply-adds of the reference a millisecond.
    let peak = (CHAINS * ROUNDS * Chains.dispatch().1) as f64 / reference * threads as f64;
    Ok(Row {
        model: name,
        batch,
        threads,
        infer_ms,
        step_ms,
        peak_rss_mib: number(&bench, "/peak_rss_bytes")? / 1048576.0,
        step_multiply_adds,
        share_of_peak: step_multiply_adds / step_ms / peak,
        step_ratio: step_ms / reference,
        infer_ratio: infer_ms / reference,
    })
}

fn accentor(arguments: &[&std::ffi::OsStr]) -> Result<Value, Box<dyn std::error::Error>> {
    let output = Command::new(env!("CARGO_BIN_EXE_accentor")).args(arguments).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn table(rows: &[Row]) {
    println!("| model | batch | threads | inference, ms | step, ms | share of FMA peak | peak memory, MiB |");
    println!("|---|---|---|---|---|---|---|");
    for r in rows {
        println!(
            "| {} | {} | {} | {:.2} | {:.2} | {:.0}% | {:.1} |",
            r.model,
            r.batch,
            r.threads,
            r.infer_ms,
            r.step_ms,
            r.share_of_peak * 100.0,
            r.peak_rss_mib
        );
    }
}

/// Milliseconds of the reference: the least of some runs.
fn reference() -> f64 {
    let run = |_| {
        let start = Instant::now();
        std::hint::black_box(Chains.dispatch());
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..10).map(run).fold(f64::INFINITY, f64::min)
}

/// The reference; gives a sum, so that nothing is left out, and the lanes of a vector.
struct Chains;

impl SimdOp for Chains {
    type Output = (f32, usize);

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> (f32, usize) {
        let ops = isa.f32();
        let (a, b) = (ops.splat(std::hint::black_box(0.5)), ops.splat(std::hint::black_box(0.25)));
        let mut chains = [ops.zero(); CHAINS];
        for _ in 0..ROUNDS {
            for chain in &mut chains {
                *chain = ops.mul_add(a, *chain, b);
            }
        }
        (chains.iter().map(|c| c.to_array().as_ref().iter().sum::<f32>()).sum(), ops.len())
    }
}
