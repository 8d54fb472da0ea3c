//! Folders written, read, damaged and bound to the wrong base.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use super::*;
use crate::graph::{Element, Graph, Layout, Node, Op, Site, SiteKind, Value, Window};
use crate::lora::{Adapter, AdapterSite, Delta};
use crate::ops::binary::BinaryKind;

/// stem (conv) → grouped (conv, groups 2, no bias) → dw (depthwise, no bias) → /fc/MatMul (+ Add).
pub(crate) fn example() -> (Graph, Vec<Site>) {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut graph = Graph::default();
    let mut value = |name: &str, shape: &[usize], constant: bool| {
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| rng.f32() - 0.5).collect();
        let constant = constant.then(|| data.into());
        let stored = constant.is_some();
        graph.values.push(Value {
            name: name.to_owned(),
            shape: shape.to_vec(),
            element: Element::F32,
            constant,
            stored,
            source: None,
            quantised: None,
        });
        graph.values.len() - 1
    };
    let x = value("x", &[1, 2, 5, 5], false);
    let stem_weight = value("net.stem.weight", &[4, 2, 3, 1], true);
    let stem_bias = value("net.stem.bias", &[4], true);
    let stem = value("stem.out", &[1, 4, 3, 5], false);
    let grouped_weight = value("grouped.weight", &[6, 2, 1, 2], true);
    let grouped = value("grouped.out", &[1, 6, 3, 4], false);
    let dw_weight = value("dw.weight", &[6, 1, 3, 4], true);
    let dw = value("dw.out", &[1, 6, 1, 1], false);
    let flat = value("flat", &[1, 6], false);
    let fc_weight = value("onnx::MatMul_7", &[6, 3], true);
    let product = value("product", &[1, 3], false);
    let fc_bias = value("fc.bias", &[3], true);
    let y = value("y", &[1, 3], false);
    let window = |kernel| {
        let one = [1, 1];
        Window { kernel, stride: one, dilation: one, pads_begin: [0, 0], pads_end: [0, 0] }
    };
    let mut node = |name: &str, op_type: &str, op, inputs: &[usize], output| {
        let (name, op_type) = (name.to_owned(), op_type.to_owned());
        graph.nodes.push(Node { name, op_type, op, inputs: inputs.to_vec(), outputs: vec![output] });
    };
    node("/stem/Conv", "Conv", Op::Conv(window([3, 1]), 1), &[x, stem_weight, stem_bias], stem);
    node("/grouped/Conv", "Conv", Op::Conv(window([1, 2]), 2), &[stem, grouped_weight], grouped);
    node("/dw/Conv", "Conv", Op::Conv(window([3, 4]), 6), &[grouped, dw_weight], dw);
    node("/Flatten", "Flatten", Op::Reshape, &[dw], flat);
    node("/fc/MatMul", "MatMul", Op::MatMul, &[flat, fc_weight], product);
    node("/fc/Add", "Add", Op::Binary(BinaryKind::Add), &[product, fc_bias], y);
    (graph.inputs, graph.outputs) = (vec![x], vec![y]);
    let sites = graph.sites(y);
    let keys: Vec<&str> = sites.iter().map(|s| s.key.as_str()).collect();
    assert_eq!(keys, ["net.stem", "grouped", "dw", "/fc/MatMul"]);
    (graph, sites)
}

/// Random values for every site of [`example`], the last as a low-rank pair or whole.
pub(crate) fn adapter(head: bool) -> Adapter {
    let (graph, sites) = example();
    let mut rng = fastrand::Rng::with_seed(4);
    let mut random = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.f32() * 2.0 - 1.0).collect() };
    let sites: Vec<AdapterSite> = sites
        .iter()
        .map(|site| {
            let delta = match site.kind {
                SiteKind::Depthwise => Delta::ScaleShift { scale: random(6), shift: random(6) },
                SiteKind::Dense if head => Delta::Full { weight: random(18), bias: Some(random(3)) },
                _ => {
                    let rank = site.capped_rank(3);
                    let (a, b) = (random(rank * site.patch()), random(rank / site.groups * site.outputs));
                    Delta::LowRank { rank, alpha: 2.0 * rank as f32 + 0.5, a, b }
                }
            };
            AdapterSite::new(&graph, site, delta)
        })
        .collect();
    Adapter {
        base_sha256: Some("ab12".to_owned()),
        stages: Vec::new(),
        base_name: "example.onnx".to_owned(),
        rank: 3,
        alpha: 6.5,
        parent: Some("cd34".to_owned()),
        examples: 40,
        steps: 120,
        labels: vec!["yes".to_owned(), "naïve \"quoted\"".to_owned()],
        head: None,
        sites,
    }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A folder of `adapter` whose files were changed.
fn changed(
    adapter: &Adapter,
    config: impl FnOnce(&mut serde_json::Value),
    tensors: impl FnOnce(&mut Tensors),
) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), adapter).unwrap();
    let path = root.path().join(ADAPTER_CONFIG);
    let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config(&mut json);
    fs::write(&path, json.to_string()).unwrap();
    let path = root.path().join(ADAPTER_TENSORS);
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Tensors =
        file.iter().map(|(n, v)| (n.to_owned(), (v.dtype(), v.shape().to_vec(), v.data().to_vec()))).collect();
    tensors(&mut all);
    let views = all.iter().map(|(n, (t, s, d))| (n, TensorView::new(*t, s.clone(), d).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    root
}

fn plain(config: &mut serde_json::Value) {
    config.as_object_mut().unwrap().remove("accentor");
}

fn name(key: &str, tensor: &str) -> String {
    format!("{PREFIX}{key}.{tensor}")
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The message, which must name `words`.
#[track_caller]
fn assert_says<T: std::fmt::Debug>(result: Result<T, AdapterError>, words: &[&str]) {
    let text = result.unwrap_err().to_string();
    words.iter().for_each(|w| assert!(text.contains(w), "`{w}` is not in: {text}"));
}

fn load_example(dir: &Path) -> Result<(Adapter, Vec<Site>), AdapterError> {
    let (graph, sites) = example();
    load(dir, &graph, &sites, Some("AB12"))
}

#[test]
fn a_folder_reads_as_it_was_written() {
    for head in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("one"), root.path().join("two"));
        let adapter = adapter(head);
        write(&one, &adapter).unwrap();
        assert_eq!(read(&one).unwrap(), adapter);
        write(&two, &adapter).unwrap();
        for file in [ADAPTER_CONFIG, ADAPTER_TENSORS] {
            assert_eq!(fs::read(one.join(file)).unwrap(), fs::read(two.join(file)).unwrap());
        }
        write_whole(&two, &adapter, &example().0).unwrap();
        assert_eq!(read(&two).unwrap(), adapter);
        assert_eq!(read(&two).unwrap().sha256().unwrap(), adapter.sha256().unwrap());
        let (loaded, sites) = load_example(&two).unwrap();
        assert_eq!(loaded, adapter);
        assert_eq!(sites.len(), 4);
    }
}

#[test]
fn the_files_are_those_of_peft() {
    let root = changed(&adapter(true), |_| {}, |_| {});
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(root.path().join(ADAPTER_CONFIG)).unwrap()).unwrap();
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(config["target_modules"], serde_json::json!(["net.stem", "grouped"]));
    assert_eq!(config["modules_to_save"], serde_json::json!(["/fc/MatMul"]));
    assert_eq!(config["rank_pattern"], serde_json::json!({ "^grouped": 4 }));
    assert_eq!(config["alpha_pattern"], serde_json::json!({ "^grouped": 8.5 }));
    assert_eq!(exact_key("a.b(c)[d]+"), r"^a\.b\(c\)\[d\]\+");
    let (bytes, shape) =
        (fs::read(root.path().join(ADAPTER_TENSORS)).unwrap(), |t: &TensorView<'_>| t.shape().to_vec());
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |key: &str, own: &str| file.tensor(&name(key, own)).unwrap();
    assert_eq!(shape(&tensor("net.stem", "lora_A.weight")), [3, 2, 3, 1]);
    assert_eq!(shape(&tensor("net.stem", "lora_B.weight")), [4, 3, 1, 1]);
    // PEFT's A of a grouped convolution reads all four inputs.
    assert_eq!(shape(&tensor("grouped", "lora_A.weight")), [4, 4, 1, 2]);
    assert_eq!(shape(&tensor("grouped", "lora_B.weight")), [6, 2, 1, 1]);
    // PyTorch's [out, in] from the file's [in, out].
    assert_eq!(shape(&tensor("/fc/MatMul", "weight")), [3, 6]);
    let Delta::Full { weight, .. } = &adapter(true).sites[3].delta else { panic!() };
    assert_eq!(tensor("/fc/MatMul", "weight").data()[4..8], weight[3].to_le_bytes());
}

fn exact_key(key: &str) -> String {
    super::write::exact_pattern(key)
}

#[test]
fn a_folder_of_pytorch_is_matched_by_key() {
    let (graph, sites) = example();
    for head in [false, true] {
        let adapter = adapter(head);
        let root = tempfile::tempdir().unwrap();
        write_whole(root.path(), &adapter, &graph).unwrap();
        let own = |n: &String| n.ends_with("accentor_scale") || n.ends_with("accentor_shift");
        let whole = read_tensors_of(root.path());
        let root = changed(&adapter, plain, |t| {
            *t = whole;
            t.retain(|n, _| !own(n));
        });
        assert_says(read(root.path()), &["trained in PyTorch", "lora::load"]);
        let (found, bound) = load(root.path(), &graph, &sites, None).unwrap();
        assert_eq!(bound.len(), 4);
        for (found, expected) in found.sites.iter().zip(&adapter.sites) {
            if let (Delta::ScaleShift { scale, shift }, Delta::ScaleShift { scale: s, shift: h }) =
                (&found.delta, &expected.delta)
            {
                let near = |x: &[f32], y: &[f32]| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-6);
                assert!(near(scale, s) && near(shift, h));
            } else {
                assert_eq!(found, expected);
            }
        }
        assert_eq!(read_peft(root.path(), &graph, &sites).unwrap(), found);
    }
}

fn read_tensors_of(dir: &Path) -> Tensors {
    let bytes = fs::read(dir.join(ADAPTER_TENSORS)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(n, v)| (n.to_owned(), (v.dtype(), v.shape().to_vec(), v.data().to_vec()))).collect()
}

#[test]
fn a_depthwise_layer_that_peft_would_mistake_stays_a_scale() {
    let (mut graph, _) = example();
    let listed = |graph: &Graph| {
        let root = tempfile::tempdir().unwrap();
        write_whole(root.path(), &adapter(false), graph).unwrap();
        assert_eq!(read(root.path()).unwrap(), adapter(false));
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(root.path().join(ADAPTER_CONFIG)).unwrap()).unwrap();
        config["modules_to_save"] == serde_json::json!(["dw"])
    };
    assert!(listed(&graph));
    graph.values[4].name = "another_dw.weight".to_owned();
    assert!(!listed(&graph));
}

#[test]
fn settings_of_peft_count() {
    let mut adapter = adapter(false);
    adapter.sites.retain(|s| s.key == "net.stem" || s.key == "/fc/MatMul");
    let alphas = |config: serde_json::Value| {
        let root = changed(
            &adapter,
            |c| {
                plain(c);
                c.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
            },
            |_| {},
        );
        let alpha = |s: &AdapterSite| match s.delta {
            Delta::LowRank { alpha, .. } => alpha,
            _ => 0.0,
        };
        load_example(root.path()).map(|(a, _)| a.sites.iter().map(alpha).collect::<Vec<f32>>())
    };
    let set = |json| alphas(json);
    let json = |text: &str| serde_json::from_str(text).unwrap();
    assert_eq!(set(json(r#"{"lora_alpha": 4}"#)).unwrap(), [4.0, 4.0]);
    assert_eq!(set(json(r#"{"alpha_pattern": {"stem": 5, "x?net.stem": 7}}"#)).unwrap(), [5.0, 6.5]);
    assert_eq!(set(json(r#"{"alpha_pattern": {"^stem": 5, "(net|x)\\.st.m": 7}}"#)).unwrap(), [7.0, 6.5]);
    let stable = set(json(r#"{"lora_alpha": 4, "use_rslora": true}"#)).unwrap();
    assert!(stable.iter().all(|a| (a - 4.0 * 3f32.sqrt()).abs() < 1e-6));
    assert!(
        set(json(r#"{"alpha_pattern": null, "rank_pattern": null, "use_dora": false, "layer_replication": []}"#))
            .is_ok()
    );
    for (config, word) in [
        (r#"{"use_dora": true}"#, "`use_dora`"),
        (r#"{"lora_bias": true}"#, "`lora_bias`"),
        (r#"{"bias": "all"}"#, "`all`"),
        (r#"{"init_lora_weights": "pissa_niter_4"}"#, "changes the base"),
        (r#"{"target_parameters": ["w"]}"#, "`target_parameters`"),
        (r#"{"peft_type": "IA3"}"#, "`IA3`"),
        (r#"{"rank_pattern": {"stem": 2}}"#, "[2, 2, 3, 1]"),
        (r#"{"r": 0}"#, "`r`"),
        (r#"{"rank_pattern": {"stem": 0}}"#, "rank 0"),
        (r#"{"rank_pattern": {"((": 2}}"#, "`((`"),
        (r#"{"modules_to_save": ["gone"]}"#, "gone.weight"),
    ] {
        assert_says(set(json(config)), &[word]);
    }
}

#[test]
fn another_base_is_refused() {
    let (mut graph, sites) = example();
    let adapter = adapter(false);
    assert!(adapter.bind(&graph, &sites, None).is_ok());
    assert_says(adapter.bind(&graph, &sites, Some("ff00")), &["example.onnx", "ab12", "ff00", "accentor adapt"]);
    let mut renamed = adapter.clone();
    renamed.sites[0].key = "net.stern".to_owned();
    assert_says(renamed.bind(&graph, &sites, None), &["`net.stern`", "nearest: `net.stem`", "accentor inspect"]);
    let mut double = adapter.clone();
    double.sites[1] = double.sites[0].clone();
    assert_says(double.bind(&graph, &sites, None), &["`net.stem` twice"]);
    let mut depthwise = adapter.clone();
    depthwise.sites[2].delta = Delta::Full { weight: vec![0.0; 72], bias: None };
    assert_says(depthwise.bind(&graph, &sites, None), &["`dw`"]);
    let weight = sites[3].weight;
    graph.values[weight].shape = vec![3, 6];
    assert_says(adapter.bind(&graph, &sites, None), &["/fc/MatMul", "weight shape", "[3, 6]", "[6, 3]"]);
}

#[test]
fn swapped_matrices_are_told() {
    let swap = |t: &mut Tensors| {
        let (a, b) = (name("/fc/MatMul", "lora_A.weight"), name("/fc/MatMul", "lora_B.weight"));
        let (old_a, old_b) = (t.remove(&a).unwrap(), t.remove(&b).unwrap());
        t.insert(a, old_b);
        t.insert(b, old_a);
    };
    let transpose = |t: &mut Tensors| t.get_mut(&name("/fc/MatMul", "lora_A.weight")).unwrap().1.reverse();
    for kind in [|_: &mut serde_json::Value| {}, plain] {
        let adapter = adapter(true);
        let mut adapter_fc = super::tests::adapter(false);
        adapter_fc.sites.retain(|s| s.key == "/fc/MatMul");
        let root = changed(&adapter_fc, kind, swap);
        assert_says(load_example(root.path()), &["/fc/MatMul", "swapped or transposed", "[3, 6]"]);
        let root = changed(&adapter_fc, kind, transpose);
        assert_says(load_example(root.path()), &["swapped or transposed"]);
        drop(adapter);
    }
    let (graph, sites) = example();
    let mut adapter = adapter(false);
    let Delta::LowRank { a, b, .. } = &mut adapter.sites[3].delta else { panic!() };
    std::mem::swap(a, b);
    assert_says(adapter.bind(&graph, &sites, None), &["swapped or transposed"]);
}

#[test]
fn ranks_and_values_are_checked() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("adapter");
    let refuse = |change: &dyn Fn(&mut Adapter), words: &[&str]| {
        let mut adapter = adapter(true);
        change(&mut adapter);
        assert_says(write(&dir, &adapter), words);
        let (graph, sites) = example();
        if !words.contains(&"all") {
            assert_says(adapter.bind(&graph, &sites, None), words);
        }
        assert!(!dir.exists());
    };
    let pair = |adapter: &mut Adapter, new: usize| {
        if let Delta::LowRank { rank, .. } = &mut adapter.sites[1].delta {
            *rank = new;
        }
    };
    refuse(&|a| a.rank = 0, &["rank 0", "all"]);
    refuse(&|a| pair(a, 0), &["`grouped`", "rank 0"]);
    refuse(&|a| pair(a, 3), &["rank 3", "2 groups"]);
    refuse(&|a| pair(a, usize::MAX - 1), &["`grouped`", "rank"]);
    refuse(&|a| pair(a, 6), &["`grouped`", "A has shape"]);
    refuse(
        &|a| {
            if let Delta::Full { weight, .. } = &mut a.sites[3].delta {
                weight[2] = f32::NAN;
            }
        },
        &["/fc/MatMul", "not a number"],
    );
    // And in files.
    let key = name("net.stem", "lora_B.weight");
    let nan = |t: &mut Tensors| t.get_mut(&key).unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_says(load_example(changed(&adapter(true), |_| {}, nan).path()), &["net.stem", "not a number"]);
    let zero = |c: &mut serde_json::Value| c["accentor"]["sites"][0]["rank"] = 0.into();
    assert_says(load_example(changed(&adapter(true), zero, |_| {}).path()), &["net.stem", "rank 0"]);
}

#[test]
fn other_types_are_converted() {
    let values = [0.5f32, -1.25, 3.0];
    let key = name("/fc/MatMul", "bias");
    let expect = |dtype, bytes: Vec<u8>| {
        let root = changed(&adapter(true), |_| {}, |t| drop(t.insert(key.clone(), (dtype, vec![3], bytes))));
        let (adapter, _) = load_example(root.path()).unwrap();
        let Delta::Full { bias, .. } = &adapter.sites[3].delta else { panic!() };
        assert_eq!(bias.as_deref(), Some(&values[..]), "{dtype:?}");
    };
    expect(Dtype::F16, [0x3800u16, 0xbd00, 0x4200].iter().flat_map(|b| b.to_le_bytes()).collect());
    expect(Dtype::BF16, values.iter().flat_map(|v| v.to_le_bytes()[2..].to_vec()).collect());
    expect(Dtype::F64, values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect());
    let root = changed(&adapter(true), |_| {}, |t| drop(t.insert(key.clone(), (Dtype::I32, vec![3], vec![0; 12]))));
    assert_says(load_example(root.path()), &["/fc/MatMul.bias", "I32", "F32"]);
}

#[test]
fn missing_and_left_over_tensors_are_named() {
    for kind in [|_: &mut serde_json::Value| {}, plain] {
        let mut adapter = adapter(true);
        adapter.sites.retain(|s| s.key != "dw");
        let lost = name("grouped", "lora_B.weight");
        let root = changed(&adapter, kind, |t| drop(t.remove(&lost)));
        assert_says(load_example(root.path()), &[&lost, "`grouped`"]);
        let more = name("/fc/MatMull", "lora_A.weight");
        let root = changed(&adapter, kind, |t| drop(t.insert(more, (Dtype::F32, vec![1], floats(&[1.0])))));
        assert_says(load_example(root.path()), &["/fc/MatMull", "nearest: `/fc/MatMul`"]);
        let dora = name("net.stem", "lora_magnitude_vector");
        let root = changed(&adapter, kind, |t| drop(t.insert(dora, (Dtype::F32, vec![1], floats(&[1.0])))));
        assert_says(load_example(root.path()), &["lora_magnitude_vector", "nearest: `net.stem`"]);
    }
    let outside = name("grouped", "lora_A.weight");
    let root = changed(&adapter(true), |_| {}, |t| t.get_mut(&outside).unwrap().2.fill(63));
    assert_says(load_example(root.path()), &["`grouped`", "outside its group"]);
    let other = changed(&adapter(true), plain, |t| {
        let whole = example().0.values[6].values().unwrap().iter().map(|w| w + 1.0).collect::<Vec<f32>>();
        t.retain(|n, _| !n.contains(".accentor_"));
        t.insert(name("dw", "weight"), (Dtype::F32, vec![6, 1, 3, 4], floats(&whole)));
    });
    assert_says(load_example(other.path()), &["depthwise layer `dw`", "scale a channel"]);
}

#[test]
fn damaged_files_are_named() {
    let root = tempfile::tempdir().unwrap();
    assert_says(read(root.path()), &["adapter_config.json", "cannot read"]);
    let dir = root.path().join("adapter");
    write(&dir, &adapter(true)).unwrap();
    let (config, tensors) = (dir.join(ADAPTER_CONFIG), dir.join(ADAPTER_TENSORS));
    let (good_config, good_tensors) = (fs::read(&config).unwrap(), fs::read(&tensors).unwrap());
    fs::remove_file(&tensors).unwrap();
    assert_says(read(&dir), &["adapter_model.safetensors", "cannot read"]);
    for len in (0..good_tensors.len()).step_by(5) {
        fs::write(&tensors, &good_tensors[..len]).unwrap();
        assert_says(read(&dir), &["adapter_model.safetensors"]);
    }
    let header =
        |json: &str, data: usize| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat();
    let tensor = r#""x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    for bytes in [
        [&u64::MAX.to_le_bytes()[..], &[b'{'; 64]].concat(),
        [&(90_000_000u64).to_le_bytes()[..], &[b'{'; 64]].concat(),
        header(r#"{"x":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,4]}}"#, 4),
        header(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4),
        header(&format!("{{{tensor},{tensor}}}"), 4),
        header("[]", 0),
    ] {
        fs::write(&tensors, bytes).unwrap();
        assert_says(read(&dir), &["adapter_model.safetensors"]);
    }
    fs::write(&tensors, header(&format!("{{{tensor},{tensor}}}"), 4)).unwrap();
    assert_says(read(&dir), &["twice"]);
    fs::write(&tensors, &good_tensors).unwrap();
    for text in ["", "{", "[]", "null", r#"{"peft_type":"LORA","r":-1}"#, r#"{"peft_type":"LORA","r":1e99}"#] {
        fs::write(&config, text).unwrap();
        assert_says(read(&dir), &["adapter_config.json"]);
    }
    let newer = String::from_utf8(good_config).unwrap().replace(r#""format_version": 1"#, r#""format_version": 9"#);
    fs::write(&config, newer).unwrap();
    assert_says(read(&dir), &["version 9", "update accentor"]);
}

/// Whatever a byte turns into, reading ends with an adapter or an error.
#[test]
fn damage_never_panics() {
    let root = tempfile::tempdir().unwrap();
    let (graph, sites) = example();
    write_whole(root.path(), &adapter(true), &graph).unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    let (mut read, mut refused) = (0, 0);
    for file in [ADAPTER_CONFIG, ADAPTER_TENSORS] {
        let path = root.path().join(file);
        let good = fs::read(&path).unwrap();
        for _ in 0..600 {
            let mut bytes = good.clone();
            for _ in 0..rng.usize(1..3) {
                let at = rng.usize(..bytes.len());
                bytes[at] = if rng.bool() { rng.u8(b'0'..=b'9') } else { rng.u8(..) };
            }
            fs::write(&path, bytes).unwrap();
            match load(root.path(), &graph, &sites, None) {
                Ok(_) => read += 1,
                Err(_) => refused += 1,
            }
        }
        fs::write(&path, good).unwrap();
    }
    assert!(read > 100 && refused > 100, "{read} read, {refused} refused");
}

#[test]
fn an_interrupted_replacement_is_mended() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("adapter");
    write(&dir, &adapter(true)).unwrap();
    fs::rename(&dir, root.path().join(".adapter.previous")).unwrap();
    assert_eq!(read(&dir).unwrap(), adapter(true));
}

#[test]
fn layouts_of_dense_sites() {
    let mut adapter = adapter(true);
    adapter.sites.retain(|s| s.key == "/fc/MatMul");
    adapter.sites[0].layout = Layout::OutIn;
    adapter.sites[0].weight_shape = vec![3, 6];
    let root = changed(&adapter, |_| {}, |_| {});
    assert_eq!(read(root.path()).unwrap(), adapter);
}

#[test]
fn tensors_come_as_arrays_in_the_shapes_of_the_file() {
    let shapes = |adapter: &Adapter| -> Vec<(&'static str, Vec<usize>)> {
        let arrays = adapter.sites.iter().flat_map(AdapterSite::arrays);
        arrays.map(|(name, array)| (name, array.shape().to_vec())).collect()
    };
    let ranks: Vec<usize> = example().1.iter().map(|site| site.capped_rank(3)).collect();
    let mut expected = vec![
        ("lora_A", vec![ranks[0], 2, 3, 1]),
        ("lora_B", vec![4, ranks[0], 1, 1]),
        ("lora_A", vec![ranks[1], 2, 1, 2]),
        ("lora_B", vec![6, ranks[1] / 2, 1, 1]),
        ("accentor_scale", vec![6]),
        ("accentor_shift", vec![6]),
        ("lora_A", vec![ranks[3], 6]),
        ("lora_B", vec![3, ranks[3]]),
    ];
    assert_eq!(shapes(&adapter(false)), expected);
    expected.truncate(6);
    expected.extend([("weight", vec![6, 3]), ("bias", vec![3])]);
    assert_eq!(shapes(&adapter(true)), expected);
}

#[test]
fn an_embedding_has_the_names_of_peft() {
    let mut graph = Graph::default();
    let mut value = |name: &str, shape: &[usize], element, constant: bool| {
        let data = constant.then(|| vec![0.5; shape.iter().product()].into());
        let (name, shape, stored) = (name.to_owned(), shape.to_vec(), constant);
        graph.values.push(Value { name, shape, element, constant: data, stored, source: None, quantised: None });
        graph.values.len() - 1
    };
    let x = value("x", &[1, 4], Element::Integer, false);
    let words = value("words.weight", &[7, 5], Element::F32, true);
    let y = value("y", &[1, 4, 5], Element::F32, false);
    let op = Op::Gather(crate::graph::Indexing::Axis(0));
    graph.nodes.push(Node {
        name: "/words/Gather".to_owned(),
        op_type: "Gather".to_owned(),
        op,
        inputs: vec![words, x],
        outputs: vec![y],
    });
    (graph.inputs, graph.outputs) = (vec![x], vec![y]);
    let sites = graph.sites(y);
    assert_eq!((sites[0].key.as_str(), sites[0].kind, sites[0].layout), ("words", SiteKind::Embedding, Layout::Rows));
    assert!(crate::graph::choose(&graph, &sites, &crate::graph::Choice::Auto).is_empty());

    // A starts at zero and B does not, as PEFT's: the first forward pass is that of the file.
    let spec = crate::lora::AdapterSpec { rank: 2, alpha: 8.0, ..Default::default() };
    let mut rng = fastrand::Rng::with_seed(1);
    let mut adapter = Adapter::new(&graph, y, &sites, &spec, &mut rng);
    let Delta::LowRank { a, b, .. } = &mut adapter.sites[0].delta else { panic!("no pair") };
    assert!(a.len() == 14 && b.len() == 10 && a.iter().all(|a| *a == 0.0) && b.iter().all(|b| *b != 0.0));
    (0..).zip(a).for_each(|(i, a)| *a = i as f32);

    let root = tempfile::tempdir().unwrap();
    write(root.path(), &adapter).unwrap();
    let bytes = fs::read(root.path().join(ADAPTER_TENSORS)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut shapes: Vec<_> = file.iter().map(|(n, v)| (n.to_owned(), v.shape().to_vec())).collect();
    shapes.sort();
    let expected = [("lora_embedding_A", vec![2, 7]), ("lora_embedding_B", vec![5, 2])];
    assert_eq!(shapes, expected.map(|(tensor, shape)| (name("words", tensor), shape)));
    assert_eq!(load(root.path(), &graph, &sites, None).unwrap().0, adapter);

    let peft = changed(&adapter, plain, |_| ());
    assert_eq!(load(peft.path(), &graph, &sites, None).unwrap().0.sites, adapter.sites);
}
