//! docs/operators.md and the table that it is made of, against the program.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod scene;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use accentor::onnx::operators::{FAMILIES, Forward, find};
use regex_lite::Regex;
use scene::Scene;

/// Capitalised strings of the converter that are values of attributes.
const VALUES: [&str; 5] = ["NOTSET", "VALID", "SAME", "CRD", "DCR"];
/// The operators that issues ask for by name.
const ASKED: &str = "Conv ConvTranspose MatMul Gemm Add Sub Mul Div BatchNormalization Relu Clip LeakyRelu Sigmoid Tanh Max \
    Min MaxPool AveragePool GlobalAveragePool ReduceMean ReduceSum Reshape Flatten Transpose Squeeze Unsqueeze Concat Slice \
    Pad Softmax LogSoftmax Identity Cast Dropout LayerNormalization RMSNormalization InstanceNormalization \
    GroupNormalization PRelu HardSigmoid HardSwish Gelu Erf Exp Log Sqrt Pow Reciprocal Abs Neg Swish Mish Elu Selu Celu \
    Softplus ThresholdedRelu ReduceMax ReduceMin ReduceL2 ReduceLogSumExp ArgMax Where Gather GatherElements Split Expand \
    Tile Resize DepthToSpace SpaceToDepth Einsum GRU LSTM RNN CumSum Trilu QuantizeLinear \
    DequantizeLinear QLinearConv QLinearMatMul ConvInteger MatMulInteger DynamicQuantizeLinear";

/// What the converter names in its code.
fn converted() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/onnx");
    let mut files = vec![folder.join("convert.rs")];
    files.extend(fs::read_dir(folder.join("convert")).unwrap().map(|e| e.unwrap().path()));
    let name = Regex::new(r#""([A-Z][A-Za-z0-9]+)""#).unwrap();
    let mut found = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        for line in text.lines().filter(|l| !l.trim_start().starts_with("//")) {
            found.extend(name.captures_iter(line).map(|c| c[1].to_owned()));
        }
    }
    found.retain(|n| !VALUES.contains(&n.as_str()));
    found
}

#[test]
fn the_file_is_what_the_command_says() {
    let output = Scene::new().run("operators --markdown");
    assert!(output.status.success());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operators.md");
    let file = fs::read_to_string(&path).unwrap();
    assert!(
        file == String::from_utf8(output.stdout).unwrap(),
        "docs/operators.md is old: cargo run --release -- operators --markdown > docs/operators.md"
    );
}

#[test]
fn the_table_is_what_the_converter_lowers() {
    let converted = converted();
    let rows: Vec<_> = FAMILIES.iter().flat_map(|f| f.rows).collect();
    let named: BTreeSet<&str> = rows.iter().map(|r| r.name).collect();
    let missing: Vec<_> = converted.iter().filter(|n| !named.contains(n.as_str())).collect();
    assert!(missing.is_empty(), "no row in src/onnx/operators for {missing:?}");
    let own = rows.iter().filter(|r| r.forward == Forward::Own);
    let dead: Vec<_> = own.filter(|r| !converted.contains(r.name)).map(|r| r.name).collect();
    assert!(dead.is_empty(), "the converter does not lower {dead:?}");
    for (i, row) in rows.iter().enumerate() {
        assert!(!rows[..i].iter().any(|r| r.name == row.name && r.domain == row.domain), "{} twice", row.name);
        assert!(row.since <= row.until, "{}", row.name);
    }
}

#[test]
fn every_operator_asked_for_has_a_row() {
    let missing: Vec<&str> = ASKED.split_whitespace().filter(|n| find("", n).is_none()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
