//! A small model built by hand, edited, and damaged in every way.

use super::half::{bf16_bits, f16_bits};
use super::{
    ATTRIBUTE_TENSOR, BYTES, Contents, Edit, Field, FileTensor, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_NODE, MAX_DEPTH,
    MODEL_GRAPH, NODE_ATTRIBUTE, Replacement, VARINT, WireError, edit, f16_value, fields, replace_tensors,
};

/// Field builders, so that a test reads like onnx.proto3.
pub(crate) mod build {
    pub(crate) fn varint(mut value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
        out
    }

    pub(crate) fn int(number: u64, value: u64) -> Vec<u8> {
        [varint(number << 3), varint(value)].concat()
    }

    pub(crate) fn bytes(number: u64, payload: impl AsRef<[u8]>) -> Vec<u8> {
        let payload = payload.as_ref();
        [&varint(number << 3 | 2)[..], &varint(payload.len() as u64), payload].concat()
    }

    pub(crate) fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// TensorProto with `payload` fields.
    pub(crate) fn tensor(name: &str, shape: &[usize], data_type: u64, payload: &[u8]) -> Vec<u8> {
        let dims: Vec<u8> = shape.iter().flat_map(|d| int(1, *d as u64)).collect();
        [&dims[..], &int(2, data_type), &bytes(8, name), payload].concat()
    }

    pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str], rest: &[u8]) -> Vec<u8> {
        let inputs: Vec<u8> = inputs.iter().flat_map(|i| bytes(1, i)).collect();
        let outputs: Vec<u8> = outputs.iter().flat_map(|o| bytes(2, o)).collect();
        bytes(1, [&inputs[..], &outputs, &bytes(4, op), rest].concat())
    }

    pub(crate) fn model(ir_version: u64, graph: &[Vec<u8>]) -> Vec<u8> {
        [int(1, ir_version), bytes(2, "by hand"), bytes(7, graph.concat()), bytes(8, int(2, 13))].concat()
    }
}

use build::{bytes, floats, int, model, node, tensor, varint};

const OLD: [f32; 4] = [1.0, 2.0, 3.0, 4.0];
const NEW: [f32; 4] = [-1.5, 0.25, 1e-3, 70.0];

/// One tensor in each form that a file may hold it in, and a subgraph that reads one of them.
fn forms() -> Vec<u8> {
    let halves: Vec<u8> = OLD.iter().flat_map(|v| f16_bits(*v).to_le_bytes()).collect();
    let half_list: Vec<u8> = OLD.iter().flat_map(|v| varint(f16_bits(*v).into())).collect();
    let doubles: Vec<u8> = OLD.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    let singles: Vec<u8> = OLD.iter().flat_map(|v| [&[4 << 3 | 5][..], &v.to_le_bytes()].concat()).collect();
    let init = |name: &str, data_type, payload: Vec<u8>| bytes(5, tensor(name, &[2, 2], data_type, &payload));
    let value =
        bytes(5, [bytes(1, "value"), bytes(5, tensor("", &[4], 1, &bytes(9, floats(&OLD)))), int(20, 4)].concat());
    let list = bytes(5, [bytes(1, "value_floats"), bytes(7, floats(&OLD)), int(20, 6)].concat());
    let subgraph = bytes(5, [bytes(1, "then_branch"), bytes(6, node("Neg", &["raw"], &["y"], &[]))].concat());
    let external = [bytes(13, bytes(1, "location")), int(14, 1)].concat();
    model(
        8,
        &[
            node("Constant", &[], &["constant"], &value),
            node("Constant", &[], &["list"], &list),
            init("raw", 1, bytes(9, floats(&OLD))),
            init("packed", 1, bytes(4, floats(&OLD))),
            init("single", 1, singles),
            init("half", 10, bytes(9, halves)),
            init("half_list", 10, bytes(5, half_list)),
            init("double", 11, bytes(10, &doubles)),
            init("double_raw", 11, bytes(9, &doubles)),
            init("external", 1, external),
            init("int", 7, bytes(9, [0; 32])),
            // A field that no version of ONNX has.
            bytes(99, "unknown"),
            node("MatMul", &["x", "raw"], &["m"], &bytes(3, "dense")),
            node("If", &["c"], &["z"], &subgraph),
            bytes(12, bytes(1, "z")),
        ],
    )
}

/// Values of `name` in any form, read by a second, naive walk.
fn values(file: &[u8], name: &str) -> Vec<f32> {
    fn walk(message: &[u8], name: &str, constant: bool, found: &mut Vec<f32>) {
        let all: Vec<Field<'_>> = fields(message).map(|f| f.unwrap()).collect();
        let has = |number, text: &str| all.iter().any(|f| f.is(number, BYTES) && f.bytes == text.as_bytes());
        let kind = all.iter().find(|f| f.is(2, VARINT)).map_or(0, |f| f.value);
        if constant || has(8, name) {
            for f in all.iter().filter(|f| [4, 5, 7, 9, 10].contains(&f.number)) {
                match (f.number, kind) {
                    (9, 10) => found.extend(f.bytes.chunks(2).map(|b| f16_value(u16::from_le_bytes([b[0], b[1]])))),
                    (5, 10) => {
                        let mut list = fields(f.bytes);
                        while list.at < f.bytes.len() {
                            found.push(f16_value(list.varint().unwrap() as u16));
                        }
                    }
                    (9 | 10, 11) => {
                        found.extend(f.bytes.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32))
                    }
                    (4 | 7 | 9, 0 | 1) => {
                        found.extend(f.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())))
                    }
                    _ => {}
                }
            }
        }
    }
    let mut found = Vec::new();
    for graph in fields(file).map(|f| f.unwrap()).filter(|f| f.is(MODEL_GRAPH, BYTES)) {
        for f in fields(graph.bytes).map(|f| f.unwrap()) {
            if f.is(GRAPH_INITIALIZER, BYTES) {
                walk(f.bytes, name, false, &mut found);
            } else if f.is(GRAPH_NODE, BYTES)
                && fields(f.bytes).any(|f| f.is_ok_and(|f| f.is(2, BYTES) && f.bytes == name.as_bytes()))
            {
                for a in fields(f.bytes).map(|f| f.unwrap()).filter(|f| f.is(NODE_ATTRIBUTE, BYTES)) {
                    walk(a.bytes, name, true, &mut found);
                    for t in fields(a.bytes).map(|f| f.unwrap()).filter(|f| f.is(ATTRIBUTE_TENSOR, BYTES)) {
                        walk(t.bytes, name, true, &mut found);
                    }
                }
            }
        }
    }
    found
}

fn replacement<'a>(name: &'a str, values: &'a [f32]) -> Replacement<'a> {
    let shape: &[usize] = if ["constant", "list"].contains(&name) { &[4] } else { &[2, 2] };
    Replacement { name, values, shape }
}

#[test]
fn every_form_is_replaced_in_its_own_form() {
    let file = forms();
    let names = ["constant", "list", "raw", "packed", "single", "half", "half_list", "double", "double_raw"];
    for name in names {
        assert_eq!(values(&file, name), OLD, "{name}");
        let edited = replace_tensors(&file, &[replacement(name, &NEW)]).unwrap();
        let expected: Vec<f32> =
            if name.starts_with("half") { NEW.iter().map(|v| f16_value(f16_bits(*v))).collect() } else { NEW.into() };
        assert_eq!(values(&edited, name), expected, "{name}");
        if name != "half_list" {
            let changed = file.iter().zip(&edited).filter(|(a, b)| a != b).count();
            assert!(edited.len() == file.len() && changed <= 32, "{name}: {changed} bytes changed");
        }
        names.iter().filter(|n| **n != name).for_each(|n| assert_eq!(values(&edited, n), OLD, "{name} changed {n}"));
        assert_eq!(replace_tensors(&edited, &[replacement(name, &OLD)]).unwrap(), file, "{name} and back");
    }
    let all: Vec<Replacement<'_>> = names.iter().map(|n| replacement(n, &NEW)).collect();
    let edited = replace_tensors(&file, &all).unwrap();
    names.iter().for_each(|n| assert_ne!(values(&edited, n), OLD, "{n}"));
    assert_eq!(replace_tensors(&file, &[]).unwrap(), file);
}

#[test]
fn an_initializer_is_added_and_read() {
    for (ir_version, inputs) in [(8, 0), (3, 1)] {
        let file = model(
            ir_version,
            &[
                bytes(5, tensor("w", &[2, 2], 1, &bytes(9, floats(&OLD)))),
                node("Conv", &["x", "w"], &["y"], &bytes(3, "conv")),
                node("Conv", &["x", "w"], &["z"], &[]),
            ],
        );
        let tensor = Replacement { name: "b", values: &NEW, shape: &[4] };
        let edits = [Edit::AddInitializer { tensor, like: "w" }, Edit::SetInput { node: 1, input: 2, name: "b" }];
        let edited = edit(&file, &edits).unwrap();
        let contents = Contents::read(&edited).unwrap();
        assert_eq!(contents.nodes[0].inputs, ["x", "w"]);
        assert_eq!(contents.nodes[1].inputs, ["x", "w", "b"]);
        assert_eq!(contents.tensors["b"], FileTensor { shape: vec![4], data_type: 1, external: false });
        assert_eq!((contents.uses("w"), contents.uses("b"), contents.writer("z")), (2, 1, Some(1)));
        assert_eq!(values(&edited, "b"), NEW);
        let graph = fields(&edited).map(|f| f.unwrap()).find(|f| f.is(MODEL_GRAPH, BYTES)).unwrap();
        assert_eq!(fields(graph.bytes).filter(|f| f.as_ref().is_ok_and(|f| f.is(GRAPH_INPUT, BYTES))).count(), inputs);
        assert!(matches!(edit(&edited, &edits[..1]), Err(WireError::Twice { .. })));
    }
}

#[test]
fn contents_follow_subgraphs() {
    let file = forms();
    let contents = Contents::read(&file).unwrap();
    assert_eq!(contents.uses("raw"), 2);
    assert_eq!(contents.uses("z"), 1);
    assert_eq!(contents.nodes[2].op_type, "MatMul");
    assert_eq!(contents.tensors["list"].shape, [4]);
    let mut nested = node("Neg", &["raw"], &["y"], &[]);
    for _ in 0..MAX_DEPTH + 8 {
        nested = node("If", &["c"], &["z"], &bytes(5, bytes(6, nested)));
    }
    assert!(Contents::read(&model(8, &[nested])).unwrap_err().to_string().contains("subgraphs"));
}

#[test]
fn what_cannot_be_changed_says_why() {
    let file = forms();
    let error = |name: &str, shape: &[usize], values: &[f32]| {
        replace_tensors(&file, &[Replacement { name, values, shape }]).unwrap_err()
    };
    assert!(error("external", &[2, 2], &NEW).to_string().contains("external data"));
    assert!(matches!(error("int", &[2, 2], &NEW), WireError::DataType { data_type: 7, .. }));
    assert!(error("row", &[2, 2], &NEW).to_string().contains("`row`"));
    assert!(matches!(error("raw", &[4], &NEW), WireError::Shape { .. }));
    assert!(matches!(error("raw", &[2, 2], &NEW[1..]), WireError::Shape { .. }));
    assert!(matches!(error("half", &[2, 2], &[1.0, 2.0, 65520.0, 0.0]), WireError::Range { .. }));
    let twice = [replacement("raw", &NEW), replacement("raw", &OLD)];
    assert!(matches!(replace_tensors(&file, &twice), Err(WireError::Twice { .. })));
    for (node, input) in [(99, 0), (0, usize::MAX)] {
        assert!(matches!(edit(&file, &[Edit::SetInput { node, input, name: "raw" }]), Err(WireError::NoNode { .. })));
    }
    assert!(matches!(Contents::read(b""), Err(WireError::Malformed { .. })));
    assert!(matches!(Contents::read(b"RIFF....WAVEfmt "), Err(WireError::Malformed { .. })));
}

/// No input makes it panic or allocate more than the input is long.
#[test]
fn damaged_files_are_refused_or_copied() {
    let file = forms();
    let edits = [
        Edit::Replace(replacement("raw", &NEW)),
        Edit::Replace(replacement("constant", &NEW)),
        Edit::AddInitializer { tensor: Replacement { name: "new", values: &NEW, shape: &[4] }, like: "half" },
        Edit::SetInput { node: 2, input: 1, name: "new" },
    ];
    assert!(edit(&file, &edits).is_ok());
    for len in 0..file.len() {
        let _ = edit(&file[..len], &edits);
    }
    let mut rng = fastrand::Rng::with_seed(1);
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut damaged = file.clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..damaged.len());
            match rng.u8(..3) {
                0 => damaged[at] ^= 1 << rng.u8(..8),
                1 => damaged[at] = rng.u8(..),
                _ => drop(damaged.drain(at..(at + rng.usize(..9)).min(damaged.len()))),
            }
            if damaged.is_empty() {
                break;
            }
        }
        match edit(&damaged, &edits) {
            Ok(edited) => assert!(edited.len() <= damaged.len() + 200),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 1000, "only {refused} refused");
}

#[test]
fn halves_round_to_nearest_even() {
    for bits in 0..=u16::MAX {
        let value = f16_value(bits);
        if value.is_nan() {
            assert!(f16_value(f16_bits(value)).is_nan());
        } else {
            assert_eq!(f16_bits(value), bits);
        }
    }
    // Between two neighbours: below the middle down, above it up, in the middle to the even one.
    for bits in (0..0x7bff).step_by(7) {
        let (low, high) = (f16_value(bits), f16_value(bits + 1));
        let middle = (low + high) / 2.0;
        assert_eq!(f16_bits(middle), bits + bits % 2);
        assert_eq!(f16_bits(f32::from_bits(middle.to_bits() - 1)), bits);
        assert_eq!(f16_bits(-f32::from_bits(middle.to_bits() + 1)), 0x8000 | (bits + 1));
    }
    let upper = |bits: u32| bf16_bits(f32::from_bits(bits));
    // Below, at and above the middle of two, after an even and after an odd one; a carry into the exponent.
    assert_eq!(
        [upper(0x3f80_7fff), upper(0x3f80_8000), upper(0x3f80_8001), upper(0x3f81_8000)],
        [0x3f80, 0x3f80, 0x3f81, 0x3f82]
    );
    assert_eq!((upper(0x3fff_ffff), upper(0x7f7f_ffff), bf16_bits(f32::INFINITY)), (0x4000, 0x7f80, 0x7f80));
    assert!(upper(0x7f80_0001) > 0x7f80);
    assert_eq!((f16_bits(65519.0), f16_bits(65520.0), f16_bits(1e-8)), (0x7bff, 0x7c00, 0));
}
