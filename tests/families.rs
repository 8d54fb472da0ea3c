//! Where families of operators meet: quantised weights of recurrent layers, an embedding that shares its matrix, indices
//! and roundings between adapted layers. Session, merged file and gradient of one adapter must agree.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used)]

mod onnx_file;
mod recording;

use accentor::graph::{Choice, SiteKind};
use accentor::lora::Delta;
use accentor::lora::merge::merge;
use accentor::onnx::{LoadOptions, load_bytes};
use accentor::{Adapter, AdapterSpec, Examples, Model};
use onnx_file::{Net, bytes, int, ints, text};
use recording::{batch, largest_error, norm};

/// Of the largest logit: a merged weight is rounded to f32 once more.
const MERGED: f64 = 1e-5;
/// Relative: a loss of f32 rounds at 1e-7, against a change of some 1e-3, and the difference quotient leaves its cube.
const SLOPE: f64 = 5e-3;
/// How far the tensors move along the gradient for a difference quotient.
const STEP: f32 = 1e-2;

fn open(file: &[u8]) -> Model {
    Model::from_graph(load_bytes(file, None, &LoadOptions::default()).unwrap(), Vec::new(), None).unwrap()
}

/// An adapter on every site with values that are not zero.
fn adapter(model: &Model) -> Adapter {
    let spec = AdapterSpec { rank: 2, alpha: 4.0, sites: Choice::All, head: false };
    let mut adapter = model.new_adapter(&spec, 0).unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    for site in &mut adapter.sites {
        let Delta::LowRank { a, b, .. } = &mut site.delta else { panic!("`{}` has no pair", site.key) };
        a.iter_mut().chain(b).for_each(|v| *v = rng.f32() - 0.5);
    }
    adapter
}

fn tensors(adapter: &mut Adapter) -> impl Iterator<Item = &mut f32> {
    adapter.sites.iter_mut().flat_map(|site| match &mut site.delta {
        Delta::LowRank { a, b, .. } => a.iter_mut().chain(b.iter_mut()),
        other => panic!("{other:?}"),
    })
}

/// Session, merged file and gradient of an adapter on all of the sites; gives the notes of the merge.
fn agree(net: &Net, sites: &[SiteKind], clips: &[Vec<f32>]) -> Vec<String> {
    let file = net.file();
    let model = open(&file);
    let found: Vec<SiteKind> = model.sites().iter().map(|s| s.kind).collect();
    assert_eq!(found, sites);
    let start = adapter(&model);

    let bound = start.bind(model.graph(), &model.sites(), None).unwrap();
    let merged = merge(&file, model.graph(), &start, &bound).unwrap();
    let alone = open(&merged.bytes).session(None).unwrap();
    let beside = model.session(Some(&start)).unwrap();
    for clip in clips {
        let error = largest_error(&alone.logits(clip).unwrap(), &beside.logits(clip).unwrap());
        assert!(error < MERGED, "merged: {error:e}");
    }

    let mut examples = Examples::new(clips[0].len(), 1);
    clips.iter().enumerate().for_each(|(i, clip)| examples.push(clip, i % 2).unwrap());
    let loss = |adapter: Adapter| {
        let mut trainer = model.trainer(adapter, 1).unwrap();
        let cached = trainer.cache(&examples).unwrap();
        (f64::from(trainer.gradient(&batch(&cached)).unwrap()), trainer.gradients())
    };
    let (_, mut gradients) = loss(start.clone());
    let slope: Vec<f32> = tensors(&mut gradients).map(|g| *g).collect();
    let length = norm(&slope.iter().map(|g| f64::from(*g)).collect::<Vec<_>>());
    let moved = |by: f32| {
        let mut adapter = start.clone();
        tensors(&mut adapter).zip(&slope).for_each(|(v, g)| *v += by * g / length as f32);
        loss(adapter).0
    };
    let quotient = (moved(STEP) - moved(-STEP)) / (2.0 * f64::from(STEP));
    assert!((quotient - length).abs() < SLOPE * length, "slope {quotient}, gradient {length}");
    merged.notes
}

fn clips(len: usize) -> Vec<Vec<f32>> {
    (0..3).map(|c| (0..len).map(|i| ((i * 7 + c * 5) % 13) as f32 / 6.5 - 1.0).collect()).collect()
}

fn words(len: usize, rows: usize) -> Vec<Vec<f32>> {
    (0..3).map(|c| (0..len).map(|i| ((i * 3 + c * 2) % rows) as f32).collect()).collect()
}

#[test]
fn both_directions_of_a_quantised_recurrent_layer() {
    let net = Net::new()
        .input("x", &[1, 5, 3])
        .weight_of("scale", &[], &[0.01])
        .bytes8("w_quantized", &[2, 4, 3])
        .bytes8("r_quantized", &[2, 4, 4])
        .node("DequantizeLinear", &["w_quantized", "scale"], "w", &[])
        .node("DequantizeLinear", &["r_quantized", "scale"], "r", &[])
        .node("Transpose", &["x"], "steps", &[ints("perm", &[1, 0, 2])])
        .node("RNN", &["steps", "w", "r"], "y", &[int("hidden_size", 4), text("direction", "bidirectional")])
        .node("ReduceMean", &["y"], "mean", &[ints("axes", &[0]), int("keepdims", 0)])
        .integers("shape", &[1, 8])
        .node("Reshape", &["mean", "shape"], "flat", &[])
        .weight("fc.weight", &[2, 8])
        .node("Gemm", &["flat", "fc.weight"], "logits", &[int("transB", 1)])
        .output("logits");
    let notes =
        agree(&net, &[SiteKind::Recurrent; 4].into_iter().chain([SiteKind::Dense]).collect::<Vec<_>>(), &clips(15));
    assert_eq!(notes.len(), 2, "{notes:?}");
}

#[test]
fn an_embedding_and_the_layer_that_shares_its_matrix() {
    let net = Net::new()
        .input("x", &[1, 4])
        .weight("words.weight", &[7, 5])
        .node("Cast", &["x"], "indices", &[int("to", 7)])
        .node("Gather", &["words.weight", "indices"], "rows", &[])
        .node("Tanh", &["rows"], "h", &[])
        .node("Transpose", &["words.weight"], "turned", &[ints("perm", &[1, 0])])
        .node("MatMul", &["h", "turned"], "scores", &[])
        .node("ReduceMean", &["scores"], "logits", &[ints("axes", &[1]), int("keepdims", 0)])
        .output("logits");
    let notes = agree(&net, &[SiteKind::Embedding, SiteKind::Dense], &words(4, 7));
    assert_eq!(notes.len(), 2, "{notes:?}");
}

#[test]
fn a_recurrent_layer_behind_roundings_and_an_embedding_of_8_bits() {
    let net = Net::new()
        .input("x", &[1, 6])
        .weight_of("scale", &[], &[0.02])
        .bytes8("words.weight_quantized", &[7, 3])
        .node("DequantizeLinear", &["words.weight_quantized", "scale"], "words", &[])
        .node("Cast", &["x"], "indices", &[int("to", 7)])
        .node("Gather", &["words", "indices"], "rows", &[])
        .node("Transpose", &["rows"], "steps", &[ints("perm", &[1, 0, 2])])
        .weight("w", &[1, 12, 3])
        .weight("r", &[1, 12, 4])
        .node("GRU", &["steps", "w", "r"], "y", &[int("hidden_size", 4)])
        .node("ReduceMean", &["y"], "flat", &[ints("axes", &[0, 1]), int("keepdims", 0)])
        .weight("fc_kernel", &[4, 2])
        .node("MatMul", &["flat", "fc_kernel"], "logits", &[])
        .output("logits");
    let kinds = [SiteKind::Embedding, SiteKind::Recurrent, SiteKind::Recurrent, SiteKind::Dense];
    let notes = agree(&net, &kinds, &words(6, 7));
    assert_eq!(notes.len(), 1, "{notes:?}");
}

#[test]
fn outputs_inside_what_would_be_fused_stay() {
    let net = |outputs: &[&str]| {
        let net = Net::new()
            .input("x", &[1, 3, 6])
            .weight("c.weight", &[4, 3, 1])
            .node("Conv", &["x", "c.weight"], "c", &[])
            .node("Relu", &["c"], "r", &[])
            .weight("m", &[6, 5])
            .node("MatMul", &["r", "m"], "product", &[])
            .weight("bias", &[5])
            .node("Add", &["product", "bias"], "sum", &[])
            .node("ReduceMean", &["sum"], "mean", &[ints("axes", &[2])])
            .node("Sub", &["sum", "mean"], "d", &[])
            .node("Mul", &["d", "d"], "square", &[])
            .node("ReduceMean", &["square"], "variance", &[ints("axes", &[2])])
            .weight_of("epsilon", &[], &[1e-5])
            .node("Add", &["variance", "epsilon"], "with", &[])
            .node("Sqrt", &["with"], "root", &[])
            .node("Div", &["d", "root"], "normal", &[]);
        outputs.iter().fold(net, |net, o| net.output(o)).file()
    };
    let value = |file: &[u8], output: &str| {
        let options = LoadOptions { outputs: vec![output.to_owned()], ..LoadOptions::default() };
        let model = Model::from_graph(load_bytes(file, None, &options).unwrap(), Vec::new(), None).unwrap();
        model.session(None).unwrap().logits(&clips(18)[0]).unwrap()
    };
    let file = net(&["normal"]);
    let [product, sum, d, root, normal] = ["product", "sum", "d", "root", "normal"].map(|name| value(&file, name));
    let c = value(&file, "c");
    assert!(c.iter().any(|v| *v < 0.0) && value(&file, "r").iter().zip(&c).all(|(r, c)| *r == c.max(0.0)));
    assert!(sum != product && sum.len() == d.len());
    for (i, normal) in normal.iter().enumerate() {
        assert!((d[i] / root[i / 5] - normal).abs() < 1e-5, "{i}: {} / {} and {normal}", d[i], root[i / 5]);
    }
}

#[test]
fn a_convolution_whose_bias_is_computed_runs_frozen() {
    let net = Net::new()
        .input("x", &[1, 2, 5])
        .weight("c.weight", &[3, 2, 2])
        .weight("d.weight", &[3, 2])
        .node("GlobalAveragePool", &["x"], "pooled", &[])
        .integers("vector", &[2])
        .node("Reshape", &["pooled", "vector"], "mean", &[])
        .node("MatMul", &["d.weight", "mean"], "bias", &[])
        .node("Conv", &["x", "c.weight", "bias"], "c", &[])
        .node("Conv", &["x", "c.weight"], "plain", &[])
        .node("Sub", &["c", "plain"], "difference", &[])
        .node("ReduceMean", &["difference"], "logits", &[ints("axes", &[2]), int("keepdims", 0)])
        .output("logits");
    let model = open(&net.file());
    let x = &clips(10)[0];
    let found = model.session(None).unwrap().logits(x).unwrap();
    let file = open(&net.file());
    let weight = file.graph().value_named("d.weight").and_then(|v| file.graph().values[v].values()).unwrap();
    let mean = [0, 1].map(|c| x[c * 5..][..5].iter().sum::<f32>() / 5.0);
    let bias: Vec<f32> = weight.chunks_exact(2).map(|w| w[0] * mean[0] + w[1] * mean[1]).collect();
    assert!(largest_error(&found, &bias) < MERGED, "{found:?}, expected {bias:?}");
}

#[test]
fn a_transposed_convolution_does_not_train_whole() {
    let net = Net::new()
        .input("x", &[1, 2, 5])
        .weight("up.weight", &[2, 2, 2])
        .weight("up.bias", &[2])
        .node("ConvTranspose", &["x", "up.weight", "up.bias"], "y", &[])
        .node("ReduceMean", &["y"], "logits", &[ints("axes", &[2]), int("keepdims", 0)])
        .output("logits");
    let model = open(&net.file());
    let mut whole = adapter(&model);
    whole.sites[0].delta = Delta::Full { weight: vec![0.5; 8], bias: Some(vec![0.5; 2]) };
    let told = whole.bind(model.graph(), &model.sites(), None).unwrap_err().to_string();
    assert!(told.contains("up") && told.contains("kind"), "{told}");
}

/// [1, 3, 256] → 8 bits, a scale a column → 4 bits in blocks → 8 bits of a transposed Gemm → mean of the rows.
fn of_integers() -> Net {
    let scales = |n: usize, least: f32| (0..n).map(|i| least * (1.0 + (i % 7) as f32 / 7.0)).collect::<Vec<f32>>();
    let nibbles = [bytes(7, "com.microsoft"), int("K", 320), int("N", 256), int("bits", 4), int("block_size", 32)];
    Net::new()
        .input("x", &[1, 3, 256])
        .bytes8("up_quantized", &[256, 320])
        .weight_of("up_scale", &[320], &scales(320, 1e-3))
        .node("DequantizeLinear", &["up_quantized", "up_scale"], "up", &[int("axis", 1)])
        .node("MatMul", &["x", "up"], "wide", &[])
        .node("Relu", &["wide"], "h", &[])
        .packed("down_quantized", &[256, 10, 16])
        .weight_of("down_scale", &[256, 10], &scales(2560, 5e-3))
        .packed("down_zero", &[256, 5])
        .node("MatMulNBits", &["h", "down_quantized", "down_scale", "down_zero"], "narrow", &nibbles)
        .node("ReduceMean", &["narrow"], "mean", &[ints("axes", &[1]), int("keepdims", 0)])
        .bytes8("last_quantized", &[260, 256])
        .weight_of("last_scale", &[], &[2e-3])
        .node("DequantizeLinear", &["last_quantized", "last_scale"], "last", &[])
        .node("Gemm", &["mean", "last"], "scores", &[int("transB", 1)])
        .weight("pick", &[260, 2])
        .node("MatMul", &["scores", "pick"], "logits", &[])
        .output("logits")
}

#[test]
fn a_base_of_integers_runs_from_them() {
    let model = open(&of_integers().file());
    let graph = model.graph();
    // Bytes of the weights in the file: integers, scales of 4 bytes, zero points, and one layer in floats.
    let weights = [256 * 320, 256 * 160, 260 * 256];
    let scales = 4 * (320 + 2 * 2560 + 1);
    let held = graph.constant_bytes();
    let expected = weights.iter().sum::<usize>() + scales + 4 * 2 * 260;
    assert!(held.abs_diff(expected) < 64, "{held} bytes held, {expected} in the file");

    // The same network in floats gives the same bits.
    let mut floats = graph.clone();
    for value in &mut floats.values {
        value.constant = value.values().map(Into::into);
    }
    assert!(floats.constant_bytes() > 3 * held);
    let floats = Model::from_graph(floats, Vec::new(), None).unwrap();
    let (integers, floats) = (model.session(None).unwrap(), floats.session(None).unwrap());
    for clip in clips(768) {
        assert_eq!(integers.logits(&clip).unwrap(), floats.logits(&clip).unwrap());
    }
}

#[test]
fn an_adapter_beside_integers() {
    let notes = agree(&of_integers(), &[SiteKind::Dense; 4], &clips(768));
    assert_eq!(notes.len(), 3, "{notes:?}");
}

/// Convolutions (a larger kernel, groups, a transposed one) and a recurrent layer, each of 65,536 weights and more. No
/// convolution of floats here takes two outputs at a time, so that they have the bits of those in integers.
fn kernels_in_integers() -> Net {
    let scales = |n: usize| (0..n).map(|i| 2e-4 * (1.0 + (i % 7) as f32 / 7.0)).collect::<Vec<f32>>();
    let pads = || ints("pads", &[1, 1, 1, 1]);
    Net::new()
        .input("x", &[1, 64, 4, 5])
        .weight_of("least", &[], &[0.05])
        .node("Mul", &["x", "least"], "quiet", &[])
        .bytes8("k_quantized", &[128, 64, 3, 3])
        .weight_of("k_scale", &[128], &scales(128))
        .node("DequantizeLinear", &["k_quantized", "k_scale"], "k", &[int("axis", 0)])
        .node("Conv", &["quiet", "k"], "a", &[pads(), ints("strides", &[1, 2])])
        .node("Relu", &["a"], "b", &[])
        .bytes8("g_quantized", &[128, 64, 3, 3])
        .weight_of("g_scale", &[128], &scales(128))
        .node("DequantizeLinear", &["g_quantized", "g_scale"], "g", &[int("axis", 0)])
        .node("Conv", &["b", "g"], "c", &[pads(), int("group", 2), ints("strides", &[2, 1])])
        .bytes8("t_quantized", &[128, 64, 3, 3])
        .weight_of("t_scale", &[64], &scales(64))
        .node("DequantizeLinear", &["t_quantized", "t_scale"], "t", &[int("axis", 1)])
        .node("ConvTranspose", &["c", "t"], "d", &[pads(), ints("strides", &[2, 1])])
        .node("ReduceMean", &["d"], "e", &[ints("axes", &[2]), int("keepdims", 0)])
        .node("Transpose", &["e"], "steps", &[ints("perm", &[2, 0, 1])])
        .bytes8("w_quantized", &[2, 384, 64])
        .weight_of("w_scale", &[], &[1e-3])
        .bytes8("r_quantized", &[2, 384, 128])
        .weight_of("r_scale", &[384], &scales(384))
        .node("DequantizeLinear", &["w_quantized", "w_scale"], "w", &[])
        .node("DequantizeLinear", &["r_quantized", "r_scale"], "r", &[int("axis", 1)])
        .node("GRU", &["steps", "w", "r"], "y", &[int("hidden_size", 128), text("direction", "bidirectional")])
        .node("ReduceMean", &["y"], "mean", &[ints("axes", &[0]), int("keepdims", 0)])
        .integers("shape", &[1, 256])
        .node("Reshape", &["mean", "shape"], "flat", &[])
        .weight("fc.weight", &[2, 256])
        .node("Gemm", &["flat", "fc.weight"], "logits", &[int("transB", 1)])
        .output("logits")
}

/// Words by an embedding whose rows have scales of their own.
fn words_in_integers() -> Net {
    let scales: Vec<f32> = (0..4096).map(|i| 5e-3 * (1.0 + (i % 7) as f32 / 7.0)).collect();
    Net::new()
        .input("x", &[1, 4])
        .bytes8("words_quantized", &[4096, 16])
        .weight_of("words_scale", &[4096], &scales)
        .node("DequantizeLinear", &["words_quantized", "words_scale"], "words", &[int("axis", 0)])
        .node("Cast", &["x"], "indices", &[int("to", 7)])
        .node("Gather", &["words", "indices"], "rows", &[])
        .node("Tanh", &["rows"], "h", &[])
        .weight("fc.weight", &[16, 2])
        .node("MatMul", &["h", "fc.weight"], "scores", &[])
        .node("ReduceMean", &["scores"], "logits", &[ints("axes", &[1]), int("keepdims", 0)])
        .output("logits")
}

#[test]
fn every_layer_runs_from_its_integers() {
    for (net, clips) in [(kernels_in_integers(), clips(1280)), (words_in_integers(), words(4, 4096))] {
        let model = open(&net.file());
        let mut floats = model.graph().clone();
        let held = floats.constant_bytes();
        for value in &mut floats.values {
            value.constant = value.values().map(Into::into);
        }
        assert!(floats.constant_bytes() > 3 * held);
        let floats = Model::from_graph(floats, Vec::new(), None).unwrap();
        let start = adapter(&model);
        let bits = |logits: Vec<f32>| logits.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
        for with in [None, Some(&start)] {
            let (integers, floats) = (model.session(with).unwrap(), floats.session(with).unwrap());
            for clip in &clips {
                assert_eq!(bits(integers.logits(clip).unwrap()), bits(floats.logits(clip).unwrap()));
            }
        }
        let mut examples = Examples::new(clips[0].len(), 1);
        clips.iter().enumerate().for_each(|(i, clip)| examples.push(clip, i % 2).unwrap());
        let gradients = |model: &Model| {
            let mut trainer = model.trainer(start.clone(), 1).unwrap();
            let cached = trainer.cache(&examples).unwrap();
            let loss = trainer.gradient(&batch(&cached)).unwrap();
            (loss, trainer.gradients())
        };
        let ((loss, mut own), (other_loss, mut other)) = (gradients(&model), gradients(&floats));
        assert_eq!(loss.to_bits(), other_loss.to_bits());
        for (own, other) in own.sites.iter_mut().zip(&mut other.sites) {
            let (Delta::LowRank { a, b, .. }, Delta::LowRank { a: a1, b: b1, .. }) = (&own.delta, &other.delta) else {
                panic!("`{}` has no pair", own.key)
            };
            for (own_values, values) in [(a, a1), (b, b1)] {
                let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
                let difference: Vec<f32> = own_values.iter().zip(values).map(|(a, b)| a - b).collect();
                let error = norm(&wide(&difference)) / norm(&wide(values));
                assert!(error < MERGED, "{}: {error:e}", own.key);
            }
        }
    }
}

#[test]
fn adapters_of_larger_layers_in_integers() {
    let sites = [SiteKind::Conv, SiteKind::Conv, SiteKind::ConvTranspose];
    let sites: Vec<SiteKind> = sites.into_iter().chain([SiteKind::Recurrent; 4]).chain([SiteKind::Dense]).collect();
    assert_eq!(agree(&kernels_in_integers(), &sites, &clips(1280)).len(), 5);
    assert_eq!(agree(&words_in_integers(), &[SiteKind::Embedding, SiteKind::Dense], &words(4, 4096)).len(), 1);
}
