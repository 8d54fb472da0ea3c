//! Chains of ONNX files: the same numbers as composing them by hand, gradients through windows and stages, merging.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod onnx_file;
mod scene;

use accentor::lora::{Adapter, Delta};
use accentor::{AdapterSpec, Model};
use onnx_file::{Dim, Net, int, ints};
use scene::{Scene, npy};

const SAMPLES: usize = 40;
const FRAMES: usize = 19;
const BANDS: usize = 3;
const WINDOW: usize = 5;
const HOP: usize = 2;
const WINDOWS: usize = 8;
const WIDTH: usize = 4;
const CLASSES: usize = 2;
const SCALE: f64 = 0.5;
const OFFSET: f64 = 0.25;

/// f32 forward and backward against f64: some hundred roundings of 2⁻²⁴.
const RELATIVE: f64 = 1e-5;

/// `[1, 40]` → convolution of 4 samples, hop 2 → `[1, 1, 19, 3]`.
fn front() -> Net {
    Net::new()
        .input_with("x", &[Dim::Free("batch"), Dim::Free("samples")])
        .integers("channel", &[1])
        .node("Unsqueeze", &["x", "channel"], "wave", &[])
        .weight("conv.weight", &[BANDS as i64, 1, 4])
        .node("Conv", &["wave", "conv.weight"], "bands", &[ints("strides", &[2])])
        .node("Transpose", &["bands"], "frames", &[ints("perm", &[0, 2, 1])])
        .node("Unsqueeze", &["frames", "channel"], "y", &[])
        .output("y")
}

/// `[1, 5, 3]` → dense 4 → Tanh.
fn embedding() -> Net {
    Net::new()
        .input_with("x", &[Dim::Free("batch"), Dim::Fixed(WINDOW as i64), Dim::Fixed(BANDS as i64)])
        .node("Flatten", &["x"], "flat", &[])
        .weight("fc.weight", &[WIDTH as i64, (WINDOW * BANDS) as i64])
        .weight("fc.bias", &[WIDTH as i64])
        .node("Gemm", &["flat", "fc.weight", "fc.bias"], "h", &[int("transB", 1)])
        .node("Tanh", &["h"], "y", &[])
        .output("y")
}

/// `[1, windows, 4]` → dense 2; the names of the stage before it.
fn head() -> Net {
    Net::new()
        .input_with("x", &[Dim::Free("batch"), Dim::Free("windows"), Dim::Fixed(WIDTH as i64)])
        .node("Flatten", &["x"], "flat", &[])
        .weight("fc.weight", &[CLASSES as i64, (WINDOWS * WIDTH) as i64])
        .weight("fc.bias", &[CLASSES as i64])
        .node("Gemm", &["flat", "fc.weight", "fc.bias"], "h", &[int("transB", 1)])
        .output("h")
}

const MANIFEST: &str = "labels = [\"a\", \"b\"]\ninput_shape = [1, 40]\n\
    [[stage]]\nonnx = \"front.onnx\"\n\
    [[stage]]\nonnx = \"embedding.onnx\"\nscale = 0.5\noffset = 0.25\nwindow = 5\nhop = 2\n\
    [[stage]]\nonnx = \"head.onnx\"\n";

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("model.toml", MANIFEST);
    scene.write("front.onnx", front().file());
    scene.write("embedding.onnx", embedding().file());
    scene.write("head.onnx", head().file());
    scene
}

/// The values that [`Net::weight`] gives.
fn weight(name: &str, count: usize) -> Vec<f64> {
    (0..count).map(|i| (((i * 37 + name.len() * 11) % 101) as f32 / 101.0 - 0.5) as f64).collect()
}

fn clip(seed: usize) -> Vec<f32> {
    (0..SAMPLES).map(|i| ((i * (7 + seed) + 3 * seed) % 23) as f32 / 11.5 - 1.0).collect()
}

/// Every weight of the chain: of the convolution, the embedding and the head.
struct Weights {
    conv: Vec<f64>,
    fc: Vec<f64>,
    head: Vec<f64>,
}

impl Weights {
    fn of_files() -> Self {
        Self {
            conv: weight("conv.weight", BANDS * 4),
            fc: weight("fc.weight", WIDTH * WINDOW * BANDS),
            head: weight("fc.weight", CLASSES * WINDOWS * WIDTH),
        }
    }

    /// W + (alpha / r) B·A of each site.
    fn with(adapter: &Adapter) -> Self {
        let mut all = Self::of_files();
        for site in &adapter.sites {
            let w = match site.key.as_str() {
                "conv" => &mut all.conv,
                "fc" => &mut all.fc,
                "head/fc" => &mut all.head,
                other => panic!("{other}"),
            };
            let Delta::LowRank { rank, alpha, a, b } = &site.delta else { panic!() };
            let inputs = a.len() / rank;
            for (at, w) in w.iter_mut().enumerate() {
                let (o, i) = (at / inputs, at % inputs);
                let sum: f64 = (0..*rank).map(|r| b[o * rank + r] as f64 * a[r * inputs + i] as f64).sum();
                *w += *alpha as f64 / *rank as f64 * sum;
            }
        }
        all
    }

    fn logits(&self, x: &[f32]) -> Vec<f64> {
        let rows = self.rows(x);
        let bias = weight("fc.bias", CLASSES);
        (0..CLASSES).map(|o| bias[o] + dot(&self.head[o * rows.len()..], &rows)).collect()
    }

    /// What the windows give, one behind the other.
    fn rows(&self, x: &[f32]) -> Vec<f64> {
        let frames: Vec<f64> = (0..FRAMES)
            .flat_map(|t| (0..BANDS).map(move |c| (t, c)))
            .map(|(t, c)| (0..4).map(|k| x[2 * t + k] as f64 * self.conv[c * 4 + k]).sum::<f64>() * SCALE + OFFSET)
            .collect();
        let bias = weight("fc.bias", WIDTH);
        let mut rows = Vec::new();
        for window in 0..WINDOWS {
            let x = &frames[window * HOP * BANDS..][..WINDOW * BANDS];
            rows.extend((0..WIDTH).map(|o| (bias[o] + dot(&self.fc[o * x.len()..], x)).tanh()));
        }
        rows
    }

    fn loss(&self, x: &[f32], target: usize) -> f64 {
        let z = self.logits(x);
        z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[target]
    }
}

fn dot(w: &[f64], x: &[f64]) -> f64 {
    w.iter().zip(x).map(|(w, x)| w * x).sum()
}

/// An adapter with A and B random.
fn adapter(model: &Model) -> Adapter {
    let spec = AdapterSpec { rank: 2, alpha: 3.0, ..AdapterSpec::default() };
    let mut adapter = model.new_adapter(&spec, 1).unwrap();
    let mut rng = fastrand::Rng::with_seed(2);
    for site in &mut adapter.sites {
        let Delta::LowRank { b, .. } = &mut site.delta else { panic!() };
        b.iter_mut().for_each(|b| *b = rng.f32() - 0.5);
    }
    adapter
}

fn close(found: f64, expected: f64, scale: f64, what: &str) {
    assert!((found - expected).abs() <= RELATIVE * scale.max(1.0), "{what}: {found}, expected {expected}");
}

#[test]
fn logits_are_those_of_the_stages_by_hand() {
    let scene = scene();
    let model = Model::open(scene.path("model.toml")).unwrap();
    assert_eq!(model.input_shape(), [1, SAMPLES]);
    assert_eq!(model.stages().iter().map(|s| s.windows).collect::<Vec<_>>(), [1, WINDOWS, 1]);
    let keys: Vec<String> = model.sites().into_iter().map(|s| s.key).collect();
    assert_eq!(keys, ["conv", "fc", "head/fc"]);
    let frozen = model.session(None).unwrap();
    let adapter = adapter(&model);
    let (merged, beside) =
        (model.session(Some(&adapter)).unwrap(), model.session_of(&model.base().unwrap(), Some(&adapter)).unwrap());
    for seed in 0..5 {
        let x = clip(seed);
        for (session, weights) in
            [(&frozen, Weights::of_files()), (&merged, Weights::with(&adapter)), (&beside, Weights::with(&adapter))]
        {
            for (found, expected) in session.logits(&x).unwrap().iter().zip(weights.logits(&x)) {
                close(*found as f64, expected, expected.abs(), "logit");
            }
        }
    }
}

#[test]
fn gradients_add_over_windows_and_pass_between_stages() {
    let scene = scene();
    let model = Model::open(scene.path("model.toml")).unwrap();
    let mut adapter = adapter(&model);
    let mut trainer = model.trainer(adapter.clone(), 1).unwrap();
    let clips: Vec<(Vec<f32>, usize)> = (0..3).map(|seed| (clip(seed), seed % CLASSES)).collect();
    let batch: Vec<(&[f32], usize)> = clips.iter().map(|(x, t)| (x.as_slice(), *t)).collect();
    let mean = |adapter: &Adapter| -> f64 {
        let weights = Weights::with(adapter);
        clips.iter().map(|(x, t)| weights.loss(x, *t)).sum::<f64>() / clips.len() as f64
    };
    close(trainer.gradient(&batch).unwrap() as f64, mean(&adapter), 1.0, "loss");
    let gradients = trainer.gradients();
    for site in 0..adapter.sites.len() {
        let found: Vec<Vec<f32>> = gradients.sites[site].delta.tensors().iter().map(|t| t.to_vec()).collect();
        let largest = found.iter().flatten().fold(0.0f32, |m, g| m.max(g.abs())) as f64;
        assert!(largest > 1e-3, "no gradient reaches {}", adapter.sites[site].key);
        for (which, tensor) in found.iter().enumerate() {
            for (at, found) in tensor.iter().enumerate() {
                let mut moved = |by: f32| {
                    let Delta::LowRank { a, b, .. } = &mut adapter.sites[site].delta else { panic!() };
                    let value = if which == 0 { &mut a[at] } else { &mut b[at] };
                    let before = *value;
                    *value += by;
                    let step = *value as f64 - before as f64;
                    let loss = mean(&adapter);
                    let Delta::LowRank { a, b, .. } = &mut adapter.sites[site].delta else { panic!() };
                    *(if which == 0 { &mut a[at] } else { &mut b[at] }) = before;
                    (loss, step)
                };
                let ((up, more), (down, less)) = (moved(1e-3), moved(-1e-3));
                let central = (up - down) / (more - less);
                close(*found as f64, central, largest, &format!("{} {which} {at}", gradients.sites[site].key));
            }
        }
    }
}

#[test]
fn a_stage_of_one_window_and_sites_behind_it_are_trained_alike() {
    // The head alone: what lies before it is the cached prefix.
    let scene = scene();
    let model = Model::open(scene.path("model.toml")).unwrap();
    let spec = AdapterSpec { sites: accentor::graph::Choice::parse("^head/").unwrap(), ..AdapterSpec::default() };
    let trainer = model.trainer(model.new_adapter(&spec, 0).unwrap(), 1).unwrap();
    assert_eq!(trainer.cached_len(), WINDOWS * WIDTH);
    assert!(trainer.prefix().is_some());
    // One window has no copies.
    scene.write("model.toml", MANIFEST.replace("[1, 40]", "[1, 13]").replace("head.onnx", "small.onnx"));
    let small = head_of(1);
    scene.write("small.onnx", small.file());
    let model = Model::open(scene.path("model.toml")).unwrap();
    assert_eq!(model.stages()[1].windows, 1);
    assert!(model.graph().copies.is_empty());
    assert_eq!(model.sites().len(), 3);
}

fn head_of(windows: i64) -> Net {
    Net::new()
        .input("x", &[1, windows * WIDTH as i64])
        .weight("out.weight", &[CLASSES as i64, windows * WIDTH as i64])
        .node("Gemm", &["x", "out.weight"], "scores", &[int("transB", 1)])
        .output("scores")
}

/// Data that can be told apart: two kinds of clips, as `.npy`.
fn data(scene: &Scene) {
    for (label, base) in [("a", 0), ("b", 8)] {
        for index in 0..6 {
            let values: Vec<f32> = clip(base + index % 3).iter().map(|v| v + index as f32 * 0.01).collect();
            scene.write(&format!("data/{label}/{index}.npy"), npy(&values, &[]));
        }
    }
}

#[test]
fn every_verb_takes_a_chain() {
    let scene = scene();
    data(&scene);
    let inspected = scene.json("inspect model.toml");
    assert_eq!(inspected["stages"].as_array().unwrap().len(), 3);
    assert_eq!(inspected["stages"][1]["windows"], WINDOWS);
    assert_eq!(inspected["operators"]["Tanh"], 1, "copies do not count");
    let adapted = scene.json("adapt --model model.toml --data data --out out --epochs 60 --lr 3e-2");
    assert_eq!(adapted["after"]["correct"], 12, "{adapted}");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(scene.path("out/adapter_config.json")).unwrap()).unwrap();
    let stages = config["accentor"]["stages"].as_array().unwrap();
    let files: Vec<&str> = stages.iter().map(|s| s["onnx"].as_str().unwrap()).collect();
    assert_eq!(files, ["front.onnx", "embedding.onnx", "head.onnx"]);
    assert_eq!(stages[2]["sites"], serde_json::json!(["head/fc"]));
    assert_eq!(stages[1]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(scene.json("eval --model model.toml --adapter out --data data")["correct"], 12);
    let bench = scene.json("bench --model model.toml --steps 2 --batch 2");
    assert!(bench["arena_bytes"].as_u64().unwrap() > 0);

    // Merged: a folder that is a model, with the same scores.
    scene.fails(
        1,
        "merge --model model.toml --adapter out --out one.onnx",
        &["--out one.onnx", "chain of 3", "folder"],
    );
    scene.json("merge --model model.toml --adapter out --out merged");
    let input = "data/a/1.npy";
    let with = scene.json(&format!("predict --model model.toml --adapter out {input}"));
    let merged = scene.json(&format!("predict --model merged {input}"));
    for index in 0..CLASSES {
        let score = |of: &serde_json::Value| of["predictions"][0]["labels"][index]["score"].as_f64().unwrap();
        close(score(&merged), score(&with), 1.0, "merged score");
    }
    scene.fails(1, "eval --model merged --adapter out --data data", &["was trained on `front.onnx`"]);
}

#[test]
fn a_stage_may_take_windows_as_columns() {
    let scene = scene();
    let net = Net::new()
        .input("x", &[1, WIDTH as i64, WINDOWS as i64])
        .node("Flatten", &["x"], "flat", &[])
        .weight("out.weight", &[CLASSES as i64, (WINDOWS * WIDTH) as i64])
        .node("Gemm", &["flat", "out.weight"], "h", &[int("transB", 1)])
        .output("h");
    scene.write("head.onnx", net.file());
    let model = Model::open(scene.path("model.toml")).unwrap();
    let rows = Weights::of_files().rows(&clip(1));
    let turned: Vec<f64> = (0..WIDTH).flat_map(|c| rows.iter().skip(c).step_by(WIDTH).copied()).collect();
    let head = weight("out.weight", CLASSES * turned.len());
    let found = model.session(None).unwrap().logits(&clip(1)).unwrap();
    for (o, found) in found.iter().enumerate() {
        close(*found as f64, dot(&head[o * turned.len()..], &turned), 1.0, "logit");
    }
}

#[test]
fn another_stage_is_another_base() {
    let scene = scene();
    data(&scene);
    let adapt = "adapt --model model.toml --data data --out out --epochs 1";
    scene.json(adapt);
    scene.write("head.onnx", head().weight("unused", &[3]).file());
    scene.fails(1, "eval --model model.toml --adapter out --data data", &["`head.onnx`", "accentor adapt"]);
}

#[test]
fn frozen_stages_have_no_sites() {
    let scene = scene();
    scene.write("model.toml", MANIFEST.replace("front.onnx\"", "front.onnx\"\nfrozen = true"));
    let model = Model::open(scene.path("model.toml")).unwrap();
    let keys: Vec<String> = model.sites().into_iter().map(|s| s.key).collect();
    assert_eq!(keys, ["fc", "head/fc"]);
}

#[test]
fn stages_that_do_not_fit_say_what_they_need() {
    let scene = scene();
    for (from, to, words) in [
        (
            "window = 5\nhop = 2",
            "",
            &["stage 2 (`embedding.onnx`)", "[1, 5, 3]", "stage 1 gives [1, 1, 19, 3]", "`window = 5`"][..],
        ),
        ("window = 5", "window = 6", &["stage 2", "[1, 5, 3]", "`window = 5`"]),
        ("window = 5", "window = 50", &["stage 2", "50 frames", "window_samples"]),
        ("hop = 2", "hop = 3", &["head.onnx", "stage 3", "fed [5, 4]"]),
        ("[1, 40]", "[1, 8]", &["stage 2", "needs 5 frames"]),
        ("[1, 40]", "[1, 2]", &["front.onnx", "stage 1", "reaches over 4 values", "give a longer input"]),
        ("onnx = \"front.onnx\"", "onnx = \"front.onnx\"\nwindow = 4", &["head.onnx", "fed [3, 4]"]),
        ("onnx = \"head.onnx\"", "onnx = \"front.onnx\"", &["45 scores of output `front#2/y`"]),
        ("onnx = \"head.onnx\"", "onnx = \"gone.onnx\"", &["gone.onnx", "there is no such file"]),
        ("onnx = \"head.onnx\"", "onnx = \"head.onnx\"\noutput = \"z\"", &["head.onnx", "no output `z`"]),
        ("labels = [\"a\", \"b\"]", "labels = [\"a\", \"b\", \"c\"]", &["3 labels for 2 scores"]),
        ("[[stage]]\nonnx = \"front.onnx\"", "onnx = \"front.onnx\"", &["`onnx`", "[[stage]]"]),
    ] {
        assert!(MANIFEST.contains(from), "{from}");
        scene.write("model.toml", MANIFEST.replacen(from, to, 1));
        scene.fails(1, "inspect model.toml", words);
    }
    let hop = "window = 1\nhop = 1";
    scene.write("model.toml", "input_shape = [1, 5000]\n[[stage]]\nonnx = \"wave.onnx\"\n".to_owned() + hop);
    scene.write("wave.onnx", Net::new().input("x", &[1, 1]).node("Tanh", &["x"], "y", &[]).output("y").file());
    scene.fails(1, "inspect model.toml", &["5000 windows", "`hop`"]);
}
