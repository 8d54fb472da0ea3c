//! Attributes and constant inputs of an ONNX node.

use tract_onnx::pb::{AttributeProto, NodeProto};

/// Reads attributes by name.
pub(super) struct Attributes<'a>(pub(super) &'a NodeProto);

impl<'a> Attributes<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a AttributeProto> {
        self.0.attribute.iter().find(|a| a.name == name)
    }

    pub(super) fn int(&self, name: &str) -> Option<i64> {
        self.get(name).map(|a| a.i)
    }

    pub(super) fn float(&self, name: &str) -> Option<f32> {
        self.get(name).map(|a| a.f)
    }

    pub(super) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.get(name).map(|a| a.ints.as_slice())
    }

    pub(super) fn floats(&self, name: &str) -> Option<&'a [f32]> {
        self.get(name).map(|a| a.floats.as_slice())
    }

    /// What is not UTF-8 becomes empty.
    pub(super) fn strings(&self, name: &str) -> Option<Vec<&'a str>> {
        self.get(name).map(|a| a.strings.iter().map(|s| std::str::from_utf8(s).unwrap_or_default()).collect())
    }

    pub(super) fn string(&self, name: &str) -> Option<&'a str> {
        self.get(name).and_then(|a| std::str::from_utf8(&a.s).ok())
    }

    /// Whether the node holds a graph of its own (If, Loop, Scan).
    pub(super) fn has_graph(&self) -> bool {
        self.0.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty())
    }
}

/// `axis` in `0..rank`, counted from the end where negative.
pub(super) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let at = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(at).ok().filter(|a| *a < rank)
}
