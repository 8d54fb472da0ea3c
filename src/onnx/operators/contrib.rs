//! What optimisers of ONNX Runtime write.

use super::{Domain, Family, Operator};

const fn of(name: &'static str) -> Operator {
    Operator::of(name, 1).until(1).in_domain(Domain::Microsoft)
}

pub(super) const FAMILY: Family = Family {
    title: "As optimisers of ONNX Runtime write them",
    rows: &[
        of("Gelu"),
        of("BiasGelu"),
        of("FastGelu"),
        of("QuickGelu"),
        of("SimplifiedLayerNormalization"),
        of("SkipLayerNormalization"),
        of("SkipSimplifiedLayerNormalization"),
    ],
};
