//! Whole runs through the binary, on models/kws-commands and its clips: what a result depends on and what it does not.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod emulation;
mod scene;

use std::fs;
use std::path::{Path, PathBuf};

use accentor::{Model, Session};
use scene::{Scene, kws, npy};
use serde_json::Value;

/// Training short enough for a test, with all that is random: augmentation, shuffling, the start.
const SHORT: &str = "adapt --model KWS --epochs 2 --variants 2 --rank 4";
const WORDS: [&str; 4] = ["go", "no", "stop", "yes"];

/// The two files of an adapter folder, which must hold nothing else.
fn adapter(folder: &Path) -> [Vec<u8>; 2] {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
    [0, 1].map(|i| fs::read(folder.join(&names[i])).unwrap())
}

/// Clips of an accent with their labels.
fn clips(part: &str) -> Vec<(PathBuf, String)> {
    let data = accentor::source::dataset(&kws().join("demo").join(part)).unwrap();
    data.examples.into_iter().map(|e| (e.path, e.label)).collect()
}

fn table(rows: &[(PathBuf, String)]) -> String {
    let rows: String = rows.iter().map(|(path, label)| format!("{},{label}\n", path.display())).collect();
    format!("path,label\n{rows}")
}

/// The same clips, each with the label of another.
fn shuffled(rows: &[(PathBuf, String)]) -> Vec<(PathBuf, String)> {
    let labels = rows.iter().cycle().skip(rows.len() / 3).map(|(_, label)| label.clone());
    rows.iter().zip(labels).map(|((path, _), label)| (path.clone(), label)).collect()
}

#[test]
fn labels_that_are_only_reported_choose_nothing() {
    let scene = Scene::new();
    scene.clips(&WORDS, 5);
    let (eval, guard) = (clips("scotland/test"), clips("us/test"));
    scene.write("eval.csv", table(&eval));
    scene.write("guard.csv", table(&guard));
    scene.write("eval-shuffled.csv", table(&shuffled(&eval)));
    scene.write("guard-shuffled.csv", table(&shuffled(&guard)));
    let run = |eval: &str, guard: &str| {
        // Into one folder: its name is part of nothing.
        let line = format!("{SHORT} --data data --out out --lr auto --eval {eval}.csv --guard {guard}.csv");
        let report = scene.json(&line);
        (adapter(&scene.path("out")), report)
    };
    let (expected, report) = run("eval", "guard");
    let (found, other) = run("eval-shuffled", "guard");
    assert_ne!(report["after"]["correct"], other["after"]["correct"], "shuffling changed no label");
    assert!(found == expected, "--eval chose something");
    let (found, other) = run("eval", "guard-shuffled");
    assert_ne!(report["guard"]["after"]["correct"], other["guard"]["after"]["correct"], "shuffling changed no label");
    assert!(found == expected, "--guard chose something");
    assert_eq!(report["rate_trials"], other["rate_trials"]);
    // Labels of --data do choose: the comparison would see it.
    let data: Vec<_> =
        WORDS.iter().flat_map(|w| clips("scotland/adapt").into_iter().filter(move |c| c.1 == *w)).collect();
    scene.write("data.csv", table(&shuffled(&data)));
    scene.json(&format!("{SHORT} --data data.csv --out other --lr auto"));
    assert!(adapter(&scene.path("other"))[1] != expected[1]);
}

#[test]
fn the_seed_alone_decides() {
    let scene = Scene::new();
    scene.clips(&WORDS, 5);
    let run = |out: &str, more: &str| {
        scene.json(&format!("{SHORT} --data data --out {out} --replay {}/demo/us/replay {more}", kws().display()));
        adapter(&scene.path(out))
    };
    let one = run("one", "--seed 3 --threads 1");
    assert!(one == run("again", "--seed 3 --threads 1"), "the same run gave other bytes");
    assert!(one == run("two", "--seed 3 --threads 2"), "two threads gave other bytes");
    assert!(one == run("three", "--seed 3 --threads 3"), "three threads gave other bytes");
    assert!(one[1] != run("other", "--seed 4 --threads 1")[1], "another seed gave the same bytes");
}

/// Trains on a network of tests/data/reference/nets, with its last dense layer among the sites.
fn ending(net: &str, output: &str) -> ([Vec<u8>; 2], Value) {
    let scene = Scene::new();
    let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference/nets").join(net);
    let model = Model::open(&onnx).unwrap();
    let graph = model.graph();
    let shape = &graph.values[model.input()].shape;
    let mut rng = fastrand::Rng::with_seed(0);
    for label in model.labels() {
        for copy in 0..5 {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.f32() * 2.0 - 1.0).collect();
            scene.write(&format!("data/{label}/{copy}.npy"), npy(&values, shape));
        }
    }
    let line = format!("--model {} --output {output} --data data", onnx.display());
    scene.json(&format!("adapt {line} --out out --epochs 8 --batch 4 --lr 2e-2 --head"));
    let evaluation = scene.json(&format!("eval {line} --adapter out"));
    (adapter(&scene.path("out")), evaluation)
}

#[test]
fn an_ending_changes_nothing_in_training() {
    let (logits, evaluation) = ending("ending_logits.onnx", "logits");
    for net in ["ending_softmax.onnx", "ending_log_softmax.onnx", "ending_softmax_legacy.onnx"] {
        let (with, scores) = ending(net, "logits");
        let (without, twin) = ending(net, "scores");
        assert!(with == without, "{net}: the ending changed the adapter");
        assert!(with[1] == logits[1], "{net}: the tensors are not those of the network without it");
        assert_eq!((&scores, &twin), (&evaluation, &evaluation), "{net}");
    }
    let (logit, evaluation) = ending("ending_one_logit.onnx", "logits");
    let (with, scores) = ending("ending_sigmoid.onnx", "logits");
    let (without, twin) = ending("ending_sigmoid.onnx", "scores");
    assert!(with == without, "the sigmoid changed the adapter");
    assert!(with[1] == logit[1], "the tensors are not those of the network without the sigmoid");
    assert_eq!((&scores, &twin), (&evaluation, &evaluation));
}

/// Starts a run that would take for ever, and interrupts it once it listens.
#[cfg(target_os = "linux")]
fn interrupted(scene: &Scene, line: &str) -> std::process::Output {
    use std::process::Command;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    /// Bit of SIGINT in the kernel's masks (proc(5)).
    const SIGINT: u64 = 1 << 1;
    let child = scene.start(line);
    let status = format!("/proc/{}/status", child.id());
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(&status).unwrap();
        let caught = text.lines().find_map(|l| l.strip_prefix("SigCgt:")).unwrap_or("0");
        if u64::from_str_radix(caught.trim(), 16).unwrap() & SIGINT != 0 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "accentor {line}: never listened for Ctrl-C");
        sleep(Duration::from_millis(5));
    }
    // Some steps. qemu's user mode catches signals before the program asks for them.
    let emulated = emulation::emulated(&child);
    sleep(if emulated { Duration::from_secs(60) } else { Duration::from_millis(300) });
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    scene::ended(child, line)
}

#[test]
#[cfg(target_os = "linux")]
fn an_interrupted_run_keeps_the_adapter() {
    let scene = Scene::new();
    scene.clips(&WORDS, 2);
    let data = format!("{}/demo/scotland/adapt", kws().display());
    for more in ["", "--valid data --patience 1000000000", "--lr auto"] {
        let line = format!("adapt --model KWS --data {data} --out out --epochs 10000000 --variants 1 {more} --json");
        let output = interrupted(&scene, &line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}\n{said}");
        assert!(said.contains("the adapter is kept"), "{line}\n{said}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["cancelled"], true, "{line}");
        assert!(report["steps"].as_u64().unwrap() > 0, "{line}");
        adapter(&scene.path("out"));
        let evaluation = scene.json(&format!("eval --model KWS --adapter out --data {data}"));
        let after = if more.starts_with("--valid") {
            scene.json("eval --model KWS --adapter out --data data")
        } else {
            evaluation
        };
        assert_eq!(report["after"]["correct"], after["correct"], "{line}: another adapter was written than measured");
        let names: Vec<_> = fs::read_dir(scene.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{line}: something was left behind: {names:?}");
    }
}

/// Whether `object` has these fields; `a.b` is a field in a field, `a[].b` one in each of its members, of which there
/// must be one.
fn has(object: &Value, verb: &str, fields: &[&str]) {
    for field in fields {
        let mut found = vec![object];
        for part in field.split('.') {
            let (name, each) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
            found = found.into_iter().map(|v| v.get(name).unwrap_or_else(|| panic!("{verb}: no {field}"))).collect();
            if each {
                found = found.into_iter().flat_map(|v| v.as_array().unwrap()).collect();
            }
        }
        assert!(!found.is_empty() && found.iter().all(|v| !v.is_null()), "{verb}: nothing in {field}");
    }
}

#[test]
fn json_has_its_fields() {
    const EVALUATION: [&str; 7] = [
        "samples",
        "correct",
        "accuracy",
        "per_class[].label",
        "per_class[].samples",
        "per_class[].correct",
        "confusion",
    ];
    let scene = Scene::new();
    scene.clips(&WORDS, 2);
    let below = |prefix: &str| EVALUATION.map(|field| format!("{prefix}.{field}"));
    let all = |object: &Value, verb: &str, fields: &[String]| {
        has(object, verb, &fields.iter().map(String::as_str).collect::<Vec<_>>());
    };
    const RUN: [&str; 4] = ["trainable_parameters", "steps", "seconds", "peak_rss_bytes"];

    let adapted = scene.json(&format!("{SHORT} --data data --eval data --guard data --out out"));
    has(&adapted, "adapt", &RUN);
    for part in ["before", "after", "guard.before", "guard.after"] {
        all(&adapted, "adapt", &below(part));
    }
    has(&scene.json("eval --model KWS --adapter out --data data"), "eval", &EVALUATION);

    fs::copy(fs::read_dir(scene.path("data/yes")).unwrap().next().unwrap().unwrap().path(), scene.path("a.flac"))
        .unwrap();
    let predicted = scene.json("predict --model KWS --adapter out a.flac a.flac");
    has(
        &predicted,
        "predict",
        &["predictions[].input", "predictions[].labels[].label", "predictions[].labels[].score"],
    );
    assert_eq!(predicted["predictions"].as_array().unwrap().len(), 2);

    let fields =
        ["inputs[].name", "outputs[].name", "sites[].node", "sites[].kind", "sites[].parameters", "arena_bytes"];
    let inspected = scene.json("inspect KWS");
    has(&inspected, "inspect", &fields);
    assert!(inspected["no_gradient"].is_array());

    let timed = scene.json("bench --model KWS --batch 2 --steps 2 --rank 2 --threads 2");
    let times = ["infer_ms", "infer_merged_ms", "infer_unmerged_ms", "step_ms"];
    all(&timed, "bench", &times.iter().flat_map(|t| ["min", "median"].map(|m| format!("{t}.{m}"))).collect::<Vec<_>>());
    has(&timed, "bench", &["arena_bytes", "peak_rss_bytes"]);

    let merged = scene.json("merge --model KWS --adapter out --out merged.onnx");
    has(&merged, "merge", &["out", "bytes", "sites", "notes"]);
    has(&scene.json("init merged.onnx"), "init", &["out", "front_end", "classes", "next"]);

    let demo = scene.json("demo --epochs 1 --variants 1");
    has(&demo, "demo", &RUN);
    has(&demo, "demo", &["accent", "others"]);
    for part in ["before", "after"] {
        all(&demo, "demo", &below(part));
    }
    for (accent, other) in demo["others"].as_object().unwrap() {
        has(other, accent, &["before.accuracy", "after.accuracy"]);
    }
}

/// Where the values of the tensor stand in the file.
fn payload(file: &[u8], model: &Model, tensor: &str) -> std::ops::Range<usize> {
    let value = model.graph().values.iter().find(|v| v.name == tensor).unwrap();
    let bytes: Vec<u8> = value.values().as_deref().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
    let found: Vec<usize> =
        file.windows(bytes.len()).enumerate().filter(|(_, w)| *w == bytes).map(|(at, _)| at).collect();
    assert_eq!(found.len(), 1, "{tensor}");
    found[0]..found[0] + bytes.len()
}

#[test]
fn a_merged_file_computes_what_base_and_adapter_compute() {
    let scene = Scene::new();
    scene.clips(&WORDS, 5);
    let onnx = kws().join("kws-commands.onnx");
    let manifest = fs::read_to_string(kws().join("model.toml")).unwrap();
    let manifest: String = manifest.lines().filter(|l| !l.starts_with("sha256")).map(|l| format!("{l}\n")).collect();
    scene.write("merged/model.toml", manifest);
    let test = format!("{}/demo/scotland/test", kws().display());
    for more in ["", "--sites all --head"] {
        scene.json(&format!("{SHORT} --data data --out out --lr 2e-2 {more}"));
        scene.json("merge --model KWS --adapter out --out merged/kws-commands.onnx");
        let adapted = scene.json(&format!("eval --model KWS --adapter out --data {test}"));
        let merged = scene.json(&format!("eval --model merged --data {test}"));
        let frozen = scene.json(&format!("eval --model KWS --data {test}"));
        assert_eq!(adapted["confusion"], merged["confusion"], "{more}");
        assert_ne!(adapted["confusion"], frozen["confusion"], "{more}: the adapter changed nothing");

        let (before, after) = (fs::read(&onnx).unwrap(), fs::read(scene.path("merged/kws-commands.onnx")).unwrap());
        assert_eq!(before.len(), after.len(), "{more}");
        let model = Model::open(&onnx).unwrap();
        let sites = Model::open(kws()).unwrap().read_adapter(&scene.path("out")).unwrap().sites;
        let whole = |s: &accentor::lora::AdapterSite| !matches!(s.delta, accentor::lora::Delta::LowRank { .. });
        let biases = sites.iter().filter(|s| whole(s)).filter_map(|s| s.bias.clone());
        let tensors: Vec<String> = sites.iter().map(|s| s.initializer.clone()).chain(biases).collect();
        let ranges: Vec<_> = tensors.iter().map(|t| payload(&before, &model, t)).collect();
        let changed: Vec<usize> = (0..before.len()).filter(|i| before[*i] != after[*i]).collect();
        let outside = changed.iter().find(|i| !ranges.iter().any(|r| r.contains(i)));
        assert_eq!(outside, None, "{more}: a byte outside of {tensors:?} was changed");
        for (tensor, range) in tensors.iter().zip(&ranges) {
            assert!(changed.iter().any(|i| range.contains(i)), "{more}: {tensor} stayed");
        }
    }
}

#[test]
fn a_session_goes_to_any_thread() {
    fn shared<T: Send + Sync>() {}
    shared::<Session>();
    shared::<Model>();
    shared::<accentor::Adapter>();
}
