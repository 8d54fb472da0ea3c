//! Bad input gets an error that names the thing and the cure, and leaves nothing half-written.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod onnx_file;
mod scene;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use accentor::onnx::{LoadOptions, load};
use onnx_file::{Dim, Net, dense, graph, int, ints, text};
use scene::{Scene, arguments, clips_into, copy_folder, kws, npy, says};

/// `net.onnx` with three classes and `data/{0,1,2}` for it.
fn net(scene: &Scene) {
    scene.write("net.onnx", dense(3).file());
    tensors(scene, &["0", "1", "2"]);
}

fn tensors(scene: &Scene, labels: &[&str]) {
    for (at, label) in labels.iter().enumerate() {
        for copy in 0..2 {
            let values = [at as f32, copy as f32, 1.0, -1.0];
            scene.write(&format!("data/{label}/{copy}.npy"), npy(&values, &[]));
        }
    }
}

/// A wav header and `data`; `promised` is the data's length as the header has it.
fn wav(format: u16, channels: u16, rate_hz: u32, bits: u16, promised: u32, data: &[u8]) -> Vec<u8> {
    let block = channels * bits / 8;
    let mut out = b"RIFF".to_vec();
    out.extend((36 + promised).to_le_bytes());
    out.extend(b"WAVEfmt \x10\0\0\0");
    out.extend(format.to_le_bytes());
    out.extend(channels.to_le_bytes());
    out.extend(rate_hz.to_le_bytes());
    out.extend((rate_hz.wrapping_mul(u32::from(block))).to_le_bytes());
    out.extend(block.to_le_bytes());
    out.extend(bits.to_le_bytes());
    out.extend(b"data");
    out.extend(promised.to_le_bytes());
    out.extend(data);
    out
}

/// An adapter of our own model, trained once for all cases.
fn adapter() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = MADE.get_or_init(|| {
        let scene = Scene::new();
        scene.clips(&["yes", "no"], 1);
        let line = "adapt --model KWS --data data --out out --rank 2 --epochs 1 --variants 1 --lr 1e-2";
        let output = scene.run(line);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        scene.folder
    });
    Box::leak(folder.path().join("out").into_boxed_path())
}

/// Trains on `net.onnx`, on data that is good.
const ADAPT_NET: &str = "adapt --model net.onnx --data data --out out --epochs 1";

// --- the model -------------------------------------------------------------------------------------------------------

#[test]
fn a_truncated_onnx_is_named() {
    let scene = Scene::new();
    let whole = fs::read(kws().join("kws-commands.onnx")).unwrap();
    for keep in [1, 7, 100, whole.len() / 4, whole.len() / 2, whole.len() - 1000, whole.len() - 1] {
        scene.write("cut.onnx", &whole[..keep]);
        let text = scene.fails(1, "inspect cut.onnx", &["cut.onnx"]);
        assert!(text.contains("complete") || text.contains("inferred"), "{keep}: {text}");
        scene.fails(1, "adapt --model cut.onnx --data data --out out", &["cut.onnx"]);
    }
}

#[test]
fn a_truncated_onnx_of_a_manifest_differs_in_its_sha256() {
    let scene = Scene::new();
    let whole = fs::read(kws().join("kws-commands.onnx")).unwrap();
    fs::copy(kws().join("model.toml"), scene.path("model.toml")).unwrap();
    scene.write("kws-commands.onnx", &whole[..whole.len() / 2]);
    scene.fails(1, "inspect model.toml", &["kws-commands.onnx", "SHA-256", "fetch the file again"]);
}

#[test]
fn a_foreign_file_is_no_model() {
    let scene = Scene::new();
    let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0".to_vec();
    for (name, bytes) in
        [("png", png), ("text", b"import torch\n".to_vec()), ("empty", Vec::new()), ("zeros", vec![0; 64])]
    {
        scene.write(&format!("{name}.onnx"), bytes);
        scene.fails(1, &format!("inspect {name}.onnx"), &[name, "not a readable ONNX model", "sha256"]);
    }
    fs::create_dir(scene.path("folder.onnx")).unwrap();
    scene.fails(1, "inspect folder.onnx", &["folder.onnx"]);
    scene.fails(1, "inspect absent.onnx", &["absent.onnx", "No such file"]);
    scene.fails(1, "inspect absent", &["absent"]);
}

#[test]
fn external_data_stays_inside_the_folder() {
    let scene = Scene::new();
    let net = |entries: &[(&str, &str)]| {
        Net::new()
            .input("x", &[1, 4])
            .external("w", &[4, 2], entries)
            .node("MatMul", &["x", "w"], "y", &[])
            .output("y")
            .file()
    };
    scene.write("secret.bin", [0; 32]);
    for location in ["../secret.bin", "/etc/passwd", "a/../../secret.bin"] {
        scene.write("model/net.onnx", net(&[("location", location)]));
        scene.fails(1, "inspect model/net.onnx", &["`w`", location, "outside the model's folder", "beside the model"]);
    }
    scene.write("model/net.onnx", net(&[("location", "absent.bin")]));
    scene.fails(1, "inspect model/net.onnx", &["`w`", "absent.bin", "missing"]);
    scene.write("model/net.onnx", net(&[]));
    scene.fails(1, "inspect model/net.onnx", &["`w`", "location"]);
    scene.write("model/short.bin", [0; 31]);
    scene.write("model/net.onnx", net(&[("location", "short.bin")]));
    scene.fails(1, "inspect model/net.onnx", &["`w`", "short.bin", "32"]);
    for (offset, length) in [("8", "32"), ("-8", "32"), ("99999999999999", "32"), ("0", "16"), ("x", "32")] {
        scene.write("model/whole.bin", [0; 32]);
        scene.write("model/net.onnx", net(&[("location", "whole.bin"), ("offset", offset), ("length", length)]));
        scene.fails(1, "inspect model/net.onnx", &["`w`", "whole.bin"]);
    }
    // What lies inside is read, from where the entry says.
    let values: Vec<u8> = (0..12u8).flat_map(|v| f32::from(v).to_le_bytes()).collect();
    scene.write("model/whole.bin", values);
    scene.write("model/net.onnx", net(&[("location", "whole.bin"), ("offset", "16"), ("length", "32")]));
    assert!(scene.run("inspect model/net.onnx").status.success());
    let graph = load(&scene.path("model/net.onnx"), &LoadOptions::default()).unwrap();
    let weight = graph.values[graph.value_named("w").unwrap()].values().unwrap();
    assert_eq!(*weight, [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
}

#[test]
fn external_data_inside_a_subgraph_is_not_read_either() {
    let scene = Scene::new();
    let branch =
        Net::new().external("w", &[4], &[("location", "/dev/zero")]).node("Identity", &["w"], "b", &[]).output("b");
    let attributes = [graph("then_branch", &branch), graph("else_branch", &branch)];
    let net = Net::new().input("x", &[1, 4]).node("If", &["x"], "y", &attributes).output("y");
    scene.write("net.onnx", net.file());
    scene.fails(1, "inspect net.onnx", &["net.onnx"]);
}

/// What ran through tract with wrong values, as the standard's node tests found.
#[test]
fn what_would_compute_wrong_values_is_refused() {
    let scene = Scene::new();
    let computed = |direction: &str| {
        let attributes = [int("hidden_size", 3), text("direction", direction)];
        let net = Net::new().input("x", &[1, 5, 2]).weight("w0", &[1, 3, 2]).weight("r", &[1, 3, 3]);
        let net = net.node("ReduceMax", &["x"], "m", &[int("keepdims", 0)]).node("Mul", &["w0", "m"], "w", &[]);
        net.node("RNN", &["x", "w", "r"], "y", &attributes).output("y").file()
    };
    scene.write("net.onnx", computed("forward"));
    let output = scene.run("inspect net.onnx");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    scene.write("net.onnx", computed("reverse"));
    scene.fails(1, "inspect net.onnx", &["RNN", "constant weights"]);

    let net = Net::new().input("x", &[1, 4]).weight_of("ratio", &[], &[0.5]).weight_of("mode", &[], &[1.0]);
    let net = net.node("Cast", &["mode"], "training", &[int("to", 9)]);
    scene.write("net.onnx", net.node("Dropout", &["x", "ratio", "training"], "y", &[]).output("y").file());
    scene.fails(1, "inspect net.onnx", &["Dropout", "evaluation mode"]);
}

#[test]
fn control_flow_is_refused() {
    let scene = Scene::new();
    let branch = |op: &str| Net::new().node(op, &["x"], "b", &[]).output("b");
    let attributes = [graph("then_branch", &branch("Relu")), graph("else_branch", &branch("Neg"))];
    let net = Net::new()
        .input("x", &[1, 4])
        .weight_of("zero", &[], &[0.0])
        .node("ReduceMax", &["x"], "m", &[int("keepdims", 0)])
        .node("Greater", &["m", "zero"], "c", &[])
        .node("If", &["c"], "y", &attributes)
        .output("y");
    scene.write("if.onnx", net.file());
    scene.fails(1, "inspect if.onnx", &["/y/If", "If", "control flow"]);

    let body = Net::new()
        .input("i", &[])
        .input("cond", &[])
        .input("v", &[1, 4])
        .node("Identity", &["cond"], "go", &[])
        .node("Relu", &["v"], "out", &[])
        .output("go")
        .output("out");
    let net = Net::new()
        .input("x", &[1, 4])
        .integers("count", &[3])
        .node("Loop", &["count", "", "x"], "y", &[graph("body", &body)])
        .output("y");
    scene.write("loop.onnx", net.file());
    scene.fails(1, "inspect loop.onnx", &["/y/Loop", "Loop", "control flow"]);
    tensors(&scene, &["0", "1"]);
    for (file, op) in [("if.onnx", "If"), ("loop.onnx", "Loop")] {
        let adapt = format!("adapt --model {file} --data data --out out");
        scene.fails(1, &adapt, &[op, "export the model without control flow"]);
    }
}

#[test]
fn a_graph_that_cannot_be_computed_is_refused() {
    let scene = Scene::new();
    let cycle =
        Net::new().input("x", &[1, 4]).node("Add", &["x", "b"], "a", &[]).node("Relu", &["a"], "b", &[]).output("b");
    scene.write("cycle.onnx", cycle.file());
    scene.fails(1, "inspect cycle.onnx", &["/a/Add", "`b`", "cycle"]);

    let missing = Net::new().input("x", &[1, 4]).node("MatMul", &["x", "w"], "y", &[]).output("y");
    scene.write("missing.onnx", missing.file());
    scene.fails(1, "inspect missing.onnx", &["/y/MatMul", "`w`", "nothing"]);

    let unnamed = Net::new().input("x", &[1, 4]).node("Relu", &["x"], "y", &[]).output("z");
    scene.write("unnamed.onnx", unnamed.file());
    scene.fails(1, "inspect unnamed.onnx", &["`z`"]);

    let shapes = Net::new().input("x", &[1, 4]).weight("w", &[5, 2]).node("MatMul", &["x", "w"], "y", &[]).output("y");
    scene.write("shapes.onnx", shapes.file());
    scene.fails(1, "inspect shapes.onnx", &["shapes.onnx", "MatMul"]);

    let short = Net::new()
        .input("x", &[1, 4])
        .weight_of("w", &[4, 2], &[0.0; 7])
        .node("MatMul", &["x", "w"], "y", &[])
        .output("y");
    scene.write("short.onnx", short.file());
    scene.fails(1, "inspect short.onnx", &["short.onnx"]);

    let unknown = Net::new().input("x", &[1, 4]).node("Frobnicate", &["x"], "y", &[]).output("y");
    scene.write("unknown.onnx", unknown.file());
    scene.fails(1, "inspect unknown.onnx", &["/y/Frobnicate", "Frobnicate"]);

    let two = Net::new().input("x", &[1, 4]).input("z", &[1, 4]).node("Add", &["x", "z"], "y", &[]).output("y");
    scene.write("two.onnx", two.file());
    scene.fails(1, "inspect two.onnx", &["2 inputs", "x", "z"]);

    let free = [Dim::Fixed(1), Dim::Free("time")];
    let free = Net::new().input_with("x", &free).node("Relu", &["x"], "y", &[]).output("y");
    scene.write("free.onnx", free.file());
    scene.fails(1, "inspect free.onnx", &["`x`", "time", "input_shape"]);

    net(&scene);
    scene.fails(1, "inspect net.onnx --output nothing", &["`nothing`", "logits"]);
    scene.fails(1, "inspect net.onnx --labels a,b", &["2 labels", "3 scores", "logits"]);
    scene.fails(1, "inspect net.onnx --input-shape 1,5,5", &["input_shape"]);
    scene.fails(1, "inspect net.onnx --input-shape 1,0", &["0"]);
}

#[test]
fn impossible_sizes_are_refused_before_memory_is_asked_for() {
    let scene = Scene::new();
    let relu = |net: Net| net.node("Relu", &["x"], "y", &[]).output("y").file();
    scene.write("net.onnx", relu(Net::new().input("x", &[1, 1 << 20, 1 << 20])));
    scene.fails(1, "inspect net.onnx", &["`x`", "input_shape"]);
    scene.write("net.onnx", relu(Net::new().input("x", &[1, i64::MAX, 4])));
    scene.fails(1, "inspect net.onnx", &["net.onnx", "`x`"]);
    let weight = |dims: &[i64]| {
        let net = Net::new().input("x", &[1, 4]).weight_of("w", dims, &[0.0; 8]);
        net.node("MatMul", &["x", "w"], "y", &[]).output("y").file()
    };
    for dims in [[1 << 40, 1 << 40], [-4, 2], [1 << 33, 1]] {
        scene.write("net.onnx", weight(&dims));
        scene.fails(1, "inspect net.onnx", &["`w`", "dimensions"]);
    }
    let filled = |op: &str, inputs: &[&str]| {
        let net = Net::new().input("x", &[1, 4]).weight("w", &[1, 1]).integers("shape", &[1 << 22, 1 << 22]);
        net.node(op, inputs, "big", &[]).node("Add", &["x", "big"], "y", &[]).output("y").file()
    };
    for (op, inputs) in [
        ("ConstantOfShape", &["shape"][..]),
        ("Expand", &["w", "shape"]),
        ("Tile", &["w", "shape"]),
        ("Expand", &["x", "shape"]),
    ] {
        scene.write("net.onnx", filled(op, inputs));
        scene.fails(1, "inspect net.onnx", &[&format!("/big/{op}")]);
    }
    let padded = Net::new().input("x", &[1, 1, 8, 8]).weight("w", &[1, 1, 3, 3]);
    let pads = [ints("pads", &[1 << 30, 1 << 30, 1 << 30, 1 << 30])];
    let padded = padded.node("Conv", &["x", "w"], "y", &pads).output("y");
    scene.write("net.onnx", padded.file());
    scene.fails(1, "inspect net.onnx", &["`y`"]);
}

#[test]
fn a_gradient_that_cannot_pass_is_refused_before_training() {
    let scene = Scene::new();
    let net = Net::new()
        .input("x", &[1, 4])
        .weight("low.weight", &[4, 4])
        .node("MatMul", &["x", "low.weight"], "h", &[])
        .node("Hardmax", &["h"], "s", &[])
        .weight("high.weight", &[4, 3])
        .node("MatMul", &["s", "high.weight"], "y", &[])
        .output("y");
    scene.write("net.onnx", net.file());
    tensors(&scene, &["0", "1", "2"]);
    let adapt = "adapt --model net.onnx --data data --out out --epochs 1000000 --sites";
    scene.fails(1, &format!("{adapt} all"), &["/s/Hardmax", "Hardmax", "no gradient", "--sites"]);
    scene.fails(1, &format!("{adapt} /h/"), &["/s/Hardmax", "Hardmax"]);
    let inspected = scene.run("inspect net.onnx");
    assert!(String::from_utf8_lossy(&inspected.stdout).contains("Hardmax"));
    let output = scene.run("adapt --model net.onnx --data data --out out --epochs 1 --sites /y/");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_bad_manifest_names_its_field() {
    let scene = Scene::new();
    net(&scene);
    let manifest = |text: &str| scene.write("model.toml", text);
    manifest("onnx = \"net.onnx\"\nlables = [\"a\"]");
    scene.fails(1, "inspect model.toml", &["model.toml", "lables", "labels"]);
    manifest(&format!("onnx = \"net.onnx\"\nsha256 = \"{}\"", "0".repeat(64)));
    scene.fails(1, "inspect model.toml", &["net.onnx", "SHA-256", "fetch"]);
    manifest("onnx = \"net.onnx\"\nlabels = [\"a\", \"b\"]");
    scene.fails(1, "inspect model.toml", &["model.toml", "2 labels", "3 scores"]);
    manifest("onnx = \"absent.onnx\"\nfetch = \"the shop\"");
    scene.fails(1, "inspect .", &["absent.onnx", "the shop"]);
    manifest("onnx = ");
    scene.fails(1, "inspect model.toml", &["model.toml", "accentor init"]);
    manifest("onnx = \"net.onnx\"\n[front_end]\nkind = \"mfcc\"");
    scene.fails(1, "inspect model.toml", &["mfcc", "[49, 10]", "[1, 4]"]);
    scene.write("model.toml", [0xff; 40]);
    scene.fails(1, "inspect model.toml", &["model.toml"]);
}

// --- the data --------------------------------------------------------------------------------------------------------

#[test]
fn a_wav_with_a_lying_header_is_named() {
    let scene = Scene::new();
    let sound = [1u8; 3200];
    for (name, bytes, word) in [
        ("long", wav(1, 1, 16_000, 16, 1 << 30, &sound), "promises"),
        ("longer", wav(1, 1, 16_000, 16, 3300, &sound), "promises"),
        ("silent", wav(1, 0, 16_000, 16, 3200, &sound), "channels"),
        ("fast", wav(1, 1, u32::MAX / 2, 16, 3200, &sound), "2147483647 Hz"),
        // The bytes a second do not fit their field.
        ("faster", wav(1, 1, u32::MAX, 16, 3200, &sound), "inconsistent"),
        ("slow", wav(1, 1, 0, 16, 3200, &sound), "0 Hz"),
        ("odd", wav(1, 1, 16_000, 0, 3200, &sound), "bits"),
        ("wide", wav(1, 1, 16_000, 64, 3200, &sound), "bits"),
        ("coded", wav(85, 1, 16_000, 16, 3200, &sound), "coding"),
        ("cut", wav(1, 1, 16_000, 16, 3200, &sound)[..30].to_vec(), "header"),
        ("none", wav(1, 1, 16_000, 16, 0, &[]), "no samples"),
        ("text", b"hello".to_vec(), "WAV"),
    ] {
        let file = format!("{name}.wav");
        scene.write(&file, bytes);
        scene.fails(1, &format!("predict --model KWS {file}"), &[&file, word, "ffmpeg"]);
    }
    scene.clips(&["yes", "no"], 1);
    scene.write("data/yes/lie.wav", wav(1, 1, 16_000, 16, 1 << 30, &sound));
    scene.fails(1, "adapt --model KWS --data data --out out", &["--data", "lie.wav", "promises"]);
    scene.fails(1, "eval --model KWS --data data", &["lie.wav", "promises"]);
}

#[test]
fn a_folder_that_is_no_dataset_is_named() {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("empty")).unwrap();
    scene.write("flat/a.wav", "x");
    scene.write("notes/yes/readme.txt", "x");
    scene.write("notes.txt", "x");
    for verb in ["adapt --model KWS --out out --data", "eval --model KWS --data"] {
        scene.fails(1, &format!("{verb} empty"), &["--data", "empty", "label folder", "make a folder a label"]);
        scene.fails(1, &format!("{verb} flat"), &["flat", "a.wav", "folder of its label"]);
        scene.fails(1, &format!("{verb} notes"), &["notes", "\"yes\"", "put files into it"]);
        scene.fails(1, &format!("{verb} notes.txt"), &["notes.txt", "CSV"]);
        scene.fails(1, &format!("{verb} absent"), &["--data", "absent", "No such file"]);
    }
    scene.clips(&["yes", "no"], 1);
    for flag in ["--valid", "--eval", "--replay", "--guard"] {
        scene.fails(1, &format!("adapt --model KWS --data data --out out {flag} empty"), &[flag, "empty"]);
    }
}

#[test]
fn one_class_needs_replay() {
    let scene = Scene::new();
    scene.clips(&["yes"], 2);
    clips_into(&scene.path("more"), "no", 1);
    let line = "adapt --model KWS --data data --out out --epochs 1 --variants 1";
    scene.fails(1, line, &["`yes`", "--replay"]);
    let output = scene.run(&format!("{line} --replay more"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(scene.path("out/adapter_config.json").is_file());
}

#[test]
fn an_unknown_label_gets_the_near_one() {
    let scene = Scene::new();
    scene.clips(&["yes", "no"], 1);
    for (wrong, near) in [("Yes ", "yes"), ("YES", "yes"), ("yess", "yes"), ("rihgt", "right")] {
        clips_into(&scene.path("data"), "yes", 1);
        fs::rename(scene.path("data/yes"), scene.path("data").join(wrong)).unwrap();
        let near = format!("did you mean `{near}`?");
        let text = scene.fails(1, "adapt --model KWS --data data --out out", &["--data", wrong, &near, "rename"]);
        assert!(text.contains("down, go, left"), "{text}");
        fs::rename(scene.path("data").join(wrong), scene.path("data/yes")).unwrap();
    }
    fs::rename(scene.path("data/yes"), scene.path("data/television")).unwrap();
    let text = scene.fails(1, "adapt --model KWS --data data --out out", &["`television`", "leave these clips out"]);
    assert!(!text.contains("did you mean"), "{text}");
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let scene = Scene::new();
    net(&scene);
    for value in [f32::NAN, f32::INFINITY] {
        let bad = scene.write("data/1/bad.npy", npy(&[0.0, 1.0, value, 0.0], &[]));
        scene.fails(1, ADAPT_NET, &["--data", "bad.npy", "finite", "value 2"]);
        scene.fails(1, "predict --model net.onnx data/1/bad.npy", &["bad.npy", "finite"]);
        fs::remove_file(bad).unwrap();
    }
    scene.write("data/1/bad.npy", npy(&[0.0; 5], &[]));
    scene.fails(1, ADAPT_NET, &["bad.npy", "[1, 4]", "[5]"]);
    scene.write("data/1/bad.npy", &npy(&[0.0; 4], &[])[..100]);
    scene.fails(1, ADAPT_NET, &["bad.npy"]);

    let scene = Scene::new();
    scene.clips(&["yes", "no"], 1);
    let samples: Vec<u8> = [0.0, f32::NAN, 0.5].iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
    scene.write("data/yes/bad.wav", wav(3, 1, 16_000, 32, 12, &samples));
    scene.fails(1, "adapt --model KWS --data data --out out", &["bad.wav", "NaN", "value 1"]);
    let samples: Vec<u8> = [0.0, f32::MAX, f32::MIN].iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
    scene.write("data/yes/bad.wav", wav(3, 1, 16_000, 32, 12, &samples));
    let output = scene.run("predict --model KWS data/yes/bad.wav");
    assert!(output.status.code().is_some_and(|c| c < 2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_file_of_another_kind_is_refused() {
    let scene = Scene::new();
    net(&scene);
    scene.clips(&["yes"], 1);
    let clip = fs::read_dir(scene.path("data/yes")).unwrap().next().unwrap().unwrap().path();
    scene.write("a.npy", npy(&[0.0; 4], &[]));
    scene.fails(1, "predict --model KWS a.npy", &["a.npy", "sound clips", "tensor"]);
    scene.fails(1, &format!("predict --model net.onnx {}", clip.display()), &[".flac", "tensors (.npy)"]);
    scene.write("a.mp3", "x");
    scene.fails(1, "predict --model KWS a.mp3", &["a.mp3", ".flac"]);
    scene.write("a.png", "x");
    scene.fails(1, "predict --model KWS a.png", &["a.png"]);
}

#[test]
fn a_broken_csv_names_its_line() {
    let scene = Scene::new();
    net(&scene);
    let line = "adapt --model net.onnx --data table.csv --out out --epochs 1";
    let table = |text: &str, words: &[&str]| {
        scene.write("table.csv", text);
        scene.fails(1, line, &[&["table.csv"], words].concat());
    };
    table("path,label\ndata/0/0.npy,0\ndata/0/absent.npy,1\n", &["line 3", "absent.npy", "relative to the CSV"]);
    table("file,class\ndata/0/0.npy,0\n", &["path and label", "first line"]);
    table("path,label\n", &["no line"]);
    table("", &["path"]);
    table("path,label\ndata/0/0.npy\n", &["correct the CSV"]);
    table("path,label\n,0\n", &["line 2", "path"]);
    table("path,label\ndata/0/0.npy,\n", &["line 2", "label"]);
    table("path,label\ndata/0/0.txt,0\n", &["line 2", ".npy"]);
    scene.write("table.csv", [b"path,label\n".as_slice(), &[0xff, 0xfe, b',', b'0', b'\n']].concat());
    scene.fails(1, line, &["table.csv"]);
}

// --- the adapter -----------------------------------------------------------------------------------------------------

#[test]
fn an_adapter_of_another_base_is_refused() {
    let scene = Scene::new();
    net(&scene);
    assert!(scene.run(ADAPT_NET).status.success());
    let other = dense(3).weight("unused", &[1]);
    scene.write("other.onnx", other.file());
    let words = ["net.onnx", "sha256", "accentor adapt"];
    scene.fails(1, "eval --model other.onnx --adapter out --data data", &words);
    scene.fails(1, "predict --model other.onnx --adapter out data/0/0.npy", &words);
    scene.fails(1, "merge --model other.onnx --adapter out --out merged.onnx", &words);
    copy_folder(adapter(), &scene.path("kws"));
    scene.fails(1, "merge --model net.onnx --adapter kws --out merged.onnx", &["kws-commands.onnx", "sha256"]);
    assert!(!scene.path("merged.onnx").exists());
}

/// The header of a safetensors file and where its data begins.
fn header(bytes: &[u8]) -> (serde_json::Value, usize) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), 8 + length)
}

#[test]
fn a_damaged_adapter_is_refused() {
    let scene = Scene::new();
    let tensors = fs::read(adapter().join("adapter_model.safetensors")).unwrap();
    let config = fs::read_to_string(adapter().join("adapter_config.json")).unwrap();
    scene.clips(&["yes", "no"], 1);
    let refused = |tensors: Option<&[u8]>, config: Option<&str>, words: &[&str]| {
        let _ = fs::remove_dir_all(scene.path("bad"));
        fs::create_dir(scene.path("bad")).unwrap();
        tensors.map(|t| scene.write("bad/adapter_model.safetensors", t));
        config.map(|c| scene.write("bad/adapter_config.json", c));
        scene.fails(1, "eval --model KWS --adapter bad --data data", words);
        scene.fails(1, "merge --model KWS --adapter bad --out merged.onnx", words);
    };
    refused(None, None, &["adapter_config.json"]);
    refused(None, Some(&config), &["adapter_model.safetensors"]);
    refused(Some(&tensors), None, &["adapter_config.json"]);
    refused(Some(&tensors), Some(""), &["adapter_config.json", "damaged"]);
    refused(Some(&tensors), Some("{}"), &["adapter_config.json", "peft_type"]);
    refused(Some(&tensors), Some(&config[..config.len() / 2]), &["adapter_config.json", "damaged"]);
    refused(
        Some(&tensors),
        Some(&config.replace("\"format_version\": 1", "\"format_version\": 99")),
        &["99", "update"],
    );
    for keep in [0, 4, 100, tensors.len() / 2, tensors.len() - 1] {
        refused(Some(&tensors[..keep]), Some(&config), &["adapter_model.safetensors", "damaged"]);
    }
    let mut longer = tensors.clone();
    longer.push(0);
    refused(Some(&longer), Some(&config), &["adapter_model.safetensors", "damaged"]);

    // The names of A and B exchanged.
    let (mut table, data) = header(&tensors);
    let keys: Vec<String> = table.as_object().unwrap().keys().filter(|k| k.contains("lora_A")).cloned().collect();
    for a in &keys {
        let b = a.replace("lora_A", "lora_B");
        let (of_a, of_b) = (table[a].clone(), table[&b].clone());
        (table[a], table[&b]) = (of_b, of_a);
    }
    let mut text = table.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let swapped = [&(text.len() as u64).to_le_bytes()[..], &text, &tensors[data..]].concat();
    refused(Some(&swapped), Some(&config), &["swapped", "A goes from the input to the rank"]);

    let mut nan = tensors.clone();
    let last = nan.len() - 4;
    nan[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(Some(&nan), Some(&config), &["not a number"]);
}

#[test]
fn rank_zero_trains_nothing() {
    let scene = Scene::new();
    net(&scene);
    scene.fails(1, &format!("{ADAPT_NET} --rank 0"), &["rank 0", "--rank 1"]);
    scene.fails(2, &format!("{ADAPT_NET} --rank -1"), &["--rank <RANK>", "-1"]);
    scene.fails(1, "bench --model net.onnx --rank 0", &["rank 0"]);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let scene = Scene::new();
    net(&scene);
    let line = "adapt --model net.onnx --data data --out out";
    for (flags, words) in [
        ("--epochs 0", ["epochs", "1 or more"]),
        ("--batch 0", ["batch", "1 or more"]),
        ("--label-smoothing 1", ["label smoothing", "below 1"]),
        ("--sites nothing_like_it", ["--sites", "accentor inspect"]),
        ("--alpha NaN", ["alpha", "number"]),
        ("--warmup 2", ["warmup", "0 to 1"]),
        ("--warmup NaN", ["warmup", "0 to 1"]),
        ("--clip-norm 0", ["clip norm", "positive"]),
        ("--weight-decay NaN", ["weight decay", "0 or more"]),
        ("--momentum 1.5 --optimiser sgd", ["momentum", "below 1"]),
        ("--lr 1e9 --schedule constant", ["diverged", "lower --lr"]),
    ] {
        scene.fails(1, &format!("{line} {flags}"), &words);
    }
    for (flags, word) in [
        ("--lr abc", "5e-3"),
        ("--lr 0", "5e-3"),
        ("--lr -1", "5e-3"),
        ("--lr nan", "5e-3"),
        ("--sites (", "--sites"),
        ("--sites [a-", "--sites"),
        ("--epochs many", "--epochs"),
        ("--optimiser adam", "adamw"),
        ("--ranc 3", "--rank"),
    ] {
        scene.fails(2, &format!("{line} {flags}"), &[word]);
    }
    scene.fails(2, "adpt --model net.onnx", &["adpt", "adapt"]);
    scene.fails(2, "adapt --model net.onnx --data data", &["--out"]);
    scene.fails(2, "predict --model net.onnx", &["INPUT"]);
}

// --- the disk --------------------------------------------------------------------------------------------------------

/// Long enough that only an early look at --out can end it in time.
const LONG: &str = "--epochs 100000000";

#[test]
fn an_unwritable_out_is_found_before_training() {
    let scene = Scene::new();
    net(&scene);
    scene.write("file", "x");
    let adapt = |out: &str| format!("adapt --model net.onnx --data data --out {out} {LONG}");
    scene.fails(1, &adapt("file/out"), &["file", "choose another path"]);
    scene.fails(1, &adapt("file/deeper/out"), &["file", "choose another path"]);
    scene.fails(1, &adapt("file"), &["file", "not a folder"]);
    scene.fails(1, &adapt("/proc/accentor/out"), &["/proc"]);
    scene.fails(1, &adapt("data"), &["data", "no part of an adapter"]);
    scene.fails(1, &adapt("/"), &["folder"]);
    assert!(scene.run(ADAPT_NET).status.success());
    let merge = |out: &str| format!("merge --model net.onnx --adapter out --out {out}");
    scene.fails(1, &merge("file/merged.onnx"), &["file", "choose another path"]);
    scene.fails(1, &merge("data"), &["data", "not a file"]);
    scene.fails(1, &merge("/proc/merged.onnx"), &["/proc"]);
    scene.fails(1, "init net.onnx --out file/model.toml", &["file"]);
}

#[test]
fn the_frozen_file_is_not_overwritten() {
    let scene = Scene::new();
    net(&scene);
    assert!(scene.run(ADAPT_NET).status.success());
    scene.fails(1, "merge --model net.onnx --adapter out --out net.onnx", &["net.onnx", "frozen"]);
    scene.fails(1, "merge --model net.onnx --adapter out --out ./data/../net.onnx", &["net.onnx", "frozen"]);
    scene.write("model.toml", "mine");
    scene.fails(1, "init net.onnx", &["model.toml", "--force"]);
}

/// Runs `script` where it may mount, or says why not.
fn with_mounts(scene: &Scene, script: &str, line: &str) -> Option<Output> {
    let trial = Command::new("unshare").args(["-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /tmp"]).output();
    if !trial.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: this system lets the test mount nothing (unshare -rm)");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_accentor")]).args(arguments(line));
    Some(command.current_dir(scene.folder.path()).output().unwrap())
}

#[test]
fn a_read_only_out_is_found_before_training() {
    let scene = Scene::new();
    net(&scene);
    fs::create_dir(scene.path("disk")).unwrap();
    let line = format!("adapt --model net.onnx --data data --out disk/out {LONG}");
    let script = "mount --bind disk disk && mount -o remount,ro,bind disk && exec timeout 60 \"$@\"";
    if let Some(output) = with_mounts(&scene, script, &line) {
        says(&output, 1, &line, &["disk", "Read-only", "mount it writable"]);
    }
}

#[test]
fn a_full_disk_leaves_the_older_adapter() {
    let scene = Scene::new();
    scene.clips(&["yes", "no"], 1);
    fs::create_dir(scene.path("disk")).unwrap();
    copy_folder(adapter(), &scene.path("old"));
    let line = "adapt --model KWS --data data --out disk/out --rank 32 --epochs 1 --variants 1";
    // Room for the look ahead, but not for the adapter.
    let script = "mount -t tmpfs -o size=200k none disk && cp -r old disk/out && { head -c 1M /dev/zero > disk/filler; \
        truncate -s -8192 disk/filler; \"$@\"; code=$?; diff -r old disk/out >&2 || code=97; \
        [ \"$(ls -A disk | sort | tr '\\n' ' ')\" = 'filler out ' ] || { ls -A disk >&2; code=98; }; exit $code; } 2>&1 >/dev/null | grep -v '^head:' >&2; exit 1";
    if let Some(output) = with_mounts(&scene, script, line) {
        let text = says(&output, 1, line, &["disk", "No space left", "free some space", "nothing was changed"]);
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    // Wholly full: found before training.
    let script =
        "mount -t tmpfs -o size=64k none disk; head -c 1M /dev/zero > disk/filler 2>/dev/null; exec timeout 60 \"$@\"";
    let line = format!("adapt --model KWS --data data --out disk/out --variants 1 {LONG}");
    if let Some(output) = with_mounts(&scene, script, &line) {
        says(&output, 1, &line, &["disk", "No space left", "free some space"]);
    }
}

#[test]
fn a_limit_on_file_sizes_leaves_nothing_behind() {
    let scene = Scene::new();
    scene.clips(&["yes", "no"], 1);
    copy_folder(adapter(), &scene.path("out"));
    let before = scene.snapshot();
    // In blocks of 512 bytes; dash ignores the signal for its children too.
    let script = "trap '' XFSZ; ulimit -f 16 && exec \"$@\"";
    let line = "adapt --model KWS --data data --out out --rank 32 --epochs 1 --variants 1";
    says(&scene.shell(script, line), 1, line, &["out", "File too large", "nothing was changed"]);
    assert!(before == scene.snapshot(), "files were changed or left behind");
    let line = "merge --model KWS --adapter out --out merged.onnx";
    says(&scene.shell(script, line), 1, line, &["merged.onnx", "File too large"]);
    assert!(before == scene.snapshot(), "files were changed or left behind");
}
