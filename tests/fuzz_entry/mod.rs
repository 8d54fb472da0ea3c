//! What bytes from outside run through: used by `fuzz/` and by `tests/fuzz_smoke.rs`.
#![allow(clippy::unwrap_used)]
#![allow(dead_code)]

use std::fs;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};

use accentor::Model;
use accentor::graph::{Graph, SiteKind, choose};
use accentor::lora::{Adaptation, load};
use accentor::onnx::{LoadOptions, load_bytes};
use accentor::plan::{Plan, Program};

/// A case must fit here, so that one that does not shows.
const LIMIT: u64 = 64 << 20;
/// A plan larger than this is not run.
const VALUES: usize = 1 << 20;
const MULTIPLY_ADDS: u64 = 1 << 26;

/// Whether a panic is the project's own: tract's are errors of a file, which the loader says.
pub(crate) fn is_ours(panic: &PanicHookInfo) -> bool {
    let file = panic.location().map_or("", |l| l.file());
    !file.contains("/registry/") && !file.starts_with("/rustc/")
}

/// The loader, and what a model goes through before and in training.
pub(crate) fn onnx(bytes: &[u8]) {
    let options = LoadOptions { memory_limit: Some(LIMIT), ..LoadOptions::default() };
    let Ok(graph) = load_bytes(bytes, None, &options) else { return };
    run(&graph);
    if let Ok(model) = Model::from_graph(graph, Vec::new(), None) {
        model.sites();
        model.graph().blocked(model.output());
    }
}

fn run(graph: &Graph) {
    let (Some(input), Some(output)) = (graph.inputs.first(), graph.outputs.first()) else { return };
    let sites = choose(graph, &graph.sites(*output), &accentor::graph::Choice::Auto);
    let adapted = sites.into_iter().map(|site| {
        let rank = site.capped_rank(2);
        let depthwise = site.kind == SiteKind::Depthwise;
        (site, if depthwise { Adaptation::ScaleShift } else { Adaptation::LowRank { rank, scale: 1.0 } })
    });
    let adapted: Vec<_> = adapted.collect();
    for sites in [&[][..], &adapted] {
        let Ok(program) = Program::new(graph, *input, *output, sites) else { continue };
        let Ok(plan) = Plan::new(&program, &[program.input], &[program.output], !sites.is_empty()) else { continue };
        if plan.arena_len() > VALUES || plan.multiply_adds() + plan.backward_multiply_adds() > MULTIPLY_ADDS {
            continue;
        }
        let mut weights: Vec<_> = program.sites().iter().map(|s| s.weights()).collect();
        for (site, weights) in program.sites().iter().zip(&mut weights) {
            let mut params = vec![0.0; site.parameters()];
            site.identity(&mut params);
            site.prepare(&params, weights, true);
        }
        let mut arena = vec![f32::NAN; plan.arena_len()];
        let x = vec![0.5; plan.input_len()];
        if plan.forward(&weights, &mut arena, &x).is_ok() && !sites.is_empty() {
            plan.seed(&mut arena).1.fill(1.0);
            plan.backward(&weights, &mut arena, &mut vec![0.0; plan.accumulators_len()]);
        }
    }
}

/// The root of the project, where its own files are.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    if here.join("models").exists() { here.to_owned() } else { here.parent().unwrap().to_owned() }
}

/// The model that adapters are read for: a small one with every kind of layer.
pub(crate) fn base() -> Model {
    Model::open(root().join("tests/data/exports/dscnn/torchscript-fixed.onnx")).unwrap()
}

/// The reader of adapter folders: `bytes` are the length of the first file in two bytes, then both.
pub(crate) fn adapter(model: &Model, folder: &Path, bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (config, tensors) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    fs::write(folder.join("adapter_config.json"), config).unwrap();
    fs::write(folder.join("adapter_model.safetensors"), tensors).unwrap();
    let plain = load(folder, model.graph(), &model.sites(), model.sha256());
    let Ok(adapter) = model.read_adapter(folder) else { return };
    assert!(plain.is_ok() || adapter.head.is_some());
    let whole = model.for_adapter(&adapter).unwrap();
    let session = whole.session(Some(&adapter)).unwrap();
    session.scores(&vec![0.5; whole.graph().values[whole.input()].len()]).unwrap();
}

/// Committed models, small ones first.
pub(crate) fn models() -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("tests/data")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "onnx") {
                found.push((path.display().to_string(), fs::read(&path).unwrap()));
            }
        }
    }
    found.sort_by(|a, b| (a.1.len(), &a.0).cmp(&(b.1.len(), &b.0)));
    found
}

/// Adapters of [`base`], as [`adapter`] takes them: accentor's own and PEFT's without its table.
pub(crate) fn adapters(model: &Model) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for head in [false, true] {
        let spec = accentor::AdapterSpec { rank: 2, head, ..accentor::AdapterSpec::default() };
        let adapter = model.new_adapter(&spec, 0).unwrap();
        let out = folder.path().join(format!("{head}"));
        accentor::lora::write(&out, &adapter).unwrap();
        let config = fs::read(out.join("adapter_config.json")).unwrap();
        let tensors = fs::read(out.join("adapter_model.safetensors")).unwrap();
        let mut table: serde_json::Value = serde_json::from_slice(&config).unwrap();
        table.as_object_mut().unwrap().remove("accentor");
        for config in [config, serde_json::to_vec(&table).unwrap()] {
            let length = u16::try_from(config.len()).unwrap().to_le_bytes();
            found.push([&length[..], &config, &tensors].concat());
        }
    }
    found
}
