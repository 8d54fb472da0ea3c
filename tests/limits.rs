//! A file may ask for any amount of memory, any depth and any order: a load ends with a model or an error, never with the
//! process.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod onnx_file;
mod scene;

use accentor::onnx::{LoadOptions, OnnxError, load, load_bytes};
use onnx_file::{Net, graph, int, ints, text};
use scene::{Scene, says};

/// Kilobytes of address space for the process: room for the program, far from what the files ask for.
const SPACE: &str = "1500000";

fn refused(net: &Net) -> OnnxError {
    load_bytes(&net.file(), None, &LoadOptions::default()).unwrap_err()
}

/// Graphs whose shapes are told wrongly: each operator would read past what it is given.
#[test]
fn shapes_that_do_not_fit_reach_no_kernel() {
    let plane = || Net::new().input("x", &[1, 2, 4, 6]);
    for net in [
        plane().node("Transpose", &["x"], "y", &[ints("perm", &[0, 1, 1, 3])]),
        plane().node("Transpose", &["x"], "y", &[ints("perm", &[0, 1, 2])]),
        plane().node("Transpose", &["x"], "y", &[ints("perm", &[0, 1, 2, -7])]),
        plane().weight("w", &[2, 2, 9, 9]).node("Conv", &["x", "w"], "y", &[]),
        plane().weight("w", &[2, 2, 1, 1]).weight("b", &[3]).node("Conv", &["x", "w", "b"], "y", &[]),
        plane().weight("w", &[2, 2, 1, 1]).node("Conv", &["x", "w"], "y", &[ints("strides", &[-1, 1])]),
        plane().weight("w", &[2, 2, 1, 1]).node("Conv", &["x", "w"], "y", &[ints("dilations", &[i64::MAX, 1])]),
        plane().node("Conv", &["x"], "y", &[]),
        plane().weight("w", &[2, 3, 1, 1]).weight("b", &[2]).node("ConvTranspose", &["x", "w", "b"], "y", &[]),
        plane().node("MaxPool", &["x"], "y", &[ints("kernel_shape", &[-2, 2])]),
        plane().node("MaxPool", &["x"], "y", &[ints("kernel_shape", &[2])]),
        plane().weight("s", &[3]).node("InstanceNormalization", &["x", "s", "s"], "y", &[]),
        plane().weight("s", &[3]).node("BatchNormalization", &["x", "s", "s", "s", "s"], "y", &[]),
        plane().weight("w", &[2, 3]).node("MatMul", &["x", "w"], "y", &[]),
        plane().weight("w", &[1, 2, 4, 5]).node("Add", &["x", "w"], "y", &[]),
        plane().weight("w", &[1, 2, 4, 5]).node("Concat", &["x", "w"], "y", &[int("axis", 1)]),
        plane().integers("i", &[9]).node("Gather", &["x", "i"], "y", &[]),
    ] {
        refused(&net.output("y"));
    }
}

/// A tensor of 10¹² values and more, by every operator that makes one from a few.
fn greedy() -> Vec<(&'static str, Net)> {
    let side = [1i64 << 20, 1 << 20];
    let base = || {
        let net = Net::new().input("x", &[1, 4]).weight("one", &[1, 1]).weight("row", &[1, 4]).integers("side", &side);
        net.integers("ten", &[1_000_000_000_000]).integers("four", &[4])
    };
    let sum = |net: Net| net.node("Add", &["x", "big"], "y", &[]).output("y");
    let mut nets = vec![
        ("ConstantOfShape", sum(base().node("ConstantOfShape", &["side"], "big", &[]))),
        ("ConstantOfShape of one", sum(base().node("ConstantOfShape", &["ten"], "big", &[]))),
        ("Expand", sum(base().node("Expand", &["one", "side"], "big", &[]))),
        ("Expand of the input", base().node("Expand", &["x", "side"], "y", &[]).output("y")),
        ("Tile", sum(base().node("Tile", &["row", "side"], "big", &[]))),
        ("Tile of the input", base().node("Tile", &["x", "side"], "y", &[]).output("y")),
        (
            "Range",
            sum(base()
                .scalar("from", 0)
                .scalar("to", 1_000_000_000_000)
                .scalar("by", 1)
                .node("Range", &["from", "to", "by"], "all", &[])
                .node("Cast", &["all"], "big", &[int("to", 1)])),
        ),
        ("Pad", sum(base().integers("pads", &[0, 0, 1 << 20, 1 << 20]).node("Pad", &["row", "pads"], "big", &[]))),
        (
            "Pad of the input",
            base().integers("pads", &[0, 0, 1 << 20, 1 << 20]).node("Pad", &["x", "pads"], "y", &[]).output("y"),
        ),
        ("Resize", sum(base().node("Resize", &["row", "", "", "side"], "big", &[text("mode", "nearest")]))),
        (
            "Resize of the input",
            base().node("Resize", &["x", "", "", "side"], "y", &[text("mode", "nearest")]).output("y"),
        ),
        ("OneHot", {
            let net = base().scalar("depth", 1 << 40).weight("off_on", &[2]);
            sum(net.node("OneHot", &["four", "depth", "off_on"], "big", &[]))
        }),
        ("MatMul", {
            let net = base().weight("column", &[1 << 20, 1]).weight("line", &[1, 1 << 20]);
            sum(net.node("MatMul", &["column", "line"], "big", &[]))
        }),
        ("Add", {
            let net = base().weight("column", &[1 << 20, 1]).weight("line", &[1, 1 << 20]);
            sum(net.node("Add", &["column", "line"], "big", &[]))
        }),
        ("EyeLike", {
            let net = base().node("ConstantOfShape", &["side"], "zeros", &[]);
            sum(net.node("EyeLike", &["zeros"], "big", &[int("dtype", 1)]))
        }),
        ("Conv", {
            let pads = [ints("pads", &[1 << 24, 1 << 24, 1 << 24, 1 << 24])];
            let net = base().weight("picture", &[1, 1, 4, 4]).weight("kernel", &[1, 1, 3, 3]);
            sum(net.node("Conv", &["picture", "kernel"], "big", &pads))
        }),
        ("MaxPool of the input", {
            let window = [ints("kernel_shape", &[1 << 20, 1 << 20]), ints("pads", &[1 << 19; 4])];
            let net = Net::new().input("x", &[1, 1, 4, 4]).node("MaxPool", &["x"], "y", &window);
            net.output("y")
        }),
        ("Conv of the input", {
            let sides = [ints("strides", &[1 << 23, 1 << 23]), ints("pads", &[1 << 23; 4])];
            let net = Net::new().input("x", &[1, 1, 4, 4]).weight("kernel", &[1, 1, 3, 3]);
            net.node("Conv", &["x", "kernel"], "y", &sides).output("y")
        }),
        ("RandomNormal", sum(base().node("RandomNormal", &[], "big", &[ints("shape", &side)]))),
        ("HannWindow", {
            let net = base().scalar("size", 1_000_000_000_000);
            sum(net.node("HannWindow", &["size"], "big", &[]))
        }),
    ];
    // Forty times as large as twice.
    let mut doubled = base().weight("d0", &[1, 1024]);
    for i in 0..40 {
        let (from, to) = (format!("d{i}"), format!("d{}", i + 1));
        doubled = doubled.node("Concat", &[&from, &from], &to, &[int("axis", 0)]);
    }
    nets.push(("Concat", doubled.node("Add", &["x", "d40"], "y", &[]).output("y")));
    // Small ones, many of them.
    let mut many = base().integers("million", &[1 << 20]);
    let names: Vec<String> = (0..3000).map(|i| format!("m{i}")).collect();
    for name in &names {
        many = many.node("ConstantOfShape", &["million"], name, &[]);
    }
    let all: Vec<&str> = std::iter::once("x4").chain(names.iter().map(String::as_str)).collect();
    many = many.node("ReduceMax", &["x"], "x1", &[int("keepdims", 0)]).node("Expand", &["x1", "million"], "x4", &[]);
    nets.push(("many", many.node("Sum", &all, "y", &[]).output("y")));
    nets
}

#[test]
fn what_no_memory_holds_is_refused() {
    for (name, net) in greedy() {
        let error = refused(&net).to_string();
        assert!(error.lines().count() == 1 && error.len() < 1200, "{name}: {error}");
    }
}

#[test]
fn with_little_memory_the_process_says_so() {
    let scene = Scene::new();
    let script = format!("ulimit -v {SPACE} && exec \"$@\"");
    let mut nets = greedy();
    // Each within the default limit, and not within this one.
    let half = Net::new().input("x", &[1, 4]).integers("half", &[1 << 14, 1 << 15]);
    let half = half.node("Expand", &["x4", "half"], "y", &[]).node("ReduceMax", &["x"], "x4", &[int("keepdims", 0)]);
    nets.push(("half", half.output("y")));
    let wide = Net::new().input("x", &[1, 1 << 29]).node("Relu", &["x"], "y", &[]).output("y");
    nets.push(("wide", wide));
    for (name, net) in nets {
        scene.write("net.onnx", net.file());
        let output = scene.shell(&script, "inspect net.onnx");
        let text = says(&output, 1, name, &["net.onnx"]);
        assert!(!text.contains("memory allocation of"), "{name}: {text}");
    }
}

#[test]
fn a_limit_can_be_set() {
    let net = Net::new().input("x", &[1, 1 << 10]).node("Relu", &["x"], "y", &[]).output("y");
    let limited = |bytes| LoadOptions { memory_limit: Some(bytes), ..LoadOptions::default() };
    assert!(load_bytes(&net.file(), None, &limited(1 << 14)).is_ok());
    let error = load_bytes(&net.file(), None, &limited(1 << 12)).unwrap_err();
    assert!(matches!(error, OnnxError::Memory { bytes: 8192, limit: 4096, .. }), "{error}");
    let scene = Scene::new();
    scene.write("net.onnx", net.file());
    let error = load(&scene.path("net.onnx"), &limited(16)).unwrap_err();
    assert!(matches!(error, OnnxError::Memory { limit: 16, .. }), "{error}");
}

#[test]
fn depth_and_length_end_in_an_error_or_a_model() {
    // Graphs in graphs in graphs.
    for depth in [2, 20, 1000] {
        let mut inner = Net::new().node("Identity", &["x"], "b", &[]).output("b");
        for _ in 0..depth {
            let branches = [graph("then_branch", &inner), graph("else_branch", &inner)];
            // Both branches would double the file at every level.
            let branches = if depth > 2 { &branches[..1] } else { &branches };
            inner = Net::new().node("If", &["x"], "b", branches).output("b");
        }
        refused(&inner.input("x", &[1, 4]));
    }
    // Nor does the process end.
    let mut inner = Net::new().node("Identity", &["x"], "b", &[]).output("b");
    for _ in 0..1000 {
        inner = Net::new().node("If", &["x"], "b", &[graph("then_branch", &inner)]).output("b");
    }
    let scene = Scene::new();
    scene.write("deep.onnx", inner.input("x", &[1, 4]).file());
    let output = scene.shell(&format!("ulimit -v {SPACE} && exec \"$@\""), "inspect deep.onnx");
    says(&output, 1, "deep", &["deep.onnx"]);
    // A long chain is a model.
    let mut long = Net::new().input("n0", &[1, 4]);
    for i in 0..3000 {
        long = long.node("Relu", &[&format!("n{i}")], &format!("n{}", i + 1), &[]);
    }
    assert_eq!(load_bytes(&long.output("n3000").file(), None, &LoadOptions::default()).unwrap().nodes.len(), 3000);
}

#[test]
fn a_cycle_of_any_length_is_refused() {
    for length in [1usize, 2, 500] {
        let mut net = Net::new().input("x", &[1, 4]);
        for i in 0..length {
            net = net.node("Add", &["x", &format!("n{}", (i + 1) % length)], &format!("n{i}"), &[]);
        }
        let error = refused(&net.output("n0")).to_string();
        assert!(error.contains("cycle") || error.contains("order"), "{error}");
    }
}

#[test]
fn dimensions_that_no_tensor_has_are_refused() {
    let reshaped = |shape: &[i64]| {
        let net = Net::new().input("x", &[1, 4]).integers("shape", shape);
        let net = net.node("Reshape", &["x", "shape"], "y", &[]).output("y");
        assert!(load_bytes(&net.file(), None, &LoadOptions::default()).is_err(), "{shape:?}");
    };
    for shape in [&[-2, 2][..], &[3, 3], &[-1, -1], &[1 << 62, 1 << 62], &[i64::MIN, 1], &[0, 0, 9]] {
        reshaped(shape);
    }
    for dims in [&[-4, 2][..], &[i64::MIN, i64::MIN], &[1 << 62, 4, 4], &[i64::MAX, i64::MAX]] {
        let net = Net::new().input("x", &[1, 4]).weight_of("w", dims, &[0.0; 8]);
        let error = refused(&net.node("MatMul", &["x", "w"], "y", &[]).output("y")).to_string();
        assert!(error.contains("`w`"), "{error}");
        // The first dimension is the batch, which is bound to 1.
        let dims = [&[1], dims].concat();
        refused(&Net::new().input("x", &dims).node("Relu", &["x"], "y", &[]).output("y"));
    }
    for values in [0, 7, 9] {
        let net = Net::new().input("x", &[1, 4]).weight_of("w", &[4, 2], &vec![0.0; values]);
        let error = refused(&net.node("MatMul", &["x", "w"], "y", &[]).output("y")).to_string();
        assert!(error.contains("`w`") && error.contains("32 bytes"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn external_data_behind_a_link_out_of_the_folder_is_refused() {
    use std::os::unix::fs::symlink;
    let scene = Scene::new();
    let net = Net::new()
        .input("x", &[1, 4])
        .external("w", &[4, 2], &[("location", "data/w.bin")])
        .node("MatMul", &["x", "w"], "y", &[])
        .output("y");
    scene.write("model/net.onnx", net.file());
    scene.write("secret/w.bin", [0; 32]);
    let linked = |target: &str, link: &str| {
        let link = scene.path(link);
        std::fs::remove_dir_all(scene.path("model/data")).ok();
        std::fs::remove_file(scene.path("model/data")).ok();
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(target, link).unwrap();
    };
    linked("../../secret/w.bin", "model/data/w.bin");
    scene.fails(1, "inspect model/net.onnx", &["`w`", "data/w.bin", "out of the model's folder"]);
    linked("../secret", "model/data");
    scene.fails(1, "inspect model/net.onnx", &["`w`", "data/w.bin", "out of the model's folder"]);
    // Inside the folder a link is a file.
    scene.write("model/all.bin", [0; 32]);
    linked("../all.bin", "model/data/w.bin");
    assert!(scene.run("inspect model/net.onnx").status.success());
}
